"""The index beside FAISS and usearch, on the same vectors, in turns, one thread.

    python bench/peers/index.py --bin shortlist --worker index_worker --work DIR WORK...

WORK is one of
    synthetic-200k synthetic-1m synthetic-10m hard-1m      made by `shortlist generate`
    NAME=VECTORS.npy,QUERIES.npy            float32, rows of length one

Every system is built once and kept in DIR. A peer's nprobe (or expansion) is the least that reaches
the recall; then all systems answer the same queries in blocks, one after the other, ROUNDS times, and
the medians over the rounds are printed and written as CSV (--csv; columns in the README of bench/).
"""

import argparse
import csv
import datetime
import json
import os
import pathlib
import subprocess
import time
import uuid

import faiss
import numpy as np
from numpy.lib.format import open_memmap
import pyarrow.parquet as pq

from machine import machine

K = 500
BLOCK = 50


def note(*parts):
    print(time.strftime("%H:%M:%S"), *parts, flush=True)


# --- vectors


def column(files, out):
    files = [pq.ParquetFile(file) for file in sorted(files)]
    rows = sum(file.metadata.num_rows for file in files)
    values, at = None, 0
    for file in files:
        for batch in file.iter_batches(batch_size=65536, columns=["vector"]):
            block = batch.column(0).flatten().to_numpy().reshape(batch.num_rows, -1)
            if values is None:
                values = open_memmap(out, "w+", np.float32, (rows, block.shape[1]))
            values[at : at + len(block)] = block
            at += len(block)
    values.flush()


def synthetic(args, name):
    rows = {"200k": 200_000, "1m": 1_000_000, "10m": 10_000_000}[name.rsplit("-", 1)[1]]
    noise = args.hard_noise if name.startswith("hard") else 0.2
    home = args.work / name
    if not (home / "queries.npy").exists():
        world = home / "world"
        note("generate", name)
        command = [args.bin, "generate", "--items", rows, "--users", 1000, "--days", 0]
        command += ["--queries", 4000, "--noise", noise, "--out", world]
        subprocess.run([str(part) for part in command], check=True, stdout=subprocess.DEVNULL)
        column((world / "vectors").glob("items-*.parquet"), home / "items.npy")
        topics = [pq.read_table(file, columns=["category"]) for file in sorted((world / "items").iterdir())]
        topics = np.concatenate([table["category"].to_numpy() for table in topics])
        _, topics = np.unique(topics, return_inverse=True)
        (topics % 8).astype(np.uint8).tofile(home / "groups.u8")
        column((world / "vectors").glob("queries-*.parquet"), home / "queries.npy")
        subprocess.run(["rm", "-r", str(world)], check=True)
    return home, home / "items.npy", home / "queries.npy"


def load(args, work):
    if "=" in work:
        name, paths = work.split("=", 1)
        vectors, queries = (pathlib.Path(path) for path in paths.split(","))
        home = args.work / name
    else:
        name = work
        home, vectors, queries = synthetic(args, name)
    home.mkdir(parents=True, exist_ok=True)
    return name, home, vectors, queries


# --- systems


class Shortlist:
    """One index file; searches go through the worker, which holds one index at a time."""

    build_env = {}

    def __init__(self, args, home, worker, codes, target, vectors, calibration, lists=0):
        self.name, self.worker, self.target = f"shortlist:ivf-{codes}", worker, target
        tag = codes if lists == 0 else f"{codes}-{lists}"
        self.path = home / f"shortlist-{tag}.index"
        timed = self.path.with_suffix(".json")
        if not timed.exists():
            note("build", self.name)
            env = dict(os.environ, SHORTLIST__INDEX__CODES=codes, SHORTLIST__INDEX__LISTS=str(lists))
            env["SHORTLIST__INDEX__CALIBRATION_QUERIES_MAX"] = "1000"
            env.update(self.build_env)
            command = [args.bin, "index", "build", "--vectors", vectors, "--queries", calibration]
            figures = built([str(part) for part in [*command, "--out", self.path]], env)
            timed.write_text(json.dumps(figures))
        self.figures = json.loads(timed.read_text())

    def ready(self):
        opened = self.worker.ask(open=str(self.path))
        self.bytes = opened["bytes"]
        self.setting = f"@{self.target}"

    def search(self, first, last, items=False, filter="all"):
        answer = self.worker.ask(
            target=self.target, k=K, to=last, items=items, filter=filter, **{"from": first}
        )
        return answer["us"], answer["items"]


