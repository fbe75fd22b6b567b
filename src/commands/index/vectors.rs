//! Vectors from files: .npy as it stands, Parquet by way of a temporary file.

use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use arrow::array::{Array, AsArray};
use arrow::datatypes::{DataType, Float32Type};
use parquet::arrow::ProjectionMask;
use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

use crate::ffi::mmap::Mmap;

const NPY_MAGIC: &[u8] = b"\x93NUMPY";
/// Column of a Parquet file that holds the vectors.
const COLUMN: &str = "vector";

/// Rows of 32-bit floats in a mapped file.
pub struct Vectors {
    /// `None` when there is no row: an empty file cannot be mapped.
    map: Option<Mmap>,
    /// Where the numbers begin.
    start: usize,
    dim: usize,
    len: usize,
}

impl Vectors {
    /// Opens an .npy file, a Parquet file, or all Parquet files of a directory by name.
    pub fn open(path: &Path) -> Result<Self> {
        let opened = if path.is_dir() {
            let mut files: Vec<PathBuf> =
                std::fs::read_dir(path)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
            files.retain(|file| file.extension().is_some_and(|ext| ext == "parquet"));
            files.sort();
            ensure!(!files.is_empty(), "no .parquet file in the directory");
            Self::from_parquet(&files)
        } else if path.extension().is_some_and(|extension| extension == "parquet") {
            Self::from_parquet(&[path.to_owned()])
        } else {
            Self::from_npy(path)
        };
        opened.with_context(|| format!("vectors in {}", path.display()))
    }

    /// `[len * dim]`
    pub fn values(&self) -> &[f32] {
        let Some(map) = &self.map else { return &[] };
        bytemuck::cast_slice(&map[self.start..][..self.len * self.dim * size_of::<f32>()])
    }

    /// Number of vectors.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Length of a vector.
    pub fn dim(&self) -> usize {
        self.dim
    }

    fn from_npy(path: &Path) -> Result<Self> {
        let map = Mmap::open(path)?;
        let (start, [len, dim]) = npy_header(&map)?;
        let bytes = len.checked_mul(dim).and_then(|values| values.checked_mul(size_of::<f32>()));
        let enough = bytes.is_some_and(|bytes| map.len() - start >= bytes);
        ensure!(enough, "truncated: {} bytes do not hold {len} x {dim} floats", map.len());
        Ok(Self { map: Some(map), start, dim, len })
    }

    /// Copies the column to a temporary file, which has no name once it is mapped: 10M vectors need
    /// not fit in memory.
    fn from_parquet(files: &[PathBuf]) -> Result<Self> {
        let copy = std::env::temp_dir().join(format!("shortlist-vectors-{}", uuid::Uuid::now_v7()));
        let result = copy_column(files, &copy).and_then(|(len, dim)| {
            let map = if len == 0 { None } else { Some(Mmap::open(&copy)?) };
            Ok(Self { map, start: 0, dim, len })
        });
        // Missing when it could not be created, which the result says.
        let _ = std::fs::remove_file(&copy);
        result
    }
}

fn copy_column(files: &[PathBuf], to: &Path) -> Result<(usize, usize)> {
    let mut out = BufWriter::with_capacity(1 << 20, File::create(to)?);
    let (mut len, mut dim) = (0, None);
    for path in files {
        let file = File::open(path).with_context(|| path.display().to_string())?;
        let reader = ParquetRecordBatchReaderBuilder::try_new(file)?;
        let mask = ProjectionMask::columns(reader.parquet_schema(), [COLUMN]);
        for batch in reader.with_projection(mask).with_batch_size(16_384).build()? {
            let batch = batch?;
            let column = batch
                .column_by_name(COLUMN)
                .with_context(|| format!("{} has no column `{COLUMN}`", path.display()))?;
            let (width, values) = match column.data_type() {
                DataType::FixedSizeList(_, width) => {
                    (*width as usize, column.as_fixed_size_list().values().clone())
                }
                DataType::List(_) => {
                    let list = column.as_list::<i32>();
                    let width = list.value_length(0) as usize;
                    let even =
                        list.offsets().windows(2).all(|at| (at[1] - at[0]) as usize == width);
                    ensure!(even, "`{COLUMN}` holds vectors of different lengths");
                    (width, list.values().slice(list.offsets()[0] as usize, list.len() * width))
                }
                other => bail!("`{COLUMN}` is {other}, expected a list of 32-bit floats"),
            };
            ensure!(column.null_count() == 0, "`{COLUMN}` has nulls");
            let known = *dim.get_or_insert(width);
            ensure!(width == known, "`{COLUMN}` holds vectors of {known} and of {width} numbers");
            let floats = values
                .as_primitive_opt::<Float32Type>()
                .with_context(|| format!("`{COLUMN}` holds {}", values.data_type()))?;
            out.write_all(bytemuck::cast_slice(&floats.values()[..batch.num_rows() * width]))?;
            len += batch.num_rows();
        }
    }
    out.flush()?;
    Ok((len, dim.unwrap_or(0)))
}

