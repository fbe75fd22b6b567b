"""The request path under load: sweeps the rate to saturation, then measures at half of it.

Expects a server that is ready, pinned to one core, whose process is `--pid`; the load runs on another.
Appends to bench/record/e2e.csv in the columns of the other records. CPU is that of the process, split by
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
# A rate is sustained if this share is answered in time and p99 stays below --p99-ms.
GOOD_SHARE = 0.99
# A step whose requests left later than this (p99) says something of the generator: it is tried again,
# and so is one that failed.
LATE_MS = 5.0
TRIES = 2
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


def load_command(args, rate, seconds, *more):
    """The generator on its core; `args.users` users and `args.deadline_ms` as in all measurements."""
    return ["taskset", "-c", args.load_core, args.load, "--url", args.url, "--rate", str(rate), "--seconds", str(seconds),
            "--users", str(args.users), "--deadline-ms", str(args.deadline_ms), *map(str, more)]


def load(args, rate, seconds):
    """One run of the load generator: its totals."""
    return json.loads(subprocess.check_output(load_command(args, rate, seconds)))


class Record:
    """Rows of one run; `write` appends them to a file that has the records' header."""

    def __init__(self, args):
        self.args, self.rows = args, []

    def add(self, setting, figures, unit):
        args = self.args
        machine = f"{platform.machine()} x{os.cpu_count()}"
        for metric, value in figures.items():
            print(f"{args.work} {setting}: {metric} {value:.5g} {unit}", flush=True)
            self.rows.append([args.run_id, args.work, args.system, setting, metric, f"{value:.5g}", unit,
                              datetime.date.today().isoformat(), machine])

    def write(self):
        path = pathlib.Path(self.args.csv)
        new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if new:
                writer.writerow("run_id,work,system,setting,metric,value,unit,date,machine".split(","))
            writer.writerows(self.rows)


def arguments(parser):
    """Adds what all measurements need."""
    parser.add_argument("--load", required=True, help="the load generator's binary")
    parser.add_argument("--url", default="http://127.0.0.1:8080/v1/recommendations")
    parser.add_argument("--users", type=int, required=True)
    parser.add_argument("--work", default="10m")
    parser.add_argument("--system", default="shortlist")
    parser.add_argument("--deadline-ms", type=int, default=100)
    parser.add_argument("--load-core", default="1")
    parser.add_argument("--run-id", default=uuid.uuid4().hex[:8])
    parser.add_argument("--csv", default="bench/record/e2e.csv", help="rows are appended")


def sustained(args, totals):
    good = totals["good_rps"] >= GOOD_SHARE * totals["offered_rps"]
    return good and totals["latency_ms"]["p99"] < args.p99_ms


def saturation(args):
    """The highest sustained rate and all (rate, totals) that were tried."""
    tried = []

    def holds(rate):
        for _ in range(TRIES):
            totals = load(args, rate, args.step_s)
            ms, late_ms = totals["latency_ms"], totals["send_late_ms"]["p99"]
            print(f"{rate:8.0f}/s  p50 {ms['p50']:.2f} ms  p99 {ms['p99']:.2f} ms  late {late_ms:.2f} ms", flush=True)
            # One stall of a shared machine is not what the server can do: a failed step has a second try.
            if late_ms <= LATE_MS and sustained(args, totals):
                break
        tried.append((rate, totals))
        return sustained(args, totals)

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
    arguments(parser)
    parser.add_argument("--pid", type=int, required=True, help="the server's process")
    parser.add_argument("--rate", type=float, default=500.0, help="where the search begins")
    parser.add_argument("--p99-ms", type=float, default=20.0, help="a rate with more is not sustained")
    parser.add_argument("--step-s", type=int, default=20)
    parser.add_argument("--measure-s", type=int, default=60)
    args = parser.parse_args()

    record = Record(args)
    peak, tried = saturation(args)
    record.add(f"peak p99<{args.p99_ms:g}ms", {"rps_per_core": peak}, "1/s")
    for rate, totals in tried:
        ms = totals["latency_ms"]
        record.add(f"rate={rate:.0f}", {"p50_ms": ms["p50"], "p99_ms": ms["p99"], "p99.9_ms": ms["p99.9"]}, "ms")
        record.add(f"rate={rate:.0f}", {"achieved_rps": totals["achieved_rps"]}, "1/s")
    totals, cpu = cpu_us(args, peak / 2)
    ms = totals["latency_ms"]
    record.add("half", {"p50_ms": ms["p50"], "p99_ms": ms["p99"], "p99.9_ms": ms["p99.9"]}, "ms")
    record.add("half", {f"cpu_us_{name}": us for name, us in cpu.items()}, "us")
    record.add("half", memory_gib(args.pid), "GiB")
    record.add("half", {"errors": totals["errors"], "degraded": totals["degraded_answers"]}, "requests")
    record.write()


if __name__ == "__main__":
    main()
