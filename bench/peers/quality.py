"""Recall of the towers beside popularity, item-kNN, EASE and ALS, by one protocol.

    python bench/peers/quality.py --work WORK --name demo --record bench/record/quality.csv [--seeds 3]

Called by tools/bench-quality.sh after a run of the day. Reads the collected events and the run's report, so that all
see the same events, items, users and test days. Protocol, as `offline/recall.rs` has it: users with a positive in
the test days; relevant is what they took there, for `new-to-user` without what they had taken before, which
then cannot be recommended either; recall@k is hits among the first k over min(k, relevant), the mean over users
with something relevant. The peers learn from all positives before the test days; what they are set by is chosen
on as many days before those, by recall@500 (EASE: lambda; ALS: regularisation and confidence; kNN: neighbours).

Peers: PyPI implicit 0.7.3 (ALS, cosine item-kNN), scipy 1.17, numpy 2.4; EASE (Steck, WWW 2019) on the most
bought items, the rest scoring 0. Requirements: implicit scipy numpy pandas pyarrow.
"""

import argparse
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from implicit.als import AlternatingLeastSquares
from implicit.nearest_neighbours import CosineRecommender
from scipy.sparse import csr_matrix

import quality_rows
from threadpoolctl import threadpool_limits

KS = (20, 500)
DAY_MS = 86_400_000
EASE_ITEMS = 20_000
CHUNK = 256


class Events:
    """Positives with dense users and items, in time order."""

    def __init__(self, collected: Path, kinds: list[str]):
        frame = pq.read_table(collected / "events.parquet", columns=["user_id", "item_id", "event", "ts_ms"])
        frame = frame.to_pandas()
        frame = frame[frame.event.isin(kinds)]
        names = np.sort(pq.read_table(collected / "items.parquet", columns=["item_id"])["item_id"].to_numpy())
        self.items = len(names)
        self.item = np.searchsorted(names, frame.item_id.to_numpy())
        self.user = pd.factorize(frame.user_id, sort=True)[0]
        self.users = int(self.user.max()) + 1
        self.time = frame.ts_ms.to_numpy()

    def counts(self, begin: int, end: int) -> csr_matrix:
        """Positives by user and item in [begin, end)."""
        inside = (self.time >= begin) & (self.time < end)
        ones = np.ones(int(inside.sum()), np.float32)
        shape = (self.users, self.items)
        return csr_matrix((ones, (self.user[inside], self.item[inside])), shape=shape)


class Question:
    """The users of some days, what they had before and what they took."""

    def __init__(self, events: Events, begin: int, end: int):
        self.before = events.counts(0, begin)
        self.taken = events.counts(begin, end)
        self.asked = np.flatnonzero(np.diff(self.taken.indptr))

    def recall(self, score, new: bool) -> dict[int, float]:
        """`score(users)` gives `len(users) x items`, higher is better."""
        found = {k: [] for k in KS}
        for at in range(0, len(self.asked), CHUNK):
            users = self.asked[at : at + CHUNK]
            scores = np.array(score(users), np.float32)
            for row, user in zip(scores, users):
                relevant = self.taken[user].indices
                if new:
                    had = self.before[user].indices
                    relevant = np.setdiff1d(relevant, had)
                    row[had] = -np.inf
                if len(relevant) == 0:
                    continue
                top = min(max(KS), len(row) - 1)
                best = np.argpartition(-row, top)[: max(KS)]
                best = best[np.lexsort((best, -row[best]))]
                best = best[np.isfinite(row[best])]
                hit = np.isin(best, relevant)
                for k in KS:
                    found[k].append(hit[:k].sum() / min(k, len(relevant)))
        return {k: float(np.mean(values)) for k, values in found.items()}


def popularity(events: Events, begin: int, end: int):
    counts = np.asarray(events.counts(begin, end).sum(axis=0)).ravel()
    return lambda users: np.tile(counts, (len(users), 1))


def repeats(before: csr_matrix):
    """What the user took most often, ties by what all take most often."""
    share = np.asarray(before.sum(axis=0)).ravel()
    share = share / (share.max() * 2 + 1)
    return lambda users: before[users].toarray() + np.where(before[users].toarray() > 0, share, 0)


