//! Bodies of the paths under `/v1/items`.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::fields::{Object, string, wrong_type};
use super::{Fault, json, parse};
use crate::bundle::{Attribute, Change, Patch, Upsert};
use crate::store::items::ItemRecord;

/// Labels, or regions, of one item.
const LIST_MAX: usize = 4096;
/// Attributes of one item.
const ATTRIBUTES_MAX: usize = 256;
/// Bytes of a title or an address.
const DISPLAY_BYTES_MAX: usize = 4096;

/// Reads a body of `POST /v1/items`: one item or an array of at most `max`.
pub fn items(body: &[u8], max: usize) -> Result<Vec<Change>, Fault> {
    match parse(body)? {
        Value::Array(values) if values.is_empty() => {
            Err(Fault::new(400, "out_of_range", "the array is empty: send at least one item"))
        }
        Value::Array(values) if values.len() > max => Err(Fault::new(
            400,
            "out_of_range",
            format!("{} items in one body: send at most {max}", values.len()),
        )),
        Value::Array(values) => values
            .into_iter()
            .enumerate()
            .map(|(at, value)| upsert(Object::new(value, &format!("[{at}]"))?))
            .collect(),
        value => Ok(vec![upsert(Object::new(value, "")?)?]),
    }
}

fn upsert(mut object: Object) -> Result<Change, Fault> {
    object.allow(&[
        "item_id",
        "title",
        "category",
        "price",
        "created_at",
        "in_stock",
        "regions",
        "labels",
        "image_url",
        "attributes",
    ])?;
    let record = ItemRecord {
        id: object.required("item_id")?,
        title: object.text_within("title", DISPLAY_BYTES_MAX)?,
        category: object.text("category")?,
        price: price(&mut object)?,
        created_ms: object.time_ms("created_at", 0, i64::from(u32::MAX) * 1000)?,
        in_stock: object.boolean("in_stock")?.unwrap_or(true),
        regions: object.texts("regions", LIST_MAX)?.unwrap_or_default(),
        labels: object.texts("labels", LIST_MAX)?.unwrap_or_default(),
        image_url: object.text_within("image_url", DISPLAY_BYTES_MAX)?,
    };
    let attributes = object.object("attributes")?.map_or(Ok(BTreeMap::new()), attributes)?;
    Ok(Change::Upsert(Upsert { record, attributes }))
}

/// Reads a body of `PATCH /v1/items/{id}`.
pub fn item_patch(id: String, body: &[u8]) -> Result<Patch, Fault> {
    let mut object = Object::new(parse(body)?, "")?;
    object.allow(&["in_stock", "price", "labels", "regions"])?;
    let patch = Patch {
        id,
        in_stock: object.boolean("in_stock")?,
        price: price(&mut object)?,
        labels: object.texts("labels", LIST_MAX)?,
        regions: object.texts("regions", LIST_MAX)?,
    };
    let nothing = Patch { id: patch.id.clone(), ..Patch::default() };
    if patch == nothing {
        let message = "nothing to change: give one of in_stock, price, labels, regions";
        return Err(Fault::new(400, "missing_field", message));
    }
    Ok(patch)
}

fn price(object: &mut Object) -> Result<Option<f32>, Fault> {
    Ok(object.number("price", 0.0, f32::MAX.into())?.map(|price| price as f32))
}

fn attributes(object: Object) -> Result<BTreeMap<String, Attribute>, Fault> {
    let value = |value: Value, path: &str| match value {
        Value::Number(number) if number.as_f64().is_some_and(f64::is_finite) => {
            Ok(Attribute::Number(number.as_f64().unwrap_or_default()))
        }
        Value::Bool(bit) => Ok(Attribute::Number(f64::from(u8::from(bit)))),
        Value::String(_) => string(value, path).map(Attribute::Text),
        other => Err(wrong_type(path, &other, "a string, a number, true or false")),
    };
    Ok(object.into_entries(ATTRIBUTES_MAX, value)?.into_iter().collect())
}

/// The body of the answer: how many changes were taken, and under which number of the change log.
pub fn items_taken(count: usize, sequence: u64) -> Vec<u8> {
    let fields = [("accepted", Value::from(count)), ("sequence", Value::from(sequence))];
    json(&fields.map(|(name, value)| (name.to_owned(), value)).into_iter().collect::<Map<_, _>>())
}
