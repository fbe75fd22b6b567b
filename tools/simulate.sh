#!/usr/bin/env bash
# The closed loop on a generated world: each day is served, its users click, what they did is logged, and the
# models of the next day learn from it. CTR of each day beside that of the best and of random answers:
# bench/record/loop.csv. DAYS=5 ITEMS=2000 USERS=2000 VISITS=3 (half a minute a day on two cores).
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"
[[ -n ${BINARY:-} ]] || "$root/tools/build.sh"
binary=${BINARY:-$binary}
days=${DAYS:-5} items=${ITEMS:-2000} users=${USERS:-2000} visits=${VISITS:-3}
past=${PAST_DAYS:-7} start=${START:-2026-01-01}
dir=${SIMULATE_DIR:-$cache/simulate}
record=${RECORD:-$root/bench/record/loop.csv}
port=$(free_port)
server=

stop() {
    if [[ -n $server ]]; then
        kill -TERM "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
        server=
    fi
}
trap stop EXIT
trap 'exit 130' INT TERM

day() { date -u -d "$start + $1 days" +%F; }
shortlist() { "$binary" --config "$root/config/simulate.toml" "$@"; }
export RUST_LOG=${RUST_LOG:-warn}
export SHORTLIST__OFFLINE__DATA_DIR=$dir/data SHORTLIST__EVENTS__DIR=$dir/data
export SHORTLIST__OFFLINE__WORK_DIR=$dir/work SHORTLIST__REGISTRY__URL=$dir/models
export SHORTLIST__SERVER__PORT=$port

say "a world of $items items and $users users with $past days of a past, in $dir"
rm -rf "$dir"
mkdir -p "$dir"
# The logging policy of the past shows what users like in part; six impressions a user and day teach little.
"$binary" generate --out "$dir/data" --items "$items" --users "$users" --days "$past" \
    --start-date "$start" --events-per-user-day "${PAST_EVENTS:-6}" --no-vectors

run_id=$(head -c 4 /dev/urandom | od -An -tx1 | tr -d ' \n')
for ((n = 1; n <= days; n++)); do
    today=$(day $((past + n - 1)))
    say "day $n, $today: train on what was logged"
    # So small a world need not beat popularity, and the day must go on.
    shortlist pipeline run --override "the simulated day $today" >"$dir/pipeline-$n.log" 2>&1 ||
        die "the pipeline stopped: $dir/pipeline-$n.log"
    SHORTLIST__PIPELINE__CLOCK_STARTS_AT=${today}T09:00:00Z \
        "$binary" --config "$root/config/simulate.toml" serve >"$dir/serve-$n.log" 2>&1 &
    server=$!
    for ((attempt = 0; ; attempt++)); do
        curl --noproxy '*' -fsS -o /dev/null "http://127.0.0.1:$port/readyz" 2>/dev/null && break
        ((attempt < 600)) && kill -0 "$server" 2>/dev/null || die "the server did not start: $dir/serve-$n.log"
        sleep 0.2
    done
    shortlist simulate --world "$dir/data" --url "http://127.0.0.1:$port" --visits "$visits" --seed "$n" \
        --json >"$dir/day-$n.json"
    stop
    python3 - "$dir/day-$n.json" "$n" "$run_id" "$record" "items=$items users=$users visits=$visits" <<'PYTHON'
import csv, datetime, json, os, platform, sys
path, day, run_id, record, setting = sys.argv[1:]
o = json.load(open(path))
learnt = (o["true_ctr"] - o["random_ctr"]) / (o["oracle_ctr"] - o["random_ctr"])
print(f"day {day}: CTR measured {o['measured_ctr']:.4f} [{o['measured_low']:.4f}, {o['measured_high']:.4f}], "
      f"true {o['true_ctr']:.4f}; random {o['random_ctr']:.4f}, oracle {o['oracle_ctr']:.4f}: {learnt:.0%} of the way")
machine = f"{platform.machine()} x{os.cpu_count()}"
with open(record, "a", newline="") as file:
    out = csv.writer(file, lineterminator="\n")
    for metric in ("measured_ctr", "measured_low", "measured_high", "true_ctr", "random_ctr", "oracle_ctr"):
        out.writerow([run_id, "closed-loop", "shortlist", f"day={day} {setting}", metric, f"{o[metric]:.5f}", "share",
                      datetime.date.today(), machine])
PYTHON
done
say "what the days led to"
shortlist report --days "$days"
