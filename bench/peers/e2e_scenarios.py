"""What happens to a server under load: overload, Redis that fails, bundles that change, a restart.

    overload    three times the rate for a minute, beside a small steady load that shows the recovery
    redis-down  hung, slowed, killed and restarted empty, at half the rate; Redis is empty afterwards
    swap        two names of one bundle take turns at half the rate
    nginx       two servers behind nginx with config/nginx/shortlist.conf; one restarts at half the rate
    original-stack   in turns with original_stack.py on the same core: what each of them sustains

`--rate` is the rate at saturation that e2e.py found. All but `nginx` expect a server that is ready
(`original-stack` two).
Figures come from the generator's timeline, second by second.
"""

import argparse
import contextlib
import csv
import json
import os
import pathlib
import re
import signal
import statistics
import subprocess
import tempfile
import threading
import time
import urllib.error
import urllib.request

import e2e

WARMUP_S = 2
OVERLOAD = 3.0
# Before and after what is done to the server.
STEADY_S = 10
# Between two swaps.
PAUSE_S = 4
# Time that the host took from both cores in a second, in hundredths of one, from which on the
# second says something of the host.
STOLEN_TICKS = 6
# "Back to normal" is a second with p99 below that of a sustained rate (e2e.py).
NORMAL_MS = 20.0
# What the original stack may take, and Shortlist beside it.
STACK_MS = 1000


class Timeline:
    """A generator in the background; afterwards its seconds as dictionaries, and its totals."""

    def __init__(self, args, rate, seconds, *more):
        self.file = tempfile.NamedTemporaryFile(suffix=".csv")
        command = e2e.load_command(args, rate, seconds, "--timeline", self.file.name, "--warmup-seconds", WARMUP_S, *more)
        self.begin = time.monotonic() + WARMUP_S
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE)
        self.stolen = []
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self):
        """Notes what the host takes from this machine, second by second."""
        self.wait_until(0)
        before, second = e2e.stolen_ticks(), 0
        while self.process.poll() is None:
            second += 1
            self.wait_until(second)
            now = e2e.stolen_ticks()
            self.stolen.append(now - before)
            before = now

    def now_s(self):
        return time.monotonic() - self.begin

    def wait_until(self, second):
        time.sleep(max(0.0, second - self.now_s()))

    def finish(self):
        out, _ = self.process.communicate()
        if self.process.returncode:
            raise SystemExit(f"the generator ended with {self.process.returncode}")
        self.totals = json.loads(out)
        with open(self.file.name) as file:
            self.seconds = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
        return self

    def tell_failures(self):
        """Prints in which seconds requests had no answer, and what the server said instead."""
        for at, second in enumerate(self.seconds):
            if second["ok"] < second["sent"]:
                print(f"second {at}: {second['sent'] - second['ok']:.0f} of {second['sent']:.0f} failed, p99 {second['p99_ms']:.0f} ms, "
                      f"{self.stolen[at] if at < len(self.stolen) else '?'} ticks stolen", flush=True)
        if self.failed():
            print(f"statuses {self.totals['status']}, {self.totals['errors']} without one", flush=True)

    def p99_ms(self, first, end):
        return statistics.median(second["p99_ms"] for second in self.seconds[int(first):int(end)])

    def worst_ms(self, first, end):
        return max(second["p99_ms"] for second in self.seconds[int(first):int(end)])

    def sum(self, key, first=0, end=None):
        return sum(second[key] for second in self.seconds[int(first):end if end is None else int(end)])

    def disturbed(self, second):
        """Whether the host stopped this machine for long in that second or just before."""
        near = self.stolen[max(second - 1, 0):second + 1]
        return bool(near) and max(near) >= STOLEN_TICKS

    def failed_undisturbed(self):
        """Requests without an answer, in seconds in which the machine was there."""
        seconds = enumerate(self.seconds)
        return sum(s["sent"] - s["ok"] for at, s in seconds if not self.disturbed(at))

    def disturbed_s(self):
        return sum(self.disturbed(at) for at in range(len(self.seconds)))

    def failed(self):
        return sum(count for status, count in self.totals["status"].items() if status != "200") + self.totals["errors"]

    def recovery_s(self, since, end):
        """Seconds from `since` until p99 is normal and stays so; all of them if it never does."""
        slow = [at for at in range(int(since), int(end)) if self.seconds[at]["p99_ms"] > NORMAL_MS and not self.disturbed(at)]
        return slow[-1] + 1 - since if slow else 0


