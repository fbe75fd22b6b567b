//! Runs SQL files over Parquet, CSV and JSON with DataFusion, and writes what they select.
//!
//! The files under `sql/` are one SELECT each in a subset that DataFusion and Spark read alike
//! (docs tell the rules, a test below keeps them); the files of an import may hold several
//! statements and use whatever DataFusion offers. Parameters are written `{{name}}`.
//!
//! Calls block: an engine has a runtime of its own and must not be used from inside another.
//! What does not fit into `memory_max_bytes` while a query sorts or groups goes to disk.
//! Invariant: a Parquet file appears under its name only when it is complete.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::array::RecordBatch;
use arrow::compute::cast;
use arrow::datatypes::{DataType, Field, Schema, SchemaRef};
use datafusion::common::Column;
use datafusion::dataframe::DataFrame;
use datafusion::datasource::MemTable;
use datafusion::error::DataFusionError;
use datafusion::execution::memory_pool::FairSpillPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::logical_expr::Expr;
use datafusion::prelude::{
    CsvReadOptions, JsonReadOptions, ParquetReadOptions, SessionConfig, SessionContext,
};
use datafusion::sql::parser::{DFParser, Statement};
use futures::StreamExt;
use parquet::arrow::ArrowWriter;
use parquet::basic::Compression;
use parquet::file::properties::WriterProperties;
use tokio::runtime::Runtime;

/// How much of the machine a query may use, and how far files without types are read ahead.
#[derive(Debug, Clone, serde::Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    pub partitions: usize,
    pub batch_rows: usize,
    pub infer_rows: usize,
    /// What sorts, groups and joins may hold; beyond it they go to disk.
    pub memory_max_bytes: usize,
    /// What they may put there.
    pub spill_max_bytes: u64,
}

/// Why a file or a query was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
    #[error("{path}: cannot be read as a table: {source}")]
    Read { path: PathBuf, source: Box<DataFusionError> },
    #[error("{path}: cannot be written: {source}")]
    Write { path: PathBuf, source: parquet::errors::ParquetError },
    #[error("{path}: not a table (known endings: parquet, csv, tsv, json, jsonl, ndjson)")]
    Extension { path: PathBuf },
    #[error("{path}: its table name `{name}` is taken by another input; rename one of the files")]
    Name { path: PathBuf, name: String },
    #[error("{input}: holds no parquet, csv, tsv, json, jsonl or ndjson file")]
    Empty { input: PathBuf },
    #[error("{origin}, statement {number}: {source} (tables: {tables})")]
    Query { origin: String, number: usize, source: Box<DataFusionError>, tables: String },
    #[error("{origin}: holds no SELECT")]
    Nothing { origin: String },
    #[error("{origin}: parameter `{{{{{name}}}}}` has no value; pass it as {name}=VALUE")]
    Parameter { origin: String, name: String },
    #[error("{origin}: `{{{{` at byte {at} is never closed by `}}}}`")]
    Placeholder { origin: String, at: usize },
    #[error("cannot start the query engine: {0}")]
    Start(io::Error),
    #[error("cannot set up the query engine: {0}")]
    SetUp(Box<DataFusionError>),
}

/// A text of SQL and where it came from, for messages.
#[derive(Debug, Clone)]
pub struct SqlText {
    pub origin: String,
    pub text: String,
}

impl SqlText {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<Self, Error> {
        let text = fs::read_to_string(path)
            .map_err(|source| Error::Io { path: path.to_owned(), source })?;
        Ok(Self { origin: path.display().to_string(), text })
    }

    /// A text that is part of the program.
    pub fn builtin(name: &str, text: &str) -> Self {
        Self { origin: format!("sql/{name}.sql"), text: text.to_owned() }
    }

