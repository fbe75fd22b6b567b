# The few commands of Shortlist. Each calls one script in tools/; `make help` lists them.
# SHORTLIST_CACHE (~/.cache/shortlist) holds what outlives a clone; CARGO_TARGET_DIR defaults to it.

.DEFAULT_GOAL := help
.PHONY: help setup build test test-feast test-spark test-onnx test-cuda check demo clean-demo serve simulate bench-sql bench-quality bench-forest bench-index bench-e2e fuzz sanitize

help: ## list the commands
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is missing; quiet when nothing is
	@tools/setup.sh all

build: ## build the release binary
	@tools/build.sh

test: ## what CI runs: build, fmt, clippy, every test against a Redis of its own
	@tools/test.sh

test-feast: ## the real Feast and Shortlist read from Redis what the other wrote; installs Feast in the cache
	@tools/test-feast.sh

test-cuda: ## products and a step of training on a CUDA device; says so where there is none. Needs no toolkit
	@tools/test-cuda.sh

test-onnx: ## the exported towers give the same vectors by onnxruntime; installs it in the cache
	@tools/test-onnx.sh

test-spark: ## DataFusion and Spark make the same tables; installs PySpark, needs Java 17
	@tools/test-spark.sh

check: test ## test, plus documentation, the serving-only build and cargo-deny
	@tools/check.sh

demo: ## fetch the demo data, run the daily pipeline, serve it (PORT=8080, DEMO_EXIT=1 to end after one answer)
	@tools/demo.sh

clean-demo: ## stop the demo's Redis and delete its data; bundles stay
	@tools/clean-demo.sh

serve: build ## serve what the demo published, without running the pipeline again
	@tools/serve.sh

simulate: ## five days of the closed loop on a generated world -> bench/record/loop.csv (DAYS, ITEMS, USERS, VISITS)
	@tools/simulate.sh

bench-forest: ## the forest evaluator beside LightGBM and lleaves -> bench/record/forest.csv (CORE=1 pins it)
	@tools/bench-forest.sh

bench-index: ## the index beside FAISS on the same vectors -> bench/record/index.csv (WORKS="synthetic-1m ...")
	@tools/bench-index.sh

bench-sql: ## seconds and memory of the SQL on both engines -> bench/record/day.csv (MILLIONS="1 10", ENGINES)
	@tools/bench-sql.sh

bench-quality: ## towers, ranker and path beside EASE, ALS, item-kNN -> bench/record/quality.csv (WORKS, SEEDS, PEERS)
	@tools/bench-quality.sh

bench-e2e: ## the server under load -> bench/record/e2e.csv (ITEMS, USERS, SCENARIOS; hours at 10M items)
	@tools/bench-e2e.sh

fuzz: ## mutate index files and forest texts for FUZZ_S=600 seconds each
	@tools/fuzz.sh

sanitize: ## the tests that reach unsafe code, under AddressSanitizer
	@tools/sanitize.sh
