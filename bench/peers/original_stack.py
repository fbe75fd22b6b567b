"""The stack that Shortlist was first designed for, written as well as it goes: the peer of `make bench-e2e`.

FastAPI on uvicorn (uvloop, httptools), Redis by redis-py with hiredis, FAISS `IVF4096,SQ8`, NumPy,
LightGBM, orjson. One process, for it gets one core. The route, the request and the ids are those of
Shortlist, so that `bench/load` drives both. A request does what one of Shortlist does: one round trip
for a user's embedding, 40 features and 30 recently shown items; 500 candidates in stock, sold in the
region and not shown lately; 120 columns; 300 trees of 63 leaves; freshness; at most 3 of a category;
20 items with title, thumbnail and price.

    build --world WORLD --dir DIR              index, catalogue, model (minutes); WORLD is of `shortlist generate`
    fill  --dir DIR --redis URL --users N      users into Redis; 30 shown each
    serve --dir DIR --redis URL --port P       pin it with taskset

Features are random numbers of plausible shapes. The labels follow from a few of them, so that the
trees have something to learn and split on all kinds of columns.
"""

import os

# One thread, as one core has; before any library reads it.
os.environ["OMP_NUM_THREADS"] = "1"

import argparse
import asyncio
import contextlib
import json
import math
import pathlib
import time
import uuid

import faiss
import lightgbm
import numpy as np
import orjson
import redis.asyncio
import uvicorn
from fastapi import FastAPI, Response
from pydantic import BaseModel

from index import column

LISTS = 4096
CANDIDATES = 500
RECALL = 0.95
REGIONS = ["north", "east", "south", "west"]
DEVICES = ["mobile", "desktop"]
CATEGORIES = 24
STOCK_SHARE = 0.8
REGION_SHARE = 0.5
SHOWN = 30
CATEGORY_MAX = 3
FRESH_BOOST, FRESH_DAYS = 0.1, 7.0

# Columns of the ranker. A user's first are their tastes, one a category; an item's first are named.
USER_COLUMNS, ITEM_COLUMNS, CROSS_COLUMNS = 40, 64, 16
COLUMNS = USER_COLUMNS + ITEM_COLUMNS + CROSS_COLUMNS
ITEM_PRICE, ITEM_AGE_DAYS, ITEM_CTR, ITEM_QUALITY = range(4)
USER_PRICE = CATEGORIES
TREES, LEAVES, TRAIN_REQUESTS = 300, 63, 1000


# ---------------------------------------------------------------- the catalogue

class Catalogue:
    """Everything about items, as arrays by row."""

    def __init__(self, directory):
        arrays = np.load(directory / "items.npz")
        self.features, self.category = arrays["features"], arrays["category"]
        self.regions, self.in_stock = arrays["regions"], arrays["in_stock"]
        self.boost = FRESH_BOOST * np.exp(-self.features[:, ITEM_AGE_DAYS] / FRESH_DAYS)
        rows = len(self.category)
        self.ids = [f"i{row + 1:08}" for row in range(rows)]
        self.titles = [f"Item {row + 1} of category {category}" for row, category in enumerate(self.category)]
        self.thumbnails = [f"https://img.example/{row + 1}.jpg" for row in range(rows)]

    def allowed(self, region):
        """Whether items are in stock and sold in a region (a number, or None for all)."""
        return self.in_stock if region is None else self.in_stock & (self.regions >> region & 1).astype(bool)


def make_catalogue(rng, rows):
    """Random items: counters have long tails, shares lie in 0..1, a third of the columns is mostly 0."""
    features = rng.random((rows, ITEM_COLUMNS), dtype=np.float32)
    features[:, 4:24] = rng.lognormal(1.0, 1.5, (rows, 20))
    features[:, 24:44] *= rng.random((rows, 20)) < 0.3
    features[:, ITEM_PRICE] = rng.lognormal(3.0, 0.8, rows)
    features[:, ITEM_AGE_DAYS] = rng.exponential(60.0, rows)
    features[:, ITEM_CTR] = rng.beta(2.0, 60.0, rows)
    category = rng.integers(0, CATEGORIES, rows).astype(np.uint8)
    regions = np.zeros(rows, np.uint8)
    for region in range(len(REGIONS)):
        regions |= (rng.random(rows) < REGION_SHARE).astype(np.uint8) << region
    return {"features": features, "category": category, "regions": regions,
            "in_stock": rng.random(rows) < STOCK_SHARE}