    /// Puts values in the place of `{{name}}` and `{{name=default}}`; a name without a value and
    /// without a default is an error.
    /// Values are inserted as they stand: they come from the operator, never from requests.
    pub fn with(&self, parameters: &[(&str, &str)]) -> Result<Self, Error> {
        let mut text = String::with_capacity(self.text.len());
        let mut rest = self.text.as_str();
        while let Some(open) = rest.find("{{") {
            text.push_str(&rest[..open]);
            let inside = &rest[open + 2..];
            let Some(close) = inside.find("}}") else {
                let at = self.text.len() - rest.len() + open;
                return Err(Error::Placeholder { origin: self.origin.clone(), at });
            };
            let (name, default) = match inside[..close].split_once('=') {
                Some((name, default)) => (name.trim(), Some(default.trim())),
                None => (inside[..close].trim(), None),
            };
            let given =
                parameters.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
            let value = given.or(default).ok_or_else(|| Error::Parameter {
                origin: self.origin.clone(),
                name: name.to_owned(),
            })?;
            text.push_str(value);
            rest = &inside[close + 2..];
        }
        text.push_str(rest);
        Ok(Self { origin: self.origin.clone(), text })
    }
}

/// A set of named tables and the threads that query them.
pub struct Engine {
    context: SessionContext,
    runtime: Runtime,
    partitions: usize,
    batch_rows: usize,
    infer_rows: usize,
}

impl Engine {
    /// An engine without tables, which spills to the system's directory for temporary files.
    pub fn new(config: &Config) -> Result<Self, Error> {
        Self::build(config, RuntimeEnvBuilder::new())
    }

    /// An engine without tables, which spills to `dir`.
    pub fn spilling_to(dir: &Path, config: &Config) -> Result<Self, Error> {
        fs::create_dir_all(dir).map_err(|source| Error::Io { path: dir.to_owned(), source })?;
        Self::build(config, RuntimeEnvBuilder::new().with_temp_file_path(dir))
    }

    fn build(config: &Config, environment: RuntimeEnvBuilder) -> Result<Self, Error> {
        let partitions = config.partitions.max(1);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(partitions)
            .thread_stack_size(8 << 20)
            .thread_name("sql")
            .enable_all()
            .build()
            .map_err(Error::Start)?;
        let session = SessionConfig::new()
            .with_target_partitions(partitions)
            .with_batch_size(config.batch_rows)
            .with_information_schema(true)
            .set_str("datafusion.execution.spill_compression", "lz4_frame")
            // Views of one buffer are counted once a batch, so that sorts believe to be out of memory.
            .set_bool("datafusion.execution.parquet.schema_force_view_types", false);
        let environment = environment
            .with_memory_pool(Arc::new(FairSpillPool::new(config.memory_max_bytes)))
            .with_max_temp_directory_size(config.spill_max_bytes)
            .build_arc()
            .map_err(|source| Error::SetUp(Box::new(source)))?;
        Ok(Self {
            context: SessionContext::new_with_config_rt(session, environment),
            runtime,
            partitions,
            batch_rows: config.batch_rows,
            infer_rows: config.infer_rows,
        })
    }

    /// Makes batches in memory a table; a table of that name is replaced.
    pub fn register_batches(
        &self,
        name: &str,
        schema: SchemaRef,
        batches: &[RecordBatch],
    ) -> Result<(), Error> {
        let rows: usize = batches.iter().map(RecordBatch::num_rows).sum();
        let share = rows.div_ceil(self.partitions).next_multiple_of(self.batch_rows).max(1);
        let mut partitions: Vec<Vec<RecordBatch>> = vec![Vec::new(); self.partitions];
        let mut at = 0;
        for batch in batches {
            let mut start = 0;
            while start < batch.num_rows() {
                let length = self.batch_rows.min(batch.num_rows() - start);
                let partition = (at / share).min(self.partitions - 1);
                partitions[partition].push(batch.slice(start, length));
                start += length;
                at += length;
            }
        }
        let fail = |source| self.failed(&format!("table {name}"), 0, source);
        let table = MemTable::try_new(schema, partitions).map_err(fail)?;
        self.context.deregister_table(name).map_err(fail)?;
        self.context.register_table(name, Arc::new(table)).map_err(fail)?;
        Ok(())
    }

