//! The ranker's rows as tables, for those who train one elsewhere (`offline.ranker.keep_rows`).

use std::path::Path;
use std::sync::Arc;

use anyhow::Result;
use arrow::array::{ArrayRef, Float32Array, RecordBatch, UInt32Array};
use arrow::datatypes::{DataType, Field, Schema};

use super::examples::Rows;
use super::sql::write_parquet;

/// Writes one row an example: `label`, `weight`, `request` (the same number for the rows of a request,
/// rising), then the features in the schema's order; NaN is missing.
pub fn write(path: &Path, rows: &Rows, features: &[String]) -> Result<()> {
    let (n, width) = (rows.labels.len(), features.len());
    let request = rows
        .group_rows
        .iter()
        .zip(0u32..)
        .flat_map(|(&rows, request)| std::iter::repeat_n(request, rows as usize));
    let column = |at: usize| -> ArrayRef {
        Arc::new(Float32Array::from_iter_values((0..n).map(|row| rows.values[row * width + at])))
    };
    let mut fields = vec![
        Field::new("label", DataType::Float32, false),
        Field::new("weight", DataType::Float32, false),
        Field::new("request", DataType::UInt32, false),
    ];
    fields.extend(features.iter().map(|name| Field::new(name, DataType::Float32, false)));
    let mut columns: Vec<ArrayRef> = vec![
        Arc::new(Float32Array::from(rows.labels.clone())),
        Arc::new(Float32Array::from(rows.weights.clone())),
        Arc::new(UInt32Array::from_iter_values(request)),
    ];
    columns.extend((0..width).map(column));
    let schema = Arc::new(Schema::new(fields));
    let batch = RecordBatch::try_new(schema.clone(), columns)?;
    Ok(write_parquet(path, schema, &[batch])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::offline::frame::Frame;

    #[test]
    fn a_row_is_an_example_with_its_request() {
        let rows = Rows {
            values: vec![1.0, 10.0, 2.0, f32::NAN, 3.0, 30.0],
            labels: vec![0.0, 1.0, 1.0],
            weights: vec![4.0, 1.0, 1.0],
            group_rows: vec![2, 1],
            users: vec![7, 9],
        };
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("rows.parquet");
        write(&path, &rows, &["a".to_owned(), "b".to_owned()]).unwrap();
        let frame = Frame::open(&path).unwrap();
        assert_eq!(frame.f32("a").unwrap(), [1.0, 2.0, 3.0]);
        let b = frame.f32("b").unwrap();
        assert!(b[0] == 10.0 && b[1].is_nan() && b[2] == 30.0);
        assert_eq!(frame.f32("request").unwrap(), [0.0, 0.0, 1.0]);
        assert_eq!(frame.f32("weight").unwrap(), [4.0, 1.0, 1.0]);
        assert_eq!(frame.f32("label").unwrap(), [0.0, 1.0, 1.0]);
    }
}
