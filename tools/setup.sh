#!/usr/bin/env bash
# Installs what is missing to build, run the demo and test: `tools/setup.sh [demo|all]`.
# Prints nothing when nothing is missing. As root it uses apt-get; otherwise it names the packages.
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
for_what=${1:-all}
llvm=${LLVM_ROOT:-/usr/lib}
moto_version=5.2.5

# bindgen, which reads LightGBM's header, needs the library and the compiler's own headers beside it.
has_libclang() {
    [[ -n ${LIBCLANG_PATH:-} ]] && return
    has clang && return
    compgen -G "$llvm/llvm-*/lib/libclang*.so*" >/dev/null &&
        compgen -G "$llvm/llvm-*/lib/clang/*/include/stddef.h" >/dev/null
}
has_venv() { python3 -c 'import ensurepip, venv' 2>/dev/null; }
has_redis() { has redis-server && has redis-cli; }
has_python() { has python3; }
has_curl() { has curl; }
has_compiler() { has g++; }
has_postgres() { has initdb || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; }
has_prometheus() { has prometheus && has promtool; }
has_chromium() { has chromium || has chromium-browser || has google-chrome; }

# Debian's name of each package, and the check that says whether it is needed.
required=(
    "python3 has_python"
    "python3-venv has_venv"
    "python3-pip find_pip_python"
    "g++ has_compiler"
    "libclang-dev has_libclang"
    "redis-server has_redis"
    "curl has_curl"
)
# The tests that need a browser, PostgreSQL, Prometheus or moto say that they were skipped without; the rest needs none.
optional=("chromium has_chromium" "postgresql has_postgres" "prometheus has_prometheus")

# Sets `missing` to the packages of the given entries whose check fails.
find_missing() {
    missing=()
    local entry package check
    for entry in "$@"; do
        read -r package check <<<"$entry"
        "$check" >/dev/null || missing+=("$package")
    done
}

apt() {
    DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 -o Acquire::Retries=3 "$@" \
        </dev/null
}

apt_updated=no
install_missing() {
    ((${#missing[@]})) || return 0
    if [[ $EUID -ne 0 ]] || ! has apt-get; then
        printf 'missing here; on Debian or Ubuntu:\n  sudo apt-get install -y %s\n' "${missing[*]}" >&2
        return 1
    fi
    say "installing ${missing[*]}"
    if [[ $apt_updated == no ]]; then
        apt update
        apt_updated=yes
    fi
    apt install -y --no-install-recommends "${missing[@]}"
}

has cargo || die "no cargo: install Rust with rustup (https://rustup.rs); rust-toolchain.toml names the version"

find_missing "${required[@]}"
if ! install_missing; then
    die "set-up is not complete: install the packages above and run it again"
fi

if ! find_cmake >/dev/null; then
    say "CMake >= $cmake_needed into $tools (LightGBM's build needs it)"
    python3 -m venv "$tools"
    "$tools/bin/python" -m pip install --quiet --disable-pip-version-check --retries 5 "cmake>=$cmake_needed" </dev/null ||
        die "no CMake >= $cmake_needed and the package registry is out of reach: install one and set CMAKE=/path/to/cmake"
    find_cmake >/dev/null || die "the CMake in $tools/bin does not run"
fi

if [[ $for_what == all ]]; then
    find_missing "${optional[@]}"
    if [[ ! -x $cache/moto/bin/moto_server ]]; then
        say "an S3 server for the tests: moto $moto_version"
        rm -rf "$cache/moto"
        { python3 -m venv "$cache/moto" &&
            "$cache/moto/bin/python" -m pip install --quiet --disable-pip-version-check --retries 5 \
                "moto[server]==$moto_version" </dev/null; } ||
            printf 'going on without moto: the test that needs it says so\n' >&2
    fi
    install_missing || printf 'going on without %s: the test that needs it says so\n' "${missing[*]}" >&2
fi