def make_users(rng, users, queries):
    """Embeddings near the queries, and features: tastes that add up to 1, price, counters."""
    vectors = queries[rng.integers(0, len(queries), users)]
    vectors = vectors + rng.normal(0.0, 0.02, vectors.shape).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    features = rng.random((users, USER_COLUMNS), dtype=np.float32)
    features[:, :CATEGORIES] = rng.dirichlet(np.full(CATEGORIES, 0.3), users)
    features[:, USER_PRICE] = rng.lognormal(3.0, 0.5, users)
    features[:, USER_PRICE + 1:USER_PRICE + 9] = rng.lognormal(1.0, 1.5, (users, 8))
    return vectors.astype(np.float32), features


# ---------------------------------------------------------------- the stages

class Ranker:
    """120 columns of 500 candidates, and what the trees say of them. One request at a time."""

    def __init__(self, catalogue, booster=None):
        self.catalogue, self.booster = catalogue, booster
        self.matrix = np.zeros((CANDIDATES, COLUMNS), np.float32)
        self.items = np.empty((CANDIDATES, ITEM_COLUMNS), np.float32)

    def fill(self, user, rows, similarity, region, device, hour):
        """The columns, a view of a matrix that is used again. An item's are copied as one block."""
        items, category = self.catalogue.features, self.catalogue.category[rows]
        matrix = self.matrix[:len(rows)]
        matrix[:, :USER_COLUMNS] = user
        block = matrix[:, USER_COLUMNS:USER_COLUMNS + ITEM_COLUMNS]
        # With a mode, `take` writes to `out` without a copy between.
        block[:] = np.take(items, rows, axis=0, out=self.items[:len(rows)], mode="clip")
        cross = matrix[:, USER_COLUMNS + ITEM_COLUMNS:]
        price, taste = block[:, ITEM_PRICE], user[category]
        cross[:, 0] = similarity
        cross[:, 1] = np.arange(len(rows))
        cross[:, 2] = taste
        cross[:, 3] = price / user[USER_PRICE]
        cross[:, 4] = price - user[USER_PRICE]
        cross[:, 5] = taste * block[:, ITEM_CTR]
        cross[:, 6] = similarity * block[:, ITEM_QUALITY]
        cross[:, 7] = taste * similarity
        cross[:, 8] = category
        cross[:, 9] = -1 if region is None else region
        cross[:, 10] = -1 if device is None else device
        cross[:, 11] = hour
        cross[:, 12] = math.sin(hour * math.pi / 12)
        cross[:, 13] = math.cos(hour * math.pi / 12)
        cross[:, 14] = similarity[0] - similarity
        cross[:, 15] = block[:, 4] * user[USER_PRICE + 1]
        return matrix

    def score(self, *request):
        return self.booster.predict(self.fill(*request), num_threads=1)


class Search:
    """FAISS behind bitmaps: one a region, in which a request's shown items are cleared for its time."""

    def __init__(self, index, catalogue, nprobe):
        self.index = index
        self.masks = [np.packbits(catalogue.allowed(region), bitorder="little") for region in [*range(len(REGIONS)), None]]
        selectors = [faiss.IDSelectorBitmap(mask) for mask in self.masks]
        self.parameters = [faiss.SearchParametersIVF(sel=selector, nprobe=nprobe) for selector in selectors]

    def find(self, vector, shown, region, k=CANDIDATES):
        """Rows and similarities, best first; fewer than `k` where lists have no more."""
        which = len(REGIONS) if region is None else region
        mask, at = self.masks[which], shown >> 3
        kept = mask[at]
        np.bitwise_and.at(mask, at, ~(1 << (shown & 7)).astype(np.uint8))
        similarity, rows = self.index.search(vector[None, :], k, params=self.parameters[which])
        mask[at] = kept
        found = rows[0] >= 0
        return rows[0][found], similarity[0][found]


def choose(scores, category, num_items):
    """Positions of the best, at most CATEGORY_MAX of a category."""
    order = np.argsort(-scores, kind="stable")
    by_category = np.argsort(category[order], kind="stable")
    sorted_category = category[order][by_category]
    place = np.arange(len(order)) - np.searchsorted(sorted_category, sorted_category)
    return order[np.sort(by_category[place < CATEGORY_MAX])][:num_items]


