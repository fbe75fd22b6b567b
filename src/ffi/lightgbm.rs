//! Training with LightGBM, over its C API; prediction by LightGBM as an oracle for tests.
//!
//! [`Dataset`] bins a dense f32 matrix, [`train`] boosts on it and gives the model's text back. The
//! text is the only thing that leaves this module: serving reads it with [`crate::forest`], and
//! nothing else of LightGBM lives longer than a call.
//!
//! Invariant: LightGBM is entered by one thread at a time. Its thread count is a process-wide
//! variable that it reads again and again to size and to index per-thread buffers, so that two calls
//! with different counts write out of bounds. Every call that reaches the library holds `LIBRARY`.
//! This module must not know what a column means.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use lightgbm3_sys as sys;

mod predict;

pub use predict::Predictor;

/// See the invariant of the module.
static LIBRARY: Mutex<()> = Mutex::new(());

/// Why LightGBM was not called, or what it answered.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("lightgbm: {call}: {message}")]
    Library { call: &'static str, message: String },
    #[error("{what}: {found} values, expected {expected}")]
    Length { what: &'static str, found: usize, expected: usize },
    #[error("a matrix of {rows} rows and {columns} columns is empty")]
    Empty { rows: usize, columns: usize },
    #[error("label of row {row} is {value}; labels are finite")]
    Label { row: usize, value: f32 },
    #[error("weight of row {row} is {value}; weights are finite and not negative")]
    Weight { row: usize, value: f32 },
    #[error("query groups hold {found} rows, the matrix has {expected}")]
    Groups { found: u64, expected: usize },
    #[error("{what}: {found} is more than LightGBM's 32-bit counts hold")]
    TooLarge { what: &'static str, found: usize },
    #[error("parameter `{key}={value}`: neither may be empty or hold blanks, `=` or NUL")]
    Parameter { key: String, value: String },
    #[error("feature name `{name}`: LightGBM's text cannot hold blanks, NUL or any of \",:[]{{}}")]
    FeatureName { name: String },
    #[error("metric `{metric}` is not evaluated (only {evaluated:?}); name it in `metric`")]
    Metric { metric: String, evaluated: Vec<String> },
    #[error("metric `{metric}`: it is not known whether more or less of it is better")]
    MetricDirection { metric: String },
    #[error("early stopping on `{metric}` needs a validation set")]
    NoValidation { metric: String },
    #[error("the model's text holds a NUL byte")]
    Nul,
}

/// Parameters as LightGBM names them, in the order in which they were set.
#[derive(Clone, Debug, Default)]
pub struct Params {
    pairs: Vec<(String, String)>,
}

impl Params {
    /// Parameters under which the same data give the same model, byte for byte. `threads` becomes
    /// `num_threads`; 0 lets LightGBM take all cores.
    pub fn reproducible(seed: u32, threads: usize) -> Self {
        Self::default()
            .with("deterministic", "true")
            .with("force_row_wise", "true")
            .with("seed", seed)
            .with("num_threads", threads)
            .with("verbosity", -1)
    }

    /// Sets `key`, in place of an earlier value.
    pub fn with(mut self, key: &str, value: impl ToString) -> Self {
        self.pairs.retain(|(known, _)| known != key);
        self.pairs.push((key.to_owned(), value.to_string()));
        self
    }

    /// Sets the zero-based columns that hold category codes (whole numbers from 0).
    pub fn with_categorical(self, columns: &[usize]) -> Self {
        if columns.is_empty() {
            return self;
        }
        let list: Vec<String> = columns.iter().map(usize::to_string).collect();
        self.with("categorical_feature", list.join(","))
    }

    fn text(&self) -> Result<CString, Error> {
        let bad = |text: &str| {
            text.is_empty() || text.contains(|c: char| c.is_whitespace() || "=\0".contains(c))
        };
        let mut text = String::new();
        for (key, value) in &self.pairs {
            if bad(key) || bad(value) {
                return Err(Error::Parameter { key: key.clone(), value: value.clone() });
            }
            text.push_str(&format!("{key}={value} "));
        }
        CString::new(text).map_err(|_| Error::Nul)
    }
}

/// How the values of a [`Table`] lie in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// Row after row.
    Rows,
    /// Column after column.
    Columns,
}

/// A dense matrix, borrowed. A missing value is NaN.
#[derive(Clone, Copy, Debug)]
pub struct Table<'a> {
    /// `rows * columns` values.
    pub values: &'a [f32],
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub columns: usize,
    /// Their order.
    pub layout: Layout,
}

