"""The request path under load: sweeps the rate to saturation, then measures at half of it.

Expects a server that is ready, pinned to one core, whose process is `--pid`; the load runs on another.
Writes bench/record/e2e.csv in the columns of the other records. CPU is that of the process, split by
the names of its threads, so that the parts add up to the whole.
"""

import argparse
import collections
import csv
import datetime
import json
import os
import pathlib
import platform
import subprocess
import uuid

TICKS_S = os.sysconf("SC_CLK_TCK")
# A rate is sustained if this share is answered in time and p99 stays below.
GOOD_SHARE = 0.99
P99_MS = 20.0
# A step of the search for saturation, and the precision of its end.
FACTOR = 1.5
PRECISION = 0.03


def thread_seconds(pid):
    """CPU seconds of the process by thread name, numbers at the end left out."""
    found = collections.Counter()
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        try:
            name, fields = (task / "stat").read_text().split("(", 1)[1].rsplit(")", 1)
        except FileNotFoundError:
            continue
        user, system = fields.split()[11:13]
        found[name.rstrip("0123456789").rstrip("-")] += (int(user) + int(system)) / TICKS_S
    return found


def memory_gib(pid):
    """Resident memory: all, anonymous, and mapped files."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = {key: value.split()[0] for key, value in (line.split(":", 1) for line in lines) if key in ("VmRSS", "RssAnon", "RssFile")}
    names = {"VmRSS": "rss_gib", "RssAnon": "rss_anon_gib", "RssFile": "rss_file_gib"}
    return {names[key]: int(value) / 2**20 for key, value in kib.items()}


def load(args, rate, seconds):
    """One run of the load generator: its totals."""
    command = [args.load, "--url", args.url, "--rate", str(rate), "--seconds", str(seconds),
               "--users", str(args.users), "--deadline-ms", str(args.deadline_ms)]
    return json.loads(subprocess.check_output(["taskset", "-c", args.load_core, *command]))


def sustained(totals):
    good = totals["good_rps"] >= GOOD_SHARE * totals["offered_rps"]
    return good and totals["latency_ms"]["p99"] < P99_MS


def saturation(args):
    """The highest sustained rate and all (rate, totals) that were tried."""
    tried = []

    def holds(rate):
        tried.append((rate, load(args, rate, args.step_s)))
        ms = tried[-1][1]["latency_ms"]
        print(f"{rate:8.0f}/s  p50 {ms['p50']:.2f} ms  p99 {ms['p99']:.2f} ms", flush=True)
        return sustained(tried[-1][1])

    low, high = 0.0, args.rate
    while holds(high):
        low, high = high, high * FACTOR
    while high - low > PRECISION * high:
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
        if high < 1:
            raise SystemExit("no rate is sustained: is the machine quiet, and the server ready?")
    return low, tried


def cpu_us(args, rate):
    """Totals at a rate, and CPU microseconds a request by thread name."""
    before = thread_seconds(args.pid)
    totals = load(args, rate, args.measure_s)
    after = thread_seconds(args.pid)
    # The generator's two seconds of warm-up cost CPU too.
    requests = totals["offered_rps"] * (totals["seconds"] + 2)
    used = {name: (after[name] - before[name]) * 1e6 / requests for name in after}
    return totals, {name: us for name, us in used.items() if us >= 0.1} | {"all": sum(used.values())}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--load", required=True, help="the load generator's binary")
    parser.add_argument("--pid", type=int, required=True, help="the server's process")
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1/recommendations")
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--work", default="10m")
    parser.add_argument("--system", default="shortlist")
    parser.add_argument("--rate", type=float, default=500.0, help="where the search begins")
    parser.add_argument("--step-s", type=int, default=20)
    parser.add_argument("--measure-s", type=int, default=60)
    parser.add_argument("--deadline-ms", type=int, default=100)
    parser.add_argument("--load-core", default="1")
    parser.add_argument("--csv", default="bench/record/e2e.csv")
    args = parser.parse_args()

    run_id = uuid.uuid4().hex[:8]
    machine = f"{platform.machine()} x{os.cpu_count()}"
    rows = []

    def record(setting, figures, unit):
        for metric, value in figures.items():
            rows.append([run_id, args.work, args.system, setting, metric, f"{value:.5g}", unit,
                         datetime.date.today().isoformat(), machine])

    peak, tried = saturation(args)
    record("peak", {"rps_per_core": peak}, "1/s")
    for rate, totals in tried:
        ms = totals["latency_ms"]
        record(f"rate={rate:.0f}", {"p50_ms": ms["p50"], "p99_ms": ms["p99"], "p99.9_ms": ms["p99.9"]}, "ms")
    totals, cpu = cpu_us(args, peak / 2)
    ms = totals["latency_ms"]
    record("half", {"p50_ms": ms["p50"], "p99_ms": ms["p99"], "p99.9_ms": ms["p99.9"]}, "ms")
    record("half", {f"cpu_us_{name}": us for name, us in cpu.items()}, "us")
    record("half", memory_gib(args.pid), "GiB")
    record("half", {"errors": totals["errors"], "degraded": totals["degraded_answers"]}, "requests")
    with open(args.csv, "w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow("run_id,work,system,setting,metric,value,unit,date,machine".split(","))
        writer.writerows(rows)


if __name__ == "__main__":
    main()
