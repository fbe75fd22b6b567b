//! Feast's bytes in Redis, for key serialisation version 3 (checked against Feast 0.67).
//!
//! ```text
//! key      u32 number of join keys | each: u32 2, u32 length, name | each value: u32 type, u32
//!          length, bytes | project                                        (all little-endian)
//! field    murmur3_x86_32 of "view:feature", 4 bytes little-endian; "_ts:view" as it is
//! value    protobuf feast.types.Value; empty is null
//! _ts      protobuf Timestamp: when the row was true
//! ```

/// A value of Feast; what has no single value is not read.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Null,
    /// Moments are epoch days, as every column of users has them.
    Number(f64),
    Text(String),
}

/// How Feast stores ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum KeyType {
    String,
    Int32,
    Int64,
}

/// The key of an entity; `None` when its id is no value of the type.
pub fn key(project: &str, join_key: &str, kind: KeyType, id: &str) -> Option<Vec<u8>> {
    let (number, value) = match kind {
        KeyType::String => (STRING, id.as_bytes().to_vec()),
        KeyType::Int32 => (INT32, id.parse::<i32>().ok()?.to_le_bytes().to_vec()),
        KeyType::Int64 => (INT64, id.parse::<i64>().ok()?.to_le_bytes().to_vec()),
    };
    let mut key = Vec::with_capacity(32 + join_key.len() + value.len() + project.len());
    let word = |key: &mut Vec<u8>, word: usize| key.extend((word as u32).to_le_bytes());
    word(&mut key, 1);
    for (number, bytes) in [(STRING, join_key.as_bytes()), (number, &value)] {
        word(&mut key, number);
        word(&mut key, bytes.len());
        key.extend_from_slice(bytes);
    }
    key.extend_from_slice(project.as_bytes());
    Some(key)
}

const STRING: usize = 2;
const INT32: usize = 3;
const INT64: usize = 4;

/// The hash's field of a feature.
pub fn field(view: &str, feature: &str) -> [u8; 4] {
    murmur3(format!("{view}:{feature}").as_bytes()).to_le_bytes()
}

/// The hash's field that says when a view's row was true.
pub fn time_field(view: &str) -> String {
    format!("_ts:{view}")
}

/// Reads a value; `None` when it is none, or one of a type that is no single value.
pub fn value(bytes: &[u8]) -> Option<Value> {
    if bytes.is_empty() {
        return Some(Value::Null);
    }
    let (field, found, rest) = message_field(bytes)?;
    if !rest.is_empty() {
        return None;
    }
    Some(match (field, found) {
        (2, Wire::Bytes(text)) => Value::Text(std::str::from_utf8(text).ok()?.to_owned()),
        // Protobuf extends the sign of 32 bits to 64.
        (3 | 4, Wire::Varint(value)) => Value::Number(value as i64 as f64),
        // Feast's own words for a moment that is null.
        (8, Wire::Varint(value)) if value as i64 == i64::MIN => Value::Null,
        (8, Wire::Varint(seconds)) => Value::Number(seconds as i64 as f64 / 86_400.0),
        (5, Wire::Fixed64(bits)) => Value::Number(f64::from_bits(bits)),
        (6, Wire::Fixed32(bits)) => Value::Number(f32::from_bits(bits).into()),
        (7, Wire::Varint(value)) => Value::Number((value != 0).into()),
        _ => return None,
    })
}

/// Reads a Timestamp as epoch milliseconds.
pub fn time_ms(mut bytes: &[u8]) -> Option<i64> {
    let mut time_ms = 0i64;
    while !bytes.is_empty() {
        let (field, Wire::Varint(value), rest) = message_field(bytes)? else { return None };
        time_ms = match field {
            1 => time_ms.checked_add((value as i64).checked_mul(1000)?)?,
            2 => time_ms.checked_add(value as i64 / 1_000_000)?,
            _ => return None,
        };
        bytes = rest;
    }
    Some(time_ms)
}

/// Writes what [`value`] reads: numbers as Feast's Float32.
pub fn value_bytes(value: &Value) -> Vec<u8> {
    match value {
        Value::Null => Vec::new(),
        Value::Number(number) => [&[6 << 3 | 5][..], &(*number as f32).to_le_bytes()].concat(),
        Value::Text(text) => {
            let mut bytes = vec![2 << 3 | 2];
            push_varint(&mut bytes, text.len() as u64);
            bytes.extend_from_slice(text.as_bytes());
            bytes
        }
    }
}

/// Writes what [`time_ms`] reads.
pub fn time_bytes(time_ms: i64) -> Vec<u8> {
    let mut bytes = Vec::new();
    let (seconds, nanos) = (time_ms.div_euclid(1000), time_ms.rem_euclid(1000) * 1_000_000);
    for (field, value) in [(1, seconds), (2, nanos)].into_iter().filter(|&(_, value)| value != 0) {
        bytes.push(field << 3);
        push_varint(&mut bytes, value as u64);
    }
    bytes
}

