#!/usr/bin/env bash
# What a release needs beyond `make test`: documentation without warnings, the serving-only build,
# dependencies by licence, advisory and source.
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"
use_cmake

say "cargo doc"
RUSTDOCFLAGS="-D warnings" cargo doc --release --locked --no-deps --lib
say "the serving-only build compiles"
cargo check --release --locked --no-default-features --features serve
say "the build with CUDA compiles, without a toolkit"
cargo check --release --locked --features cuda
if has cargo-deny; then
    say "cargo deny"
    cargo deny --locked check
else
    printf 'not checked: licences, advisories and sources (cargo-deny is not installed: cargo install cargo-deny)\n'
fi
if has shellcheck; then
    say "shellcheck"
    shellcheck -x tools/*.sh .ci/run
else
    printf 'not checked: the scripts (shellcheck is not installed)\n'
fi