/// What is learnt from the rows of a [`Table`].
#[derive(Clone, Copy, Debug)]
pub struct Target<'a> {
    /// One label a row.
    pub labels: &'a [f32],
    /// One weight a row, or all 1.
    pub weights: Option<&'a [f32]>,
    /// Rows of each query in order, for ranking objectives and metrics.
    pub groups: Option<&'a [u32]>,
}

impl<'a> Target<'a> {
    /// Labels without weights or groups.
    pub fn labels(labels: &'a [f32]) -> Self {
        Self { labels, weights: None, groups: None }
    }
}

/// A binned matrix inside LightGBM. The values it was made from are not kept.
pub struct Dataset {
    handle: sys::DatasetHandle,
}

impl Dataset {
    /// Bins `table` under `params` (`max_bin`, `categorical_feature`, ...). `names` become the
    /// model's column names.
    ///
    /// # Errors
    /// For lengths that disagree, values that LightGBM cannot hold, and whatever it refuses.
    pub fn new(
        table: Table,
        target: Target,
        names: &[String],
        params: &Params,
    ) -> Result<Self, Error> {
        check_names(names, table.columns)?;
        let dataset = Self::create(table, target, params, ptr::null_mut())?;
        let names: Vec<CString> = names
            .iter()
            .map(|name| CString::new(name.as_str()).map_err(|_| Error::Nul))
            .collect::<Result<_, _>>()?;
        let mut pointers: Vec<*const c_char> = names.iter().map(|name| name.as_ptr()).collect();
        let _library = enter();
        // SAFETY: as many NUL-terminated strings as announced, copied before the call returns.
        check("LGBM_DatasetSetFeatureNames", unsafe {
            sys::LGBM_DatasetSetFeatureNames(
                dataset.handle,
                pointers.as_mut_ptr(),
                pointers.len() as c_int,
            )
        })?;
        Ok(dataset)
    }

    /// Bins a validation table with the bins of `self`. `params` are those of `self`.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn validation(&self, table: Table, target: Target, params: &Params) -> Result<Self, Error> {
        Self::create(table, target, params, self.handle)
    }

    fn create(
        table: Table,
        target: Target,
        params: &Params,
        reference: sys::DatasetHandle,
    ) -> Result<Self, Error> {
        let (rows, columns) = check_table(&table)?;
        check_target(&target, table.rows)?;
        let params = params.text()?;
        let _library = enter();
        let mut handle: sys::DatasetHandle = ptr::null_mut();
        // SAFETY: `values` holds rows * columns floats (checked above) and is only read during the
        // call; `reference` is null or the handle of a live dataset; the handle returned is owned
        // by the value made of it and freed once.
        check("LGBM_DatasetCreateFromMat", unsafe {
            sys::LGBM_DatasetCreateFromMat(
                table.values.as_ptr().cast::<c_void>(),
                sys::C_API_DTYPE_FLOAT32 as c_int,
                rows,
                columns,
                c_int::from(table.layout == Layout::Rows),
                params.as_ptr(),
                reference,
                &mut handle,
            )
        })?;
        let dataset = Self { handle };
        dataset.set_field(c"label", sys::C_API_DTYPE_FLOAT32, target.labels)?;
        if let Some(weights) = target.weights {
            dataset.set_field(c"weight", sys::C_API_DTYPE_FLOAT32, weights)?;
        }
        if let Some(groups) = target.groups {
            dataset.set_field(c"group", sys::C_API_DTYPE_INT32, groups)?;
        }
        Ok(dataset)
    }

    /// `dtype` names the type of `T`, of 4 bytes. Called with the library entered.
    fn set_field<T>(&self, name: &CStr, dtype: u32, values: &[T]) -> Result<(), Error> {
        // SAFETY: LightGBM reads values.len() elements of 4 bytes during the call. Group sizes are
        // u32 here and i32 there: they sum to at most i32::MAX (checked), so the bits agree.
        check("LGBM_DatasetSetField", unsafe {
            sys::LGBM_DatasetSetField(
                self.handle,
                name.as_ptr(),
                values.as_ptr().cast::<c_void>(),
                values.len() as c_int,
                dtype as c_int,
            )
        })
    }
}

