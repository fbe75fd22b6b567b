#!/usr/bin/env bash
# The build with CUDA, which needs no toolkit, and its tests, which need a device or say that there is none.
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"
"$root/tools/setup.sh" all
use_cmake
cargo test --release --locked --features cuda --lib device -- --nocapture
