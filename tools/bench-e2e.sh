#!/usr/bin/env bash
# The request path under load: bench/record/e2e.csv. ITEMS=10000000 and USERS=1000000 take hours to
# prepare, 25 GB of disk and 16 GB of memory; what is prepared stays in WORK and is used again.
# The server has core 0; the load and Redis have core 1. SCENARIOS names what is measured after the peak.
# original-stack: the peer (bench/peers/original_stack.py) has STACK_ITEMS items and stays in WORK too.
# PEAK=1500 takes that for the peak, measures the scenarios alone and keeps what the record says of the rest.
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"
items=${ITEMS:-10000000} users=${USERS:-1000000} port=${PORT:-8300} redis_port=${REDIS_PORT:-8301}
stack_items=${STACK_ITEMS:-1000000} stack_users=${STACK_USERS:-100000} stack_port=$((port + 2))
base_items=${BASE_ITEMS:-200000} base_users=${BASE_USERS:-40000}
read -ra scenarios <<<"${SCENARIOS-original-stack overload swap nginx redis-down}"
work=$(realpath -m "${WORK:-$CARGO_TARGET_DIR/bench-e2e}/$items")
stack=$(realpath -m "${WORK:-$CARGO_TARGET_DIR/bench-e2e}/original-stack-$stack_items")
name=$((items / 1000))k
((items % 1000000)) || name=$((items / 1000000))m
for needed in redis-server redis-cli taskset; do has "$needed" || die "no $needed: run 'make setup'"; done
nginx=${NGINX:-/usr/sbin/nginx}
wants() { [[ " ${scenarios[*]} " == *" $1 "* ]]; }
if wants nginx && [[ ! -x $nginx ]]; then
    die "no $nginx: apt-get install nginx-light, or leave nginx out of SCENARIOS"
fi
"$root/tools/setup.sh" all
use_cmake
cargo build --release --locked --bin shortlist --bench load
load=$(cargo build --release --locked --bench load --message-format=json 2>/dev/null |
    sed -n 's/.*"name":"load".*"executable":"\([^"]*\)".*/\1/p')