def knn(before: csr_matrix, neighbours: int):
    model = CosineRecommender(K=neighbours)
    binary = (before > 0).astype(np.float32)
    model.fit(binary, show_progress=False)
    return lambda users: (binary[users] @ model.similarity).toarray()


class Ease:
    """B = I - P diag(1/diag(P)), P = (X'X + lambda I)^-1, on the most bought items."""

    def __init__(self, before: csr_matrix):
        binary = (before > 0).astype(np.float32)
        taken = np.asarray(binary.sum(axis=0)).ravel()
        self.known = np.sort(np.argsort(-taken, kind="stable")[:EASE_ITEMS])
        self.rows = binary[:, self.known].tocsr()
        self.items = before.shape[1]
        self.gram = (self.rows.T @ self.rows).toarray().astype(np.float32)

    def fit(self, weight: float):
        gram = self.gram.copy()
        gram[np.diag_indices_from(gram)] += weight
        inverse = np.linalg.inv(gram)
        del gram
        weights = inverse / -np.diag(inverse)
        np.fill_diagonal(weights, 0)
        del inverse

        def score(users):
            out = np.zeros((len(users), self.items), np.float32)
            out[:, self.known] = self.rows[users] @ weights
            return out

        return score


def als(before: csr_matrix, regularisation: float, confidence: float, seed: int):
    model = AlternatingLeastSquares(
        factors=128,
        regularization=regularisation,
        alpha=confidence,
        iterations=15,
        random_state=seed,
        num_threads=0,
    )
    with threadpool_limits(1, "blas"):
        model.fit(before, show_progress=False)
    return lambda users: model.user_factors[users] @ model.item_factors.T


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--positive", action="append")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--record", type=Path, required=True)
    args = parser.parse_args()
    report = json.loads((args.work / "evaluate/report.json").read_text())
    events = Events(args.work / "collect", args.positive or ["purchase"])
    begin, end = report["window_ms"]
    test = Question(events, begin, end)
    choice = Question(events, begin - (end - begin), begin)
    rows = []

    def measure(name: str, setting: str, score):
        for scope, new in (("new-to-user", True), ("all", False)):
            for k, value in test.recall(score, new).items():
                rows.append((name, f"{scope} {setting}".strip(), f"recall@{k}", value))
                print(f"{name:16} {scope:12} recall@{k:<4} {value:.4f}  {setting}", flush=True)

    def best(name: str, make, settings):
        """The setting that serves the days before the test best."""
        found = [(choice.recall(make(setting), True)[500], setting) for setting in settings]
        print(f"{name}: " + ", ".join(f"{setting}: {value:.4f}" for value, setting in found), flush=True)
        return max(found)[1]

    measure("popularity", "", popularity(events, 0, begin))
    measure("popularity-28d", "", popularity(events, begin - 28 * DAY_MS, begin))
    measure("repeats", "", repeats(test.before))
    neighbours = best("item-knn", lambda k: knn(choice.before, k), [20, 200, 1000])
    measure("item-knn", f"neighbours={neighbours}", knn(test.before, neighbours))
    settings = [(0.01, 1.0), (0.1, 1.0), (0.1, 10.0), (1.0, 10.0)]
    regularisation, confidence = best("als", lambda s: als(choice.before, *s, 1), settings)
    for seed in range(1, args.seeds + 1):
        setting = f"regularisation={regularisation:g} confidence={confidence:g} seed={seed}"
        measure("als", setting, als(test.before, regularisation, confidence, seed))
    ease = Ease(choice.before)
    weight = best("ease", ease.fit, [100.0, 1000.0] if events.items > EASE_ITEMS else [100.0, 300.0, 1000.0])
    measure("ease", f"lambda={weight:g}", Ease(test.before).fit(weight))

    written = [(system, setting, metric, f"{value:.4f}") for system, setting, metric, value in rows]
    quality_rows.append(args.record, json.dumps(rows), args.name, written)



if __name__ == "__main__":
    main()
