//! Texts of the items as numbers: a BERT of a local folder reads each distinct text once, and principal
//! components of its vectors become the columns `texts.v00`, `texts.v01`, ... of the run's items.
//!
//! Vectors are kept by the hash of the text, and so are the components: the columns mean tomorrow what
//! they mean today. Without a configured model there is no such table, and nothing that reads it.

mod basis;
#[cfg(feature = "text")]
mod bert;
mod cache;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use arrow::array::{ArrayRef, Float32Array, RecordBatch, StringArray};
use serde::{Deserialize, Serialize};

use super::frame::Frame;
use super::sql::write_parquet;
use basis::Basis;
use cache::{Cache, Mark, mark};

/// The name of the table, and of its file.
const TABLE: &str = "texts";
/// What stands for all of its columns in a list of inputs.
const ALL: &str = "texts.*";
/// Vectors that are written to the cache at once.
const CHUNK: usize = 512;

/// Section `[offline.text]`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Folder of the model; empty for none.
    pub model: PathBuf,
    /// Columns of the items that are read, one after the other.
    pub columns: Vec<String>,
    /// Principal components that are kept.
    pub components: usize,
    /// Tokens of a text that are read.
    pub tokens_max: usize,
    /// Texts that the model reads at once.
    pub batch: usize,
    /// Where vectors and components are kept.
    pub cache_dir: PathBuf,
}

impl Config {
    /// Whether a model is configured.
    pub fn is_on(&self) -> bool {
        !self.model.as_os_str().is_empty()
    }

    /// Refuses what cannot be used.
    pub fn check(&self) -> Result<()> {
        if !self.is_on() {
            return Ok(());
        }
        ensure!(
            cfg!(feature = "text"),
            "offline.text.model = {:?}: this program was built without the feature `text`",
            self.model
        );
        ensure!(
            !self.columns.is_empty(),
            "offline.text.columns is empty: name a column of the items"
        );
        let at_least = [("components", self.components), ("batch", self.batch)];
        for (key, value) in at_least.into_iter().chain([("tokens_max", self.tokens_max)]) {
            ensure!(value > 0, "offline.text.{key} = 0: give at least 1");
        }
        Ok(())
    }

