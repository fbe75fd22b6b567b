//! A table in memory as plain vectors: what a step reads of another step's Parquet.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use arrow::array::{Array, ArrayRef, AsArray, RecordBatch};
use arrow::compute::{cast, concat_batches};
use arrow::datatypes::{DataType, Float64Type, Int64Type};
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;
use parquet::errors::ParquetError;

/// A table, all of it.
pub struct Frame {
    batch: RecordBatch,
    path: PathBuf,
}

impl Frame {
    /// Reads a Parquet file, or every Parquet file below a directory in the order of their names.
    pub fn open(path: &Path) -> Result<Self> {
        let mut files = Vec::new();
        collect_files(path, &mut files)?;
        files.sort();
        let (mut batches, mut schema) = (Vec::new(), None);
        for file in &files {
            let what = || format!("read {}", file.display());
            let builder = File::open(file)
                .map_err(ParquetError::from)
                .and_then(ParquetRecordBatchReaderBuilder::try_new)
                .with_context(what)?;
            schema.get_or_insert_with(|| builder.schema().clone());
            for batch in builder.build().with_context(what)? {
                batches.push(batch.with_context(what)?);
            }
        }
        let Some(schema) = schema else {
            bail!("{}: no Parquet file; run the step that writes it", path.display())
        };
        let batch = concat_batches(&schema, &batches)
            .with_context(|| format!("files below {} differ in their columns", path.display()))?;
        Ok(Self { batch, path: path.to_owned() })
    }

    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.batch.num_rows()
    }

    /// Column names in file order.
    pub fn names(&self) -> Vec<String> {
        self.batch.schema().fields().iter().map(|f| f.name().clone()).collect()
    }

    /// Whether a column is there.
    pub fn has(&self, name: &str) -> bool {
        self.batch.column_by_name(name).is_some()
    }

    /// Whether a column holds strings.
    pub fn is_text(&self, name: &str) -> bool {
        self.batch.column_by_name(name).is_some_and(|column| {
            matches!(column.data_type(), DataType::Utf8 | DataType::LargeUtf8 | DataType::Utf8View)
        })
    }

    /// Whether a column holds numbers or booleans.
    pub fn is_number(&self, name: &str) -> bool {
        self.batch.column_by_name(name).is_some_and(|column| {
            column.data_type().is_numeric() || column.data_type() == &DataType::Boolean
        })
    }

    /// Numbers; NaN where null.
    pub fn f64(&self, name: &str) -> Result<Vec<f64>> {
        let column = self.cast(name, &DataType::Float64)?;
        let values = column.as_primitive::<Float64Type>();
        Ok(values.iter().map(|v| v.unwrap_or(f64::NAN)).collect())
    }

    /// Numbers as features; NaN where null.
    pub fn f32(&self, name: &str) -> Result<Vec<f32>> {
        Ok(self.f64(name)?.into_iter().map(|v| v as f32).collect())
    }

    /// Integers, or moments in epoch milliseconds; `None` where null.
    pub fn i64(&self, name: &str) -> Result<Vec<Option<i64>>> {
        use arrow::datatypes::TimeUnit;
        let is_time = matches!(self.column(name)?.data_type(), DataType::Timestamp(_, _));
        let milliseconds = DataType::Timestamp(TimeUnit::Millisecond, None);
        let column =
            if is_time { self.cast(name, &milliseconds)? } else { self.column(name)?.clone() };
        let column = cast(&column, &DataType::Int64).with_context(|| self.wrong_type(name))?;
        Ok(column.as_primitive::<Int64Type>().iter().collect())
    }

    /// Strings; `None` where null.
    pub fn strings(&self, name: &str) -> Result<Vec<Option<String>>> {
        let column = self.cast(name, &DataType::Utf8)?;
        Ok(column.as_string::<i32>().iter().map(|v| v.map(str::to_owned)).collect())
    }

    /// Ids: strings that must be there.
    pub fn ids(&self, name: &str) -> Result<Vec<String>> {
        let missing = || format!("{}: column `{name}` has a null id", self.path.display());
        self.strings(name)?.into_iter().map(|id| id.with_context(missing)).collect()
    }

    /// Booleans; null is false.
    pub fn bools(&self, name: &str) -> Result<Vec<bool>> {
        let column = self.cast(name, &DataType::Boolean)?;
        Ok(column.as_boolean().iter().map(|v| v.unwrap_or(false)).collect())
    }

    /// Lists of strings; null is empty.
    pub fn lists(&self, name: &str) -> Result<Vec<Vec<String>>> {
        let field = arrow::datatypes::Field::new_list_field(DataType::Utf8, true);
        let column = self.cast(name, &DataType::List(field.into()))?;
        let list = column.as_list::<i32>();
        let strings = |row: ArrayRef| -> Vec<String> {
            row.as_string::<i32>().iter().flatten().map(str::to_owned).collect()
        };
        Ok((0..list.len())
            .map(|row| if list.is_null(row) { Vec::new() } else { strings(list.value(row)) })
            .collect())
    }

    fn column(&self, name: &str) -> Result<&ArrayRef> {
        self.batch.column_by_name(name).with_context(|| {
            let names = self.names().join(", ");
            format!("{}: no column `{name}`; there are {names}", self.path.display())
        })
    }

    fn cast(&self, name: &str, to: &DataType) -> Result<ArrayRef> {
        cast(self.column(name)?, to).with_context(|| self.wrong_type(name))
    }

    fn wrong_type(&self, name: &str) -> String {
        format!("{}: column `{name}` has the wrong type", self.path.display())
    }
}

/// The Parquet files of a table: a file, or what an engine wrote below a directory.
pub(super) fn collect_files(path: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    if path.is_file() {
        files.push(path.to_owned());
        return Ok(());
    }
    let entries = std::fs::read_dir(path).with_context(|| format!("read {}", path.display()))?;
    for entry in entries {
        let path = entry?.path();
        if path.is_dir() {
            collect_files(&path, files)?;
        } else if path.extension().is_some_and(|e| e == "parquet") {
            files.push(path);
        }
    }
    Ok(())
}
