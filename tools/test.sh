#!/usr/bin/env bash
# What CI runs: set up, build, format, lint, and every test against a Redis of its own.
# Arguments go to `cargo test`, e.g. `tools/test.sh --test tidy`.
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"

begin=$SECONDS
"$root/tools/setup.sh" all
use_cmake

step() {
    local began=$SECONDS
    say "$*"
    "$@"
    printf '   %s\n' "$(minutes_since "$began")"
}
step cargo build --release --locked
step cargo fmt --all --check
step cargo clippy --release --locked --all-targets -- -D warnings

redis_dir=$(mktemp -d)
port=$(free_port)
trap '"$root/tools/redis.sh" stop "$port" "$redis_dir"; rm -rf "$redis_dir"' EXIT
"$root/tools/redis.sh" start "$port" "$redis_dir"
export SHORTLIST_TEST_REDIS=redis://127.0.0.1:$port

say "cargo test --release $*"
cargo test --release --locked --no-fail-fast "$@"
# CI reads the test runner's own lines last.
[[ ${CI:-} == true ]] || printf '\nall passed in %s\n' "$(minutes_since "$begin")"
