//! `manifest.json`: what a bundle is made of. Written last, so that a directory with a manifest
//! is complete.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// The format that this program writes and reads.
pub const FORMAT_VERSION: u32 = 2;
/// The manifest's file name.
pub const FILE_NAME: &str = "manifest.json";

/// Names, sizes and checksums of a bundle, and where it comes from.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub format_version: u32,
    /// Unique; also the directory's name.
    pub bundle_version: String,
    /// Names the weights: cached user embeddings carry it in their key.
    pub tower_version: String,
    /// Of `features.toml`; the ranker was trained on exactly these columns.
    pub schema_fingerprint: String,
    /// The moment whose knowledge the bundle holds, epoch milliseconds: statistics, histories and
    /// item vectors use only what happened before it.
    pub as_of_ms: i64,
    /// First and last moment (exclusive) of the events that trained anything in it.
    pub training_window_ms: [i64; 2],
    /// Columns that the towers read, in the order of their inputs.
    pub tower_inputs: TowerInputs,
    /// Sources whose candidates taught the ranker, by name; none where that is not known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ranker_sources: Vec<String>,
    /// Headline figures of the evaluation; `report.json` has all.
    pub metrics: BTreeMap<String, f64>,
    /// Bundles that this one was compared with.
    pub parents: Vec<String>,
    /// Every other file, by name.
    pub files: BTreeMap<String, FileEntry>,
}

/// Columns by name, in the order of the towers' inputs.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TowerInputs {
    pub item_codes: Vec<String>,
    pub item_dense: Vec<String>,
    pub user_codes: Vec<String>,
    pub user_dense: Vec<String>,
}

/// One file of a bundle.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileEntry {
    pub length_bytes: u64,
    /// Hex.
    pub blake3: String,
}

/// Why a manifest, or a file it lists, was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{path}: {source}")]
    Json { path: PathBuf, source: serde_json::Error },
    #[error(
        "{path}: bundle format {found} is not supported (this program reads {FORMAT_VERSION}); make it again: shortlist pipeline run"
    )]
    Format { path: PathBuf, found: u32 },
    #[error("{path}: {found} bytes, the manifest says {expected}; fetch the bundle again")]
    Length { path: PathBuf, found: u64, expected: u64 },
    #[error("{path}: checksum {found}, the manifest says {expected}; fetch the bundle again")]
    Checksum { path: PathBuf, found: String, expected: String },
    #[error("{path}: file name `{name}` leaves the bundle")]
    Name { path: PathBuf, name: String },
}

impl Manifest {
    /// Reads `dir/manifest.json` and checks that every file has its length; `verify` also reads
    /// every file and compares its checksum.
    pub fn open(dir: &Path, verify: bool) -> Result<Self, Error> {
        let path = dir.join(FILE_NAME);
        let bytes =
            std::fs::read(&path).map_err(|source| Error::Io { path: path.clone(), source })?;
        let manifest: Manifest = serde_json::from_slice(&bytes)
            .map_err(|source| Error::Json { path: path.clone(), source })?;
        if manifest.format_version != FORMAT_VERSION {
            return Err(Error::Format { path, found: manifest.format_version });
        }
        for (name, entry) in &manifest.files {
            if name.contains('/') || name.contains("..") {
                return Err(Error::Name { path, name: name.clone() });
            }
            entry.check(&dir.join(name), verify)?;
        }
        Ok(manifest)
    }
}

impl FileEntry {
    /// Length and checksum of a file.
    pub fn of(path: &Path) -> Result<Self, Error> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let mut hash = blake3::Hasher::new();
        let mut file = std::fs::File::open(path).map_err(io)?;
        let length_bytes = std::io::copy(&mut file, &mut hash).map_err(io)?;
        Ok(Self { length_bytes, blake3: hash.finalize().to_hex().to_string() })
    }

    fn check(&self, path: &Path, verify: bool) -> Result<(), Error> {
        let io = |source| Error::Io { path: path.to_owned(), source };
        let (found, expected) = (std::fs::metadata(path).map_err(io)?.len(), self.length_bytes);
        if found != expected {
            return Err(Error::Length { path: path.to_owned(), found, expected });
        }
        if verify {
            let (found, expected) = (Self::of(path)?.blake3, self.blake3.clone());
            if found != expected {
                return Err(Error::Checksum { path: path.to_owned(), found, expected });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(dir: &Path) -> Manifest {
        std::fs::write(dir.join("ranker.txt"), "tree").unwrap();
        let manifest = Manifest {
            format_version: FORMAT_VERSION,
            bundle_version: "v1".into(),
            tower_version: "t".into(),
            schema_fingerprint: "f".into(),
            as_of_ms: 0,
            training_window_ms: [0, 1],
            tower_inputs: TowerInputs {
                item_codes: vec![],
                item_dense: vec![],
                user_codes: vec![],
                user_dense: vec![],
            },
            ranker_sources: Vec::new(),
            metrics: BTreeMap::new(),
            parents: vec![],
            files: [("ranker.txt".to_owned(), FileEntry::of(&dir.join("ranker.txt")).unwrap())]
                .into(),
        };
        std::fs::write(dir.join(FILE_NAME), serde_json::to_vec(&manifest).unwrap()).unwrap();
        manifest
    }

    #[test]
    fn a_changed_or_shortened_file_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        written(dir.path());
        assert_eq!(Manifest::open(dir.path(), true).unwrap().bundle_version, "v1");
        std::fs::write(dir.path().join("ranker.txt"), "eert").unwrap();
        assert!(Manifest::open(dir.path(), false).is_ok(), "lengths agree");
        assert!(matches!(Manifest::open(dir.path(), true), Err(Error::Checksum { .. })));
        std::fs::write(dir.path().join("ranker.txt"), "tre").unwrap();
        let error = Manifest::open(dir.path(), false).unwrap_err();
        assert!(error.to_string().contains("ranker.txt: 3 bytes, the manifest says 4"));
    }

    #[test]
    fn another_format_and_a_name_outside_the_bundle_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let good = written(dir.path());
        let save = |manifest: &Manifest| {
            let bytes = serde_json::to_vec(manifest).unwrap();
            std::fs::write(dir.path().join(FILE_NAME), bytes).unwrap();
        };
        save(&Manifest { format_version: 9, ..good.clone() });
        assert!(matches!(Manifest::open(dir.path(), false), Err(Error::Format { found: 9, .. })));
        let mut outside = good;
        let entry = outside.files["ranker.txt"].clone();
        outside.files.insert("../ranker.txt".into(), entry);
        save(&outside);
        assert!(matches!(Manifest::open(dir.path(), false), Err(Error::Name { .. })));
    }
}
