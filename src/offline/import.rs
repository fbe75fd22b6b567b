//! Import: someone's files and database become the canonical tables, by a SQL file or as they are.
//!
//! ```text
//! files -> tables by file stem ─┐
//! PostgreSQL -> tables by name ─┴─> SQL -> events, items, users, histories
//!       -> canonical columns -> checks -> quarantine/<table>.parquet  (bad rows, with the reason)
//!                                      -> events/dt=YYYY-MM-DD/part-00000.parquet, items/..., ...
//! ```
//! Invariant: no row is dropped silently. It is written, or it stands in the quarantine with its
//! reasons; when more rows than the configuration bears fail a check, no table is replaced.

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, bail};
use arrow::array::{Array, ArrayRef, AsArray, BooleanArray, RecordBatch, StringArray};
use arrow::compute::{filter_record_batch, interleave_record_batch};
use arrow::datatypes::{DataType, Field, Schema, SchemaRef, TimestampMicrosecondType};
use arrow::util::display::{ArrayFormatter, FormatOptions};
use serde::Serialize;

use crate::offline::checks::{CHECKS, Checker, Limits, applies, reason, text};
use crate::offline::postgres;
use crate::offline::sql::{self, Engine, ParquetWriter, SqlText, write_parquet};
use crate::offline::tables::{Layout, Table};
use crate::types::{DAY_MS, date_of};

/// Rows a written batch holds at most.
const WRITE_ROWS: usize = 65_536;

/// What an import accepts.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub date_min: String,
    pub date_max: String,
    pub example_rows: usize,
    pub share_max: ShareMax,
    pub postgres: postgres::Config,
}

/// The largest bearable share of rows that fail a check; 0 bears none.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShareMax {
    pub wrong_type: f64,
    pub null_id: f64,
    pub duplicate_id: f64,
    pub date_out_of_range: f64,
    pub unknown_item: f64,
    pub negative_price: f64,
}

/// What to import, from where and to where.
#[derive(Debug, Clone)]
pub struct Options {
    /// Without one, tables that are read from a database are canonical as they are.
    pub sql: Option<PathBuf>,
    pub inputs: Vec<PathBuf>,
    pub database: Option<Database>,
    pub out: PathBuf,
    pub parameters: Vec<(String, String)>,
}

/// A database, and what is read of it: the table's name here, and a table or query there.
#[derive(Debug, Clone)]
pub struct Database {
    pub address: postgres::Address,
    pub tables: Vec<(String, String)>,
}

/// What an import did.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    pub sql: String,
    pub out: String,
    pub passed: bool,
    pub seconds: f64,
    pub inputs: Vec<String>,
    pub tables: Vec<TableReport>,
}

/// One canonical table of a report.
#[derive(Debug, Clone, Serialize)]
pub struct TableReport {
    pub table: &'static str,
    pub rows_selected: usize,
    pub rows_written: usize,
    pub rows_quarantined: usize,
    pub files: usize,
    /// `name: type` of every column written.
    pub columns: Vec<String>,
    /// Columns that the SQL selected and the contract does not keep.
    pub unknown_columns: Vec<String>,
    pub notes: Vec<String>,
    pub checks: Vec<Check>,
}

/// One check of a table.
#[derive(Debug, Clone, Serialize)]
pub struct Check {
    pub check: &'static str,
    pub rows: usize,
    pub share: f64,
    pub share_max: f64,
    pub passed: bool,
    pub examples: Vec<serde_json::Value>,
}

