#!/usr/bin/env bash
# The tests of kernels, index and forest under AddressSanitizer, without the offline half. The stable
# compiler is told to accept its own unstable flag; nothing but this script does so.
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"
"$root/tools/setup.sh" all
export RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address" CARGO_TARGET_DIR="$CARGO_TARGET_DIR/sanitize"
# Large allocations are refused, not aborted: hostile files ask for them.
export ASAN_OPTIONS=allocator_may_return_null=1
cargo test --release --locked --lib --no-default-features --features serve \
    --target "$(rustc -vV | sed -n 's/^host: //p')" -- kernels:: index:: forest:: sections::