def overload(args, record):
    length = args.seconds
    before = e2e.memory_gib(args.pid)
    base_rate = args.rate / 2
    base = Timeline(args, base_rate, length + 3 * STEADY_S)
    base.wait_until(STEADY_S - WARMUP_S)
    more = Timeline(args, OVERLOAD * args.rate - base_rate, length)
    more.finish()
    after = e2e.memory_gib(args.pid)
    base.finish()
    first = STEADY_S + 1
    steady_ms = base.p99_ms(0, STEADY_S - WARMUP_S)
    good = more.totals["good_rps"] + base.sum("good", first, first + length - 1) / (length - 1)
    ended = STEADY_S + length
    setting = f"{OVERLOAD:g}x {length} s"
    record.add(setting, {"goodput_share": good / args.rate}, "of the peak")
    record.add(setting, {"admitted_p99_ms": more.totals["latency_ms"]["p99"], "p99_ms_before": steady_ms}, "ms")
    record.add(setting, {"recovery_s": base.recovery_s(ended, len(base.seconds))}, "s")
    record.add(setting, {f"{key}_growth": after[key] - before[key] for key in after}, "GiB")
    record.add(setting, {"errors": more.totals["errors"] + base.totals["errors"]}, "requests")


class Redis:
    """The Redis on a port of this machine, and how it fails."""

    def __init__(self, port, core):
        self.port, self.core = port, core
        info = subprocess.check_output(["redis-cli", "-p", str(port), "info", "server"], text=True)
        self.pid = int(re.search(r"process_id:(\d+)", info)[1])

    def hung(self, until):
        os.kill(self.pid, signal.SIGSTOP)
        until()
        os.kill(self.pid, signal.SIGCONT)

    def slowed(self, until):
        """Stopped for four fifths of the time, 20 ms at once: longer than a read may take."""
        done = threading.Event()

        def stutter():
            while not done.is_set():
                os.kill(self.pid, signal.SIGSTOP)
                time.sleep(0.02)
                os.kill(self.pid, signal.SIGCONT)
                time.sleep(0.005)

        thread = threading.Thread(target=stutter)
        thread.start()
        until()
        done.set()
        thread.join()

    def killed(self, until):
        """And started again with nothing in it; the new one outlives the measurement."""
        # Giving gigabytes back takes the core that the generator has too: it would be late, not the server.
        for thread in os.listdir(f"/proc/{self.pid}/task"):
            os.setpriority(os.PRIO_PROCESS, int(thread), 19)
        os.kill(self.pid, signal.SIGKILL)
        until()
        command = ["taskset", "-c", self.core, "redis-server", "--port", str(self.port), "--bind", "127.0.0.1",
                   "--save", "", "--appendonly", "no"]
        self.pid = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True).pid


def redis_down(args, record):
    redis = Redis(args.redis_port, args.load_core)
    phases = [("hung", redis.hung), ("slowed", redis.slowed), ("killed, restarted empty", redis.killed)]
    each = STEADY_S + args.seconds
    end = len(phases) * each + STEADY_S
    line = Timeline(args, args.rate / 2, end)
    for at, (_, fail) in enumerate(phases):
        begin = at * each + STEADY_S
        line.wait_until(begin)
        fail(lambda: line.wait_until(begin + args.seconds))
    line.finish().tell_failures()
    steady_ms = line.p99_ms(0, STEADY_S)
    record.add("steady", {"p99_ms": steady_ms}, "ms")
    record.add("all", {"failed": line.failed(), "failed_undisturbed": line.failed_undisturbed(), "sent": line.sum("sent")}, "requests")
    record.add("all", {"disturbed_s": line.disturbed_s()}, "s")
    for at, (name, _) in enumerate(phases):
        begin, back = at * each + STEADY_S, (at + 1) * each
        figures = {"errors": line.sum("errors", begin, back + STEADY_S) + line.sum("refused", begin, back + STEADY_S),
                   "degraded": line.sum("degraded", begin, back)}
        record.add(name, figures, "requests")
        record.add(name, {"p99_ms": line.worst_ms(begin, back)}, "ms")
        record.add(name, {"recovery_s": line.recovery_s(back, back + STEADY_S)}, "s")


def serving(args):
    body = json.dumps({"user_id": "u0000001"}).encode()
    request = urllib.request.Request(args.url, body, {"content-type": "application/json"})
    while True:
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return json.load(answer)["bundle_version"]
        except urllib.error.HTTPError as error:
            # Refused in a moment of overload; the generator counts those, this one only asks.
            if error.code not in (429, 503):
                raise
            time.sleep(0.1)


