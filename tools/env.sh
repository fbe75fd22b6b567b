# Sourced by the other scripts: where things are, and a few words they share.
#
# SHORTLIST_CACHE   what outlives a clone: build output, CMake, the demo's download (~/.cache/shortlist)
# CARGO_TARGET_DIR  build output; by default in the cache, so that the next clone's build is warm
# CMAKE             the CMake that builds LightGBM; found here, unless it is set already
# shellcheck shell=bash disable=SC2034

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cache=${SHORTLIST_CACHE:-$HOME/.cache/shortlist}
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$cache/target}
tools=$cache/tools
binary=$CARGO_TARGET_DIR/release/shortlist

say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }
die() { printf 'error: %s\n' "$*" >&2; exit 1; }
has() { command -v "$1" >/dev/null 2>&1; }

# LightGBM's build files ask for this much; Debian 12 has 3.25.
cmake_needed=3.28
cmake_is_new() {
    has "$1" || return 1
    local found
    found=$("$1" --version 2>/dev/null | sed -n '1s/^cmake version \([0-9.]*\).*/\1/p')
    [[ -n $found && $(printf '%s\n' "$cmake_needed" "$found" | sort -V | head -n 1) == "$cmake_needed" ]]
}

# Prints the first CMake that is new enough: CMAKE, the system's, the one from a former set-up.
find_cmake() {
    local candidate
    for candidate in "${CMAKE:-cmake}" cmake "$tools/bin/cmake"; do
        if cmake_is_new "$candidate"; then
            command -v "$candidate"
            return
        fi
    done
    return 1
}

# A Python that has pip: the system's, or the one from a former set-up.
find_pip_python() {
    local candidate
    for candidate in python3 "$tools/bin/python"; do
        if "$candidate" -m pip --version >/dev/null 2>&1; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    return 1
}

use_cmake() {
    CMAKE=$(find_cmake) || die "no CMake >= $cmake_needed: run 'make setup'"
    export CMAKE
}

# A TCP port of the loopback interface that nothing listens on.
free_port() {
    python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

minutes_since() { awk -v s=$((SECONDS - $1)) 'BEGIN { printf "%.1f min", s / 60 }'; }
