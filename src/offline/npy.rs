//! Arrays as NumPy writes them: `.npy`, formats 1 to 3, little-endian floats, rows first.
//!
//! Source of the format: NumPy Enhancement Proposal 1.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};

const MAGIC: &[u8] = b"\x93NUMPY";
/// A header is never longer; bounds what a hostile file asks for.
const HEADER_MAX: usize = 1 << 20;

/// Reads a two-dimensional array: its values row after row, and the length of a row.
pub fn read(path: &Path) -> Result<(Vec<f32>, usize)> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    parse(&bytes).with_context(|| path.display().to_string())
}

fn parse(bytes: &[u8]) -> Result<(Vec<f32>, usize)> {
    let Some(rest) = bytes.strip_prefix(MAGIC) else { bail!("not a .npy file") };
    ensure!(rest.len() > 6, "the file is cut off in its header");
    let (version, rest) = rest.split_at(2);
    let (length, rest) = match version[0] {
        1 => (usize::from(u16::from_le_bytes([rest[0], rest[1]])), &rest[2..]),
        2 | 3 => (u32::from_le_bytes([rest[0], rest[1], rest[2], rest[3]]) as usize, &rest[4..]),
        other => bail!("format {other} of .npy is not known"),
    };
    ensure!(length <= HEADER_MAX && length <= rest.len(), "the file is cut off in its header");
    let (header, data) = rest.split_at(length);
    let header = std::str::from_utf8(header).context("the header is no text")?;
    ensure!(
        value(header, "fortran_order")? == "False",
        "columns come first; write it with numpy.ascontiguousarray"
    );
    let shape = value(header, "shape")?;
    let sizes: Vec<usize> = shape
        .trim_matches(['(', ')'])
        .split(',')
        .map(str::trim)
        .filter(|size| !size.is_empty())
        .map(str::parse)
        .collect::<Result<_, _>>()
        .with_context(|| format!("the shape `{shape}`"))?;
    let [rows, columns] = sizes[..] else {
        bail!("{} dimensions; give an array of rows and columns", sizes.len())
    };
    let kind = value(header, "descr")?.trim_matches(['\'', '"']);
    let width = match kind {
        "<f4" => 4,
        "<f8" => 8,
        other => bail!("numbers of type {other}; give float32 or float64, little-endian"),
    };
    let wanted = rows.checked_mul(columns).and_then(|count| count.checked_mul(width));
    ensure!(
        wanted == Some(data.len()),
        "{} bytes of data, {rows} rows of {columns} numbers need {}",
        data.len(),
        wanted.map_or("more than there can be".to_owned(), |wanted| wanted.to_string())
    );
    let values = match width {
        4 => data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect(),
        _ => data
            .chunks_exact(8)
            .map(|b| f64::from_le_bytes(b.try_into().expect("eight bytes")) as f32)
            .collect(),
    };
    Ok((values, columns))
}

/// The value of a key of the header, a Python dictionary of three keys.
fn value<'a>(header: &'a str, key: &str) -> Result<&'a str> {
    let quoted = format!("'{key}':");
    let at = header.find(&quoted).with_context(|| format!("the header has no {key}"))?;
    let rest = header[at + quoted.len()..].trim_start();
    let end = match rest.starts_with('(') {
        true => rest.find(')').map(|at| at + 1),
        false => rest.find([',', '}']),
    };
    Ok(rest[..end.with_context(|| format!("the header ends in {key}"))?].trim())
}

#[cfg(test)]
pub mod tests {
    use super::*;

    /// A file as NumPy writes it.
    pub fn file(descr: &str, shape: &str, data: &[u8]) -> Vec<u8> {
        let mut header =
            format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
        while !(header.len() + 11).is_multiple_of(64) {
            header.push(' ');
        }
        header.push('\n');
        let length = (header.len() as u16).to_le_bytes();
        [MAGIC, &[1, 0], &length, header.as_bytes(), data].concat()
    }

    #[test]
    fn both_widths_are_read() {
        let single: Vec<u8> =
            [1.5f32, -2.0, 3.0, 0.25].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(
            parse(&file("<f4", "(2, 2)", &single)).unwrap(),
            (vec![1.5, -2.0, 3.0, 0.25], 2)
        );
        let double: Vec<u8> = [1.5f64, -2.0].iter().flat_map(|v| v.to_le_bytes()).collect();
        assert_eq!(parse(&file("<f8", "(2, 1)", &double)).unwrap(), (vec![1.5, -2.0], 1));
    }

    #[test]
    fn what_cannot_be_read_is_said() {
        let message = |bytes: &[u8]| parse(bytes).unwrap_err().to_string();
        assert!(message(b"hello").contains("not a .npy file"));
        let good = file("<f4", "(2, 2)", &[0; 16]);
        assert!(message(&good[..good.len() - 1]).contains("need 16"));
        assert!(message(&file("<f4", "(4,)", &[0; 16])).contains("1 dimensions"));
        assert!(message(&file("<i8", "(2, 1)", &[0; 16])).contains("type <i8"));
        assert!(message(&file(">f4", "(2, 2)", &[0; 16])).contains("type >f4"));
        assert!(message(&file("<f4", "(4611686018427387904, 4)", &[0; 16])).contains("more than"));
        for cut in 0..good.len() {
            assert!(parse(&good[..cut]).is_err(), "{cut}");
        }
    }
}