def second_name(registry, version):
    """The bundle under another version: links to its files, and a manifest of its own."""
    other = f"{version}-again"
    source, target = registry / "bundles" / version, registry / "bundles" / other
    if not target.exists():
        target.mkdir()
        for path in source.iterdir():
            if path.name != "manifest.json":
                os.link(path, target / path.name)
        manifest = json.loads((source / "manifest.json").read_text())
        (target / "manifest.json").write_text(json.dumps(manifest | {"bundle_version": other}))
    return other


def roll_out(registry, version):
    """Says which bundle is to serve; under its name only when it is whole."""
    rollout = registry / "rollout"
    last = max((int(path.stem) for path in rollout.glob("*.json")), default=0)
    partial = rollout / "next"
    partial.write_text(json.dumps({"bundle": version, "percent": 100, "reason": "bench-e2e"}))
    partial.rename(rollout / f"{last + 1}.json")


def swap(args, record):
    first = serving(args)
    names = [second_name(args.registry, first), first]
    line = Timeline(args, args.rate / 2, args.swaps * args.seconds)
    end = args.swaps * args.seconds - 2
    began, changed = [], []
    line.wait_until(0)
    for turn in range(args.swaps):
        line.wait_until(line.now_s() + PAUSE_S)
        version = names[turn % 2]
        began.append(line.now_s())
        roll_out(args.registry, version)
        while serving(args) != version and line.now_s() < end:
            time.sleep(0.05)
        if line.now_s() >= end:
            break
        changed.append(line.now_s())
    if not changed:
        raise SystemExit(f"no swap within {end} s: give more --seconds")
    line.finish().tell_failures()
    # The change itself may have been just before the turn of a second.
    swapping = {second for at in changed for second in (int(at) - 1, int(at), int(at) + 1)}
    loading = {second for at, to in zip(began, changed) for second in range(int(at), int(to))} - swapping
    steady = set(range(len(line.seconds))) - swapping - loading
    setting = f"{len(changed)} swaps"
    record.add(setting, {"failed": line.failed(), "failed_undisturbed": line.failed_undisturbed(), "sent": line.sum("sent")}, "requests")
    record.add(setting, {"disturbed_s": line.disturbed_s()}, "s")
    for name, seconds in (("steady", steady), ("loading", loading), ("swap", swapping)):
        all_ms = [line.seconds[at]["p99_ms"] for at in seconds if at < len(line.seconds)]
        still_ms = [line.seconds[at]["p99_ms"] for at in seconds if at < len(line.seconds) and not line.disturbed(at)]
        record.add(setting, {f"p99_ms_{name}": statistics.median(all_ms), f"p99_ms_{name}_worst_undisturbed": max(still_ms, default=0)}, "ms")
    record.add(setting, {"seconds_a_swap": statistics.median(to - at for at, to in zip(began, changed))}, "s")