/// Runs an import. An error means that nothing was written; a report that did not pass means that
/// only the quarantine was.
pub fn import(
    options: &Options,
    engine: &sql::Config,
    config: &Config,
    progress: &dyn Fn(&str),
) -> anyhow::Result<Report> {
    let start = Instant::now();
    let limits = Limits::new(config)?;
    let text = options.sql.as_deref().map(|path| read_sql(path, options)).transpose()?;
    let engine = Engine::new(engine)?;
    let mut inputs = Vec::new();
    for input in &options.inputs {
        inputs.extend(engine.register_input(input)?);
    }
    let reading = options.out.join(".reading");
    if let Some(database) = &options.database {
        read_database(database, &config.postgres, &reading, &engine, progress)?;
        inputs.extend(database.tables.iter().map(|(name, _)| name.clone()));
    }
    let canonical = Table::ALL.map(Table::name);
    let origin = match &text {
        Some(text) => {
            if let Some(name) = inputs.iter().find(|input| canonical.contains(&input.as_str())) {
                bail!("the input `{name}` has the name of a canonical table; rename it");
            }
            progress(&format!("running {} over {}", text.origin, inputs.join(", ")));
            engine.run(text)?;
            text.origin.clone()
        }
        None => {
            if let Some(name) = inputs.iter().find(|input| !canonical.contains(&input.as_str())) {
                bail!(
                    "`{name}` is no canonical table ({}): name it so, or give a SQL file that makes \
                     those of it (--sql)",
                    canonical.join(", ")
                );
            }
            "the database".to_owned()
        }
    };

    let mut known_items = None;
    let mut outcomes = Vec::new();
    for table in Table::ALL {
        let Some((schema, batches)) = engine.table(table.name())? else {
            // A database may hold profiles and items only, and events come from elsewhere.
            if options.database.is_none() && matches!(table, Table::Items | Table::Events) {
                bail!(
                    "{}: makes no table or view `{}`; add CREATE VIEW {} AS SELECT ...",
                    origin,
                    table.name(),
                    table.name()
                );
            }
            continue;
        };
        progress(&format!("checking {}", table.name()));
        let outcome = examine(table, &schema, &batches, known_items.as_ref(), &limits)
            .with_context(|| format!("{origin}: table `{}`", table.name()))?;
        if table == Table::Items {
            known_items = Some(outcome.ids());
        }
        outcomes.push(outcome);
    }
    if outcomes.is_empty() {
        bail!("{origin}: makes none of the tables {}", canonical.join(", "));
    }
    let mut report = Report {
        sql: origin,
        out: options.out.display().to_string(),
        passed: outcomes.iter().all(|o| o.report.checks.iter().all(|check| check.passed)),
        seconds: 0.0,
        inputs,
        tables: Vec::new(),
    };
    progress(&format!("writing {}", options.out.display()));
    write_all(outcomes, &options.out, options.database.is_some(), &mut report)?;
    if reading.exists() {
        fs::remove_dir_all(&reading).with_context(|| format!("{}", reading.display()))?;
    }
    report.seconds = start.elapsed().as_secs_f64();
    Ok(report)
}

fn read_sql(path: &Path, options: &Options) -> anyhow::Result<SqlText> {
    let text = SqlText::read(path).context("cannot read the SQL file of the import")?;
    let parameters: Vec<(&str, &str)> =
        options.parameters.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
    Ok(text.with(&parameters)?)
}

/// Copies what is wanted of a database to files of `folder`, batch by batch, and makes them tables.
fn read_database(
    database: &Database,
    config: &postgres::Config,
    folder: &Path,
    engine: &Engine,
    progress: &dyn Fn(&str),
) -> anyhow::Result<()> {
    let mut client = postgres::Client::connect(&database.address, config)?;
    for (name, query) in &database.tables {
        let known = sql::identifier(name);
        if known != *name {
            bail!("`{name}` is no name for a table here; `{known}` is one");
        }
        progress(&format!("reading {name} from {:?}", database.address));
        let path = folder.join(format!("{name}.parquet"));
        let mut writer: Option<ParquetWriter> = None;
        let schema = client
            .read(query, |batch| -> anyhow::Result<()> {
                let schema = batch.schema();
                let writer = match &mut writer {
                    Some(writer) => writer,
                    none => none.insert(ParquetWriter::create(&path, schema)?),
                };
                Ok(writer.write(&batch)?)
            })
            .with_context(|| format!("`{name}`, read as `{query}`"))?;
        let writer = match writer {
            Some(writer) => writer,
            None => ParquetWriter::create(&path, schema)?,
        };
        progress(&format!("read {} rows of {name}", writer.finish()?));
        engine.register_parquet(name, &path)?;
    }
    Ok(())
}

impl Report {
    /// The first check that was passed over its limit, as a message.
    pub fn failure(&self) -> Option<String> {
        self.tables.iter().find_map(|table| {
            let check = table.checks.iter().find(|check| !check.passed)?;
            Some(format!(
                "{}: check `{}` failed for {} of {} rows, a share of {:.6}; the most allowed is {} \
                 (import.share_max.{}); the rows are in {}/quarantine/{}.parquet",
                table.table,
                check.check,
                check.rows,
                table.rows_selected,
                check.share,
                check.share_max,
                check.check,
                self.out,
                table.table
            ))
        })
    }

