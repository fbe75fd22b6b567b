#!/usr/bin/env bash
# A Redis of our own on the loopback interface: `tools/redis.sh start PORT DIR`, `stop PORT DIR`.
# `start` returns once it answers, and makes do with one that answers already; `stop` touches only
# the one that was started for DIR.
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

answers() { [[ $(redis-cli -h 127.0.0.1 -p "$1" ping 2>/dev/null) == PONG ]]; }

start() {
    local port=$1 dir=$2
    if answers "$port"; then
        printf 'Redis on 127.0.0.1:%s answers already\n' "$port"
        return
    fi
    mkdir -p "$dir"
    redis-server --bind 127.0.0.1 --port "$port" --dir "$(cd "$dir" && pwd -P)" --dbfilename dump.rdb \
        --appendonly no --save 3600 1 --daemonize yes --logfile redis.log >/dev/null
    local attempt
    for ((attempt = 0; attempt < 100; attempt++)); do
        answers "$port" && return
        sleep 0.1
    done
    tail -n 20 "$dir/redis.log" >&2 || true
    die "Redis does not answer on 127.0.0.1:$port after 10 s"
}

stop() {
    local port=$1 dir=$2 used
    used=$(redis-cli -h 127.0.0.1 -p "$port" config get dir 2>/dev/null | tail -n 1) || true
    if [[ -d $dir && $used == "$(cd "$dir" && pwd -P)" ]]; then
        redis-cli -h 127.0.0.1 -p "$port" shutdown >/dev/null 2>&1 || true
    fi
}

case ${1:-} in
start) start "$2" "$3" ;;
stop) stop "$2" "$3" ;;
*) die "usage: tools/redis.sh start PORT DIR | stop PORT DIR" ;;
esac
