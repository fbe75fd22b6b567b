//! Models that were trained elsewhere become a bundle: item vectors, users' vectors, a ranker.
//!
//! ```text
//! a bundle of this program      catalogue, users, features, codes, and its ranker without another one
//! item vectors (Parquet, .npy)  towers that give them out, and an index over them
//! user vectors, a ranker        likewise, where given
//! ```
//! Invariant: everything is checked before anything is written: ids against the catalogue, lengths
//! against each other, the ranker's columns against the schema. What serves such a bundle knows nothing
//! of where it comes from.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use arrow::array::{Array, ArrayRef, AsArray};
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Float32Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use serde_json::json;

use super::frame::collect_files;
use super::{npy, publish};
use crate::bundle::{Bundle, EncodeScratch, FileEntry, Manifest, TowerInputs, files};
use crate::forest;
use crate::index;
use crate::towers::{Foreign, Towers};
use crate::types::ItemIdx;

/// Ids that a message names.
const NAMED_MAX: usize = 5;
/// Lengths of vectors may differ by this factor before it is said that cosine ignores them.
const LENGTHS_DIFFER: f32 = 1.5;

/// What is imported.
pub struct Import<'a> {
    /// The bundle that gives catalogue, users and features.
    pub base: &'a Path,
    pub items: Vectors<'a>,
    pub users: Option<Vectors<'a>>,
    /// A LightGBM model's text over columns of the base's schema.
    pub ranker: Option<&'a Path>,
    pub similarity: Similarity,
    /// Whether items without a vector stand at the mean instead of being an error.
    pub allow_missing: bool,
    pub history_max: u32,
    pub half_life_events: f32,
}

/// A file of vectors.
#[derive(Clone, Copy)]
pub struct Vectors<'a> {
    /// Parquet with an id column and a list column, or `.npy`.
    pub path: &'a Path,
    /// For `.npy`: a text file with an id a line. Without it, rows are those of the base.
    pub ids: Option<&'a Path>,
}

/// How closeness is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Similarity {
    /// By the angle: vectors are scaled to length one.
    Cosine,
    /// By the inner product: lengths count. One coordinate more makes it an angle (Bachrach et al. 2014).
    Dot,
}

/// Vectors by row of a table.
struct Placed {
    /// `rows x dim`; zeros where there is none.
    values: Vec<f32>,
    dim: usize,
    missing: usize,
}

/// Writes a whole bundle into `dir`, which is empty, and returns its version.
///
/// # Errors
/// With what does not fit, before anything is written.
pub fn import(import: &Import, dir: &Path, config: &index::Config) -> Result<String> {
    let base = Bundle::open(import.base, true, config)
        .with_context(|| format!("the base {}", import.base.display()))?;
    let view = base.items.view();
    let items = (0..base.items.len() as u32).map(|row| view.id(ItemIdx(row)));
    let items: Vec<&str> = items.collect();
    let find = |id: &str| base.items.find(id).map(|item| item.0);
    let mut vectors = place(&import.items, "item", items.len(), &find)?;
    if vectors.missing > 0 && !import.allow_missing {
        let at = vectors.values.chunks_exact(vectors.dim).position(|v| v.iter().all(|x| *x == 0.0));
        let first = at.map_or("", |at| items[at]);
        bail!(
            "{} of {} items of the catalogue have no vector in {} (the first is `{first}`); add them, \
             or place them at the mean of all with --allow-missing",
            vectors.missing,
            items.len(),
            import.items.path.display()
        );
    }
    let find = |id: &str| base.users.row_of(id);
    let users = import.users.map(|users| place(&users, "user", base.users.ids().len(), &find));
    let mut users = users.transpose()?;
    if let (Some(users), Some(file)) = (&users, &import.users) {
        ensure!(
            users.dim == vectors.dim,
            "{} has vectors of {} numbers, {} of {}: not one space",
            file.path.display(),
            users.dim,
            import.items.path.display(),
            vectors.dim
        );
    }
    let ranker = ranker(import, &base)?;
    if import.similarity == Similarity::Dot {
        augment(&mut vectors, users.as_mut());
    } else {
        say_lengths(&vectors);
    }
    unit(&mut vectors);
    users.iter_mut().for_each(unit);
    let towers = Towers::foreign(&Foreign {
        dim: vectors.dim as u32,
        items: vectors.values,
        users: users.map(|users| users.values).unwrap_or_default(),
        items_only_last: import.similarity == Similarity::Dot,
        history_max: import.history_max,
        half_life_events: import.half_life_events,
    });
    write(import, &base, &towers, &ranker, dir, config)
}