    /// The report as lines for a person.
    pub fn lines(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{:<11}{:<19}{:>12}{:>11}{:>10}  {}",
            "table", "check", "rows", "share", "limit", "result"
        )];
        for table in &self.tables {
            lines.push(format!(
                "{:<11}{:<19}{:>12}{:>11}{:>10}  {} written in {} file(s), {} quarantined",
                table.table,
                "selected",
                table.rows_selected,
                "",
                "",
                table.rows_written,
                table.files,
                table.rows_quarantined
            ));
            for column in &table.unknown_columns {
                lines.push(format!("{:<11}unknown column `{column}` is left out", ""));
            }
            lines.extend(table.notes.iter().map(|note| format!("{:<11}{note}", "")));
            for check in table.checks.iter() {
                let result = match (check.rows, check.passed) {
                    (0, _) => "ok",
                    (_, true) => "quarantined",
                    (_, false) => "FAILED",
                };
                lines.push(format!(
                    "{:<11}{:<19}{:>12}{:>11.6}{:>10}  {result}",
                    "", check.check, check.rows, check.share, check.share_max
                ));
                for example in &check.examples {
                    lines.push(format!("{:<13}{example}", ""));
                }
            }
        }
        lines
    }
}

/// A table after its checks, not yet written.
struct Outcome {
    table: Table,
    report: TableReport,
    schema: SchemaRef,
    good: Vec<RecordBatch>,
    bad_schema: SchemaRef,
    bad: Vec<RecordBatch>,
}

impl Outcome {
    /// The values of the first key column of the good rows.
    fn ids(&self) -> HashSet<String> {
        let key = self.table.key()[0];
        let columns = self.good.iter().map(|batch| text(batch, key));
        columns
            .flat_map(|ids| ids.iter().flatten().map(str::to_owned).collect::<Vec<_>>())
            .collect()
    }
}

fn examine(
    table: Table,
    source: &SchemaRef,
    batches: &[RecordBatch],
    known_items: Option<&HashSet<String>>,
    limits: &Limits,
) -> anyhow::Result<Outcome> {
    let layout = Layout::new(table, source);
    let derive_id = refuse_or_derive(table, &layout)?;
    let mut notes = Vec::new();
    if derive_id {
        notes.push("event_id is derived from the hash of the other columns".to_owned());
    }
    let mut checker = Checker { table, known_items, limits, seen: HashSet::new() };
    let mut bad_fields: Vec<Field> = source.fields().iter().map(|f| f.as_ref().clone()).collect();
    bad_fields.push(Field::new("reason", DataType::Utf8, false));
    let mut outcome = Outcome {
        table,
        report: TableReport {
            table: table.name(),
            rows_selected: 0,
            rows_written: 0,
            rows_quarantined: 0,
            files: 0,
            columns: Vec::new(),
            unknown_columns: layout.unknown.clone(),
            notes,
            checks: Vec::new(),
        },
        schema: layout.schema.clone(),
        good: Vec::new(),
        bad_schema: Arc::new(Schema::new(bad_fields)),
        bad: Vec::new(),
    };
    let mut counts = [0usize; CHECKS.len()];
    let mut examples: [Vec<serde_json::Value>; CHECKS.len()] = Default::default();
    for batch in batches {
        let (mut converted, lost) = layout.convert(batch)?;
        if derive_id {
            converted = with_event_ids(&converted)?;
        }
        let faults = checker.faults(&converted, &lost);
        outcome.report.rows_selected += batch.num_rows();
        for (check, count) in counts.iter_mut().enumerate() {
            for (row, _) in
                faults.iter().enumerate().filter(|(_, fault)| (**fault >> check) & 1 == 1)
            {
                *count += 1;
                if examples[check].len() < limits.examples_max {
                    examples[check].push(row_as_json(batch, row)?);
                }
            }
        }
        outcome.take(batch, converted, &faults)?;
    }
    let rows = outcome.report.rows_selected.max(1) as f64;
    outcome.report.checks = (0..CHECKS.len())
        .filter(|&check| applies(table, 1 << check))
        .map(|check| {
            let share = counts[check] as f64 / rows;
            Check {
                check: CHECKS[check],
                rows: counts[check],
                share,
                share_max: limits.share_max[check],
                passed: share <= limits.share_max[check],
                examples: std::mem::take(&mut examples[check]),
            }
        })
        .collect();
    outcome.report.columns = outcome
        .schema
        .fields()
        .iter()
        .map(|field| format!("{}: {}", field.name(), field.data_type()))
        .collect();
    Ok(outcome)
}