class HnswRs(Shortlist):
    """The graph of the crate hnsw_rs behind the same trait, with a worker of its own: it takes turns
    with the lists without being opened again."""

    build_env = {"SHORTLIST__INDEX__KIND": "hnsw", "SHORTLIST__INDEX__CODES": "auto"}

    def __init__(self, *args):
        super().__init__(*args)
        self.name = "hnsw_rs"
        self.ready_once = False

    def ready(self):
        if not self.ready_once:
            super().ready()
            self.ready_once = True


def built(command, env=None):
    """Runs a build; seconds and its peak of anonymous memory, in GiB."""
    since, peak = time.time(), 0
    process = subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        try:
            status = open(f"/proc/{process.pid}/status").read()
            peak = max(peak, int(status.split("RssAnon:")[1].split()[0]))
        except (OSError, IndexError):
            pass
        time.sleep(0.2)
    if process.returncode:
        raise SystemExit(f"{command} failed")
    return {"build_s": time.time() - since, "peak_gib": peak / 2**20}


class Faiss:
    def __init__(self, home, kind, target, vectors, nlist, graph, truth, queries, shared):
        coarse = f"IVF{nlist}_HNSW32" if graph else f"IVF{nlist}"
        self.name = f"faiss:{coarse},{kind}"
        self.kind, self.target, self.queries = kind, target, queries
        self.path = home / (self.name.replace(":", "-").replace(",", "-") + ".index")
        timed = self.path.with_suffix(".json")
        if not timed.exists():
            note("build", self.name)
            if graph and not shared:
                centroids(home, vectors, nlist)
            env = dict(os.environ, OMP_NUM_THREADS=str(os.cpu_count()))
            command = ["python", __file__, "--build", kind, str(vectors), str(self.path), str(nlist)]
            command[0] = os.environ.get("PYTHON", "python3")
            shared = graph and shared
            figures = built(command + [str(int(graph)), str(int(shared))], env)
            if shared:
                figures = {}
            elif graph:
                figures["build_s"] += centroids(home, vectors, nlist)
            timed.write_text(json.dumps(figures))
        self.figures = json.loads(timed.read_text())
        self.nlist, self.truth = nlist, truth
        self.parameters = None

    def ready(self):
        faiss.omp_set_num_threads(1)
        self.bytes = self.path.stat().st_size
        self.index = faiss.read_index(str(self.path))
        self.space = faiss.ParameterSpace()
        self.setting = f"@{self.target}"
        refined = "PQ" in self.kind
        best = None
        for factor in (4, 6, 8) if refined else (1,):
            if refined:
                self.space.set_index_parameter(self.index, "k_factor_rf", factor)
            probes = self.least()
            if probes is None:
                continue
            self.space.set_index_parameter(self.index, "nprobe", probes)
            us = np.median(self.search(0, 60)[0])
            if best is None or us < best[0]:
                best = us, factor, probes
        if best is None:
            return False
        _, factor, probes = best
        if refined:
            self.space.set_index_parameter(self.index, "k_factor_rf", factor)
        self.space.set_index_parameter(self.index, "nprobe", probes)
        self.probes = probes
        self.setting += f"/nprobe{probes}" + (f"/kf{factor}" if refined else "")
        return True

    def least(self):
        """The least nprobe that reaches the target, or None."""

        def reaches(probes):
            self.set_probes(probes)
            return recall(self.search(0, len(self.truth), True)[1], self.truth) >= self.target

        high = 8
        while not reaches(high):
            high *= 2
            if high > self.nlist // 4:
                return None
        low = high // 2
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if reaches(middle) else (middle, high)
        return high

    def filtered(self, passing):
        """Whether it reaches the target with these items only, and the least nprobe for it."""
        self.parameters = faiss.SearchParametersIVF(sel=faiss.IDSelectorBitmap(passing))
        probes = self.least()
        if probes is not None:
            self.set_probes(probes)
        return probes

    def set_probes(self, probes):
        if self.parameters is None:
            self.space.set_index_parameter(self.index, "nprobe", probes)
        else:
            self.parameters.nprobe = probes

    def search(self, first, last, items=False, filter="all"):
        us, found = [], []
        for at in range(first, last):
            query = self.queries[at : at + 1]
            since = time.perf_counter()
            _, ids = self.index.search(query, K, params=self.parameters)
            us.append((time.perf_counter() - since) * 1e6)
            if items:
                found.append(ids[0])
        return us, found


