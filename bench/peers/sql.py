"""Seconds and peak memory of `pipeline features` by engine over generated events.

Called by tools/bench-sql.sh. Memory is the largest sum, over a tenth of a second each, of the resident
memory of the process and all its descendants: Spark's JVM is a child. The page cache is not in it.
"""

import argparse
import csv
import datetime
import glob
import hashlib
import os
import shutil
import subprocess
import time

from machine import machine

CONFIG = """
[offline]
data_dir = "{data}"
work_dir = "{work}"
[offline.spark]
submit = "{submit}"
arguments = ["--master", "local[*]", "--driver-memory", "{memory}", "--conf", "spark.ui.enabled=false",
  "--conf", "spark.local.dir={work}/spark"]
[offline.window]
days = 0
[offline.split]
ranker_days = 1
validation_days = 1
test_days = 1
towers_days_min = 2
[offline.towers]
# Two midnights for the towers, four for ranker, test and publication.
snapshot_every_days = 30
"""


def tree_bytes(root):
    """Resident memory of a process and its descendants. A child that has not called exec yet, of which a JVM has
    some for a moment, has its parent's command line and its parent's pages: it is not counted again."""
    parents, resident, commands = {}, {}, {}
    for folder in glob.glob("/proc/[0-9]*"):
        try:
            with open(f"{folder}/stat") as file:
                text = file.read()
            with open(f"{folder}/cmdline", "rb") as file:
                command = file.read()
        except OSError:
            continue
        pid = int(text.split(" ", 1)[0])
        fields = text[text.rindex(")") + 2 :].split()
        parents[pid] = int(fields[1])
        resident[pid] = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
        commands[pid] = command
    total = 0
    for pid in parents:
        at = pid
        while at in parents and at != root:
            at = parents[at]
        if at == root and (pid == root or commands[pid] != commands.get(parents[pid])):
            total += resident[pid]
    return total


def measure(command):
    began = time.monotonic()
    process = subprocess.Popen(command)
    peak = 0
    while process.poll() is None:
        peak = max(peak, tree_bytes(process.pid))
        time.sleep(0.1)
    if process.returncode != 0:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return time.monotonic() - began, peak / 2**30


def world(binary, root, millions):
    """Generated events, made once; their number."""
    data = f"{root}/events-{millions}m"
    if not os.path.exists(f"{data}/world.json"):
        shutil.rmtree(data, ignore_errors=True)
        rows = millions * 1_000_000
        # Clicks and purchases come on top of the impressions.
        command = [binary, "generate", "--out", data, "--events", str(int(rows / 1.1)), "--days", "7"]
        command += ["--users", str(max(1000, rows // 70)), "--items", "100000", "--no-vectors"]
        subprocess.run(command, check=True)
    return data


def main():
    parser = argparse.ArgumentParser()
    for name in ("binary", "engines", "millions", "work", "record", "spark-memory"):
        parser.add_argument(f"--{name}", required=True)
    args = parser.parse_args()
    today = datetime.date.today().isoformat()
    run_id = hashlib.blake2b(str(time.time()).encode(), digest_size=4).hexdigest()
    for millions in map(int, args.millions.split()):
        data = world(args.binary, args.work, millions)
        for engine in args.engines.split():
            work = f"{args.work}/work-{engine}"
            shutil.rmtree(work, ignore_errors=True)
            os.makedirs(work)
            config = f"{args.work}/{engine}.toml"
            submit = os.environ.get("SHORTLIST_SPARK", "spark-submit")
            with open(config, "w") as file:
                text = CONFIG.format(data=data, work=work, submit=submit, memory=args.spark_memory)
                file.write(text)
            setting = "collect + 6 midnights"
            run = [args.binary, "--config", config, "pipeline", "--engine", engine]
            collect_s, collect_gib = measure(run + ["collect"])
            features_s, features_gib = measure(run + ["features"])
            found = [
                ("seconds", collect_s + features_s, "s"),
                ("collect_s", collect_s, "s"),
                ("features_s", features_s, "s"),
                ("peak_gib", max(collect_gib, features_gib), "GiB"),
            ]
            rows = []
            for metric, value, unit in found:
                row = [run_id, f"events-{millions}m", engine, setting, metric, f"{value:.4g}", unit, today, machine()]
                print(*row, flush=True)
                rows.append(row)
            shutil.rmtree(work)
            with open(args.record, "a", newline="") as file:
                csv.writer(file, lineterminator="\n").writerows(rows)


main()
