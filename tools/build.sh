#!/usr/bin/env bash
# Builds the release binary; arguments go to cargo.
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"
"$root/tools/setup.sh" demo
use_cmake
cargo build --release --locked "$@"
printf 'built %s\n' "$binary"