impl Drop for Dataset {
    fn drop(&mut self) {
        // SAFETY: the handle was made by LightGBM, is freed only here, and no booster is alive: a
        // booster lives inside `train`, which borrows its datasets.
        unsafe { sys::LGBM_DatasetFree(self.handle) };
    }
}

/// When to stop before the last round.
#[derive(Clone, Copy, Debug)]
pub struct EarlyStop<'a> {
    /// The validation metric to watch, by LightGBM's name of its result (`auc`, `ndcg@10`).
    pub metric: &'a str,
    /// Rounds without a better value after which training ends.
    pub patience_rounds: u32,
}

/// One finished round, for progress reports.
#[derive(Clone, Copy, Debug)]
pub struct Round<'a> {
    /// Rounds done, from 1.
    pub round: u32,
    /// Names of the validation metrics; empty without a validation set.
    pub metrics: &'a [String],
    /// Their values after this round.
    pub values: &'a [f64],
}

/// The result of training.
#[derive(Clone, Debug)]
pub struct Trained {
    /// The model in LightGBM's text format, up to the best round.
    pub model: String,
    /// Number of rounds (trees) in the model, from 1.
    pub best_round: u32,
    /// Names of the validation metrics.
    pub metrics: Vec<String>,
    /// Their values after each round that was trained, those after the best included.
    pub history: Vec<Vec<f64>>,
}

impl Trained {
    /// The value of a validation metric after the best round.
    pub fn best(&self, metric: &str) -> Option<f64> {
        let column = self.metrics.iter().position(|name| name == metric)?;
        self.history.get(self.best_round.checked_sub(1)? as usize)?.get(column).copied()
    }
}

/// Boosts for at most `rounds` rounds and keeps the best one (the last, when nothing is watched).
/// `params` name objective, metrics and learning rate; those of the datasets are repeated there.
/// `progress` is called after each round and must not call this module, which is locked meanwhile.
///
/// # Errors
/// When LightGBM refuses the parameters or the data, or the watched metric is not evaluated.
pub fn train(
    params: &Params,
    train: &Dataset,
    valid: Option<&Dataset>,
    rounds: u32,
    stop: Option<EarlyStop>,
    mut progress: impl FnMut(Round),
) -> Result<Trained, Error> {
    let text = params.text()?;
    let _library = enter();
    let booster = Booster::new(train, valid, &text)?;
    let metrics = if valid.is_some() { booster.metrics()? } else { Vec::new() };
    let mut watch = stop.map(|stop| Watch::new(stop, &metrics, valid.is_some())).transpose()?;
    let mut history = Vec::new();
    for round in 1..=rounds {
        if booster.update()? {
            break;
        }
        let values = if valid.is_some() { booster.evaluate(metrics.len())? } else { Vec::new() };
        progress(Round { round, metrics: &metrics, values: &values });
        let ended = watch.as_mut().is_some_and(|watch| watch.is_over(round, &values));
        history.push(values);
        if ended {
            break;
        }
    }
    // An empty first round leaves a constant model of one tree.
    let trained = (history.len() as u32).max(1);
    let best_round = watch.map_or(trained, |watch| watch.best_round.max(1));
    let model = booster.model(best_round)?;
    Ok(Trained { model, best_round, metrics, history })
}