    /// Makes a Parquet file, or a directory of them, a table; one of that name is replaced.
    pub fn register_parquet(&self, name: &str, path: &Path) -> Result<(), Error> {
        let is_dir = fs::metadata(path)
            .map_err(|source| Error::Io { path: path.to_owned(), source })?
            .is_dir();
        // The engine takes a path for a directory when it ends in a slash.
        let text = format!("{}{}", path.display(), if is_dir { "/" } else { "" });
        let fail = |source| self.failed(&format!("table {name}"), 0, source);
        self.context.deregister_table(name).map_err(fail)?;
        let options = ParquetReadOptions::default();
        self.runtime
            .block_on(self.context.register_parquet(name, text, options))
            .map_err(|source| Error::Read { path: path.to_owned(), source: Box::new(source) })
    }

    /// Runs one SELECT and writes its rows to `path` as they come; returns their number.
    pub fn write(&self, sql: &SqlText, path: &Path) -> Result<u64, Error> {
        let failed = |source| self.failed(&sql.origin, 1, source);
        let mut parsed = DFParser::parse_sql(&sql.text).map_err(failed)?;
        let statement =
            parsed.pop_front().ok_or_else(|| Error::Nothing { origin: sql.origin.clone() })?;
        self.runtime.block_on(async {
            let frame = self.plan(statement).await.map_err(failed)?;
            let schema = plain(&Arc::new(frame.schema().as_arrow().clone()));
            let mut rows = frame.execute_stream().await.map_err(failed)?;
            let mut writer = ParquetWriter::create(path, schema)?;
            while let Some(batch) = rows.next().await {
                writer.write(&batch.map_err(failed)?)?;
            }
            writer.finish()
        })
    }

    async fn plan(&self, statement: Statement) -> Result<DataFrame, DataFusionError> {
        let plan = self.context.state().statement_to_plan(statement).await?;
        self.context.execute_logical_plan(plan).await
    }

    /// Makes one file a table named after its stem, with columns that need no quotes:
    /// lower case, everything but letters and digits as `_`. Returns the name.
    pub fn register_file(&self, path: &Path) -> Result<String, Error> {
        let name = identifier(&path.file_stem().unwrap_or_default().to_string_lossy());
        let taken = self.context.table_exist(name.as_str());
        if taken.is_ok_and(|taken| taken) {
            return Err(Error::Name { path: path.to_owned(), name });
        }
        let read = |source| Error::Read { path: path.to_owned(), source: Box::new(source) };
        let frame = self.runtime.block_on(self.open(path))?;
        let view = plain_columns(frame).map_err(read)?.into_view();
        self.context.register_table(name.as_str(), view).map_err(read)?;
        Ok(name)
    }

    /// Registers every table file of a directory, or the file itself. Returns the names.
    pub fn register_input(&self, input: &Path) -> Result<Vec<String>, Error> {
        let io = |source| Error::Io { path: input.to_owned(), source };
        if !fs::metadata(input).map_err(io)?.is_dir() {
            return Ok(vec![self.register_file(input)?]);
        }
        let mut files: Vec<PathBuf> = fs::read_dir(input)
            .map_err(io)?
            .map(|entry| entry.map(|entry| entry.path()).map_err(io))
            .collect::<Result<_, _>>()?;
        files.retain(|path| path.is_file() && kind_of(path).is_some());
        files.sort();
        if files.is_empty() {
            return Err(Error::Empty { input: input.to_owned() });
        }
        files.iter().map(|path| self.register_file(path)).collect()
    }

