//! One JSON object, field by field; every refusal names the field.

use serde_json::{Map, Value};

use super::{Fault, TEXT_BYTES_MAX};

/// An object whose fields are taken out one after the other.
pub struct Object {
    fields: Map<String, Value>,
    /// Where the object stands in the body; empty for the body itself.
    path: String,
}

impl Object {
    /// Refuses anything but an object.
    pub fn new(value: Value, path: &str) -> Result<Self, Fault> {
        match value {
            Value::Object(fields) => Ok(Self { fields, path: path.to_owned() }),
            other if path.is_empty() => {
                let message = format!("the body is {}: send a JSON object", kind(&other));
                Err(Fault::new(400, "wrong_type", message))
            }
            other => {
                let message = format!("`{path}` is {}: give an object", kind(&other));
                Err(Fault::at(path, "wrong_type", message))
            }
        }
    }

    /// Refuses the first field that is not in `names`.
    pub fn allow(&self, names: &[&str]) -> Result<(), Fault> {
        match self.fields.keys().find(|name| !names.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => {
                let shown = self.path_of(&shorten(name));
                let message = format!("unknown field `{shown}`: known are {}", names.join(", "));
                Err(Fault::at(shown, "unknown_field", message))
            }
        }
    }

    /// A string that must be there.
    pub fn required(&mut self, name: &str) -> Result<String, Fault> {
        match self.text(name)? {
            Some(text) => Ok(text),
            None => Err(self.missing(name, "give a string")),
        }
    }

    /// A string of 1 to [`TEXT_BYTES_MAX`] bytes.
    pub fn text(&mut self, name: &str) -> Result<Option<String>, Fault> {
        let Some(value) = self.take(name) else { return Ok(None) };
        string(value, &self.path_of(name)).map(Some)
    }

    /// A string of 1 to `max` bytes.
    pub fn text_within(&mut self, name: &str, max: usize) -> Result<Option<String>, Fault> {
        let Some(value) = self.take(name) else { return Ok(None) };
        string_within(value, &self.path_of(name), max).map(Some)
    }