/// Raw scores of the rows of `table` by LightGBM itself, through the `lightgbm3` crate: the oracle
/// of the forest evaluator. `model` must be a text that LightGBM wrote: its reader trusts it.
///
/// # Errors
/// When LightGBM refuses the text or the table.
pub fn predict_raw(model: &str, table: Table) -> Result<Vec<f64>, Error> {
    predict(model, table, true)
}

/// Predictions (probabilities under a binary objective) in the same way.
///
/// # Errors
/// As [`predict_raw`].
pub fn predict_transformed(model: &str, table: Table) -> Result<Vec<f64>, Error> {
    predict(model, table, false)
}

fn predict(model: &str, table: Table, raw: bool) -> Result<Vec<f64>, Error> {
    let (_, columns) = check_table(&table)?;
    if model.contains('\0') {
        return Err(Error::Nul);
    }
    let _library = enter();
    let failed =
        |call| move |error: lightgbm3::Error| Error::Library { call, message: error.to_string() };
    let booster = lightgbm3::Booster::from_string(model)
        .map_err(failed("LGBM_BoosterLoadModelFromString"))?;
    let (row_major, params) = (table.layout == Layout::Rows, "num_threads=1 verbosity=-1");
    let scores = if raw {
        booster.raw_scores_with_params(table.values, columns, row_major, params)
    } else {
        booster.predict_with_params(table.values, columns, row_major, params)
    };
    scores.map_err(failed("LGBM_BoosterPredictForMat"))
}

/// The metric that decides about stopping.
struct Watch {
    column: usize,
    more_is_better: bool,
    patience_rounds: u32,
    best_round: u32,
    best: f64,
}

impl Watch {
    fn new(stop: EarlyStop, metrics: &[String], validated: bool) -> Result<Self, Error> {
        let metric = stop.metric.to_owned();
        if !validated {
            return Err(Error::NoValidation { metric });
        }
        let Some(column) = metrics.iter().position(|name| name == stop.metric) else {
            return Err(Error::Metric { metric, evaluated: metrics.to_vec() });
        };
        let Some(more_is_better) = more_is_better(stop.metric) else {
            return Err(Error::MetricDirection { metric });
        };
        let best = if more_is_better { f64::NEG_INFINITY } else { f64::INFINITY };
        Ok(Self {
            column,
            more_is_better,
            patience_rounds: stop.patience_rounds,
            best_round: 0,
            best,
        })
    }

    /// Takes the values of a round; true when patience is over.
    fn is_over(&mut self, round: u32, values: &[f64]) -> bool {
        let value = values[self.column];
        let better = if self.more_is_better { value > self.best } else { value < self.best };
        if better {
            self.best = value;
            self.best_round = round;
        }
        round - self.best_round >= self.patience_rounds.max(1)
    }
}

/// The C API does not say in which direction a metric improves.
fn more_is_better(metric: &str) -> Option<bool> {
    const MORE: [&str; 5] = ["auc", "auc_mu", "average_precision", "ndcg", "map"];
    const LESS: [&str; 14] = [
        "binary_logloss",
        "binary_error",
        "l1",
        "l2",
        "rmse",
        "quantile",
        "huber",
        "fair",
        "mape",
        "poisson",
        "gamma",
        "tweedie",
        "cross_entropy",
        "kullback_leibler",
    ];
    let name = metric.split_once('@').map_or(metric, |(name, _)| name);
    if MORE.contains(&name) {
        Some(true)
    } else if LESS.contains(&name) {
        Some(false)
    } else {
        None
    }
}

/// A training run inside LightGBM. It points at its datasets, hence the lifetime.
struct Booster<'a> {
    handle: sys::BoosterHandle,
    _datasets: std::marker::PhantomData<&'a Dataset>,
}