    /// Inputs with `texts.*` as all columns of the texts, or none without a model.
    pub fn expand(&self, inputs: &[String]) -> Vec<String> {
        let columns = || (0..self.components).map(|at| format!("{TABLE}.{}", column(at)));
        let all = |name: &String| match (name == ALL, self.is_on()) {
            (true, true) => columns().collect(),
            (true, false) => Vec::new(),
            (false, _) => vec![name.clone()],
        };
        inputs.iter().flat_map(all).collect()
    }
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Summary {
    pub items: usize,
    /// Distinct texts, and those that had to be read.
    pub texts: usize,
    pub read: usize,
}

fn column(at: usize) -> String {
    format!("v{at:02}")
}

/// Where the table of a run stands.
pub fn path(collected: &Path) -> PathBuf {
    collected.join(format!("{TABLE}.parquet"))
}

/// Writes `texts.parquet` beside the collected items; without a model it is deleted. `note` is told how many
/// of how many texts were read.
///
/// # Errors
/// When the model cannot be read, or a column of the items is missing.
pub fn run(
    config: &Config,
    collected: &Path,
    note: &(dyn Fn(usize, usize) + Sync),
) -> Result<Option<Summary>> {
    let out = path(collected);
    if !config.is_on() {
        if out.exists() {
            std::fs::remove_file(&out)?;
        }
        return Ok(None);
    }
    let items = Frame::open(&collected.join("items.parquet"))?;
    let ids = items.ids("item_id")?;
    let texts = texts(config, &items)?;
    let mut places: HashMap<Mark, usize> = HashMap::new();
    let mut distinct: Vec<&str> = Vec::new();
    let of_item: Vec<Option<usize>> = texts
        .iter()
        .map(|text| {
            (!text.is_empty()).then(|| {
                *places.entry(mark(text)).or_insert_with(|| {
                    distinct.push(text);
                    distinct.len() - 1
                })
            })
        })
        .collect();
    let (vectors, dim, read, name) = vectors(config, &distinct, places, note)?;
    let mut columns = vec![vec![f32::NAN; ids.len()]; config.components];
    if !distinct.is_empty() {
        let basis = basis(config, &name, &vectors, dim)?;
        let mut at = vec![0.0; config.components];
        let mut standing = Vec::with_capacity(distinct.len() * config.components);
        for vector in vectors.chunks_exact(dim) {
            basis.project(vector, &mut at);
            standing.extend_from_slice(&at);
        }
        for (row, place) in of_item.iter().enumerate() {
            let Some(place) = place else { continue };
            for (component, column) in columns.iter_mut().enumerate() {
                column[row] = standing[place * config.components + component];
            }
        }
    }
    let summary = Summary { items: ids.len(), texts: distinct.len(), read };
    let mut named: Vec<(String, ArrayRef)> =
        vec![("item_id".to_owned(), std::sync::Arc::new(StringArray::from(ids)))];
    for (at, values) in columns.into_iter().enumerate() {
        named.push((column(at), std::sync::Arc::new(Float32Array::from(values))));
    }
    let batch =
        RecordBatch::try_from_iter_with_nullable(named.into_iter().map(|(n, c)| (n, c, false)))?;
    write_parquet(&out, batch.schema(), &[batch])?;
    Ok(Some(summary))
}

/// A text an item: its columns, one after the other.
fn texts(config: &Config, items: &Frame) -> Result<Vec<String>> {
    let mut texts = vec![String::new(); items.rows()];
    for name in &config.columns {
        ensure!(
            items.has(name) && items.is_text(name),
            "offline.text.columns: the items have no column `{name}` of text"
        );
        for (text, part) in texts.iter_mut().zip(items.strings(name)?) {
            let part = part.as_deref().unwrap_or_default().trim();
            if !part.is_empty() && !text.is_empty() {
                text.push(' ');
            }
            text.push_str(part);
        }
    }
    Ok(texts)
}

/// Directions of these vectors, or those of the first day that fitted them.
fn basis(config: &Config, name: &str, vectors: &[f32], dim: usize) -> Result<Basis> {
    let path = config.cache_dir.join(format!("{name}-{}.basis", config.components));
    if path.exists() {
        return Basis::open(&path, dim, config.components)
            .with_context(|| format!("{}: delete it to fit another one", path.display()));
    }
    ensure!(
        config.components <= dim,
        "offline.text.components = {}: the model's vectors have {dim} numbers",
        config.components
    );
    let basis = Basis::fit(vectors, dim, config.components);
    basis.save(&path)?;
    Ok(basis)
}

/// The vectors of distinct texts, their length, how many were not in the cache, and the cache's name.
#[cfg(feature = "text")]
fn vectors(
    config: &Config,
    distinct: &[&str],
    mut wanted: HashMap<Mark, usize>,
    note: &(dyn Fn(usize, usize) + Sync),
) -> Result<(Vec<f32>, usize, usize, String)> {
    let model = bert::Bert::open(&config.model, config.tokens_max).context("offline.text.model")?;
    let dim = model.dim();
    let name = name(config)?;
    let mut cache = Cache::open(&config.cache_dir.join(format!("{name}.vectors")), dim)?;
    let mut vectors = vec![0.0; distinct.len() * dim];
    cache.take(&mut wanted, &mut vectors)?;
    // Texts of about the same length together, so that little is padded.
    let mut left: Vec<usize> = wanted.into_values().collect();
    left.sort_by_key(|&at| (distinct[at].len(), at));
    let mut read = 0;
    for chunk in left.chunks(CHUNK) {
        for batch in chunk.chunks(config.batch) {
            let texts: Vec<&str> = batch.iter().map(|&at| distinct[at]).collect();
            let found = model.encode(&texts)?;
            for (&at, vector) in batch.iter().zip(found.chunks_exact(dim)) {
                vectors[at * dim..][..dim].copy_from_slice(vector);
            }
            read += batch.len();
            note(read, left.len());
        }
        let marks: Vec<Mark> = chunk.iter().map(|&at| mark(distinct[at])).collect();
        let of = |&at: &usize| vectors[at * dim..][..dim].iter().copied();
        let found: Vec<f32> = chunk.iter().flat_map(of).collect();
        cache.add(&marks, &found)?;
    }
    Ok((vectors, dim, read, name))
}

#[cfg(not(feature = "text"))]
fn vectors(
    config: &Config,
    _: &[&str],
    _: HashMap<Mark, usize>,
    _: &(dyn Fn(usize, usize) + Sync),
) -> Result<(Vec<f32>, usize, usize, String)> {
    config.check()?;
    bail!("this program was built without the feature `text`")
}

/// What names the vectors of a model: its weights, and how much of a text it reads.
#[cfg(feature = "text")]
fn name(config: &Config) -> Result<String> {
    let path = config.model.join("model.safetensors");
    let mut hash = blake3::Hasher::new();
    let mut file =
        std::fs::File::open(&path).with_context(|| format!("read {}", path.display()))?;
    std::io::copy(&mut file, &mut hash)?;
    Ok(format!("{}-{}", &hash.finalize().to_hex()[..16], config.tokens_max))
}
