"""Runs a job of the day on Spark: the SELECTs that DataFusion runs elsewhere, one table a step.

    spark-submit runner_spark.py JOB.json

JOB.json names the Parquet inputs and, in order, the steps; the table of a step can be read by those
after it. Parameters are already in the text. A table is a directory of part files in the order of
the SELECT.
"""

import json
import sys

from pyspark.sql import SparkSession

SETTINGS = {
    "spark.sql.session.timeZone": "UTC",
    "spark.sql.parquet.outputTimestampType": "TIMESTAMP_MICROS",
    "spark.sql.parquet.compression.codec": "snappy",
}


def main(path):
    with open(path, encoding="utf-8") as file:
        job = json.load(file)
    spark = SparkSession.builder.appName("shortlist").getOrCreate()
    for key, value in SETTINGS.items():
        spark.conf.set(key, value)
    for table in job["inputs"]:
        spark.read.parquet(table["path"]).createOrReplaceTempView(table["name"])
    for step in job["steps"]:
        for at, part in enumerate(step["parts"]):
            spark.sql(part).write.mode("append" if at else "overwrite").parquet(step["path"])
        spark.read.parquet(step["path"]).createOrReplaceTempView(step["name"])
        print("made", step["path"], flush=True)
    spark.stop()


main(sys.argv[1])
