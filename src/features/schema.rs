//! `features.toml`: parsed, checked, ordered, fingerprinted.

use serde::Deserialize;

use super::ops::{Op, Role};

/// What a feature varies with. Columns are ordered by scope: user and context first, because they
/// are constant within a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    User,
    Context,
    Item,
    Cross,
}

/// One column of the matrix.
#[derive(Clone, Debug)]
pub struct Feature {
    /// Unique; the LightGBM column name.
    pub name: String,
    pub scope: Scope,
    /// One sentence with the unit.
    pub doc: String,
    /// Replaces a missing value.
    pub default: Option<f32>,
    pub(super) op: Op<String>,
}

impl Feature {
    /// Whether the values come from the candidate's place in retrieval, which a candidate of
    /// another source lacks.
    pub fn reads_retrieval(&self) -> bool {
        matches!(self.op, Op::RetrievalRank | Op::RetrievalScore)
    }

    /// The column whose strings are behind the codes.
    pub fn coded_column(&self) -> Option<&str> {
        match &self.op {
            Op::Category { source } => Some(source),
            _ => None,
        }
    }

    /// Whether the values are codes, to be split by category and not by order.
    pub fn is_category(&self) -> bool {
        matches!(self.op, Op::Category { .. })
    }
}

/// The features of a bundle, ordered by scope and within it as written.
#[derive(Clone, Debug)]
pub struct Schema {
    features: Vec<Feature>,
    fingerprint: String,
}

/// Why a schema was refused.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    #[error("features.toml: {0}")]
    Toml(#[from] Box<toml::de::Error>),
    #[error("feature `{name}` is declared twice; rename one of the two")]
    Duplicate { name: String },
    #[error("feature name `{name}` must be 1 to 80 of a-z, 0-9 and _")]
    Name { name: String },
    #[error("feature `{feature}`: unknown op `{op}`; known are {known}")]
    UnknownOp { feature: String, op: String, known: String },
    #[error("feature `{feature}`: op `{op}` needs `{key}`")]
    Needs { feature: String, op: String, key: &'static str },
    #[error("feature `{feature}`: op `{op}` takes no `{key}`")]
    Takes { feature: String, op: String, key: &'static str },
    #[error(
        "feature `{feature}`: `{source_name}` must be `table.column` of a user, item or context table"
    )]
    Source { feature: String, source_name: String },
    #[error("feature `{feature}`: `{source_name}` must be an item column (`items.category`, ...)")]
    Key { feature: String, source_name: String },
    #[error("feature `{feature}` has scope {scope:?} but reads `{source_name}`; use scope `{fit}`")]
    Scope { feature: String, scope: Scope, source_name: String, fit: &'static str },
    #[error("features.toml declares no feature")]
    Empty,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    feature: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    name: String,
    scope: Scope,
    #[serde(default = "raw")]
    op: String,
    source: Option<String>,
    other: Option<String>,
    map: Option<String>,
    key: Option<String>,
    of: Option<String>,
    min: Option<f32>,
    max: Option<f32>,
    default: Option<f32>,
    #[serde(default)]
    doc: String,
}

const OPS: &str = "raw, log1p, clip, category, age_since, hour_of_day, day_of_week, day_of_month, \
    is_weekend, ratio, difference, equals, lookup, dot, history_length, history_count, \
    history_share, seconds_since_last, retrieval_rank, retrieval_score";

fn raw() -> String {
    "raw".to_owned()
}

impl Schema {
    /// Parses and checks `features.toml`.
    pub fn parse(text: &str) -> Result<Self, SchemaError> {
        let file: File = toml::from_str(text).map_err(Box::new)?;
        let mut features = file.feature.into_iter().map(feature).collect::<Result<Vec<_>, _>>()?;
        if features.is_empty() {
            return Err(SchemaError::Empty);
        }
        let mut names: Vec<&str> = features.iter().map(|f| f.name.as_str()).collect();
        names.sort_unstable();
        if let Some(twice) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(SchemaError::Duplicate { name: twice[0].to_owned() });
        }
        features.sort_by_key(|f| f.scope);
        let fingerprint = fingerprint(&features);
        Ok(Self { features, fingerprint })
    }

    /// The columns in matrix order.
    pub fn features(&self) -> &[Feature] {
        &self.features
    }

    /// Number of columns.
    pub fn len(&self) -> usize {
        self.features.len()
    }

    /// Never: a schema has a feature.
    pub fn is_empty(&self) -> bool {
        self.features.is_empty()
    }

    /// How many leading columns are constant within a request (scopes user and context).
    pub fn constants(&self) -> usize {
        self.features.iter().filter(|f| f.scope <= Scope::Context).count()
    }

    /// Hex of the blake3 of everything that decides a value: names, order, operations, defaults.
    /// Documentation does not count.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Every `table.column` and user map that the schema reads, sorted, with its role.
    fn references(&self) -> Vec<(&str, Role)> {
        let mut all: Vec<(&str, Role)> = self
            .features
            .iter()
            .flat_map(|f| f.op.references())
            .map(|(name, role)| (name.as_str(), role))
            .filter(|&(name, _)| name != "item")
            .collect();
        all.sort_by_key(|&(name, role)| (name, role as u8));
        all.dedup();
        all
    }

    /// Every `table.column` that the schema reads, sorted; maps not counted.
    pub fn columns(&self) -> Vec<&str> {
        let columns = self.references().into_iter().filter(|&(_, role)| role != Role::Map);
        let mut names: Vec<&str> = columns.map(|(name, _)| name).collect();
        names.dedup();
        names
    }

    /// Every user map that the schema reads, with the item column that keys it.
    pub fn maps(&self) -> Vec<(String, String)> {
        let lookup = |feature: &Feature| match &feature.op {
            Op::Lookup { map, key } => Some((map.clone(), key.clone())),
            _ => None,
        };
        let mut maps: Vec<_> = self.features.iter().filter_map(lookup).collect();
        maps.sort_unstable();
        maps.dedup();
        maps
    }

    /// Columns that are compared: where they hold strings, both need the same codes.
    pub fn compared(&self) -> Vec<(&str, &str)> {
        self.features
            .iter()
            .filter_map(|feature| match &feature.op {
                Op::Equals { source, other } => Some((source.as_str(), other.as_str())),
                _ => None,
            })
            .collect()
    }

    /// Names of the request's context values (`context.device`, ...), sorted: the order of
    /// [`super::RequestInput::context`].
    pub fn context_names(&self) -> Vec<String> {
        self.references()
            .into_iter()
            .filter(|(name, _)| name.starts_with("context."))
            .map(|(name, _)| name.to_owned())
            .collect()
    }
}