    /// A list of at most `max` strings.
    pub fn texts(&mut self, name: &str, max: usize) -> Result<Option<Vec<String>>, Fault> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let path = self.path_of(name);
        let Value::Array(values) = value else {
            return Err(wrong_type(&path, &value, "an array of strings"));
        };
        if values.len() > max {
            let message = format!("`{path}` has {} entries: give at most {max}", values.len());
            return Err(Fault::at(path, "too_long", message));
        }
        let texts = values.into_iter().enumerate();
        texts
            .map(|(at, value)| string(value, &format!("{path}[{at}]")))
            .collect::<Result<_, _>>()
            .map(Some)
    }

    /// A whole number from `min` to `max`.
    pub fn integer(&mut self, name: &str, min: i64, max: i64) -> Result<Option<i64>, Fault> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let path = self.path_of(name);
        let whole = match &value {
            Value::Number(number) if number.is_f64() => None,
            Value::Number(number) => Some(number.as_i64()),
            _ => None,
        };
        match whole {
            None => Err(wrong_type(&path, &value, "a whole number")),
            Some(Some(number)) if (min..=max).contains(&number) => Ok(Some(number)),
            Some(_) => Err(out_of_range(&path, &value, &min.to_string(), &max.to_string())),
        }
    }

    /// A number from `min` to `max`.
    pub fn number(&mut self, name: &str, min: f64, max: f64) -> Result<Option<f64>, Fault> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let path = self.path_of(name);
        match value.as_f64() {
            None => Err(wrong_type(&path, &value, "a number")),
            Some(number) if (min..=max).contains(&number) => Ok(Some(number)),
            Some(_) => Err(out_of_range(&path, &value, &min.to_string(), &max.to_string())),
        }
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, name: &str) -> Result<Option<bool>, Fault> {
        match self.take(name) {
            None => Ok(None),
            Some(Value::Bool(value)) => Ok(Some(value)),
            Some(other) => Err(wrong_type(&self.path_of(name), &other, "true or false")),
        }
    }

    /// An object within this one.
    pub fn object(&mut self, name: &str) -> Result<Option<Object>, Fault> {
        let Some(value) = self.take(name) else { return Ok(None) };
        Object::new(value, &self.path_of(name)).map(Some)
    }

    /// A time from `from_ms` to `to_ms`: RFC 3339, or epoch milliseconds.
    pub fn time_ms(&mut self, name: &str, from_ms: i64, to_ms: i64) -> Result<Option<i64>, Fault> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let path = self.path_of(name);
        let time_ms = match &value {
            Value::Number(number) => number.as_i64(),
            Value::String(text) => {
                chrono::DateTime::parse_from_rfc3339(text).ok().map(|t| t.timestamp_millis())
            }
            _ => None,
        };
        let Some(time_ms) = time_ms else {
            let wanted = "a time like \"2026-01-31T18:00:00Z\", or epoch milliseconds";
            return Err(wrong_type(&path, &value, wanted));
        };
        if (from_ms..=to_ms).contains(&time_ms) {
            return Ok(Some(time_ms));
        }
        Err(out_of_range(&path, &value, &rfc3339(from_ms), &rfc3339(to_ms)))
    }

    /// All fields as strings, sorted by name; at most `max`.
    pub fn into_texts(self, max: usize) -> Result<Vec<(String, String)>, Fault> {
        self.into_entries(max, string)
    }

    /// All fields as `value` reads them (given the value and its path), sorted by name; at most
    /// `max`.
    pub fn into_entries<T>(
        self,
        max: usize,
        value: impl Fn(Value, &str) -> Result<T, Fault>,
    ) -> Result<Vec<(String, T)>, Fault> {
        let (path, count) = (self.path.clone(), self.fields.len());
        if count > max {
            let message = format!("`{path}` has {count} entries: give at most {max}");
            return Err(Fault::at(path, "too_long", message));
        }
        let entry = |(name, found): (String, Value)| {
            let path = format!("{path}.{}", shorten(&name));
            let name = string(Value::String(name), &path)?;
            Ok((name, value(found, &path)?))
        };
        self.fields.into_iter().map(entry).collect()
    }

    /// A fault at a field of this object.
    pub fn fault(&self, name: &str, code: &'static str, message: String) -> Fault {
        Fault::at(self.path_of(name), code, message)
    }

    /// The fault of a field that is not there.
    pub fn missing(&self, name: &str, fix: &str) -> Fault {
        let path = self.path_of(name);
        let message = format!("`{path}` is missing: {fix}");
        Fault::at(path, "missing_field", message)
    }

    /// `null` is the same as no field.
    fn take(&mut self, name: &str) -> Option<Value> {
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    fn path_of(&self, name: &str) -> String {
        if self.path.is_empty() { name.to_owned() } else { format!("{}.{name}", self.path) }
    }
}

/// A string of 1 to [`TEXT_BYTES_MAX`] bytes.
pub fn string(value: Value, path: &str) -> Result<String, Fault> {
    string_within(value, path, TEXT_BYTES_MAX)
}

fn string_within(value: Value, path: &str, max: usize) -> Result<String, Fault> {
    match value {
        Value::String(text) if text.is_empty() => {
            let message = format!("`{path}` is empty: give 1 to {max} bytes");
            Err(Fault::at(path, "out_of_range", message))
        }
        Value::String(text) if text.len() > max => {
            let message = format!("`{path}` has {} bytes: give at most {max}", text.len());
            Err(Fault::at(path, "too_long", message))
        }
        Value::String(text) => Ok(text),
        other => Err(wrong_type(path, &other, "a string")),
    }
}

/// The fault of a value that is not what it should be.
pub fn wrong_type(path: &str, found: &Value, wanted: &str) -> Fault {
    Fault::at(path, "wrong_type", format!("`{path}` is {}: give {wanted}", kind(found)))
}

fn out_of_range(path: &str, found: &Value, min: &str, max: &str) -> Fault {
    Fault::at(path, "out_of_range", format!("`{path}` is {found}: give {min} to {max}"))
}

/// What stands there, short enough for a message.
fn kind(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(value) => format!("{value}"),
        Value::Number(number) => format!("the number {number}"),
        Value::String(text) => format!("the string \"{}\"", shorten(text)),
        Value::Array(_) => "an array".to_owned(),
        Value::Object(_) => "an object".to_owned(),
    }
}

fn shorten(text: &str) -> String {
    const SHOWN_CHARS: usize = 40;
    match text.char_indices().nth(SHOWN_CHARS) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}...", &text[..at]),
    }
}

fn rfc3339(time_ms: i64) -> String {
    chrono::DateTime::from_timestamp_millis(time_ms)
        .map_or_else(|| time_ms.to_string(), |time| time.to_rfc3339())
}
