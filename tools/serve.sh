#!/usr/bin/env bash
# Serves what the demo published, asks it once, and waits; Ctrl-C stops the server and its Redis.
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
# shellcheck source=tools/demo.env.sh
source "$root/tools/demo.env.sh"
cd "$root"

[[ -f $source_file ]] || die "nothing to serve yet: run 'make demo' first"
use_source "$(<"$source_file")"
server=
answer=$(mktemp)

# Called by the trap; TERM lets the server drain before it goes.
stop() {
    trap - EXIT INT TERM
    if [[ -n $server ]]; then
        kill -TERM "$server" 2>/dev/null || true
        wait "$server" 2>/dev/null || true
    fi
    "$root/tools/redis.sh" stop "$redis_port" "$redis_dir"
    rm -f "$answer"
}
trap stop EXIT
trap 'stop; exit 0' INT TERM

wait_until_ready() {
    local attempt
    for ((attempt = 0; attempt < 600; attempt++)); do
        curl --noproxy '*' -fsS -o /dev/null "$address/readyz" 2>/dev/null && return
        kill -0 "$server" 2>/dev/null || die "the server ended before it was ready (is port $port taken?)"
        sleep 0.2
    done
    die "not ready after two minutes: $address/readyz"
}

# The answer as indented JSON with the first two of its items.
print_shortened() {
    python3 - "$1" <<'PYTHON'
import json, sys
answer = json.load(open(sys.argv[1]))
items = answer["items"]
answer["items"] = items[:2]
text = json.dumps(answer, indent=2, ensure_ascii=False)
print(text)
print(f"... and {max(len(items) - 2, 0)} more items")
PYTHON
}

"$root/tools/redis.sh" start "$redis_port" "$redis_dir"
say "serving on $address"
if curl --noproxy '*' -sS -o /dev/null "$address/healthz" 2>/dev/null; then
    die "something answers on $address already: stop it, or choose another with PORT="
fi
"$binary" --config "$config" serve &
server=$!
wait_until_ready

body="{\"user_id\": \"$known_user\", \"num_items\": 20, \"timings\": true}"
curl --noproxy '*' -fsS "$address/v1/recommendations" -H 'content-type: application/json' -d "$body" -o "$answer" ||
    die "the server is ready but gave no recommendations to user $known_user"
print_shortened "$answer"

cat <<TEXT

Ask it yourself:
  curl -s $address/v1/recommendations -H 'content-type: application/json' -d '$body'
The page:
  $address/
TEXT

if [[ ${DEMO_EXIT:-} == 1 ]]; then
    exit 0
fi
printf '\nCtrl-C stops it.\n'
wait "$server"