    /// Runs every statement of `sql`; returns what the last one selected.
    pub fn run(&self, sql: &SqlText) -> Result<(SchemaRef, Vec<RecordBatch>), Error> {
        let parsed =
            DFParser::parse_sql(&sql.text).map_err(|source| self.failed(&sql.origin, 1, source))?;
        let mut last = None;
        for (at, statement) in parsed.into_iter().enumerate() {
            let failed = |source| self.failed(&sql.origin, at + 1, source);
            last = Some(self.runtime.block_on(async {
                let frame = self.plan(statement).await.map_err(failed)?;
                let schema: SchemaRef = Arc::new(frame.schema().as_arrow().clone());
                let batches = frame.collect().await.map_err(failed)?;
                // The plan may call columns nullable that come out without nulls.
                let schema = batches.first().map_or(schema, |batch| batch.schema());
                Ok::<_, Error>((schema, batches))
            })?);
        }
        Ok(last.unwrap_or_else(|| (Arc::new(arrow::datatypes::Schema::empty()), Vec::new())))
    }

    /// All rows of a table or view, or `None` when there is none of that name.
    pub fn table(&self, name: &str) -> Result<Option<(SchemaRef, Vec<RecordBatch>)>, Error> {
        let known = self.context.table_exist(name);
        if !known.map_err(|source| self.failed(name, 0, source))? {
            return Ok(None);
        }
        let text = format!("SELECT * FROM {name}");
        self.run(&SqlText { origin: format!("table {name}"), text }).map(Some)
    }

    fn failed(&self, origin: &str, number: usize, source: DataFusionError) -> Error {
        let catalog = self.context.catalog("datafusion").and_then(|c| c.schema("public"));
        let mut tables = catalog.map(|schema| schema.table_names()).unwrap_or_default();
        tables.sort();
        Error::Query {
            origin: origin.to_owned(),
            number,
            source: Box::new(source),
            tables: if tables.is_empty() { "none".to_owned() } else { tables.join(", ") },
        }
    }

    async fn open(&self, path: &Path) -> Result<DataFrame, Error> {
        let text = path.to_string_lossy().into_owned();
        let extension = path.extension().unwrap_or_default().to_string_lossy().into_owned();
        let extension = format!(".{extension}");
        let kind = kind_of(path).ok_or_else(|| Error::Extension { path: path.to_owned() })?;
        fs::metadata(path).map_err(|source| Error::Io { path: path.to_owned(), source })?;
        let frame = match kind {
            Kind::Parquet => {
                let options =
                    ParquetReadOptions { file_extension: &extension, ..Default::default() };
                self.context.read_parquet(text, options).await
            }
            Kind::Text { delimiter } => {
                let options = CsvReadOptions {
                    file_extension: &extension,
                    delimiter,
                    newlines_in_values: true,
                    schema_infer_max_records: self.infer_rows,
                    ..Default::default()
                };
                self.context.read_csv(text, options).await
            }
            Kind::Json => {
                let options = JsonReadOptions {
                    file_extension: &extension,
                    newline_delimited: !starts_with_bracket(path)?,
                    schema_infer_max_records: self.infer_rows,
                    ..Default::default()
                };
                self.context.read_json(text, options).await
            }
        };
        frame.map_err(|source| Error::Read { path: path.to_owned(), source: Box::new(source) })
    }
}

/// Writes batches as one Snappy Parquet file, atomically; makes the parent directories.
pub fn write_parquet(path: &Path, schema: SchemaRef, batches: &[RecordBatch]) -> Result<(), Error> {
    let mut writer = ParquetWriter::create(path, schema)?;
    batches.iter().try_for_each(|batch| writer.write(batch))?;
    writer.finish().map(drop)
}

/// One Snappy Parquet file in the making; under its name only once it is whole.
pub struct ParquetWriter {
    path: PathBuf,
    partial: PathBuf,
    schema: SchemaRef,
    writer: ArrowWriter<File>,
    rows: u64,
}

