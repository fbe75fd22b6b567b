#!/usr/bin/env bash
# Mutates index files and forest texts for FUZZ_S seconds each (600) and says how many executions.
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"
"$root/tools/setup.sh" all
use_cmake
export SHORTLIST_FUZZ_S=${FUZZ_S:-600}
cargo test --release --locked --lib -- --nocapture --test-threads 2 mutated
