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
import math
import os
import pathlib
import re
import subprocess
import urllib.request
import uuid

from machine import machine

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


def stolen_ticks():
    """Ticks for which the host ran something else on any core of this machine."""
    return int(pathlib.Path("/proc/stat").read_text().split("\n", 1)[0].split()[8])


def counters(url):
    """The server's metrics: name with labels -> value."""
    with urllib.request.urlopen(url.split("/v1/", 1)[0] + "/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if line and line[0] != "#")}


def stages_and_hits(before, after):
    """Mean microseconds by stage, and the share of hits by cache, between two looks at the metrics."""
    grown = collections.defaultdict(float, {name: value - before.get(name, 0.0) for name, value in after.items()})
    stages, hits = {}, {}
    for name in after:
        if match := re.fullmatch(r'shortlist_stage_seconds_sum{stage="(\w+)"}', name):
            count = grown[name.replace("_sum{", "_count{")]
            stages[f"stage_us_{match[1]}"] = grown[name] * 1e6 / max(count, 1)
        if match := re.fullmatch(r'shortlist_cache_lookups_total{cache="(\w+)",result="hit"}', name):
            asked = sum(value for other, value in grown.items() if other.startswith(name.split(",")[0]) and "skipped" not in other)
            hits[f"hit_rate_{match[1]}"] = grown[name] / max(asked, 1)
    return stages, hits


def memory_gib(pid):
    """Resident memory: all, anonymous, and mapped files."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    kib = {key: value.split()[0] for key, value in (line.split(":", 1) for line in lines) if key in ("VmRSS", "RssAnon", "RssFile")}
    names = {"VmRSS": "rss_gib", "RssAnon": "rss_anon_gib", "RssFile": "rss_file_gib"}
    return {names[key]: int(value) / 2**20 for key, value in kib.items()}


def load_command(args, rate, seconds, *more):
    """The generator on its core; `args.users` users and `args.deadline_ms` as in all measurements. Each run
    asks for other users: those of the last one would be found in the local cache."""
    args.runs = getattr(args, "runs", 0) + 1
    return ["taskset", "-c", args.load_core, args.load, "--url", args.url, "--rate", str(rate), "--seconds", str(seconds),
            "--seed", str(args.runs), "--users", str(args.users), "--deadline-ms", str(args.deadline_ms), *map(str, more)]


def load(args, rate, seconds):
    """One run of the load generator: its totals."""
    return json.loads(subprocess.check_output(load_command(args, rate, seconds)))


class Record:
    """Rows of one run; `write` appends them to a file that has the records' header."""

    def __init__(self, args):
        self.args, self.rows = args, []

    def add(self, setting, figures, unit):
        args = self.args
        for metric, value in figures.items():
            print(f"{args.work} {setting}: {metric} {value:.5g} {unit}", flush=True)
            self.rows.append([args.run_id, args.work, args.system, setting, metric, f"{value:.5g}", unit,
                              datetime.date.today().isoformat(), machine()])

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
    """Totals at a rate, CPU microseconds a request by thread name, time by stage, and hit rates."""
    metrics, before = counters(args.url), thread_seconds(args.pid)
    totals = load(args, rate, args.measure_s)
    after, metrics_after = thread_seconds(args.pid), counters(args.url)
    # The generator's two seconds of warm-up cost CPU too.
    requests = totals["offered_rps"] * (totals["seconds"] + 2)
    used = {name: (after[name] - before[name]) * 1e6 / requests for name in after}
    cpu = {name: us for name, us in used.items() if us >= 0.1} | {"all": sum(used.values())}
    return totals, cpu, *stages_and_hits(metrics, metrics_after)


def plot(tried, title):
    """Latency over rate, both as they were tried; milliseconds in powers of ten."""
    width, height, left, bottom = 640, 360, 60, 40
    keys = {"p50": "#2a7", "p99": "#e80", "p99.9": "#c33"}
    points = sorted((totals["achieved_rps"], totals["latency_ms"]) for _, totals in tried)
    right = points[-1][0] * 1.05
    values = [ms[key] for _, ms in points for key in keys]
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)))

    def x(rate):
        return left + (width - left - 20) * rate / right

    def y(ms):
        return height - bottom - (height - bottom - 40) * (math.log10(ms) - low) / (high - low)

    out = [f"<svg xmlns='http://www.w3.org/2000/svg' width='{width}' height='{height}' font-family='sans-serif' font-size='12'>",
           f"<rect width='100%' height='100%' fill='white'/><text x='{left}' y='20' font-size='14'>{title}</text>"]
    for power in range(low, high + 1):
        at = y(10.0**power)
        out.append(f"<path d='M{left} {at:.1f}H{width - 20}' stroke='#ddd'/><text x='{left - 8}' y='{at + 4:.1f}' text-anchor='end'>{10.0**power:g} ms</text>")
    step = 10 ** math.floor(math.log10(right))
    for rate in range(0, int(right) + 1, max(step // 4, 1)):
        out.append(f"<text x='{x(rate):.1f}' y='{height - bottom + 18}' text-anchor='middle'>{rate}</text>")
    out.append(f"<text x='{width - 20}' y='{height - 6}' text-anchor='end'>requests/s</text>")
    for at, (key, colour) in enumerate(keys.items()):
        line = " ".join(f"{x(rate):.1f},{y(ms[key]):.1f}" for rate, ms in points)
        out.append(f"<polyline points='{line}' fill='none' stroke='{colour}' stroke-width='2'/>")
        out += [f"<circle cx='{x(rate):.1f}' cy='{y(ms[key]):.1f}' r='3' fill='{colour}'/>" for rate, ms in points]
        out.append(f"<text x='{left + 12 + 60 * at}' y='38' fill='{colour}'>{key}</text>")
    return "\n".join(out) + "\n</svg>\n"


def main():
    parser = argparse.ArgumentParser()
    arguments(parser)
    parser.add_argument("--pid", type=int, required=True, help="the server's process")
    parser.add_argument("--rate", type=float, default=500.0, help="where the search begins")
    parser.add_argument("--p99-ms", type=float, default=20.0, help="a rate with more is not sustained")
    parser.add_argument("--step-s", type=int, default=20)
    parser.add_argument("--measure-s", type=int, default=60)
    parser.add_argument("--plot", type=pathlib.Path, help="an SVG of latency by rate")
    args = parser.parse_args()

    record = Record(args)
    peak, tried = saturation(args)
    record.add(f"peak p99<{args.p99_ms:g}ms", {"rps_per_core": peak}, "1/s")
    for rate, totals in tried:
        ms = totals["latency_ms"]
        record.add(f"rate={rate:.0f}", {"p50_ms": ms["p50"], "p99_ms": ms["p99"], "p99.9_ms": ms["p99.9"]}, "ms")
        record.add(f"rate={rate:.0f}", {"achieved_rps": totals["achieved_rps"]}, "1/s")
    totals, cpu, stages, hits = cpu_us(args, peak / 2)
    ms = totals["latency_ms"]
    record.add("half", {"p50_ms": ms["p50"], "p99_ms": ms["p99"], "p99.9_ms": ms["p99.9"]}, "ms")
    record.add("half", {f"cpu_us_{name}": us for name, us in cpu.items()}, "us")
    record.add("half", stages, "us")
    record.add("half", hits, "share")
    record.add("half", memory_gib(args.pid), "GiB")
    record.add("half", {"errors": totals["errors"], "degraded": totals["degraded_answers"]}, "requests")
    record.write()
    if args.plot:
        args.plot.write_text(plot(tried, f"{args.system}, {args.work} items, one core"))


if __name__ == "__main__":
    main()