impl ParquetWriter {
    /// Begins the file; makes the parent directories.
    pub fn create(path: &Path, schema: SchemaRef) -> Result<Self, Error> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent).map_err(io)?;
        }
        let partial = path.with_extension("parquet.partial");
        let properties = WriterProperties::builder().set_compression(Compression::SNAPPY).build();
        let file = File::create(&partial).map_err(io)?;
        let writer = ArrowWriter::try_new(file, schema.clone(), Some(properties))
            .map_err(|source| Error::Write { path: path.to_owned(), source })?;
        Ok(Self { path: path.to_owned(), partial, schema, writer, rows: 0 })
    }

    /// Appends rows; columns of a near type become the file's.
    pub fn write(&mut self, batch: &RecordBatch) -> Result<(), Error> {
        let failed = |source| Error::Write { path: self.path.clone(), source };
        let columns = batch.columns().iter().zip(self.schema.fields());
        let columns = columns.map(|(column, field)| match column.data_type() {
            same if same == field.data_type() => Ok(column.clone()),
            _ => cast(column, field.data_type()),
        });
        // Nullability may differ from batch to batch; the file has one schema.
        let batch = columns
            .collect::<Result<Vec<_>, _>>()
            .and_then(|columns| RecordBatch::try_new(self.schema.clone(), columns))
            .map_err(|error| failed(error.into()))?;
        self.rows += batch.num_rows() as u64;
        self.writer.write(&batch).map_err(failed)
    }

    /// Completes the file and gives it its name; the number of its rows.
    pub fn finish(self) -> Result<u64, Error> {
        self.writer.close().map_err(|source| Error::Write { path: self.path.clone(), source })?;
        fs::rename(&self.partial, &self.path)
            .map_err(|source| Error::Io { path: self.path, source })?;
        Ok(self.rows)
    }
}

/// The schema with plain strings, where the engine may hand out views of them, all nullable.
fn plain(schema: &SchemaRef) -> SchemaRef {
    let fields = schema.fields().iter().map(|field| {
        let kind = match field.data_type() {
            DataType::Utf8View | DataType::LargeUtf8 => DataType::Utf8,
            DataType::List(item) if item.data_type() == &DataType::Utf8View => {
                DataType::List(Arc::new(Field::new("item", DataType::Utf8, true)))
            }
            other => other.clone(),
        };
        Field::new(field.name(), kind, true)
    });
    Arc::new(Schema::new(fields.collect::<Vec<_>>()))
}

/// A name that SQL reads without quotes: lower case, letters, digits and `_`, not led by a digit.
pub fn identifier(name: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '_' };
    let mut text: String = name.trim().chars().map(plain).collect();
    if text.chars().next().is_none_or(|first| first.is_ascii_digit()) {
        text.insert(0, '_');
    }
    text
}

#[derive(Clone, Copy)]
enum Kind {
    Parquet,
    Text { delimiter: u8 },
    Json,
}

fn kind_of(path: &Path) -> Option<Kind> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "parquet" => Some(Kind::Parquet),
        "csv" => Some(Kind::Text { delimiter: b',' }),
        "tsv" => Some(Kind::Text { delimiter: b'\t' }),
        "json" | "jsonl" | "ndjson" => Some(Kind::Json),
        _ => None,
    }
}

fn starts_with_bracket(path: &Path) -> Result<bool, Error> {
    use io::Read;
    let io = |source| Error::Io { path: path.to_owned(), source };
    let mut head = Vec::new();
    File::open(path).map_err(io)?.take(4096).read_to_end(&mut head).map_err(io)?;
    Ok(head.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'['))
}