fn write(
    import: &Import,
    base: &Bundle,
    towers: &Towers,
    ranker: &str,
    dir: &Path,
    config: &index::Config,
) -> Result<String> {
    let dim = towers.dim();
    let mut vectors = vec![0.0; base.items.len() * dim];
    let mut scratch = towers.scratch();
    for (row, vector) in vectors.chunks_exact_mut(dim).enumerate() {
        let item = ItemIdx(row as u32);
        let input = crate::towers::ItemInput { item, codes: &[], dense: &[] };
        towers.encode_item(&input, &mut scratch, vector);
    }
    let queries = queries(base, towers, config.calibration_queries_max)?;
    let index = index::build(&vectors, dim, &queries, config, &|_, _| {})?;
    index.save(&dir.join(files::INDEX))?;
    towers.save(&dir.join(files::TOWERS))?;
    std::fs::write(dir.join(files::RANKER), ranker)?;
    for name in [files::FEATURES, files::DICTIONARIES, files::ITEMS, files::USERS] {
        let from = import.base.join(name);
        std::fs::copy(&from, dir.join(name)).with_context(|| format!("copy {}", from.display()))?;
    }
    let hash = |path: &Path| FileEntry::of(path).map(|entry| entry.blake3).ok();
    let named = |path: Option<&Path>| path.map(|path| json!({"path": path, "blake3": hash(path)}));
    let report = json!({"imported": {
        "base": base.manifest.bundle_version,
        "items": named(Some(import.items.path)),
        "users": named(import.users.map(|users| users.path)),
        "ranker": named(import.ranker),
        "similarity": format!("{:?}", import.similarity).to_lowercase(),
    }});
    std::fs::write(dir.join(files::REPORT), serde_json::to_vec_pretty(&report)?)?;
    let Manifest { as_of_ms, training_window_ms, bundle_version, schema_fingerprint, .. } =
        &base.manifest;
    let version = publish::write_manifest(
        dir,
        publish::About {
            tower_version: towers.version(),
            schema_fingerprint,
            as_of_ms: *as_of_ms,
            training_window_ms: *training_window_ms,
            tower_inputs: &TowerInputs::default(),
            ranker_sources: Vec::new(),
            metrics: BTreeMap::new(),
            parents: vec![bundle_version.clone()],
        },
    )?;
    Bundle::open(dir, true, config).context("the imported bundle does not open")?;
    Ok(version)
}

/// Vectors of users with a past, evenly chosen: what will be searched for.
fn queries(base: &Bundle, towers: &Towers, wanted: usize) -> Result<Vec<f32>> {
    let tower_user = crate::bundle::TowerUser::new(&TowerInputs::default(), base.users.columns())?;
    let users: Vec<u32> = (0..base.users.ids().len() as u32)
        .filter(|&user| !base.users.row(user).history().0.is_empty())
        .collect();
    let step = users.len().div_ceil(wanted.max(1)).max(1);
    let (mut scratch, mut vector) = (EncodeScratch::new(towers), vec![0.0; towers.dim()]);
    let mut out = Vec::new();
    for user in users.into_iter().step_by(step).map(|user| base.users.row(user)) {
        tower_user.encode(towers, user, user.history().0, &mut scratch, &mut vector);
        out.extend_from_slice(&vector);
    }
    Ok(out)
}

/// The ranker's text over the schema's columns.
fn ranker(import: &Import, base: &Bundle) -> Result<String> {
    let Some(path) = import.ranker else {
        tracing::warn!(
            "the ranker of {} is kept: it learnt similarities of other towers; train or give another",
            base.manifest.bundle_version
        );
        let path = import.base.join(files::RANKER);
        return std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()));
    };
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    let names: Vec<String> = base.schema.features().iter().map(|f| f.name.clone()).collect();
    let text = forest::over(&text, &names).with_context(|| path.display().to_string())?;
    if text.lines().any(|line| line.strip_prefix("num_cat=").is_some_and(|n| n != "0")) {
        tracing::warn!(
            "{}: it splits by category codes; they must be those of {}",
            path.display(),
            import.base.join(files::DICTIONARIES).display()
        );
    }
    Ok(text)
}