impl<'a> Booster<'a> {
    fn new(train: &'a Dataset, valid: Option<&'a Dataset>, params: &CStr) -> Result<Self, Error> {
        let mut handle: sys::BoosterHandle = ptr::null_mut();
        // SAFETY: a live dataset and a NUL-terminated string; the handle returned is owned by the
        // value made of it.
        check("LGBM_BoosterCreate", unsafe {
            sys::LGBM_BoosterCreate(train.handle, params.as_ptr(), &mut handle)
        })?;
        let booster = Self { handle, _datasets: std::marker::PhantomData };
        if let Some(valid) = valid {
            // SAFETY: both handles are live, and `valid` outlives the booster.
            check("LGBM_BoosterAddValidData", unsafe {
                sys::LGBM_BoosterAddValidData(handle, valid.handle)
            })?;
        }
        Ok(booster)
    }

    /// One round; true when it found nothing to split.
    fn update(&self) -> Result<bool, Error> {
        let mut empty: c_int = 0;
        // SAFETY: a live handle and a place for the answer.
        check("LGBM_BoosterUpdateOneIter", unsafe {
            sys::LGBM_BoosterUpdateOneIter(self.handle, &mut empty)
        })?;
        Ok(empty != 0)
    }

    /// Names of the metrics of the validation set.
    fn metrics(&self) -> Result<Vec<String>, Error> {
        const NAME_BYTES: usize = 128;
        let mut count: c_int = 0;
        // SAFETY: a live handle and a place for the answer.
        check("LGBM_BoosterGetEvalCounts", unsafe {
            sys::LGBM_BoosterGetEvalCounts(self.handle, &mut count)
        })?;
        let mut names = vec![[0_u8; NAME_BYTES]; count as usize];
        let mut pointers: Vec<*mut c_char> =
            names.iter_mut().map(|name| name.as_mut_ptr().cast::<c_char>()).collect();
        let mut needed_bytes: usize = 0;
        // SAFETY: `count` buffers of NAME_BYTES each; LightGBM writes no more than it is told.
        check("LGBM_BoosterGetEvalNames", unsafe {
            sys::LGBM_BoosterGetEvalNames(
                self.handle,
                count,
                &mut count,
                NAME_BYTES,
                &mut needed_bytes,
                pointers.as_mut_ptr(),
            )
        })?;
        Ok(names.iter().map(|name| text_of(name)).collect())
    }

    /// The validation metrics after the last round.
    fn evaluate(&self, metrics: usize) -> Result<Vec<f64>, Error> {
        const FIRST_VALIDATION: c_int = 1;
        let mut values = vec![0.0; metrics];
        let mut count: c_int = 0;
        // SAFETY: LightGBM writes one value a metric, and `metrics` is the count that it gave.
        check("LGBM_BoosterGetEval", unsafe {
            sys::LGBM_BoosterGetEval(self.handle, FIRST_VALIDATION, &mut count, values.as_mut_ptr())
        })?;
        Ok(values)
    }

    /// The text of the first `rounds` rounds.
    fn model(&self, rounds: u32) -> Result<String, Error> {
        let mut buffer: Vec<u8> = Vec::new();
        loop {
            let mut needed: i64 = 0;
            // SAFETY: LightGBM writes only when the text with its NUL fits into the length given.
            check("LGBM_BoosterSaveModelToString", unsafe {
                sys::LGBM_BoosterSaveModelToString(
                    self.handle,
                    0,
                    rounds as c_int,
                    sys::C_API_FEATURE_IMPORTANCE_GAIN as c_int,
                    buffer.len() as i64,
                    &mut needed,
                    buffer.as_mut_ptr().cast::<c_char>(),
                )
            })?;
            if needed as usize <= buffer.len() {
                return Ok(text_of(&buffer));
            }
            buffer.resize(needed as usize, 0);
        }
    }
}

impl Drop for Booster<'_> {
    fn drop(&mut self) {
        // SAFETY: the handle was made by LightGBM and is freed only here.
        unsafe { sys::LGBM_BoosterFree(self.handle) };
    }
}

/// The text up to the first NUL.
fn text_of(buffer: &[u8]) -> String {
    let end = buffer.iter().position(|&byte| byte == 0).unwrap_or(buffer.len());
    String::from_utf8_lossy(&buffer[..end]).into_owned()
}