@contextlib.contextmanager
def stopped_after(process):
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def start_server(args, port, replica):
    """A server, once it is ready."""
    settings = {"SHORTLIST__SERVER__PORT": str(port), "SHORTLIST__EVENTS__REPLICA": replica,
                "SHORTLIST__SERVER__DRAIN_MS": "1000"}
    # Replicas have machines of their own; here one that starts must not take the core of the other.
    command = ["taskset", "-c", args.server_core, "nice", "-n", "19", args.bin, "--config", args.config, "serve"]
    process = subprocess.Popen(command, env=os.environ | settings, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(args.seconds * 10):
        if process.poll() is not None:
            raise SystemExit(f"the server on port {port} ended with {process.returncode}: is the port free?")
        with contextlib.suppress(urllib.error.URLError, ConnectionError):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/readyz", timeout=1).close()
            for thread in os.listdir(f"/proc/{process.pid}/task"):
                os.setpriority(os.PRIO_PROCESS, int(thread), 0)
            return process
        time.sleep(0.1)
    process.kill()
    raise SystemExit(f"the server on port {port} is not ready after {args.seconds} s: give more --seconds")


def nginx(args, record):
    front, ports = args.nginx_port, [args.nginx_port + 1, args.nginx_port + 2]
    text = pathlib.Path("config/nginx/shortlist.conf").read_text()
    for shipped, own in zip((8080, 8081, 8082), (front, *ports)):
        text = text.replace(f"127.0.0.1:{shipped}", f"127.0.0.1:{own}")
    args.url = f"http://127.0.0.1:{front}/v1/recommendations"
    with contextlib.ExitStack() as stack, tempfile.TemporaryDirectory() as home:
        path = pathlib.Path(home) / "nginx.conf"
        path.write_text(f"daemon off; pid {home}/pid; error_log {home}/error.log;\nevents {{}}\n"
                        f"http {{ client_body_temp_path {home}/body; proxy_temp_path {home}/proxy;\n"
                        f"fastcgi_temp_path {home}/f; uwsgi_temp_path {home}/u; scgi_temp_path {home}/s;\n{text} }}\n")
        servers = [stack.enter_context(stopped_after(start_server(args, port, f"bench{port}"))) for port in ports]
        command = ["taskset", "-c", args.load_core, args.nginx, "-p", home, "-c", str(path)]
        stack.enter_context(stopped_after(subprocess.Popen(command)))
        time.sleep(1)
        line = Timeline(args, args.rate / 2, 2 * STEADY_S + args.seconds)
        line.wait_until(STEADY_S)
        servers[0].terminate()
        servers[0].wait()
        stack.enter_context(stopped_after(start_server(args, ports[0], f"bench{ports[0]}")))
        again = line.now_s()
        line.finish().tell_failures()
    if again > STEADY_S + args.seconds:
        raise SystemExit(f"the restart took {again - STEADY_S:.0f} s: give more --seconds")
    record.add("restart", {"failed": line.failed(), "failed_undisturbed": line.failed_undisturbed(), "sent": line.sum("sent")}, "requests")
    record.add("restart", {"disturbed_s": line.disturbed_s()}, "s")
    record.add("restart", {"p99_ms": line.worst_ms(STEADY_S, again + 1), "p99_ms_before": line.p99_ms(0, STEADY_S)}, "ms")
    record.add("restart", {"away_s": again - STEADY_S}, "s")


def original_stack(args, record):
    """Both wait on one core, one at a time is asked, and both may take a second: throughput alone."""
    loose = {"deadline_ms": STACK_MS, "p99_ms": STACK_MS, "step_s": args.seconds}
    sides = {"shortlist": argparse.Namespace(**vars(args) | loose),
             "original-stack": argparse.Namespace(**vars(args) | loose | {
                 "url": args.stack_url, "users": args.stack_users, "rate": args.stack_rate})}
    peaks = {system: [] for system in sides}
    for turn in range(args.rounds):
        for system, side in sides.items():
            side.runs = 1000 * (turn + 1)
            peaks[system].append(e2e.saturation(side)[0])
    medians = {system: statistics.median(rates) for system, rates in peaks.items()}
    for system, side in sides.items():
        args.system = system
        setting = f"peak p99<{STACK_MS} ms"
        figures = {"median": medians[system], "least": min(peaks[system]), "most": max(peaks[system])}
        record.add(setting, {f"rps_per_core_{name}": rate for name, rate in figures.items()}, "1/s")
        totals = e2e.load(side, medians["original-stack"] / 2, args.seconds)
        record.add("half of the stack's peak", {f"{key}_ms": totals["latency_ms"][key] for key in ("p50", "p99")}, "ms")
    args.system = "shortlist"
    ratio = statistics.median(ours / theirs for ours, theirs in zip(*peaks.values()))
    record.add("peak", {"times_the_stack": ratio}, "x")


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    for name, run, seconds in (("overload", overload, 60), ("redis-down", redis_down, 10), ("swap", swap, 30), ("nginx", nginx, 60),
                               ("original-stack", original_stack, 20)):
        command = commands.add_parser(name)
        e2e.arguments(command)
        command.set_defaults(run=run, work=name)
        command.add_argument("--rate", type=float, required=True, help="at saturation")
        command.add_argument("--seconds", type=int, default=seconds, help="of the overload, a failure, a swap, a restart or a step of a search")
        if run is overload:
            command.add_argument("--pid", type=int, required=True, help="the server's process")
        if run is redis_down:
            command.add_argument("--redis-port", type=int, required=True)
        if run is swap:
            command.add_argument("--registry", type=pathlib.Path, required=True)
            command.add_argument("--swaps", type=int, default=20)
        if run is original_stack:
            command.add_argument("--stack-url", required=True)
            command.add_argument("--stack-users", type=int, required=True)
            command.add_argument("--stack-rate", type=float, default=60.0, help="where its search begins")
            command.add_argument("--rounds", type=int, default=3)
        if run is nginx:
            command.add_argument("--bin", required=True, help="shortlist")
            command.add_argument("--config", required=True)
            command.add_argument("--nginx", default="/usr/sbin/nginx")
            command.add_argument("--nginx-port", type=int, default=8390, help="and the two after it for the servers")
            command.add_argument("--server-core", default="0")
    args = parser.parse_args()
    record = e2e.Record(args)
    args.run(args, record)
    record.write()


if __name__ == "__main__":
    main()