/// Reads a file and puts each vector at the row of its id.
fn place(
    file: &Vectors,
    what: &str,
    rows: usize,
    find: &dyn Fn(&str) -> Option<u32>,
) -> Result<Placed> {
    let shown = file.path.display();
    let is_npy = file.path.extension().is_some_and(|extension| extension == "npy");
    let (ids, values, dim) = if is_npy {
        let (values, dim) = npy::read(file.path)?;
        (file.ids.map(lines_of).transpose()?, values, dim)
    } else {
        ensure!(file.ids.is_none(), "{shown}: ids are a column of Parquet; leave out the id file");
        let (ids, values, dim) = parquet(file.path, &format!("{what}_id"))?;
        (Some(ids), values, dim)
    };
    ensure!(dim > 0 && !values.is_empty(), "{shown}: no vectors");
    let count = values.len() / dim;
    let bad = values.chunks_exact(dim).position(|v| v.iter().any(|value| !value.is_finite()));
    if let Some(bad) = bad {
        bail!("{shown}: the vector of row {bad} has a number that is not finite");
    }
    let Some(ids) = ids else {
        ensure!(
            count == rows,
            "{shown}: {count} rows, the base has {rows} {what}s; name them with an id file"
        );
        return Ok(Placed { missing: missing(&values, dim), values, dim });
    };
    ensure!(ids.len() == count, "{shown}: {count} vectors and {} ids", ids.len());
    let mut placed = vec![0.0; rows * dim];
    let (mut unknown, mut twice) = (Vec::new(), Vec::new());
    let mut seen = vec![false; rows];
    for (id, vector) in ids.iter().zip(values.chunks_exact(dim)) {
        match find(id).map(|row| row as usize) {
            None => unknown.push(id.as_str()),
            Some(row) if std::mem::replace(&mut seen[row], true) => twice.push(id.as_str()),
            Some(row) => placed[row * dim..(row + 1) * dim].copy_from_slice(vector),
        }
    }
    for (problem, found) in
        [("are not in the base's table", &unknown), ("stand there twice", &twice)]
    {
        let named: Vec<&str> = found.iter().take(NAMED_MAX).copied().collect();
        ensure!(
            found.is_empty(),
            "{shown}: {} {what} ids {problem}: {}{}",
            found.len(),
            named.join(", "),
            if found.len() > NAMED_MAX { ", ..." } else { "" }
        );
    }
    Ok(Placed { missing: missing(&placed, dim), values: placed, dim })
}

fn missing(values: &[f32], dim: usize) -> usize {
    values.chunks_exact(dim).filter(|vector| vector.iter().all(|value| *value == 0.0)).count()
}

