"""The real Feast beside Shortlist: reads what Shortlist wrote, then writes what Shortlist reads.

Runs in a feature repository that holds definitions.py (made by `shortlist features feast`), typed.py and request.json;
leaves answer.json: per user and `view:feature` what Feast read, before and after it materialised. Whatever is not
byte for byte what Feast would have written ends it.
"""

import json
import os
import sys
from datetime import datetime, timedelta, timezone

os.environ["FEAST_USAGE"] = "False"

import pyarrow as pa
import pyarrow.parquet as pq
from feast import FeatureStore, FeatureView
from feast.cli.cli import cli
from feast.infra.online_stores.helpers import _mmh3, _redis_key
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from google.protobuf.timestamp_pb2 import Timestamp
from redis import Redis

with open("request.json") as file:
    request = json.load(file)
as_of = datetime.fromtimestamp(request["as_of_ms"] / 1000, tz=timezone.utc)
users = request["users"]
day = timedelta(days=1)
ARROW = {
    "Int32": pa.int32(),
    "Int64": pa.int64(),
    "Float32": pa.float32(),
    "Float64": pa.float64(),
    "Bool": pa.bool_(),
    "String": pa.string(),
    "UnixTimestamp": pa.timestamp("us", tz="UTC"),
}


def write(view, join_key_type, rows):
    """Rows of a view's source: an id, its moment, its features by name."""
    columns = {view.entities[0]: pa.array([row[0] for row in rows], join_key_type)}
    columns["event_timestamp"] = pa.array([row[1] for row in rows], ARROW["UnixTimestamp"])
    for field in view.features:
        values = [row[2].get(field.name) for row in rows]
        columns[field.name] = pa.array(values, ARROW[str(field.dtype)])
    pq.write_table(pa.table(columns), view.batch_source.path)


def newer_and_older(view):
    """One user's row is newer than what Shortlist wrote, another's is older; a stranger has one too."""
    def features(number):
        of_type = {"Float32": number, "String": request["text"]}
        return {field.name: of_type[str(field.dtype)] for field in view.features}

    nulls = {}
    return [
        (users[0], as_of + timedelta(milliseconds=1), features(0.1)),
        (users[1], as_of - timedelta(milliseconds=1), features(0.2)),
        (users[2], as_of, features(0.3)),
        (users[3], as_of + day, nulls),
        (request["stranger"], as_of, features(-1.5)),
    ]


def typed_rows():
    names = ["an_int32", "an_int64", "a_float32", "a_float64", "a_bool", "a_string", "a_moment"]

    def row(user, time, *values):
        return user, time, dict(zip(names, values))

    text = request["text"]
    return [
        row(users[0], as_of, -(2**31), 2**53 - 1, 1.1, 0.1, True, text, as_of),
        row(users[1], as_of, 0, 0, 0.0, -0.0, False, "", datetime(1970, 1, 1, tzinfo=timezone.utc)),
        row(users[2], as_of),
        row(users[4], as_of - 30 * day, 7, 7, 7.0, 7.0, True, text, as_of),
        row(users[5], as_of - day, 1, 1, 1.0, 1.0, True, text, as_of),
        row(users[5], as_of, 2, -2, -3.4e38, 1e300, False, "Größe ✓", as_of - day),
        row(users[5], as_of - 2 * day, 3, 3, 3.0, 3.0, True, text, as_of),
        row(request["stranger"], as_of, 2**31 - 1, -(2**53) + 1, 1e-45, 5e-324, True, text, as_of),
    ]


def feast(*arguments):
    cli(list(arguments), standalone_mode=False)


def read(store, views):
    """What get_online_features says of everybody; the bytes in Redis must be those of its values."""
    redis = Redis(*request["redis"].split(":"))
    answer = {}
    for view in views:
        join_key, ids = view.entities[0], users + [request["stranger"], "nobody"]
        if join_key != "user_id":
            ids = [-7, 42]
        names = [feature.name for feature in view.features]
        references = [f"{view.name}:{name}" for name in names]
        response = store.get_online_features(references, [{join_key: one} for one in ids]).proto
        vectors = dict(zip(response.metadata.feature_names.val, response.results))
        for at, one in enumerate(ids):
            entity = EntityKey(join_keys=[join_key], entity_values=[vectors[join_key].values[at]])
            stored = redis.hgetall(_redis_key(store.project, entity, 3))
            there = stored.get(f"_ts:{view.name}".encode())
            if there is not None:
                time = Timestamp.FromString(there)
                assert time == vectors[names[0]].event_timestamps[at], (view.name, one)
                assert time.SerializeToString() == there, (view.name, one)
            values = answer.setdefault(str(one), {})
            for name, reference in zip(names, references):
                value = vectors[name].values[at]
                kind = value.WhichOneof("val")
                bytes_ = stored.get(_mmh3(reference))
                assert (bytes_ or b"") == value.SerializeToString(), (reference, one, bytes_, value)
                assert (bytes_ is None) == (there is None), (reference, one)
                if bytes_ is not None:
                    values[reference] = {kind: getattr(value, kind)} if kind else None
    return answer


def main():
    with open("feature_store.yaml", "w") as file:
        json.dump(
            {
                "project": request["project"],
                "provider": "local",
                "registry": "registry.db",
                "online_store": {"type": "redis", "connection_string": request["redis"]},
                "offline_store": {"type": "file"},
                "entity_key_serialization_version": 3,
            },
            file,
        )
    sys.path.insert(0, os.getcwd())
    import definitions
    import typed

    views = [view for view in vars(definitions).values() if isinstance(view, FeatureView)]
    for view in views:
        write(view, pa.string(), newer_and_older(view))
    write(typed.typed, pa.string(), typed_rows())
    for view, of_type in [(typed.by_int32, pa.int32()), (typed.by_int64, pa.int64())]:
        write(view, of_type, [(-7, as_of, {"value": -7.5}), (42, as_of, {"value": 42.5})])
    views += [typed.typed, typed.by_int32, typed.by_int64]
    feast("apply")
    store = FeatureStore(".")
    before = read(store, views)
    feast("materialize", *[(as_of + days * day).isoformat() for days in (-60, 2)])
    answer = {"before": before, "after": read(store, views)}
    with open("answer.json", "w") as file:
        json.dump(answer, file)


if __name__ == "__main__":
    main()
