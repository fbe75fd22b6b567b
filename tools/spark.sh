#!/usr/bin/env bash
# PySpark in the cache and a Java for it: prints the path of its spark-submit.
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"

java_needed=17
java=${JAVA_HOME:+$JAVA_HOME/bin/}java
has "$java" || die "no Java: Spark needs Java $java_needed or later (Debian: apt-get install openjdk-17-jre-headless), or set JAVA_HOME"
version=$("$java" -version 2>&1 | sed -n '1s/.*version "\([0-9]*\).*/\1/p')
[[ ${version:-0} -ge $java_needed ]] ||
    die "$java is version ${version:-unknown}: Spark needs Java $java_needed or later; set JAVA_HOME"

spark=$tools/spark
if ! "$spark/bin/python" -c 'import pyspark' 2>/dev/null; then
    say "PySpark into $spark (400 MB)" >&2
    python3 -m venv "$spark"
    "$spark/bin/python" -m pip install --quiet --disable-pip-version-check --retries 5 'pyspark>=4.0' </dev/null >&2 ||
        die "the package registry is out of reach: install PySpark into $spark"
fi
printf '%s\n' "$spark/bin/spark-submit"