fn fingerprint(features: &[Feature]) -> String {
    let mut hash = blake3::Hasher::new();
    for f in features {
        let line = format!("{}|{:?}|{:?}|{:?}\n", f.name, f.scope, f.op, f.default);
        hash.update(line.as_bytes());
    }
    hash.finalize().to_hex().to_string()
}

fn feature(entry: Entry) -> Result<Feature, SchemaError> {
    let name_ok = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
    if entry.name.is_empty() || entry.name.len() > 80 || !entry.name.chars().all(name_ok) {
        return Err(SchemaError::Name { name: entry.name });
    }
    let op = operation(&entry)?;
    check_scope(&entry, &op)?;
    let Entry { name, scope, doc, default, .. } = entry;
    Ok(Feature { name, scope, doc, default, op })
}

fn operation(entry: &Entry) -> Result<Op<String>, SchemaError> {
    let feature = || entry.name.clone();
    let given = [
        ("source", entry.source.is_some()),
        ("other", entry.other.is_some()),
        ("map", entry.map.is_some()),
        ("key", entry.key.is_some()),
        ("of", entry.of.is_some()),
        ("min", entry.min.is_some()),
        ("max", entry.max.is_some()),
    ];
    let takes: &[&'static str] = match entry.op.as_str() {
        "raw" | "log1p" | "category" | "age_since" => &["source"],
        "clip" => &["source", "min", "max"],
        "ratio" | "difference" | "equals" => &["source", "other"],
        "lookup" => &["map", "key"],
        "history_count" | "history_share" | "seconds_since_last" => &["of"],
        _ => &[],
    };
    for (key, present) in given {
        if takes.contains(&key) && !present {
            return Err(SchemaError::Needs { feature: feature(), op: entry.op.clone(), key });
        }
        if !takes.contains(&key) && present {
            return Err(SchemaError::Takes { feature: feature(), op: entry.op.clone(), key });
        }
    }
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    let (source, other, of) = (text(&entry.source), text(&entry.other), text(&entry.of));
    Ok(match entry.op.as_str() {
        "raw" => Op::Raw { source },
        "log1p" => Op::Log1p { source },
        "clip" => Op::Clip {
            source,
            min: entry.min.unwrap_or(f32::MIN),
            max: entry.max.unwrap_or(f32::MAX),
        },
        "category" => Op::Category { source },
        "age_since" => Op::AgeSince { source },
        "hour_of_day" => Op::HourOfDay,
        "day_of_week" => Op::DayOfWeek,
        "day_of_month" => Op::DayOfMonth,
        "is_weekend" => Op::IsWeekend,
        "ratio" => Op::Ratio { source, other },
        "difference" => Op::Difference { source, other },
        "equals" => Op::Equals { source, other },
        "lookup" => Op::Lookup { map: text(&entry.map), key: text(&entry.key) },
        "dot" => Op::Dot,
        "history_length" => Op::HistoryLength,
        "history_count" => Op::HistoryCount { of },
        "history_share" => Op::HistoryShare { of },
        "seconds_since_last" => Op::SecondsSinceLast { of },
        "retrieval_rank" => Op::RetrievalRank,
        "retrieval_score" => Op::RetrievalScore,
        op => {
            let (op, known) = (op.to_owned(), OPS.to_owned());
            return Err(SchemaError::UnknownOp { feature: feature(), op, known });
        }
    })
}