fn lines_of(path: &Path) -> Result<Vec<String>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("read {}", path.display()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Ids and vectors of a Parquet file or directory: the column of the id, and the one column of lists.
fn parquet(path: &Path, id: &str) -> Result<(Vec<String>, Vec<f32>, usize)> {
    let mut paths: Vec<PathBuf> = Vec::new();
    collect_files(path, &mut paths)?;
    paths.sort();
    let (mut ids, mut values, mut dim) = (Vec::new(), Vec::new(), 0);
    for path in paths {
        let shown = path.display().to_string();
        let file = std::fs::File::open(&path).with_context(|| shown.clone())?;
        let rows = ParquetRecordBatchReaderBuilder::try_new(file)
            .and_then(|builder| builder.build())
            .with_context(|| format!("{shown}: no Parquet file; give one, or .npy"))?;
        for batch in rows {
            let batch = batch.with_context(|| shown.clone())?;
            let names =
                || batch.schema().fields().iter().map(|f| f.name().clone()).collect::<Vec<_>>();
            let column = batch.column_by_name(id).with_context(|| {
                format!("{shown}: no column `{id}`; there are {}", names().join(", "))
            })?;
            let column = cast(column, &DataType::Utf8)?;
            let lists: Vec<&ArrayRef> = batch.columns().iter().filter(|c| is_list(c)).collect();
            let [list] = lists[..] else {
                bail!("{shown}: {} columns of lists; one holds the vectors", lists.len())
            };
            let kind = DataType::List(Field::new_list_field(DataType::Float32, true).into());
            let list =
                cast(list, &kind).with_context(|| format!("{shown}: lists of no numbers"))?;
            let list = list.as_list::<i32>();
            for row in 0..batch.num_rows() {
                ensure!(
                    column.is_valid(row) && list.is_valid(row),
                    "{shown}: row {row} has no id or no vector"
                );
                let name = column.as_string::<i32>().value(row);
                let vector = list.value(row);
                let vector = vector.as_primitive::<Float32Type>();
                if dim == 0 {
                    dim = vector.len();
                }
                ensure!(
                    vector.len() == dim,
                    "{shown}: the vector of `{name}` has {} numbers, those before it {dim}",
                    vector.len()
                );
                ids.push(name.to_owned());
                values.extend(vector.iter().map(|value| value.unwrap_or(f32::NAN)));
            }
        }
    }
    Ok((ids, values, dim))
}

fn is_list(column: &ArrayRef) -> bool {
    use DataType::{FixedSizeList, LargeList, List};
    matches!(column.data_type(), List(_) | LargeList(_) | FixedSizeList(..))
}

/// Adds the coordinate that makes all items equally long; users get a zero there.
fn augment(items: &mut Placed, users: Option<&mut Placed>) {
    let longest = items.values.chunks_exact(items.dim).map(squared).fold(0.0, f32::max);
    let rest = |vector: &[f32]| match squared(vector) {
        0.0 => 0.0,
        length => (longest - length).max(0.0).sqrt(),
    };
    *items = longer(items, rest);
    if let Some(users) = users {
        *users = longer(users, |_| 0.0);
    }
}

fn longer(placed: &Placed, last: impl Fn(&[f32]) -> f32) -> Placed {
    let mut values = Vec::with_capacity(placed.values.len() / placed.dim * (placed.dim + 1));
    for vector in placed.values.chunks_exact(placed.dim) {
        values.extend_from_slice(vector);
        values.push(last(vector));
    }
    Placed { values, dim: placed.dim + 1, missing: placed.missing }
}

fn squared(vector: &[f32]) -> f32 {
    vector.iter().map(|value| value * value).sum()
}

/// Scales every vector that is there to length one.
fn unit(placed: &mut Placed) {
    for vector in placed.values.chunks_exact_mut(placed.dim) {
        let length = squared(vector).sqrt();
        if length > 0.0 {
            vector.iter_mut().for_each(|value| *value /= length);
        }
    }
}

fn say_lengths(items: &Placed) {
    let lengths = items.values.chunks_exact(items.dim).map(|v| squared(v).sqrt());
    let lengths = lengths.filter(|length| *length > 0.0);
    let (low, high) = lengths.fold((f32::MAX, 0.0f32), |(l, h), v| (l.min(v), h.max(v)));
    if high > low * LENGTHS_DIFFER {
        tracing::warn!(
            "item vectors are {low:.3} to {high:.3} long, and cosine ignores it; if the model ranks by \
             inner products, import with --similarity dot"
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_coordinate_more_orders_by_inner_product() {
        let mut items = Placed { values: vec![3.0, 0.0, 1.0, 1.0, 0.0, 0.0], dim: 2, missing: 1 };
        let mut users = Placed { values: vec![0.6, 0.8], dim: 2, missing: 0 };
        augment(&mut items, Some(&mut users));
        unit(&mut items);
        unit(&mut users);
        assert_eq!((items.dim, users.values.as_slice()), (3, &[0.6, 0.8, 0.0][..]));
        let dot = |item: usize| -> f32 {
            items.values[item * 3..][..3].iter().zip(&users.values).map(|(a, b)| a * b).sum()
        };
        // 1.8 and 1.4 over the longest, 3.
        assert!((dot(0) - 0.6).abs() < 1e-6 && (dot(1) - 1.4 / 3.0).abs() < 1e-6);
        assert_eq!(&items.values[6..], [0.0; 3], "an absent vector stays absent");
    }
}
