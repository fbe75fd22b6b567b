//! The only HTTP JSON: what a request may say, what an answer looks like, and every way in which
//! a request can be wrong.
//!
//! A request is read by hand from a JSON value and not by a derive, so that an error can name the
//! field, what stands there, and what should. Unknown fields are refused: a misspelt option that
//! is ignored would be found much later.

use serde::Serialize;
use serde_json::{Map, Value};

use crate::events::{EventRecord, Taken};
use crate::experiments::{Arm, Layer};
use crate::monitor::Component;
use crate::pipeline::{Answer, AnswerItem, AskedArms, HistoryItem, Location, STAGES};
use crate::types::{ItemId, UserId};

mod drift;
mod explain;
mod fields;
mod items;

pub use drift::drift;
pub use explain::{explain, explanation};
use fields::Object;
pub use items::{item_patch, items, items_taken};

/// Items that one request may ask for.
pub const NUM_ITEMS_MAX: usize = 100;
/// Items when a request does not say.
pub const NUM_ITEMS_DEFAULT: usize = 20;
/// Length of an id or of any other string, bytes.
pub const TEXT_BYTES_MAX: usize = 256;
/// Items of an inline history.
pub const HISTORY_MAX: usize = 1000;
/// Entries of `context`.
pub const CONTEXT_MAX: usize = 64;

/// Why a request was refused: what the caller gets, and nothing else.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{message}")]
pub struct Fault {
    pub status: u16,
    /// For programs; never changes its meaning.
    pub code: &'static str,
    /// For people: the value and the fix.
    pub message: String,
    /// Where in the body, like `history[3]`.
    pub field: Option<String>,
    pub retry_after_ms: Option<u64>,
}

impl Fault {
    /// A fault without a field.
    pub fn new(status: u16, code: &'static str, message: impl Into<String>) -> Self {
        Self { status, code, message: message.into(), field: None, retry_after_ms: None }
    }

    /// A 400 at a field.
    fn at(field: impl Into<String>, code: &'static str, message: impl Into<String>) -> Self {
        Self { field: Some(field.into()), ..Self::new(400, code, message) }
    }

    /// Names the item of a batch that is at fault.
    pub fn in_item(self, at: usize) -> Self {
        Self { field: Some(format!("[{at}]")), ..self }
    }

    /// Says when to come back.
    pub fn retry_after(mut self, ms: u64) -> Self {
        self.retry_after_ms = Some(ms);
        self
    }

    /// The body of the answer.
    pub fn body(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Body<'a> {
            error: Error<'a>,
        }
        #[derive(Serialize)]
        struct Error<'a> {
            code: &'a str,
            message: &'a str,
            #[serde(skip_serializing_if = "Option::is_none")]
            field: Option<&'a str>,
            #[serde(skip_serializing_if = "Option::is_none")]
            retry_after_ms: Option<u64>,
        }
        json(&Body {
            error: Error {
                code: self.code,
                message: &self.message,
                field: self.field.as_deref(),
                retry_after_ms: self.retry_after_ms,
            },
        })
    }
}

/// A body of `POST /v1/recommendations`.
#[derive(Debug, Clone, PartialEq)]
pub struct Ask {
    pub user_id: UserId,
    pub num_items: usize,
    pub device: Option<String>,
    pub region: Option<String>,
    pub location: Option<Location>,
    /// Sorted by name.
    pub context: Vec<(String, String)>,
    /// Oldest first.
    pub history: Option<Vec<ItemId>>,
    pub timings: bool,
    /// Chosen instead of drawn.
    pub arms: AskedArms,
}

/// Reads a body of `POST /v1/recommendations`.
pub fn ask(body: &[u8]) -> Result<Ask, Fault> {
    ask_of(Object::new(parse(body)?, "")?)
}

fn ask_of(mut object: Object) -> Result<Ask, Fault> {
    object.allow(&[
        "user_id",
        "num_items",
        "device",
        "region",
        "location",
        "context",
        "history",
        "timings",
        "arm",
        "layers",
    ])?;
    Ok(Ask {
        user_id: UserId(object.required("user_id")?),
        num_items: object
            .integer("num_items", 1, NUM_ITEMS_MAX as i64)?
            .map_or(NUM_ITEMS_DEFAULT, |n| n as usize),
        device: object.text("device")?,
        region: object.text("region")?,
        location: object.object("location")?.map(location).transpose()?,
        context: object.object("context")?.map_or(Ok(Vec::new()), context)?,
        history: object
            .texts("history", HISTORY_MAX)?
            .map(|ids| ids.into_iter().map(ItemId).collect()),
        timings: object.boolean("timings")?.unwrap_or(false),
        arms: arms(&mut object)?,
    })
}

