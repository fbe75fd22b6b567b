//! Dictionaries: strings of a category column and their codes.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

/// The strings of one column; the code of a string is its position.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Dictionary {
    values: Vec<String>,
    codes: HashMap<String, u32>,
}

impl Dictionary {
    /// Codes are given in the order of the strings, sorted and deduplicated first, so that equal
    /// sets have equal codes.
    pub fn from_values(values: impl IntoIterator<Item = String>) -> Self {
        let mut values: Vec<String> = values.into_iter().collect();
        values.sort_unstable();
        values.dedup();
        Self::from_ordered(values)
    }

    fn from_ordered(values: Vec<String>) -> Self {
        let codes = values.iter().enumerate().map(|(i, v)| (v.clone(), i as u32)).collect();
        Self { values, codes }
    }

    /// The strings of both.
    pub fn union(&self, other: &Dictionary) -> Dictionary {
        Self::from_values(self.values.iter().chain(&other.values).cloned())
    }

    /// The code of a string; `None` when it was not seen when the bundle was made.
    pub fn code(&self, value: &str) -> Option<u32> {
        self.codes.get(value).copied()
    }

    /// The code as a feature value: unseen is missing.
    pub fn feature(&self, value: Option<&str>) -> f32 {
        value.and_then(|v| self.code(v)).map_or(f32::NAN, |code| code as f32)
    }

    /// The string of a code.
    pub fn value(&self, code: u32) -> Option<&str> {
        self.values.get(code as usize).map(String::as_str)
    }

    /// Number of distinct strings.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Whether the column has no string at all.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }
}

/// The dictionaries of a bundle by column name (`items.category`, `context.device`, ...).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(from = "BTreeMap<String, Vec<String>>", into = "BTreeMap<String, Vec<String>>")]
pub struct Dictionaries(BTreeMap<String, Dictionary>);

impl Dictionaries {
    /// Sets the dictionary of a column.
    pub fn insert(&mut self, column: &str, dictionary: Dictionary) {
        self.0.insert(column.to_owned(), dictionary);
    }

    /// The dictionary of a column.
    pub fn get(&self, column: &str) -> Option<&Dictionary> {
        self.0.get(column)
    }

    /// The code of `value` in `column` as a feature value; missing when either is unknown.
    pub fn feature(&self, column: &str, value: Option<&str>) -> f32 {
        self.get(column).map_or(f32::NAN, |dictionary| dictionary.feature(value))
    }
}

impl From<BTreeMap<String, Vec<String>>> for Dictionaries {
    fn from(map: BTreeMap<String, Vec<String>>) -> Self {
        Self(map.into_iter().map(|(k, v)| (k, Dictionary::from_ordered(v))).collect())
    }
}

impl From<Dictionaries> for BTreeMap<String, Vec<String>> {
    fn from(dictionaries: Dictionaries) -> Self {
        dictionaries.0.into_iter().map(|(k, v)| (k, v.values)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_do_not_depend_on_the_order_of_arrival_and_survive_json() {
        let a = Dictionary::from_values(["b".into(), "a".into(), "b".into()]);
        let b = Dictionary::from_values(["a".into(), "b".into()]);
        assert_eq!(a, b);
        assert_eq!((a.code("b"), a.code("c")), (Some(1), None));
        let mut all = Dictionaries::default();
        all.insert("items.category", a);
        let back: Dictionaries =
            serde_json::from_str(&serde_json::to_string(&all).unwrap()).unwrap();
        assert_eq!(back, all);
        assert!(back.feature("items.category", Some("zzz")).is_nan());
        assert_eq!(back.feature("items.category", Some("a")), 0.0);
    }
}
