#!/usr/bin/env bash
# The real Feast reads what Shortlist writes to Redis, and the other way round (tests/end_to_end/feast.rs).
# Installs Feast from the package registry into the cache when it is missing: 600 MB.
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"
"$root/tools/setup.sh" all
use_cmake

feast=$tools/feast
if ! "$feast/bin/python" -c 'import sys; from importlib.metadata import version; sys.exit(not version("feast").startswith("0.67."))' 2>/dev/null; then
    say "Feast 0.67 into $feast"
    python3 -m venv --clear "$feast"
    "$feast/bin/python" -m pip install --quiet --disable-pip-version-check --retries 5 'feast[redis]==0.67.*' </dev/null ||
        die "no Feast, and the package registry is out of reach"
fi
SHORTLIST_TEST_FEAST=$feast/bin/python cargo test --release --locked --test end_to_end feast -- --nocapture