/// The arms that the request chooses: `arm` of the bundle's trial, `layers` by name.
fn arms(object: &mut Object) -> Result<AskedArms, Fault> {
    let unknown = |name: &str| format!("arm `{name}` is not known: give stable or challenger");
    let known = |name: &str| Arm::ALL.into_iter().find(|arm| arm.name() == name);
    let bundle = match object.text("arm")? {
        None => None,
        Some(name) => match known(&name) {
            Some(arm) => Some(arm),
            None => return Err(object.fault("arm", "out_of_range", unknown(&name))),
        },
    };
    let mut layers = Vec::new();
    let named = object.object("layers")?.map(|named| named.into_texts(Layer::ALL.len()));
    for (layer, name) in named.transpose()?.unwrap_or_default() {
        let Some(layer) = Layer::named(&layer) else {
            let message = format!("layer `{layer}` is not known: give rules or blending");
            return Err(object.fault("layers", "out_of_range", message));
        };
        let Some(arm) = known(&name) else {
            return Err(object.fault("layers", "out_of_range", unknown(&name)));
        };
        layers.push((layer, arm));
    }
    Ok(AskedArms { bundle, layers })
}

/// The refusal of a request that chooses its arms where that is not allowed.
pub fn arm_is_not_chosen() -> Fault {
    let message =
        "arms cannot be chosen here: leave `arm` and `layers` out, or set rollout.allow_override";
    Fault::at("arm", "not_allowed", message)
}

fn location(mut object: Object) -> Result<Location, Fault> {
    object.allow(&["country", "latitude", "longitude"])?;
    let country = object.text("country")?;
    let latitude = object.number("latitude", -90.0, 90.0)?;
    let longitude = object.number("longitude", -180.0, 180.0)?;
    let point = match (latitude, longitude) {
        (Some(latitude), Some(longitude)) => Some([latitude, longitude]),
        (None, None) => None,
        (Some(_), None) => return Err(object.missing("longitude", "give it beside `latitude`")),
        (None, Some(_)) => return Err(object.missing("latitude", "give it beside `longitude`")),
    };
    if country.is_none() && point.is_none() {
        return Err(object.missing("country", "give it, or `latitude` and `longitude`"));
    }
    Ok(Location { country, point })
}

fn context(object: Object) -> Result<Vec<(String, String)>, Fault> {
    object.into_texts(CONTEXT_MAX)
}

/// What events may say, from the configuration and the clock.
#[derive(Debug, Clone, Copy)]
pub struct EventLimits<'a> {
    /// Events a body.
    pub count_max: usize,
    /// Kinds that may be sent.
    pub kinds: &'a [String],
    /// Epoch milliseconds; an event without a time gets it.
    pub now_ms: i64,
    /// An event may be this old ...
    pub age_max_ms: i64,
    /// ... or this far ahead, for clocks that differ.
    pub ahead_max_ms: i64,
}

/// Reads a body of `POST /v1/events`: one event or an array; all are good or none is taken.
pub fn events(body: &[u8], limits: EventLimits<'_>) -> Result<Vec<EventRecord>, Fault> {
    match parse(body)? {
        Value::Array(values) if values.is_empty() => {
            Err(Fault::new(400, "out_of_range", "the array is empty: send at least one event"))
        }
        Value::Array(values) if values.len() > limits.count_max => Err(Fault::new(
            400,
            "out_of_range",
            format!("{} events in one body: send at most {}", values.len(), limits.count_max),
        )),
        Value::Array(values) => values
            .into_iter()
            .enumerate()
            .map(|(at, value)| event(Object::new(value, &format!("[{at}]"))?, limits))
            .collect(),
        value => Ok(vec![event(Object::new(value, "")?, limits)?]),
    }
}

fn event(mut object: Object, limits: EventLimits<'_>) -> Result<EventRecord, Fault> {
    object.allow(&[
        "event_id",
        "user_id",
        "item_id",
        "event",
        "timestamp",
        "value",
        "label",
        "request_id",
        "position",
        "device",
        "region",
        "variant",
        "bundle_version",
        "propensity",
    ])?;
    let kind = object.required("event")?;
    if !limits.kinds.contains(&kind) {
        let message =
            format!("event `{kind}` is not known: send one of {}", limits.kinds.join(", "));
        return Err(object.fault("event", "out_of_range", message));
    }
    let (from, to) = (limits.now_ms - limits.age_max_ms, limits.now_ms + limits.ahead_max_ms);
    Ok(EventRecord {
        user_id: object.required("user_id")?,
        item_id: object.required("item_id")?,
        event_id: object.text("event_id")?.unwrap_or_else(|| uuid::Uuid::now_v7().to_string()),
        event: kind,
        time_ms: object.time_ms("timestamp", from, to)?.unwrap_or(limits.now_ms),
        value: object.number("value", f64::MIN, f64::MAX)?,
        label: object.number("label", 0.0, 1.0)?,
        request_id: object.text("request_id")?,
        position: object.integer("position", 1, i32::MAX.into())?.map(|at| at as i32),
        device: object.text("device")?,
        region: object.text("region")?,
        variant: object.text("variant")?,
        bundle_version: object.text("bundle_version")?,
        propensity: object.number("propensity", 0.0, 1.0)?,
    })
}

fn parse(body: &[u8]) -> Result<Value, Fault> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Err(Fault::new(400, "malformed_json", "the body is empty: send JSON"));
    }
    serde_json::from_slice(body).map_err(|error| {
        // serde_json ends its text with the position, which stands at the front here.
        let text = error.to_string();
        let what = text.split(" at line ").next().unwrap_or(&text);
        let (line, column) = (error.line(), error.column());
        let message = format!("malformed JSON at line {line} column {column}: {what}");
        Fault::new(400, "malformed_json", message)
    })
}

