#!/usr/bin/env bash
# Stops the demo's Redis and deletes what the demo made under var/. The download stays in the cache,
# and bundles stay in models/: they may be somebody's own, so deleting them is nobody else's decision.
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
# shellcheck source=tools/demo.env.sh
source "$root/tools/demo.env.sh"

"$root/tools/redis.sh" stop "$redis_port" "$redis_dir"
rm -rf "$root/var/demo" "$root/var/demo-generated"
if [[ -d $root/models/bundles ]]; then
    printf 'bundles are kept; to delete them: rm -r models/bundles models/rollout\n'
fi