fn plain_columns(frame: DataFrame) -> Result<DataFrame, DataFusionError> {
    let mut taken: Vec<String> = Vec::new();
    let mut columns = Vec::new();
    for field in frame.schema().fields() {
        let mut name = identifier(field.name());
        while taken.contains(&name) {
            name.push('_');
        }
        columns.push(Expr::Column(Column::from_name(field.name())).alias(&name));
        taken.push(name);
    }
    frame.select(columns)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use arrow::array::{Array, Int64Array, StringArray};

    pub(crate) fn config() -> Config {
        Config {
            partitions: 2,
            batch_rows: 8192,
            infer_rows: 1000,
            memory_max_bytes: 1 << 30,
            spill_max_bytes: 1 << 30,
        }
    }

    fn text(text: &str) -> SqlText {
        SqlText { origin: "test.sql".into(), text: text.into() }
    }

    #[test]
    fn parameters_are_put_in_and_a_missing_one_is_named() {
        let sql = text("SELECT {{a}}, {{ b }}").with(&[("a", "1"), ("b", "'x'")]).unwrap();
        assert_eq!(sql.text, "SELECT 1, 'x'");
        let sql = text("SELECT {{a=1}}, {{b=2}}").with(&[("a", "7")]).unwrap();
        assert_eq!(sql.text, "SELECT 7, 2");
        let error = text("SELECT {{as_of}}").with(&[]).unwrap_err().to_string();
        assert!(error.contains("{{as_of}}") && error.contains("test.sql"), "{error}");
        assert!(matches!(text("SELECT {{a").with(&[]), Err(Error::Placeholder { at: 7, .. })));
    }

    #[test]
    fn files_become_tables_whose_names_need_no_quotes() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("Sales 2017-1.csv"), "Customer ID,Ünit,Note\n7,2,\"a\nb\"\n")
            .unwrap();
        fs::write(dir.path().join("lines.jsonl"), "{\"A\": 1}\n{\"A\": 2}\n").unwrap();
        fs::write(dir.path().join("list.json"), " [{\"A\": 5}]").unwrap();
        fs::write(dir.path().join("notes.txt"), "no table").unwrap();
        let engine = Engine::new(&config()).unwrap();
        let names = engine.register_input(dir.path()).unwrap();
        assert_eq!(names, ["sales_2017_1", "lines", "list"]);
        let (_, rows) = engine.run(&text("SELECT customer_id, note FROM sales_2017_1")).unwrap();
        assert_eq!(rows[0].column(0).as_any().downcast_ref::<Int64Array>().unwrap().value(0), 7);
        let (_, rows) =
            engine.run(&text("CREATE VIEW t AS SELECT a FROM lines UNION ALL SELECT a FROM list; SELECT CAST(sum(a) AS BIGINT) FROM t")).unwrap();
        assert_eq!(rows[0].column(0).as_any().downcast_ref::<Int64Array>().unwrap().value(0), 8);
    }

    #[test]
    fn errors_name_the_file_the_statement_and_the_tables() {
        let engine = Engine::new(&config()).unwrap();
        let missing = engine.register_input(Path::new("/nowhere/x.csv")).unwrap_err().to_string();
        assert!(missing.contains("/nowhere/x.csv"), "{missing}");
        let error = engine
            .run(&text("CREATE TABLE a AS SELECT 1 AS x; SELECT * FROM b"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("test.sql, statement 2"), "{error}");
        assert!(error.contains("tables: a"), "{error}");
    }

    #[test]
    fn parquet_is_read_back_as_written() {
        let dir = tempfile::tempdir().unwrap();
        let engine = Engine::new(&config()).unwrap();
        let (schema, rows) = engine
            .run(&text("SELECT CAST(column1 AS BIGINT) AS id, column2 AS name FROM (VALUES (2, 'b'), (1, NULL)) ORDER BY id"))
            .unwrap();
        let path = dir.path().join("deep/er/t.parquet");
        write_parquet(&path, schema, &rows).unwrap();
        assert!(!path.with_extension("parquet.partial").exists());
        assert_eq!(engine.register_file(&path).unwrap(), "t");
        let (_, rows) = engine.table("t").unwrap().unwrap();
        let name =
            arrow::compute::cast(rows[0].column(1), &arrow::datatypes::DataType::Utf8).unwrap();
        let name = name.as_any().downcast_ref::<StringArray>().unwrap();
        assert!(name.is_null(0));
        assert_eq!(name.value(1), "b");
        assert!(engine.table("absent").unwrap().is_none());
    }
}
