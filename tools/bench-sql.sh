#!/usr/bin/env bash
# The SQL of the day, collect and features, on DataFusion and on Spark over generated events:
# bench/record/day.csv. MILLIONS="1 10 100" events, ENGINES="datafusion spark", SPARK_MEMORY=8g.
# A hundred million events take 15 GB of disk and an hour.
set -euo pipefail
# shellcheck source=tools/env.sh
source "$(dirname "${BASH_SOURCE[0]}")/env.sh"
cd "$root"
[[ -n ${BINARY:-} ]] || "$root/tools/build.sh"
engines=${ENGINES:-datafusion spark}
if [[ $engines == *spark* ]]; then
    SHORTLIST_SPARK=$("$root/tools/spark.sh")
    export SHORTLIST_SPARK PYSPARK_PYTHON=$tools/spark/bin/python
fi
python3 "$root/bench/peers/sql.py" --binary "${BINARY:-$binary}" --engines "$engines" \
    --millions "${MILLIONS:-1 10}" --work "$cache/bench-sql" --record "$root/bench/record/day.csv" \
    --spark-memory "${SPARK_MEMORY:-8g}"