fn check_scope(entry: &Entry, op: &Op<String>) -> Result<(), SchemaError> {
    let refused = |source_name: &str, fit| {
        Err(SchemaError::Scope {
            feature: entry.name.clone(),
            scope: entry.scope,
            source_name: source_name.to_owned(),
            fit,
        })
    };
    if op.needs_candidate() && entry.scope != Scope::Cross {
        return refused(&entry.op, "cross");
    }
    for (source, role) in op.references() {
        if source == "item" && role == Role::Of {
            continue;
        }
        let fit = match (source.split_once('.'), role) {
            (Some((table, column)), Role::Map) if !table.is_empty() && !column.is_empty() => {
                "cross"
            }
            (Some(("context", column)), Role::Column) if !column.is_empty() => "context",
            (Some((table, _)), Role::Column) if table.starts_with("user") => "user",
            (Some((table, _)), _) if table.starts_with("item") => "item",
            _ => {
                let (feature, source_name) = (entry.name.clone(), source.clone());
                return Err(SchemaError::Source { feature, source_name });
            }
        };
        let keyed_by_item =
            role == Role::Of || matches!(op, Op::Lookup { key, .. } if key == source);
        if keyed_by_item && fit != "item" {
            let (feature, source_name) = (entry.name.clone(), source.clone());
            return Err(SchemaError::Key { feature, source_name });
        }
        let fits = match entry.scope {
            Scope::Cross => true,
            Scope::User => fit == "user",
            Scope::Context => fit == "context",
            Scope::Item => fit == "item",
        };
        if !fits {
            return refused(source, if entry.scope == Scope::Cross { fit } else { "cross" });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
        [[feature]]
        name = "similarity"
        scope = "cross"
        op = "dot"
        [[feature]]
        name = "ctr"
        scope = "user"
        source = "user_stats.ctr_7d"
        doc = "clicks per impression"
        [[feature]]
        name = "hour"
        scope = "context"
        op = "hour_of_day"
        [[feature]]
        name = "affinity"
        scope = "cross"
        op = "lookup"
        map = "user_category.share"
        key = "items.category"
    "#;

    #[test]
    fn columns_are_ordered_by_scope_and_the_fingerprint_ignores_documentation() {
        let schema = Schema::parse(GOOD).unwrap();
        let names: Vec<&str> = schema.features().iter().map(|f| f.name.as_str()).collect();
        assert_eq!(names, ["ctr", "hour", "similarity", "affinity"]);
        assert_eq!(schema.constants(), 2);
        let reworded = Schema::parse(&GOOD.replace("clicks per impression", "x")).unwrap();
        assert_eq!(schema.fingerprint(), reworded.fingerprint());
        let changed = Schema::parse(&GOOD.replace("ctr_7d", "ctr_28d")).unwrap();
        assert_ne!(schema.fingerprint(), changed.fingerprint());
    }

    #[test]
    fn every_mistake_names_the_feature_and_the_fix() {
        let message = |text: &str| Schema::parse(text).unwrap_err().to_string();
        let one = |body: &str| format!("[[feature]]\nname = \"f\"\n{body}");
        assert!(message(&one("scope = \"user\"\nop = \"log\"")).contains("known are raw, log1p"));
        assert!(
            message(&one("scope = \"user\"\nop = \"clip\"\nsource = \"users.a\"\nmin = 0.0"))
                .contains("needs `max`")
        );
        assert!(
            message(&one("scope = \"cross\"\nop = \"dot\"\nsource = \"users.a\""))
                .contains("takes no `source`")
        );
        assert!(message(&one("scope = \"user\"\nsource = \"items.a\"")).contains("use scope"));
        assert!(message(&one("scope = \"user\"\nop = \"dot\"")).contains("cross"));
        assert!(message(&one("scope = \"user\"\nsource = \"price\"")).contains("table.column"));
        assert!(message(&GOOD.replace("items.category", "users.age")).contains("item column"));
        assert!(message(&format!("{GOOD}{GOOD}")).contains("declared twice"));
        assert!(message(&one("scope = \"user\"\nsauce = \"users.a\"")).contains("sauce"));
        assert!(message("").contains("no feature"));
        assert!(message(&GOOD.replace("\"hour\"", "\"Hour!\"")).contains("Hour!"));
    }
}
