#!/usr/bin/env bash
# onnxruntime runs the exported towers and gives the vectors that Shortlist gives (tests/end_to_end/onnx.rs).
# Installs it from the package registry into the cache when it is missing: 300 MB.
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"
"$root/tools/setup.sh" all
use_cmake

onnx=$tools/onnx
if ! "$onnx/bin/python" -c 'import onnx, onnxruntime' 2>/dev/null; then
    say "onnxruntime into $onnx"
    python3 -m venv --clear "$onnx"
    "$onnx/bin/python" -m pip install --quiet --disable-pip-version-check --retries 5 \
        'onnx==1.19.*' 'onnxruntime==1.22.*' </dev/null ||
        die "no onnxruntime, and the package registry is out of reach"
fi
SHORTLIST_TEST_ONNX=$onnx/bin/python cargo test --release --locked --test end_to_end onnx -- --nocapture