impl Outcome {
    /// Sorts the rows of one batch into good ones and quarantined ones.
    fn take(
        &mut self,
        raw: &RecordBatch,
        converted: RecordBatch,
        faults: &[u8],
    ) -> anyhow::Result<()> {
        let bad_rows = faults.iter().filter(|fault| **fault != 0).count();
        if bad_rows == 0 {
            self.good.push(converted);
            return Ok(());
        }
        let good: BooleanArray = faults.iter().map(|fault| Some(*fault == 0)).collect();
        let bad: BooleanArray = faults.iter().map(|fault| Some(*fault != 0)).collect();
        self.good.push(filter_record_batch(&converted, &good)?);
        let reasons = faults.iter().filter(|fault| **fault != 0).map(|&fault| reason(fault));
        let reasons: StringArray = reasons.map(Some).collect();
        let mut columns = filter_record_batch(raw, &bad)?.columns().to_vec();
        columns.push(Arc::new(reasons));
        self.bad.push(RecordBatch::try_new(self.bad_schema.clone(), columns)?);
        self.report.rows_quarantined += bad_rows;
        Ok(())
    }
}

/// Stops on columns that are missing or can never fit; true when event ids are to be derived.
fn refuse_or_derive(table: Table, layout: &Layout) -> anyhow::Result<bool> {
    if let Some((name, found, expected)) = layout.unusable.first() {
        let hint = match *expected {
            "timestamp (us, UTC)" => "use to_timestamp_seconds, to_timestamp_millis or _micros",
            _ => "CAST it",
        };
        bail!("column `{name}` is {found}, expected {expected}; {hint} in the SELECT");
    }
    let missing: Vec<&str> = layout
        .missing
        .iter()
        .copied()
        .filter(|name| !(table == Table::Events && *name == "event_id"))
        .collect();
    if !missing.is_empty() {
        bail!("required column(s) missing: {}; select them under that name", missing.join(", "));
    }
    Ok(layout.missing.contains(&"event_id"))
}

/// Fills `event_id` with a hash of every other column, so that a second import of the same rows
/// gives the same ids, and rows alike in every column are duplicates.
fn with_event_ids(batch: &RecordBatch) -> anyhow::Result<RecordBatch> {
    let options = FormatOptions::default();
    let others: Vec<usize> = (0..batch.num_columns())
        .filter(|&at| batch.schema().field(at).name() != "event_id")
        .collect();
    // Times by their number: formatting a zone needs a zone table.
    let plain: Vec<ArrayRef> = others
        .iter()
        .map(|&at| match batch.column(at).data_type() {
            DataType::Timestamp(..) => arrow::compute::cast(batch.column(at), &DataType::Int64),
            _ => Ok(batch.column(at).clone()),
        })
        .collect::<Result<_, _>>()?;
    let formatters = plain
        .iter()
        .map(|column| ArrayFormatter::try_new(column, &options))
        .collect::<Result<Vec<_>, _>>()?;
    let ids: StringArray = (0..batch.num_rows())
        .map(|row| {
            let mut hash = blake3::Hasher::new();
            for (column, formatter) in plain.iter().zip(&formatters) {
                if column.is_valid(row) {
                    hash.update(formatter.value(row).to_string().as_bytes());
                }
                hash.update(&[0xff]);
            }
            Some(hash.finalize().to_hex()[..32].to_owned())
        })
        .collect();
    let at = batch.schema().index_of("event_id")?;
    let mut columns = batch.columns().to_vec();
    columns[at] = Arc::new(ids);
    Ok(RecordBatch::try_new(batch.schema(), columns)?)
}

fn row_as_json(batch: &RecordBatch, row: usize) -> anyhow::Result<serde_json::Value> {
    let options = FormatOptions::default();
    let mut object = serde_json::Map::new();
    for (field, column) in batch.schema().fields().iter().zip(batch.columns()) {
        let value = match column.is_null(row) {
            true => serde_json::Value::Null,
            false => ArrayFormatter::try_new(column, &options)?.value(row).to_string().into(),
        };
        object.insert(field.name().clone(), value);
    }
    Ok(object.into())
}