started=()
answers() { [[ $(redis-cli -p "$redis_port" ping 2>/dev/null) == PONG ]]; }
finish() {
    # redis-down leaves a Redis that this script did not start.
    ((redis_is_ours == 0)) || redis-cli -p "$redis_port" shutdown nosave >/dev/null 2>&1 || true
    ((${#started[@]} == 0)) || kill "${started[@]}" 2>/dev/null || true
    wait
}
redis_is_ours=0
trap finish EXIT

# A configuration of its own for a world: the generated demo's, with one day's evaluation.
configure() {
    local dir=$1
    mkdir -p "$dir/log"
    sed -e "s#var/demo-generated#$dir#; s#models/demo-generated#$dir/models#" \
        -e "s#^port = .*#port = $port#; s#127.0.0.1:6390#127.0.0.1:$redis_port#" \
        -e 's#^clock_starts_at = .*#clock_starts_at = "2026-01-15T09:00:00Z"#' \
        -e 's#^ranker_days = 3#ranker_days = 2#; s#^test_days = 2#test_days = 1#' \
        -e 's#^warm_up_days = 2#warm_up_days = 1#; s#^validation_days = 2#validation_days = 1#' \
        config/demo-generated.toml >"$dir/shortlist.toml"
    # Whole requests, a real forest, and a cache so small that Redis is really asked.
    cat >>"$dir/shortlist.toml" <<-'TOML'

	[offline.ranker]
	rounds_max = 300
	patience_rounds = 300
	requests_per_day_max = 1000

	# The ids of all items, hashed twice, are more than the usual 4 GB.
	[offline.sql]
	memory_max_bytes = 12000000000

	[towers]
	epochs_max = 1

	[store.local]
	users_max = 10000
	TOML
}

generate() {
    local dir=$1
    shift
    [[ -e $dir/data/world.json ]] || "$binary" generate "$@" --days 14 --no-vectors --out "$dir/data"
}

say "A world of $items items and $users users"
configure "$work"
configure "$work/base"
generate "$work" --items "$items" --users "$users" --events $((16 * users))
if [[ ! -d $work/models/bundles ]]; then
    say "Models from $base_items items, then the large catalogue under them"
    generate "$work/base" --items "$base_items" --users "$base_users" --events $((50 * base_users))
    "$binary" --config "$work/base/shortlist.toml" pipeline run --override bench-e2e
    "$binary" --config "$work/shortlist.toml" pipeline refresh --bundle "$(echo "$work"/base/models/bundles/*)"
fi

# A machine that ran for long has few huge pages left, and the kernel then makes some beside the measurement
# (docs/decisions/0022).
if [[ -w /proc/sys/vm/compact_memory ]]; then
    sync
    echo 3 >/proc/sys/vm/drop_caches
    echo 1 >/proc/sys/vm/compact_memory
fi

say "Redis and its users"
answers && die "Redis answers on port $redis_port already: set REDIS_PORT to a free one"
redis_is_ours=1
taskset -c 1 redis-server --port "$redis_port" --bind 127.0.0.1 --save "" --appendonly no --dir "$work" >"$work/redis.log" &
started+=($!)
until answers; do sleep 0.1; done
"$binary" --config "$work/shortlist.toml" features materialize --embeddings --histories
# 2026-01-15 08:00, an hour before the server's clock starts.
python3 bench/peers/e2e_users.py --port "$redis_port" --users "$users" --items "$items" --time-ms 1768464000000

if wants original-stack; then
    say "The original stack with $stack_items items"
    peers=$cache/bench-e2e
    if ! "$peers/bin/python" -c 'import faiss, fastapi, hiredis, lightgbm, orjson, pyarrow, uvloop' 2>/dev/null; then
        python3 -m venv "$peers"
        "$peers/bin/python" -m pip install --quiet --disable-pip-version-check numpy pyarrow orjson fastapi \
            'faiss-cpu==1.15.*' 'lightgbm==4.6.*' 'redis[hiredis]' 'uvicorn[standard]' </dev/null
    fi
    peer=(taskset -c 0 "$peers/bin/python" bench/peers/original_stack.py)
    if [[ ! -e $stack/model.txt ]]; then
        rm -rf "$stack"
        "$binary" generate --items "$stack_items" --users 1000 --days 0 --queries 4000 --noise 0.2 --out "$stack/world"
        "${peer[@]}" build --dir "$stack" --world "$stack/world"
    fi
    "${peer[@]}" fill --dir "$stack" --redis "redis://127.0.0.1:$redis_port/1" --users "$stack_users"
fi

# Until a process answers on its port: PID PORT LOG.
until_ready() {
    until curl -sf "http://127.0.0.1:$2/readyz" >/dev/null; do
        kill -0 "$1" 2>/dev/null || die "the server ended: $3"
        sleep 0.5
    done
}

# `serve MIN`: the least quality factor; 1 keeps requests whole, and only overload lowers it.
serve() {
    SHORTLIST__EXECUTOR__QUALITY__MIN=$1 taskset -c 0 "$binary" --config "$work/shortlist.toml" serve >"$work/server.log" 2>&1 &
    server=$!
    started+=("$server")
    until_ready "$server" "$port" "$work/server.log"
}
stop() { kill "$server" 2>/dev/null && wait "$server" || true; }

mkdir -p bench/record
csv=$root/bench/record/e2e.csv
# The record keeps other machines' rows and the peers'.
machine=$(python3 bench/peers/machine.py)
run=$(date +%s | sha256sum | head -c 8)
works=("${scenarios[@]}")
[[ -n ${PEAK:-} ]] || works+=("$name")
for work_name in "${works[@]}"; do
    [[ ! -e $csv ]] || sed -i "/^[^,]*,$work_name,.*,$machine\$/d" "$csv"
done
# One user in a hundred is not in Redis.
common=(--load "$load" --users "$((users * 100 / 99))" --csv "$csv" --run-id "$run"
    --url "http://127.0.0.1:$port/v1/recommendations")
serve 1.0
peak=${PEAK:-}
if [[ -z $peak ]]; then
    say "Saturation, and half of it"
    python3 -u bench/peers/e2e.py "${common[@]}" --work "$name" --pid "$server" --plot "${csv%.csv}.svg"
    peak=$(awk -F, -v run="$run" '$1 == run && $5 == "rps_per_core" { print $6 }' "$csv")
fi

for scenario in "${scenarios[@]}"; do
    say "$scenario"
    more=()
    case $scenario in
    original-stack)
        "${peer[@]}" serve --dir "$stack" --redis "redis://127.0.0.1:$redis_port/1" --port "$stack_port" \
            >"$work/original-stack.log" 2>&1 &
        peer_pid=$!
        started+=("$peer_pid")
        until_ready "$peer_pid" "$stack_port" "$work/original-stack.log"
        more=(--stack-url "http://127.0.0.1:$stack_port/v1/recommendations" --stack-users "$((stack_users * 100 / 99))")
        ;;
    overload) stop; serve 0.3; more=(--pid "$server") ;;
    swap) stop; serve 1.0; more=(--registry "$work/models") ;;
    nginx) stop; more=(--bin "$binary" --config "$work/shortlist.toml" --nginx "$nginx") ;;
    redis-down) stop; serve 1.0; more=(--redis-port "$redis_port") ;;
    *) die "SCENARIOS: no $scenario; overload, swap, nginx, redis-down" ;;
    esac
    python3 -u bench/peers/e2e_scenarios.py "$scenario" "${common[@]}" --rate "$peak" "${more[@]}"
    [[ $scenario != original-stack ]] || kill "$peer_pid"
done
say "Written to $csv"