fn check_table(table: &Table) -> Result<(c_int, c_int), Error> {
    let rows = count("rows", table.rows)?;
    let columns = count("columns", table.columns)?;
    if table.rows == 0 || table.columns == 0 {
        return Err(Error::Empty { rows: table.rows, columns: table.columns });
    }
    let (found, expected) = (table.values.len(), table.rows.saturating_mul(table.columns));
    if found != expected {
        return Err(Error::Length { what: "matrix", found, expected });
    }
    Ok((rows, columns))
}

fn check_target(target: &Target, rows: usize) -> Result<(), Error> {
    let length = |what, found| match found == rows {
        true => Ok(()),
        false => Err(Error::Length { what, found, expected: rows }),
    };
    length("labels", target.labels.len())?;
    let bad = target.labels.iter().position(|label| !label.is_finite());
    if let Some(row) = bad {
        return Err(Error::Label { row, value: target.labels[row] });
    }
    if let Some(weights) = target.weights {
        length("weights", weights.len())?;
        let bad = weights.iter().position(|weight| !(weight.is_finite() && *weight >= 0.0));
        if let Some(row) = bad {
            return Err(Error::Weight { row, value: weights[row] });
        }
    }
    if let Some(groups) = target.groups {
        count("query groups", groups.len())?;
        let found: u64 = groups.iter().map(|&size| u64::from(size)).sum();
        if found != rows as u64 {
            return Err(Error::Groups { found, expected: rows });
        }
    }
    Ok(())
}

fn check_names(names: &[String], columns: usize) -> Result<(), Error> {
    if names.len() != columns {
        return Err(Error::Length { what: "feature names", found: names.len(), expected: columns });
    }
    let bad = |name: &&String| {
        name.is_empty() || name.contains(|c: char| c.is_whitespace() || "\",:[]{}\0".contains(c))
    };
    match names.iter().find(bad) {
        Some(name) => Err(Error::FeatureName { name: name.clone() }),
        None => Ok(()),
    }
}

fn count(what: &'static str, found: usize) -> Result<c_int, Error> {
    c_int::try_from(found).map_err(|_| Error::TooLarge { what, found })
}

fn check(call: &'static str, status: c_int) -> Result<(), Error> {
    if status == 0 {
        return Ok(());
    }
    // SAFETY: a NUL-terminated string in storage of this thread, read before the next call.
    let message = unsafe { CStr::from_ptr(sys::LGBM_GetLastError()) };
    Err(Error::Library { call, message: message.to_string_lossy().into_owned() })
}

/// Waits until no other thread is inside LightGBM, and takes over what it prints.
fn enter() -> MutexGuard<'static, ()> {
    // A panic in a progress callback leaves nothing behind: its booster was freed on the way.
    let guard = LIBRARY.lock().unwrap_or_else(PoisonError::into_inner);
    // SAFETY: a function of the right type; LightGBM keeps the pointer for this thread.
    unsafe { sys::LGBM_RegisterLogCallback(Some(log)) };
    guard
}

/// Passes LightGBM's messages on. It sends a message in pieces: prefix, text, line end.
unsafe extern "C" fn log(piece: *const c_char) {
    thread_local! {
        static LINE: RefCell<String> = const { RefCell::new(String::new()) };
    }
    if piece.is_null() {
        return;
    }
    // SAFETY: LightGBM passes a NUL-terminated string that lives during the call.
    let piece: Cow<str> = unsafe { CStr::from_ptr(piece) }.to_string_lossy();
    LINE.with_borrow_mut(|line| {
        line.push_str(&piece);
        if line.ends_with('\n') {
            let text = line.trim_end();
            if text.starts_with("[LightGBM] [Warning]") {
                tracing::warn!(target: "lightgbm", "{text}");
            } else {
                tracing::debug!(target: "lightgbm", "{text}");
            }
            line.clear();
        }
    });
}

#[cfg(test)]
mod tests;