/// Writes the quarantine, and the tables when all checks passed; a table is replaced as a whole.
/// `keep` leaves those alone that this import does not make.
fn write_all(
    outcomes: Vec<Outcome>,
    out: &Path,
    keep: bool,
    report: &mut Report,
) -> anyhow::Result<()> {
    let staging = out.join(".partial");
    if staging.exists() {
        fs::remove_dir_all(&staging).with_context(|| format!("{}", staging.display()))?;
    }
    for mut outcome in outcomes {
        let name = outcome.table.name();
        let quarantine = out.join("quarantine").join(format!("{name}.parquet"));
        if quarantine.exists() {
            fs::remove_file(&quarantine).with_context(|| format!("{}", quarantine.display()))?;
        }
        if !outcome.bad.is_empty() {
            write_parquet(&quarantine, outcome.bad_schema.clone(), &outcome.bad)?;
        }
        if report.passed {
            outcome.report.files = write_rows(&outcome, &staging.join(name))?;
            outcome.report.rows_written = outcome.good.iter().map(RecordBatch::num_rows).sum();
        }
        report.tables.push(outcome.report);
    }
    if !report.passed {
        return Ok(());
    }
    for table in Table::ALL.map(Table::name) {
        let (new, old) = (staging.join(table), out.join(table));
        if old.exists() && (new.exists() || !keep) {
            fs::remove_dir_all(&old).with_context(|| format!("{}", old.display()))?;
        }
        if new.exists() {
            fs::rename(&new, &old).with_context(|| format!("{}", old.display()))?;
        }
    }
    fs::remove_dir_all(&staging).or_else(|error| match error.kind() {
        std::io::ErrorKind::NotFound => Ok(()),
        _ => Err(error),
    })?;
    Ok(())
}

/// Where a row stands and what it is sorted by.
struct Place<'a> {
    day: i64,
    time_us: i64,
    keys: [&'a str; 2],
    at: (usize, usize),
}

/// Writes good rows sorted by day, time and key, whatever order the query gave; one file a day
/// for events. Returns the number of files.
fn write_rows(outcome: &Outcome, directory: &Path) -> anyhow::Result<usize> {
    let mut places = Vec::new();
    for (number, batch) in outcome.good.iter().enumerate() {
        let times = match outcome.table {
            Table::Events => Some(
                batch
                    .column_by_name("timestamp")
                    .expect("canonical column")
                    .as_primitive::<TimestampMicrosecondType>(),
            ),
            _ => None,
        };
        let keys: Vec<&StringArray> =
            outcome.table.key().iter().map(|name| text(batch, name)).collect();
        for row in 0..batch.num_rows() {
            let time_us = times.map_or(0, |times| times.value(row));
            places.push(Place {
                day: time_us.div_euclid(DAY_MS * 1000),
                time_us,
                keys: [keys[0].value(row), keys.get(1).map_or("", |keys| keys.value(row))],
                at: (number, row),
            });
        }
    }
    places.sort_unstable_by(|a, b| (a.time_us, a.keys, a.at).cmp(&(b.time_us, b.keys, b.at)));
    let mut files: BTreeMap<PathBuf, &[Place]> = BTreeMap::new();
    match outcome.table {
        Table::Events => {
            for day in places.chunk_by(|a, b| a.day == b.day) {
                let folder = directory.join(format!("dt={}", date_of(day[0].day * DAY_MS)));
                files.insert(folder.join("part-00000.parquet"), day);
            }
        }
        _ => {
            files.insert(directory.join("part-00000.parquet"), &places);
        }
    }
    let sources: Vec<&RecordBatch> = outcome.good.iter().collect();
    for (path, rows) in &files {
        let mut batches = Vec::new();
        for rows in rows.chunks(WRITE_ROWS) {
            let indices: Vec<(usize, usize)> = rows.iter().map(|place| place.at).collect();
            batches.push(interleave_record_batch(&sources, &indices)?);
        }
        write_parquet(path, outcome.schema.clone(), &batches)?;
    }
    Ok(files.len())
}

#[cfg(test)]
#[path = "import_tests.rs"]
mod tests;
