#!/usr/bin/env bash
# DataFusion and Spark over the same data, every table compared row by row.
# SHORTLIST_OVERWRITE=1 writes tests/golden/sql again, from Spark.
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"
"$root/tools/setup.sh" demo
use_cmake
SHORTLIST_TEST_SPARK=$("$root/tools/spark.sh")
export SHORTLIST_TEST_SPARK PYSPARK_PYTHON=$tools/spark/bin/python
cargo test --release --locked --test sql_engines -- --nocapture
