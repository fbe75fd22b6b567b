#!/usr/bin/env bash
# Ours, LightGBM and lleaves in turn on generated models: bench/record/forest.csv and its plot.
# The first run trains the models and compiles them with lleaves: tens of minutes on one core.
# CORE=n keeps everything on one core.
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"
"$root/tools/setup.sh" all
use_cmake

peers=$cache/bench-forest
if ! "$peers/bin/python" -c 'import lightgbm, lleaves' 2>/dev/null; then
    say "Python, LightGBM and lleaves for the comparison"
    python3 -m venv "$peers"
    # Later versions of llvmlite dropped what lleaves calls.
    "$peers/bin/python" -m pip install --quiet --disable-pip-version-check \
        numpy lightgbm lleaves 'llvmlite==0.44.*' </dev/null
fi
on_core=()
[[ -z ${CORE:-} ]] || on_core=(taskset -c "$CORE")
mkdir -p bench/record
"${on_core[@]}" cargo bench --locked --bench forest -- \
    --record "$root/bench/record/forest.csv" \
    --peers "$peers/bin/python $root/bench/peers/forest.py"