# ---------------------------------------------------------------- build

def build(args):
    rng = np.random.default_rng(args.seed)
    args.dir.mkdir(parents=True, exist_ok=True)
    for name in ("items", "queries"):
        column((args.world / "vectors").glob(f"{name}-*.parquet"), args.dir / f"{name}.npy")
    vectors, queries = np.load(args.dir / "items.npy", mmap_mode="r"), np.load(args.dir / "queries.npy")
    np.savez(args.dir / "items.npz", **make_catalogue(rng, len(vectors)))
    catalogue = Catalogue(args.dir)
    index = faiss.index_factory(vectors.shape[1], f"IVF{LISTS},SQ8", faiss.METRIC_INNER_PRODUCT)
    index.train(np.array(vectors[np.sort(rng.choice(len(vectors), min(len(vectors), 40 * LISTS), replace=False))]))
    for first in range(0, len(vectors), 100_000):
        index.add(np.array(vectors[first:first + 100_000]))
    faiss.write_index(index, str(args.dir / "index.faiss"))
    nprobe, recall = calibrate(index, catalogue, vectors, queries[:200])
    (args.dir / "index.json").write_text(json.dumps({"nprobe": nprobe, "recall_at_500": recall}))
    print(f"nprobe {nprobe}, recall@{CANDIDATES} {recall:.4f}", flush=True)
    train(rng, catalogue, Search(index, catalogue, nprobe), queries).save_model(args.dir / "model.txt")


def calibrate(index, catalogue, vectors, queries):
    """The fewest lists with the recall, under the filter of a region as requests have it."""
    allowed = np.flatnonzero(catalogue.allowed(0))
    scores = queries @ np.array(vectors[allowed]).T
    truth = allowed[np.argpartition(-scores, CANDIDATES, axis=1)[:, :CANDIDATES]]
    none = np.empty(0, np.int64)

    def recall(nprobe):
        search = Search(index, catalogue, nprobe)
        found = (search.find(query, none, 0)[0] for query in queries)
        return float(np.mean([np.isin(best, rows).mean() for best, rows in zip(truth, found)]))

    low, high = 0, 1
    while recall(high) < RECALL:
        low, high = high, 2 * high
        if high > LISTS:
            raise SystemExit(f"all {LISTS} lists give less than recall {RECALL}: the codes are too coarse")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if recall(middle) >= RECALL else (middle, high)
    return high, recall(high)


def train(rng, catalogue, search, queries):
    """Trees over candidates of random users; the labels follow from ten of the columns, with noise."""
    vectors, features = make_users(rng, TRAIN_REQUESTS, queries)
    ranker, rows = Ranker(catalogue), []
    for vector, user in zip(vectors, features):
        region, device, hour = rng.integers(4), rng.integers(2), rng.integers(24)
        found, similarity = search.find(vector, np.empty(0, np.int64), region)
        rows.append(ranker.fill(user, found, similarity, region, device, hour).copy())
    matrix = np.concatenate(rows)
    weights = rng.normal(0.0, 0.6, COLUMNS)
    spread = matrix.std(axis=0) + 1e-9
    signal = ((matrix - matrix.mean(axis=0)) / spread).clip(-3, 3)
    logit = signal @ weights / 3 + np.sin(2 * signal[:, 40]) * signal[:, 106] - 2
    labels = rng.random(len(matrix)) < 1 / (1 + np.exp(-logit))
    parameters = {"objective": "binary", "num_leaves": LEAVES, "learning_rate": 0.05, "min_data_in_leaf": 50,
                  "num_threads": 1, "verbose": -1, "seed": 1}
    return lightgbm.train(parameters, lightgbm.Dataset(matrix, labels), num_boost_round=TREES)


# ---------------------------------------------------------------- users

def keys(user_id):
    return f"emb:{user_id}", f"feat:{user_id}", f"shown:{user_id}"


