#!/usr/bin/env bash
# Ours and FAISS in turn on the same vectors, one thread: bench/record/index.csv.
# WORKS names them (see bench/peers/index.py); 10M items take 20 GB of memory and half an hour.
# Everything that is built stays in WORK (target/bench-index beside the build).
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"
"$root/tools/setup.sh" all
use_cmake

peers=$cache/bench-index
if ! "$peers/bin/python" -c 'import faiss, pyarrow' 2>/dev/null; then
    say "Python, FAISS and pyarrow for the comparison"
    python3 -m venv "$peers"
    "$peers/bin/python" -m pip install --quiet --disable-pip-version-check \
        numpy pyarrow 'faiss-cpu==1.15.*' </dev/null
fi
cargo build --release --locked --bin shortlist --bench index_worker
worker=$(cargo build --release --locked --bench index_worker --message-format=json 2>/dev/null |
    sed -n 's/.*"name":"index_worker".*"executable":"\([^"]*\)".*/\1/p')
mkdir -p bench/record
read -ra works <<<"${WORKS:-synthetic-1m hard-1m synthetic-10m}"
PYTHON=$peers/bin/python "$peers/bin/python" -u bench/peers/index.py \
    --bin "$CARGO_TARGET_DIR/release/shortlist" --worker "$worker" \
    --work "${WORK:-$CARGO_TARGET_DIR/bench-index}" --csv bench/record/index.csv --filters \
    "${works[@]}"
