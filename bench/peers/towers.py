"""Two-tower training in PyTorch beside ours: samples per CPU second on one core.

    python bench/peers/towers.py --collected WORK/collect [--batch 512] [--steps 200]

Reads the collected events of a run (`shortlist pipeline collect`) and trains towers of the same sizes as
`[towers]` has by default: an id row of 64 numbers and a row of the category, two pools of the last 50 events
(all alike, and halving every 10), one hidden layer of 256, vectors of 128, a softmax over the batch's own
positives and 1,024 uniform draws with the logQ correction, row-wise sparse Adagrad for the tables and AdamW
for the networks. Written as one would for speed: sparse bags, histories gathered by numpy before the
step, one thread. A sample is a positive. Prints a line of CSV. Ours are the `samples/s` that
`shortlist pipeline towers` logs an epoch, with SHORTLIST__TOWERS__THREADS=1 on a core of its own.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from torch import nn

DIM, ID_DIM, HIDDEN, HISTORY = 128, 64, 256, 50
HALF_LIFE = 10.0
NEGATIVES = 1024


class Pools(nn.Module):
    """A table of ids and one of categories, pooled twice."""

    def __init__(self, items: int, categories: int, width: int):
        super().__init__()
        self.ids = nn.EmbeddingBag(items, ID_DIM, mode="sum", sparse=True)
        self.categories = nn.EmbeddingBag(categories, width, mode="sum", sparse=True)
        self.width = ID_DIM + width

    def row(self, items, categories):
        one = torch.arange(len(items))
        return torch.cat([self.ids(items, one), self.categories(categories, one)], dim=1)

    def pools(self, items, categories, offsets, weights):
        parts = []
        for weight in weights:
            parts.append(self.ids(items, offsets, per_sample_weights=weight))
            parts.append(self.categories(categories, offsets, per_sample_weights=weight))
        return torch.cat(parts, dim=1)


def network(inputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(inputs, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, DIM))


class Data:
    """Positives by user and time, and a row a positive."""

    def __init__(self, collected: Path, positives: list[str]):
        events = pq.read_table(collected / "events.parquet", columns=["user_id", "item_id", "event", "ts_ms"])
        events = events.to_pandas()
        events = events[events.event.isin(positives)].sort_values(["user_id", "ts_ms"], kind="stable")
        items = pq.read_table(collected / "items.parquet", columns=["item_id", "category"]).to_pandas()
        at = {name: row for row, name in enumerate(items.item_id)}
        self.items = events.item_id.map(at).to_numpy(np.int64)
        users = events.user_id.astype("category").cat.codes.to_numpy()
        self.begin = np.searchsorted(users, users)
        self.category = items.category.fillna("").astype("category").cat.codes.to_numpy(np.int64)
        self.rows = np.flatnonzero(np.arange(len(users)) > self.begin)
        self.count = len(items)

    def batch(self, rows):
        """History items, their offsets and pool weights; the positives."""
        begin = np.maximum(self.begin[rows], rows - HISTORY)
        lengths = rows - begin
        offsets = np.concatenate([[0], np.cumsum(lengths)[:-1]])
        inside = np.arange(lengths.sum()) - np.repeat(offsets, lengths)
        history = self.items[np.repeat(begin, lengths) + inside]
        age = np.repeat(lengths, lengths) - 1 - inside
        equal = np.repeat(1.0 / lengths, lengths).astype(np.float32)
        fading = np.exp2(-age / HALF_LIFE)
        fading = (fading / np.repeat(np.add.reduceat(fading, offsets), lengths)).astype(np.float32)
        return history, offsets, (equal, fading), self.items[rows]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--collected", type=Path, required=True)
    parser.add_argument("--positive", action="append", help="events that count (click)")
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--steps", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(1)
    random = np.random.default_rng(1)
    data = Data(args.collected, args.positive or ["click"])
    categories = int(data.category.max()) + 1
    width = max(4, -(-int(np.ceil(np.sqrt(categories))) // 4) * 4)
    table = Pools(data.count, categories, width)
    user, item = network(2 * table.width), network(table.width)
    scale = nn.Parameter(torch.tensor(np.log(15.0), dtype=torch.float32))
    sparse = torch.optim.Adagrad(table.parameters(), lr=0.3)
    dense = torch.optim.AdamW([*user.parameters(), *item.parameters(), scale], lr=0.003, weight_decay=0.01)
    rows = random.permutation(data.rows)
    share = np.bincount(data.items[data.rows], minlength=data.count) / len(data.rows)
    seen = began = 0
    for step in range(args.steps + 20):
        if step == 20:  # the first steps warm up
            seen, began = 0, time.process_time()
        at = (step * args.batch) % max(1, len(rows) - args.batch)
        history, offsets, weights, positives = data.batch(np.sort(rows[at : at + args.batch]))
        drawn = random.integers(0, data.count, NEGATIVES)
        candidates, place = np.unique(np.concatenate([positives, drawn]), return_inverse=True)
        chance = 1 - (1 - share[candidates]) ** len(positives) * (1 - 1 / data.count) ** NEGATIVES
        to = torch.from_numpy
        pooled = table.pools(to(history), to(data.category[history]), to(offsets), [to(w) for w in weights])
        users = nn.functional.normalize(user(pooled))
        items = nn.functional.normalize(item(table.row(to(candidates), to(data.category[candidates]))))
        target = to(place[: len(positives)])
        correction = torch.from_numpy(-np.log(chance).astype(np.float32))
        logits = scale.exp() * users @ items.T
        own = logits.gather(1, target[:, None])
        logits = (logits + correction).scatter(1, target[:, None], own)
        loss = nn.functional.cross_entropy(logits, target)
        sparse.zero_grad()
        dense.zero_grad()
        loss.backward()
        sparse.step()
        dense.step()
        seen += len(positives)
    seconds = time.process_time() - began
    print(f"towers,pytorch {torch.__version__},batch={args.batch} one thread,samples_per_cpu_s,{seen / seconds:.0f}")


if __name__ == "__main__":
    main()
