//! Whether any feature of a row sees the row's future: the days that are judged, made once more from
//! the events before them alone.
//!
//! ```text
//! WORK/collect, events before the midnight only -> WORK/audit/collect -> its own daily tables
//! rows of some users and items from both        -> a feature that differs reads what came later
//! ```
//! Invariant: nothing that the audit reads was made by the steps that it judges, except the collected
//! tables. What an import wrote into the catalogue is not dated and cannot be checked so; the
//! evaluation looks for features that give the answer away by themselves.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result};
use arrow::array::{Array, AsArray, BooleanArray};
use arrow::datatypes::Int64Type;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde::{Deserialize, Serialize};

use super::aggregates;
use super::collect::{remove, table_path};
use super::engine::Engine;
use super::examples::{Group, Source, rows_of_day};
use super::frame::collect_files;
use super::load::{self, Loaded};
use super::sql::ParquetWriter;
use crate::features::{Candidate, Schema};
use crate::types::{ItemIdx, date_of};

/// Tables that a midnight does not cut.
const WHOLE: [&str; 4] = ["items", "users", "histories", "texts"];
/// Users and items whose rows are compared: every pair of them.
const USERS_MAX: usize = 40;
const ITEMS_MAX: usize = 150;

/// A feature that reads what came after its row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Leak {
    pub feature: String,
    /// The midnight whose rows differ, `YYYY-MM-DD`.
    pub day: String,
    /// Rows that differ, of those compared.
    pub rows: usize,
    pub compared: usize,
}

/// What makes daily tables.
#[derive(Clone, Copy)]
pub struct Maker<'a> {
    pub engine: Engine<'a>,
    pub aggregates: &'a aggregates::Config,
    pub signals: &'a load::Config,
}

/// The features whose values at the midnight `day_ms` change when what came later is taken away.
/// `work` is the run's directory.
pub fn leaks(
    source: &Source,
    schema: &Schema,
    work: &Path,
    day_ms: i64,
    maker: Maker,
) -> Result<Vec<Leak>> {
    let dir = work.join("audit");
    remove(&dir)?;
    fs::create_dir_all(dir.join("collect"))?;
    for table in WHOLE {
        let from = table_path(work, table);
        if from.exists() {
            copy(&from, &table_path(&dir, table))?;
        }
    }
    cut(&table_path(work, "events"), &table_path(&dir, "events"), day_ms)?;
    let quiet = &mut |_: usize, _: usize, _: &str| {};
    aggregates::materialise(&dir, &[day_ms], &maker.engine, maker.aggregates, quiet)?;
    let past = Loaded::open(&dir.join("collect"), maker.signals)?;
    let features = dir.join("features");
    let without = Source { loaded: &past, features: &features, ..*source };
    let pairs = pairs(source.loaded, &past);
    let (theirs, ours) =
        (rows(&without, schema, day_ms, &pairs.past)?, rows(source, schema, day_ms, &pairs.full)?);
    remove(&dir)?;
    Ok(differing(schema, &ours, &theirs, day_ms))
}

/// The same users and items as each side numbers them.
struct Pairs {
    full: (Vec<u32>, Vec<u32>),
    past: (Vec<u32>, Vec<u32>),
}

fn pairs(full: &Loaded, past: &Loaded) -> Pairs {
    let spread = |ids: &[String], known: &dyn Fn(&str) -> Option<u32>, max: usize| {
        let both: Vec<(u32, u32)> =
            (0u32..).zip(ids).filter_map(|(row, id)| Some((row, known(id)?))).collect();
        let step = both.len().div_ceil(max).max(1);
        both.into_iter().step_by(step).unzip()
    };
    let (users, past_users) = spread(&full.data.users, &|id| past.user_ids.find(id), USERS_MAX);
    let (items, past_items) = spread(&full.data.items, &|id| past.item_ids.find(id), ITEMS_MAX);
    Pairs { full: (users, items), past: (past_users, past_items) }
}

/// Row-major values of every pair at a midnight.
fn rows(
    source: &Source,
    schema: &Schema,
    day_ms: i64,
    (users, items): &(Vec<u32>, Vec<u32>),
) -> Result<Vec<f32>> {
    let as_of = source.day(day_ms)?;
    let candidate = |&item: &u32| Candidate {
        item: ItemIdx(item),
        similarity: 0.5,
        retrieval_rank: 0.0,
        retrieval_score: 0.5,
    };
    let candidates: Vec<Candidate> = items.iter().map(candidate).collect();
    let group = |&user: &u32| Group {
        user,
        time_ms: day_ms,
        context: vec![f32::NAN; schema.context_names().len()],
        labels: vec![0.0; candidates.len()],
        weights: Vec::new(),
        candidates: candidates.clone(),
        missed: 0,
    };
    let groups: Vec<Group> = users.iter().map(group).collect();
    Ok(rows_of_day(source.loaded, schema, &as_of, &groups)?.values)
}

fn differing(schema: &Schema, ours: &[f32], theirs: &[f32], day_ms: i64) -> Vec<Leak> {
    let width = schema.len();
    let mut changed = vec![0; width];
    for (ours, theirs) in ours.chunks_exact(width).zip(theirs.chunks_exact(width)) {
        for ((changed, a), b) in changed.iter_mut().zip(ours).zip(theirs) {
            *changed += usize::from(differs(*a, *b));
        }
    }
    let compared = ours.len() / width;
    let leak = |(feature, rows): (&crate::features::Feature, usize)| Leak {
        feature: feature.name.clone(),
        day: date_of(day_ms),
        rows,
        compared,
    };
    schema.features().iter().zip(changed).filter(|(_, rows)| *rows > 0).map(leak).collect()
}

/// More than the order in which an engine adds up floats explains.
fn differs(a: f32, b: f32) -> bool {
    let scale = a.abs().max(b.abs()).max(1e-6);
    a.is_nan() != b.is_nan() || (a - b).abs() > 1e-4 * scale
}

/// Copies the events before a moment, batch by batch.
fn cut(from: &Path, to: &Path, until_ms: i64) -> Result<()> {
    let what = || format!("read {}", from.display());
    let mut files = Vec::new();
    collect_files(from, &mut files)?;
    files.sort();
    let mut out: Option<ParquetWriter> = None;
    for path in files {
        let builder = ParquetRecordBatchReaderBuilder::try_new(File::open(path)?)?;
        if out.is_none() {
            out = Some(ParquetWriter::create(to, builder.schema().clone())?);
        }
        for batch in builder.build().with_context(what)? {
            let batch = batch.with_context(what)?;
            let times = batch.column_by_name("ts_ms").context("events have ts_ms")?;
            let times = times.as_primitive::<Int64Type>();
            let before = |row| times.is_valid(row) && times.value(row) < until_ms;
            let keep: BooleanArray = (0..batch.num_rows()).map(|row| Some(before(row))).collect();
            let kept = arrow::compute::filter_record_batch(&batch, &keep)?;
            if let Some(out) = &mut out {
                out.write(&kept)?;
            }
        }
    }
    out.with_context(what)?.finish()?;
    Ok(())
}

/// Links a table, file by file; copies where that cannot be.
fn copy(from: &Path, to: &Path) -> Result<()> {
    if from.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()))?;
        }
        return Ok(());
    }
    if fs::hard_link(from, to).is_err() {
        fs::copy(from, to).with_context(|| format!("copy {}", from.display()))?;
    }
    Ok(())
}
