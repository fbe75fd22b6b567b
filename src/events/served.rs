//! What decided an answer beside its bundle, and how the answer came about: the columns that the
//! request log has for a request that is logged in full. `read` reads them back.
//!
//! Items, users and regions stand as their ids, so that the row can be asked of another bundle. In
//! the file every list is one column; a request that is not logged in full has nulls.

use std::sync::Arc;

use arrow::array::{
    ArrayBuilder, ArrayRef, BinaryArray, BooleanArray, Float32Array, Float32Builder,
    Float64Builder, Int32Array, Int64Builder, ListBuilder, StringArray, StringBuilder, UInt64Array,
};
use serde::Serialize;

use super::RequestRecord;

/// What of a request the log keeps when it keeps all.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Served {
    /// Further context values by name, as they were asked.
    pub context: Vec<(String, String)>,
    /// The region that served; `None` is everywhere.
    pub region: Option<String>,
    /// The user's last events, oldest first; `None` is a time that is not known.
    pub history: Vec<(String, Option<i64>)>,
    /// Items shown to the user lately.
    pub shown: Vec<String>,
    /// The user's features as the store had them, and the fingerprint of their layout; without it the
    /// bundle's own row served.
    pub user_record: Option<(Vec<u8>, u64)>,
    /// The user's vector, and whether a cache had it.
    pub vector: Vec<f32>,
    pub vector_cached: bool,
    /// How many candidates retrieval was asked for, and the share of its work that it did.
    pub candidates: u32,
    pub quality: f32,
    /// Numbers in the change log of items: where the version began, what was applied at the request's
    /// entry, and what was being applied when its candidates were found. The last two differ when
    /// items changed under the search.
    pub item_changes: [u64; 3],
    /// Parts that were left out, late or failed.
    pub lost: Vec<String>,
    /// Settings of the version, as JSON.
    #[serde(serialize_with = "as_text")]
    pub settings: Arc<str>,
    /// Of the items of the answer, in its order: the schema's columns item by item, ...
    pub features: Vec<f32>,
    /// ... what brought them, their place and similarity in retrieval (NaN for none), ...
    pub sources: Vec<String>,
    pub retrieval_ranks: Vec<f32>,
    pub similarities: Vec<f32>,
    /// ... the ranker's raw score (NaN for none), and the probability of showing the item there.
    pub raw_scores: Vec<f64>,
    pub propensities: Vec<f64>,
    /// Candidates that a rule dropped, with its name.
    pub dropped: Vec<(String, String)>,
}

/// Columns in the order of [`columns`].
type Columns = Vec<(String, ArrayRef)>;

/// The columns of the rows; null for a row that has none.
pub(super) fn columns(rows: &[RequestRecord]) -> Columns {
    let all = Rows(rows);
    let text = |get: fn(&Served) -> Option<&str>| -> ArrayRef {
        Arc::new(all.each(get).collect::<StringArray>())
    };
    let count = |at: usize| -> ArrayRef {
        Arc::new(all.each(|s| Some(s.item_changes[at])).collect::<UInt64Array>())
    };
    let record = |s| Served::record(s).map(|(bytes, _)| bytes);
    let fingerprint = |s| Served::record(s).map(|(_, fingerprint)| fingerprint);
    let ids = |get: fn(&Served) -> Vec<&str>| all.texts(get);
    let columns: [(&str, ArrayRef); 25] = [
        ("context_names", ids(|s| s.context.iter().map(|(name, _)| name.as_str()).collect())),
        ("context_values", ids(|s| s.context.iter().map(|(_, value)| value.as_str()).collect())),
        ("region_served", text(|s| s.region.as_deref())),
        ("history_item_ids", ids(|s| s.history.iter().map(|(id, _)| id.as_str()).collect())),
        ("history_times_ms", all.times()),
        ("shown_item_ids", ids(|s| s.shown.iter().map(String::as_str).collect())),
        ("user_record", Arc::new(all.each(record).collect::<BinaryArray>())),
        ("user_record_layout", Arc::new(all.each(fingerprint).collect::<UInt64Array>())),
        ("vector", all.floats(|s| &s.vector)),
        ("vector_cached", Arc::new(all.each(|s| Some(s.vector_cached)).collect::<BooleanArray>())),
        ("candidates", Arc::new(all.each(|s| Some(s.candidates as i32)).collect::<Int32Array>())),
        ("quality", Arc::new(all.each(|s| Some(s.quality)).collect::<Float32Array>())),
        ("item_changes_start", count(0)),
        ("item_changes_entry", count(1)),
        ("item_changes_settled", count(2)),
        ("lost_parts", ids(|s| s.lost.iter().map(String::as_str).collect())),
        ("settings", text(|s| Some(&*s.settings))),
        ("features", all.floats(|s| &s.features)),
        ("sources", ids(|s| s.sources.iter().map(String::as_str).collect())),
        ("retrieval_ranks", all.floats(|s| &s.retrieval_ranks)),
        ("similarities", all.floats(|s| &s.similarities)),
        ("raw_scores", all.doubles(|s| &s.raw_scores)),
        ("propensities", all.doubles(|s| &s.propensities)),
        ("dropped_item_ids", ids(|s| s.dropped.iter().map(|(id, _)| id.as_str()).collect())),
        ("dropped_reasons", ids(|s| s.dropped.iter().map(|(_, why)| why.as_str()).collect())),
    ];
    columns.map(|(name, column)| (name.to_owned(), column)).into()
}

fn as_text<S: serde::Serializer>(text: &Arc<str>, to: S) -> Result<S::Ok, S::Error> {
    to.serialize_str(text)
}

impl Served {
    fn record(&self) -> Option<(&[u8], u64)> {
        self.user_record.as_ref().map(|(bytes, fingerprint)| (bytes.as_slice(), *fingerprint))
    }
}

/// Builds columns over rows of which some have nothing.
#[derive(Clone, Copy)]
struct Rows<'a>(&'a [RequestRecord]);

impl<'a> Rows<'a> {
    fn each<T>(self, get: impl Fn(&'a Served) -> Option<T>) -> impl Iterator<Item = Option<T>> {
        self.0.iter().map(move |row| row.served.as_deref().and_then(&get))
    }

    fn lists<B: ArrayBuilder, T>(
        self,
        values: B,
        get: impl Fn(&'a Served) -> T,
        append: impl Fn(&mut B, T),
    ) -> ArrayRef {
        let mut builder = ListBuilder::new(values);
        for row in self.0 {
            if let Some(served) = &row.served {
                append(builder.values(), get(served));
            }
            builder.append(row.served.is_some());
        }
        Arc::new(builder.finish())
    }

    fn texts(self, get: impl Fn(&'a Served) -> Vec<&'a str>) -> ArrayRef {
        self.lists(StringBuilder::new(), get, |values, texts| {
            texts.into_iter().for_each(|text| values.append_value(text));
        })
    }

    fn floats(self, get: impl Fn(&'a Served) -> &'a Vec<f32>) -> ArrayRef {
        self.lists(Float32Builder::new(), get, |values, floats| values.append_slice(floats))
    }

    fn doubles(self, get: impl Fn(&'a Served) -> &'a Vec<f64>) -> ArrayRef {
        self.lists(Float64Builder::new(), get, |values, doubles| values.append_slice(doubles))
    }

    fn times(self) -> ArrayRef {
        self.lists(
            Int64Builder::new(),
            |s| &s.history,
            |values, history| {
                history.iter().for_each(|&(_, time_ms)| values.append_option(time_ms))
            },
        )
    }
}