async def fill(args):
    """Users `u0000001` to `u<users>`; embedding, features and shown rows as raw numbers."""
    rng = np.random.default_rng(args.seed + 1)
    queries = np.load(args.dir / "queries.npy")
    rows = len(np.load(args.dir / "items.npz")["category"])
    client = redis.asyncio.from_url(args.redis)
    for first in range(0, args.users, 10_000):
        users = min(10_000, args.users - first)
        vectors, features = make_users(rng, users, queries)
        shown = rng.integers(0, rows, (users, SHOWN)).astype(np.int32)
        batch = {}
        for at in range(users):
            values = vectors[at].tobytes(), features[at].tobytes(), shown[at].tobytes()
            batch.update(zip(keys(f"u{first + at + 1:07}"), values))
        await client.mset(batch)
    await client.aclose()


# ---------------------------------------------------------------- the service

class Ask(BaseModel):
    user_id: str
    num_items: int = 20
    region: str | None = None
    device: str | None = None


class Service:
    def __init__(self, args):
        self.catalogue = Catalogue(args.dir)
        index = faiss.read_index(str(args.dir / "index.faiss"))
        nprobe = json.loads((args.dir / "index.json").read_text())["nprobe"]
        self.search = Search(index, self.catalogue, nprobe)
        self.ranker = Ranker(self.catalogue, lightgbm.Booster(model_file=args.dir / "model.txt"))
        self.redis = redis.asyncio.from_url(args.redis, max_connections=args.connections)
        # Who is not known gets what suits the average user.
        vectors, features = make_users(np.random.default_rng(7), 1000, np.load(args.dir / "queries.npy"))
        self.average = vectors.mean(axis=0), features.mean(axis=0), np.empty(0, np.int64)

    async def user(self, user_id):
        vector, features, shown = await self.redis.mget(keys(user_id))
        if vector is None:
            return self.average
        shown = np.frombuffer(shown, np.int32).astype(np.int64)
        return np.frombuffer(vector, np.float32), np.frombuffer(features, np.float32), shown

    async def recommend(self, ask: Ask):
        vector, features, shown = await self.user(ask.user_id)
        region = REGIONS.index(ask.region) if ask.region in REGIONS else None
        device = DEVICES.index(ask.device) if ask.device in DEVICES else None
        rows, similarity = self.search.find(vector, shown, region)
        hour = time.gmtime().tm_hour
        scores = self.ranker.score(features, rows, similarity, region, device, hour)
        scores *= 1 + self.catalogue.boost[rows]
        best = choose(scores, self.catalogue.category[rows], ask.num_items)
        return Response(self.answer(ask.user_id, rows[best], scores[best]), media_type="application/json")

    def answer(self, user_id, rows, scores):
        items, prices = self.catalogue, self.catalogue.features[rows, ITEM_PRICE].tolist()
        shown = [
            {"item_id": items.ids[row], "score": score, "rank": rank, "title": items.titles[row],
             "thumbnail": items.thumbnails[row], "price": price}
            for rank, (row, score, price) in enumerate(zip(rows.tolist(), scores.tolist(), prices), 1)
        ]
        return orjson.dumps({"request_id": uuid.uuid4().hex, "user_id": user_id, "items": shown, "degraded": []})


def serve(args):
    service = Service(args)

    @contextlib.asynccontextmanager
    async def lifespan(_):
        yield
        await service.redis.aclose()

    app = FastAPI(lifespan=lifespan, openapi_url=None)
    app.post("/v1/recommendations")(service.recommend)
    app.get("/readyz")(lambda: {"ready": True})
    uvicorn.run(app, host="127.0.0.1", port=args.port, loop="uvloop", http="httptools", access_log=False,
                log_level="warning", backlog=2048)


def main():
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(required=True)
    for run in (build, fill, serve):
        command = commands.add_parser(run.__name__)
        command.set_defaults(run=run)
        command.add_argument("--dir", type=pathlib.Path, required=True)
        command.add_argument("--seed", type=int, default=1)
        if run is build:
            command.add_argument("--world", type=pathlib.Path, required=True)
        else:
            command.add_argument("--redis", default="redis://127.0.0.1:6379")
        if run is fill:
            command.add_argument("--users", type=int, required=True)
        if run is serve:
            command.add_argument("--port", type=int, default=8080)
            command.add_argument("--connections", type=int, default=64, help="to Redis, at most")
    args = parser.parse_args()
    outcome = args.run(args)
    if asyncio.iscoroutine(outcome):
        asyncio.run(outcome)


if __name__ == "__main__":
    main()