def centroids(home, vectors, nlist):
    """Trains the coarse centroids once for all kinds; the seconds it took."""
    path = home / f"faiss-centroids-{nlist}.npy"
    timed = path.with_suffix(".json")
    if not timed.exists():
        vectors = np.load(vectors, mmap_mode="r")
        since = time.time()
        rng = np.random.default_rng(1)
        sample = np.array(vectors[np.sort(rng.choice(len(vectors), nlist * 40, replace=False))])
        faiss.omp_set_num_threads(os.cpu_count())
        means = faiss.Kmeans(
            vectors.shape[1], nlist, niter=10, spherical=True, max_points_per_centroid=40
        )
        means.train(sample)
        np.save(path, means.centroids)
        timed.write_text(json.dumps({"train_s": time.time() - since}))
    return json.loads(timed.read_text())["train_s"]


def lists_of(path):
    """Centroids and the list of each item, from an index file of ours (see `src/sections.rs`)."""
    data = np.memmap(path, np.uint8, "r")
    parts = {}
    for at in range(64, 64 + 96 * int(data[12:16].view(np.uint32)[0]), 96):
        name = bytes(data[at : at + 40]).rstrip(b"\0").decode()
        offset, length = (int(x) for x in data[at + 48 : at + 64].view(np.uint64))
        parts[name] = data[offset : offset + length]
    offsets = parts["ivf.offsets"].view(np.uint32)
    centroids = parts["ivf.centroids"].view(np.float32).reshape(len(offsets) - 1, -1)
    lists = np.empty(int(offsets[-1]), np.int64)
    lists[parts["ivf.ids"].view(np.uint32)] = np.repeat(
        np.arange(len(offsets) - 1), np.diff(offsets.astype(np.int64))
    )
    return np.array(centroids), lists


