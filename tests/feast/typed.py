"""Definitions of the test beside those that `shortlist features feast` makes: values of every type, ids of every type."""

from datetime import timedelta

from definitions import user_id
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp


def view(name, entity, types):
    return FeatureView(
        name=name,
        entities=[entity],
        ttl=timedelta(0),
        schema=[Field(name=feature, dtype=dtype) for feature, dtype in types.items()],
        source=FileSource(path=f"{name}.parquet", timestamp_field="event_timestamp"),
    )


typed = view(
    "typed",
    user_id,
    {
        "an_int32": Int32,
        "an_int64": Int64,
        "a_float32": Float32,
        "a_float64": Float64,
        "a_bool": Bool,
        "a_string": String,
        "a_moment": UnixTimestamp,
    },
)
int32_id = Entity(name="int32_id", join_keys=["int32_id"], value_type=ValueType.INT32)
int64_id = Entity(name="int64_id", join_keys=["int64_id"], value_type=ValueType.INT64)
by_int32 = view("by_int32", int32_id, {"value": Float32})
by_int64 = view("by_int64", int64_id, {"value": Float32})