/// Where the numbers begin, and the shape.
fn npy_header(bytes: &[u8]) -> Result<(usize, [usize; 2])> {
    ensure!(bytes.starts_with(NPY_MAGIC), "neither .parquet nor .npy");
    let (length, start) = match bytes.get(6) {
        Some(1) => (bytes.get(8..10).map(|b| u16::from_le_bytes([b[0], b[1]]) as usize), 10),
        Some(2 | 3) => {
            let length = bytes.get(8..12);
            (length.map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]]) as usize), 12)
        }
        version => bail!(".npy version {version:?}"),
    };
    let end = length.map(|length| start + length);
    let header = end.and_then(|end| bytes.get(start..end)).context("truncated .npy header")?;
    let header = std::str::from_utf8(header).context(".npy header")?;
    let field = |name: &str| header.split(&format!("'{name}': ")).nth(1);
    let floats = field("descr").is_some_and(|rest| rest.starts_with("'<f4'"));
    ensure!(floats, "not little-endian 32-bit floats: {header}");
    let by_row = field("fortran_order").is_some_and(|rest| rest.starts_with("False"));
    ensure!(by_row, "stored column by column; save it with order='C'");
    let shape = field("shape").and_then(|rest| rest.strip_prefix('(')?.split(')').next());
    let shape: Vec<usize> = shape
        .unwrap_or_default()
        .split(',')
        .filter(|part| !part.trim().is_empty())
        .map(|part| part.trim().parse())
        .collect::<Result<_, _>>()
        .with_context(|| format!(".npy shape in {header}"))?;
    let &[len, dim] = shape.as_slice() else { bail!("shape {shape:?}, expected (rows, numbers)") };
    ensure!(dim > 0, "vectors without numbers");
    Ok((start + header.len(), [len, dim]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn npy(header: &str, values: &[f32]) -> Vec<u8> {
        let mut bytes = [NPY_MAGIC, &[1, 0]].concat();
        let padded = format!("{header:<117}\n");
        bytes.extend((padded.len() as u16).to_le_bytes());
        bytes.extend(padded.as_bytes());
        bytes.extend_from_slice(bytemuck::cast_slice(values));
        bytes
    }

    fn opened(bytes: &[u8]) -> Result<Vec<f32>, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.npy");
        std::fs::write(&path, bytes).unwrap();
        let vectors = Vectors::open(&path).map_err(|error| format!("{error:#}"))?;
        assert_eq!(vectors.values().len(), vectors.len() * vectors.dim());
        Ok(vectors.values().to_vec())
    }

    #[test]
    fn npy_is_read_and_what_is_wrong_is_named() {
        let good = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }";
        let values = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0];
        assert_eq!(opened(&npy(good, &values)).unwrap(), values);
        for (from, to, complaint) in [
            ("<f4", "<f8", "not little-endian 32-bit floats"),
            ("False", "True", "column by column"),
            ("(2, 3)", "(6,)", "shape [6]"),
            ("(2, 3)", "(3, 3)", "do not hold 3 x 3"),
            ("(2, 3)", "(2, 0)", "without numbers"),
            ("(2, 3)", "(2, x)", ".npy shape"),
        ] {
            let error = opened(&npy(&good.replace(from, to), &values)).unwrap_err();
            assert!(error.contains(complaint), "{error}");
        }
        assert!(opened(b"PAR1").unwrap_err().contains("neither .parquet nor .npy"));
        assert!(opened(&npy(good, &values)[..40]).unwrap_err().contains("truncated"));
    }
}