def build_faiss(kind, vectors, path, nlist, graph, shared=False):
    """In a process of its own, so that its memory is its own."""
    vectors = np.load(vectors, mmap_mode="r")
    n, dim = vectors.shape
    rng = np.random.default_rng(1)
    rows = 100_000 if shared else min(n, nlist * 64)
    sample = np.array(vectors[np.sort(rng.choice(n, rows, replace=False))])
    metric = faiss.METRIC_INNER_PRODUCT
    if graph:
        # The same centroids for every kind; their time counts for each (see `Faiss`).
        coarse = faiss.IndexHNSWFlat(dim, 32, metric)
        home = pathlib.Path(path).parent
        ours = lists_of(home / "shortlist-compact.index") if shared else None
        nlist = len(ours[0]) if shared else nlist
        coarse.add(ours[0] if shared else np.load(home / f"faiss-centroids-{nlist}.npy"))
    else:
        coarse = faiss.IndexFlatIP(dim)
    if kind == "SQ8":
        index = faiss.IndexIVFScalarQuantizer(coarse, dim, nlist, faiss.ScalarQuantizer.QT_8bit, metric)
    elif kind == "Flat":
        index = faiss.IndexIVFFlat(coarse, dim, nlist, metric)
    else:
        # Built as plain PQ and converted: adding to the fast-scan form has corrupted memory.
        index = faiss.IndexIVFPQ(coarse, dim, nlist, dim // 2, 4, metric)
    if graph:
        index.quantizer_trains_alone = 1
    index.cp.spherical = True
    index.train(sample)
    fine = None
    if kind not in ("SQ8", "Flat"):
        fine = faiss.IndexFlatIP(dim)
        if kind.endswith("RSQ8"):
            fine = faiss.IndexScalarQuantizer(dim, faiss.ScalarQuantizer.QT_8bit, metric)
        fine.train(sample)
    for at in range(0, n, 100_000):
        block = np.array(vectors[at : at + 100_000])
        if shared:
            ids, own = np.arange(at, at + len(block)), ours[1][at : at + len(block)]
            pointer = faiss.swig_ptr
            index.add_core(len(block), pointer(block), pointer(ids), pointer(own))
            index.ntotal = at + len(block)
        else:
            index.add(block)
        if fine is not None:
            fine.add(block)
    if fine is not None:
        fast = faiss.IndexIVFPQFastScan(index)
        index = faiss.IndexRefine(fast, fine)
    faiss.write_index(index, path)


class Worker:
    def __init__(self, binary, vectors, queries, dim, groups):
        command = [binary, vectors, queries, dim, groups]
        self.process = subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, **question):
        self.process.stdin.write(json.dumps(question) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("the worker has ended")
        return json.loads(line)


def recall(found, truth):
    return float(np.mean([len(set(map(int, a)) & set(map(int, b))) / len(b) for a, b in zip(found, truth)]))


# --- one work


def exact(home, worker, filter, queries):
    """The true neighbours, kept beside the vectors: at 10M they take minutes."""
    path = home / f"truth-{filter.replace('/', 'of')}-{queries}.json"
    if not path.exists():
        answer = worker.ask(exact=True, k=K, filter=filter, to=queries, **{"from": 0})
        path.write_text(json.dumps(answer["items"]))
    return json.loads(path.read_text())


def run(args, work, rows, save):
    name, home, vectors_npy, queries_npy = load(args, work)
    vectors = np.load(vectors_npy, mmap_mode="r")
    every = np.load(queries_npy)
    # The first queries calibrate, the others are asked.
    asked = min(args.queries, len(every) // 2)
    calibration, queries = every[: len(every) - asked], every[len(every) - asked :]
    np.save(home / "calibration.npy", calibration)
    np.save(home / "asked.npy", np.ascontiguousarray(queries, np.float32))
    n, dim = vectors.shape
    nlist = args.lists or (16384 if n >= 5_000_000 else 4096 if n >= 500_000 else 1024)
    graph = n >= 5_000_000
    worker = Worker(args.worker, vectors_npy, home / "asked.npy", dim, home / "groups.u8")
    note(name, n, "x", dim, "exact search")
    truth = exact(home, worker, "all", len(queries))
    run_id = uuid.uuid4().hex[:8]

    def write(system, setting, figures):
        for metric, value in figures.items():
            unit = metric.rsplit("_", 1)[-1] if metric != "bytes_per_vector" else "bytes"
            unit = "share" if metric == "recall" else unit
            date = datetime.date.today().isoformat()
            rows.append([run_id, name, system, setting, metric, f"{value:.5g}", unit, date, machine()])

    refine = "PQ64x4fsr,RSQ8" if graph else "PQ64x4fsr,RFlat"
    for target in args.targets:
        ours = [
            Shortlist(args, home, worker, codes, target, vectors_npy, home / "calibration.npy")
            for codes in args.codes
        ]
        for kind in args.peers or (["hnsw_rs"] if name == "synthetic-200k" else ["SQ8", "Flat", refine]):
            if kind == "hnsw_rs":
                second = Worker(args.worker, vectors_npy, home / "asked.npy", dim, home / "groups.u8")
                codes, calibration = "hnsw", home / "calibration.npy"
                peer = HnswRs(args, home, second, codes, target, vectors_npy, calibration)
            else:
                peer = Faiss(
                    home, kind, target, vectors_npy, nlist, graph, truth, queries, args.shared_lists
                )
            if peer.ready() is False:
                note(f"{peer.name} never reaches {target}")
                write(peer.name, f"@{target}/never", peer.figures)
                continue
            for own in ours:
                own.ready()
                table = take_turns(args, [own, peer], truth)
                ratio = table[1]["p50_ms"] / table[0]["p50_ms"]
                for system, figures in zip((own, peer), table):
                    figures["bytes_per_vector"] = system.bytes / n
                    figures |= system.figures
                    against = f"{system.setting}/beside-{kind}" if system is own else system.setting
                    write(system.name, against, figures)
                    note(f"{name:14} {system.name:32} {against:24}", show(figures))
                note(f"{name:14} ratio {ratio:.2f}")
                save(rows)
                write(own.name, f"@{target}/beside-{kind}", {"ratio_x": ratio})
    if args.filters:
        peer = Faiss(
            home, "SQ8", 0.95, vectors_npy, nlist, graph, truth, queries, args.shared_lists
        )
        peer.ready()
        groups = ["group"] if (home / "groups.u8").exists() else []
        for own in ours:
            own.target = 0.95
            own.ready()
            base = None
            for filter in ["all", "1/2", "1/10", "1/100", *groups]:
                truth = exact(home, worker, filter, len(queries))
                systems = [own]
                if filter.startswith("1/"):
                    worker.ask(dump=str(home / "passing.u8"), filter=filter)
                    peer.truth = truth
                    if peer.filtered(np.fromfile(home / "passing.u8", np.uint8)):
                        systems.append(peer)
                found = own.search(0, len(truth), True, filter)[1]
                assert all(len(a) == len(b) for a, b in zip(found, truth)), "fewer than k results"
                table = take_turns(args, systems, truth, filter)
                base = base or table[0]["p50_ms"]
                table[0]["times_unfiltered_x"] = table[0]["p50_ms"] / base
                if len(table) > 1:
                    table[0]["ratio_x"] = table[1]["p50_ms"] / table[0]["p50_ms"]
                setting = f"@0.95/filter-{filter.replace('1/', '1of')}"
                for system, figures in zip(systems, table):
                    write(system.name, setting, figures)
                    note(f"{name:14} {system.name:20} {setting:22}", show(figures))
    worker.process.kill()


def take_turns(args, systems, truth, filter="all"):
    """Median over rounds of each round's p50 and p99; recall once."""
    found = [system.search(0, len(truth), True, filter)[1] for system in systems]
    figures = [{"recall": recall(items, truth)} for items in found]
    rounds = [[] for _ in systems]
    for _ in range(args.rounds):
        us = [[] for _ in systems]
        for first in range(0, len(truth), BLOCK):
            for at, system in enumerate(systems):
                last = min(first + BLOCK, len(truth))
                us[at] += system.search(first, last, False, filter)[0]
        for at, some in enumerate(us):
            rounds[at].append((np.median(some) / 1e3, np.percentile(some, 99) / 1e3))
    for of, some in zip(figures, rounds):
        of["p50_ms"], of["p99_ms"] = (float(x) for x in np.median(some, axis=0))
    return figures


def show(figures):
    return "  ".join(f"{name} {value:.4g}" for name, value in figures.items())


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("works", nargs="*")
    parser.add_argument("--bin", default="shortlist")
    parser.add_argument("--worker")
    parser.add_argument("--work", type=pathlib.Path, default=pathlib.Path("bench-work"))
    parser.add_argument("--csv", type=pathlib.Path)
    parser.add_argument("--targets", type=float, nargs="+", default=[0.95])
    parser.add_argument("--codes", nargs="+", default=["compact", "pq"])
    parser.add_argument("--peers", nargs="+")
    parser.add_argument("--lists", type=int, default=0)
    parser.add_argument("--queries", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--hard-noise", type=float, default=0.9)
    parser.add_argument("--filters", action="store_true")
    parser.add_argument(
        "--shared-lists",
        action="store_true",
        help="at 10M FAISS takes our lists instead of training its own: search is compared, not build",
    )
    parser.add_argument("--build", nargs=6, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.build:
        kind, vectors, path, nlist, graph, shared = args.build
        return build_faiss(kind, vectors, path, int(nlist), graph == "1", shared == "1")

    def save(rows):
        if args.csv:
            with open(args.csv, "w", newline="") as file:
                header = "run_id,work,system,setting,metric,value,unit,date,machine"
                csv.writer(file, lineterminator="\n").writerows([header.split(","), *rows])

    rows = []
    for work in args.works:
        run(args, work, rows, save)
        save(rows)


if __name__ == "__main__":
    main()