fn push_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

/// A field of a protobuf message, by its wire type.
enum Wire<'a> {
    Varint(u64),
    Fixed64(u64),
    Bytes(&'a [u8]),
    Fixed32(u32),
}

fn message_field(bytes: &[u8]) -> Option<(u64, Wire<'_>, &[u8])> {
    let (tag, rest) = varint(bytes)?;
    let (value, rest) = match tag & 7 {
        0 => varint(rest).map(|(value, rest)| (Wire::Varint(value), rest))?,
        1 => {
            let (value, rest) = rest.split_first_chunk()?;
            (Wire::Fixed64(u64::from_le_bytes(*value)), rest)
        }
        2 => {
            let (length, rest) = varint(rest)?;
            let (value, rest) = rest.split_at_checked(usize::try_from(length).ok()?)?;
            (Wire::Bytes(value), rest)
        }
        5 => {
            let (value, rest) = rest.split_first_chunk()?;
            (Wire::Fixed32(u32::from_le_bytes(*value)), rest)
        }
        _ => return None,
    };
    Some((tag >> 3, value, rest))
}

fn varint(bytes: &[u8]) -> Option<(u64, &[u8])> {
    let length = 1 + bytes.iter().take(10).position(|byte| byte & 0x80 == 0)?;
    let (varint, rest) = bytes.split_at(length);
    let value = varint.iter().rev().fold(0u64, |value, byte| value << 7 | u64::from(byte & 0x7f));
    Some((value, rest))
}

/// MurmurHash3 for 32 bits with seed 0 (Austin Appleby, public domain).
fn murmur3(bytes: &[u8]) -> u32 {
    let scramble =
        |block: u32| block.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    let (blocks, tail) = bytes.as_chunks::<4>();
    let mut hash = blocks.iter().fold(0u32, |hash, block| {
        let mixed = (hash ^ scramble(u32::from_le_bytes(*block))).rotate_left(13);
        mixed.wrapping_mul(5).wrapping_add(0xe654_6b64)
    });
    let last = tail.iter().rev().fold(0u32, |word, byte| word << 8 | u32::from(*byte));
    hash ^= scramble(last) ^ bytes.len() as u32;
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hex(bytes: &[u8]) -> String {
        bytes.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn keys_and_fields_are_feasts() {
        let key = key("recsys", "user_id", KeyType::Int64, "42").unwrap();
        let golden = "010000000200000007000000757365725f696404000000080000002a00000000000000726563\
                      737973";
        assert_eq!(hex(&key), golden);
        assert_eq!(hex(&field("user_stats", "ctr_7d")), "3ee08b90");
        assert_eq!(hex(&field("item_stats", "pop")), "59f36d99");
        assert_eq!(super::key("recsys", "user_id", KeyType::Int64, "x"), None);
    }

    #[test]
    fn murmur_is_murmur() {
        for (text, hash) in [("", 0), ("a", 0x3c25_69b2), ("ab", 0x9bbf_d75f), ("abc", 0xb3dd_93fa)]
        {
            assert_eq!(murmur3(text.as_bytes()), hash, "{text}");
        }
    }

    #[test]
    fn values_of_every_single_type_are_read() {
        let cases: [(&[u8], Value); 10] = [
            (&[], Value::Null),
            (&[0x12, 2, b'h', b'i'], Value::Text("hi".into())),
            (&[0x18, 7], Value::Number(7.0)),
            (&[0x20, 0xfe, 255, 255, 255, 255, 255, 255, 255, 255, 1], Value::Number(-2.0)),
            (&[0x29, 0, 0, 0, 0, 0, 0, 0xf8, 0x3f], Value::Number(1.5)),
            (&[0x35, 0, 0, 0xc0, 0x3f], Value::Number(1.5)),
            (&[0x38, 1], Value::Number(1.0)),
            (&[0x38, 0], Value::Number(0.0)),
            (&[0x40, 0x80, 0xa3, 5], Value::Number(1.0)),
            (&[0x40, 128, 128, 128, 128, 128, 128, 128, 128, 128, 1], Value::Null),
        ];
        for (bytes, expected) in cases {
            assert_eq!(value(bytes), Some(expected), "{bytes:?}");
            for cut in 1..bytes.len() {
                assert_eq!(value(&bytes[..cut]), None, "{:?}", &bytes[..cut]);
            }
        }
        assert_eq!(value(&[0x62, 3, 0x0a, 1, b'x']), None, "a list");
    }

    #[test]
    fn what_is_written_is_read() {
        for written in [Value::Null, Value::Number(0.25), Value::Text("löwe".repeat(50))] {
            assert_eq!(value(&value_bytes(&written)), Some(written));
        }
        for written in [0, 1, 999, 1_512_086_400_123, -1] {
            assert_eq!(time_ms(&time_bytes(written)), Some(written));
        }
        assert_eq!(time_ms(&[0x08]), None);
    }
}
