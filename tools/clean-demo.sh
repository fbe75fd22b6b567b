#!/usr/bin/env bash
# Stops the demo's Redis and deletes what the demo made here. The download stays in the cache.
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
# shellcheck source=tools/demo.env.sh
source "$root/tools/demo.env.sh"

"$root/tools/redis.sh" stop "$redis_port" "$redis_dir"
rm -rf "$root/var/demo" "$root/var/demo-generated" "$root/models/demo" "$root/models/demo-generated"