fn json(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("strings, numbers and lists are always JSON")
}

/// The body of an answer.
pub fn answer(answer: &Answer, timings: bool) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body<'a> {
        request_id: &'a str,
        bundle_version: &'a str,
        variant: &'a str,
        items: Vec<Item<'a>>,
        degraded: &'a [&'static str],
        #[serde(skip_serializing_if = "Vec::is_empty")]
        reasons: Vec<Reason<'a>>,
        #[serde(skip_serializing_if = "Option::is_none")]
        timings_us: Option<Map<String, Value>>,
    }
    #[derive(Serialize)]
    struct Item<'a> {
        item_id: &'a str,
        title: Option<&'a str>,
        category: Option<&'a str>,
        price: Option<f32>,
        thumbnail: Option<&'a str>,
        score: f32,
        source: &'a str,
    }
    impl<'a> Item<'a> {
        fn of(item: &'a AnswerItem) -> Self {
            Self {
                item_id: &item.item_id,
                title: item.title.as_deref(),
                category: item.category.as_deref(),
                price: item.price,
                thumbnail: item.thumbnail.as_deref(),
                score: item.score,
                source: item.source.name(),
            }
        }
    }
    #[derive(Serialize)]
    struct Reason<'a> {
        code: &'a str,
        count: usize,
        text: &'a str,
    }
    json(&Body {
        request_id: &answer.request_id,
        bundle_version: &answer.bundle_version,
        variant: &answer.variant,
        items: answer.items.iter().map(Item::of).collect(),
        degraded: &answer.degraded,
        reasons: answer
            .reasons
            .iter()
            .map(|r| Reason { code: r.code, count: r.count, text: &r.text })
            .collect(),
        timings_us: timings.then(|| timings_us(answer)),
    })
}

fn timings_us(answer: &Answer) -> Map<String, Value> {
    let us = |time: std::time::Duration| Value::from(time.as_micros() as u64);
    let stages = answer.timings.by_stage().map(|(name, time)| (name.to_owned(), us(time)));
    stages.chain([("total".to_owned(), us(answer.timings.total))]).collect()
}

/// The body of `202`: how many events were taken, and how many of them had been before.
pub fn accepted(taken: &Taken) -> Vec<u8> {
    let (new, known) = (taken.rows, taken.known.len());
    let body = [("accepted", new + known), ("duplicates", known)];
    json(&Map::from_iter(body.map(|(name, count)| (name.to_owned(), Value::from(count)))))
}

/// The body of `GET /healthz`: the process runs.
pub fn alive() -> Vec<u8> {
    json(&Map::from_iter([("status".to_owned(), Value::from("ok"))]))
}

/// The body of `GET /readyz`.
pub fn readiness(phase: &str, bundle_version: Option<&str>, components: &[Component]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body<'a> {
        ready: bool,
        phase: &'a str,
        bundle_version: Option<&'a str>,
        components: Vec<Part<'a>>,
    }
    #[derive(Serialize)]
    struct Part<'a> {
        name: &'a str,
        ok: bool,
        text: &'a str,
    }
    let components =
        components.iter().map(|c| Part { name: c.name, ok: c.ok, text: &c.text }).collect();
    json(&Body { ready: phase == "ready", phase, bundle_version, components })
}

/// What the console page offers before a user is picked.
#[derive(Serialize)]
pub struct Choices<'a> {
    pub bundle_version: &'a str,
    pub users: usize,
    pub items: usize,
    /// Ids to start with.
    pub sample: Vec<String>,
    pub regions: &'a [String],
    pub devices: Vec<&'a str>,
    pub stages: [&'static str; 6],
    pub now_ms: i64,
}

impl Choices<'_> {
    /// The body.
    pub fn body(&self) -> Vec<u8> {
        debug_assert_eq!(self.stages, STAGES);
        json(self)
    }
}

/// The body of `GET /v1/console/users`.
pub fn users(ids: &[String]) -> Vec<u8> {
    json(&Map::from_iter([("users".to_owned(), Value::from(ids))]))
}

/// The body of `GET /v1/console/history`: newest first.
pub fn history(user: &UserId, events: &[HistoryItem]) -> Vec<u8> {
    #[derive(Serialize)]
    struct Body<'a> {
        user_id: &'a str,
        history: Vec<Event<'a>>,
    }
    #[derive(Serialize)]
    struct Event<'a> {
        item_id: &'a str,
        title: Option<&'a str>,
        category: Option<&'a str>,
        price: Option<f32>,
        time_ms: Option<i64>,
    }
    let history = events
        .iter()
        .map(|event| Event {
            item_id: &event.item_id,
            title: event.title.as_deref(),
            category: event.category.as_deref(),
            price: event.price,
            time_ms: event.time_ms,
        })
        .collect();
    json(&Body { user_id: &user.0, history })
}

#[cfg(test)]
mod tests;
