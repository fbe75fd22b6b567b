//! The tree as text: the files, and as much of Rust's grammar as the rules need.

use std::path::Path;
use std::process::Command;

/// A tracked text file. `code` is the text of a Rust file with comments and literals blanked, byte
/// for byte as long as `text`, so that an offset means the same in both.
pub struct Source {
    pub path: String,
    pub text: String,
    pub code: String,
}

impl Source {
    pub fn new(path: &str, text: &str) -> Self {
        let code = if path.ends_with(".rs") { blanked(text) } else { String::new() };
        Self { path: path.to_owned(), text: text.to_owned(), code }
    }

    pub fn at(&self, offset: usize, message: impl AsRef<str>) -> String {
        let line = self.text[..offset].matches('\n').count() + 1;
        format!("{}:{line}: {}", self.path, message.as_ref())
    }

    pub fn is_rust_in(&self, folder: &str) -> bool {
        self.path.ends_with(".rs") && self.path.starts_with(folder)
    }

    /// The top-level module: `src/index/ivf.rs` and `src/index.rs` are both `index`.
    pub fn module(&self) -> &str {
        let inside = self.path.strip_prefix("src/").unwrap_or(&self.path);
        inside.split('/').next().unwrap_or(inside).trim_end_matches(".rs")
    }

    /// How many modules deep the file stands: `src/types.rs` 1, `src/index/mod.rs` 1, `src/index/ivf.rs` 2.
    pub fn depth(&self) -> usize {
        let inside = self.path.strip_prefix("src/").unwrap_or(&self.path);
        inside.strip_suffix("/mod.rs").unwrap_or(inside).split('/').count()
    }

    /// The code before the file's own tests.
    pub fn production(&self) -> &str {
        &self.code[..self.code.find("#[cfg(test)]").unwrap_or(self.code.len())]
    }
}

/// Every file git knows or would add; without git, every file outside the ignored folders.
pub fn tree() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let listed = Command::new("git")
        .args(["ls-files", "--cached", "--others", "--exclude-standard"])
        .current_dir(root)
        .output();
    let mut paths: Vec<String> = match listed {
        Ok(output) if output.status.success() => {
            String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect()
        }
        _ => walk(root, root),
    };
    paths.sort();
    paths.dedup();
    let sources: Vec<Source> = paths
        .iter()
        .filter_map(|path| Some(Source::new(path, &std::fs::read_to_string(root.join(path)).ok()?)))
        .collect();
    assert!(
        sources.iter().any(|f| f.path == "src/lib.rs"),
        "no sources found under {}",
        root.display()
    );
    sources
}

fn walk(root: &Path, folder: &Path) -> Vec<String> {
    let mut paths = Vec::new();
    for entry in std::fs::read_dir(folder).expect("a readable folder").flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if ["target", "var", ".git"].contains(&name.as_str()) {
            continue;
        }
        let path = entry.path();
        if path.is_dir() {
            paths.extend(walk(root, &path));
        } else if let Ok(inside) = path.strip_prefix(root) {
            paths.push(inside.to_string_lossy().into_owned());
        }
    }
    paths
}

/// Identifiers and keywords with their offsets.
pub fn words(code: &str) -> impl Iterator<Item = (usize, &str)> {
    let mut rest = 0;
    std::iter::from_fn(move || {
        let start = rest + code[rest..].find(|c: char| c.is_alphanumeric() || c == '_')?;
        let length = code[start..]
            .find(|c: char| !(c.is_alphanumeric() || c == '_'))
            .unwrap_or(code.len() - start);
        rest = start + length;
        Some((start, &code[start..rest]))
    })
}

/// First segments of all `crate::` paths, those of `crate::{a, b::c}` included.
pub fn crate_paths(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (at, _) in words(code).filter(|(_, word)| *word == "crate") {
        let Some(rest) = code[at + "crate".len()..].trim_start().strip_prefix("::") else {
            continue;
        };
        let rest = rest.trim_start();
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut element = 0;
            for (i, c) in group.char_indices() {
                if depth == 0 && (c == ',' || c == '}') {
                    found.extend(words(&group[element..i]).next().map(|(_, word)| (at, word)));
                    element = i + 1;
                }
                match c {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    _ => {}
                }
            }
        } else {
            found.extend(words(rest).next().map(|(_, word)| (at, word)));
        }
    }
    found
}

/// Where a chain of `super::` leaves the file's top-level module.
pub fn super_paths_to_root(file: &Source) -> Vec<usize> {
    let code = &file.code;
    let inline = inline_modules(code);
    let mut found = Vec::new();
    for (at, _) in words(code).filter(|(_, word)| *word == "super") {
        if code[..at].ends_with("super::") {
            continue;
        }
        let mut chain = 0;
        let mut rest = &code[at..];
        while let Some(after) = rest.strip_prefix("super::") {
            chain += 1;
            rest = after;
        }
        let depth = file.depth() + inline.iter().filter(|range| range.contains(&at)).count();
        if chain >= depth {
            found.push(at);
        }
    }
    found
}

/// The bodies of `mod name { .. }` in a file.
fn inline_modules(code: &str) -> Vec<std::ops::Range<usize>> {
    let mut found = Vec::new();
    let all: Vec<(usize, &str)> = words(code).collect();
    for pair in all.windows(2).filter(|pair| pair[0].1 == "mod") {
        let name_end = pair[1].0 + pair[1].1.len();
        if !code[name_end..].trim_start().starts_with('{') {
            continue;
        }
        let mut depth = 0;
        for (i, c) in code[name_end..].char_indices() {
            match c {
                '{' => depth += 1,
                '}' => depth -= 1,
                _ => continue,
            }
            if depth == 0 {
                found.push(name_end..name_end + i);
                break;
            }
        }
    }
    found
}

/// `src/..` paths in a document.
pub fn source_paths(text: &str) -> Vec<(usize, &str)> {
    text.match_indices("src/")
        .filter(|(at, _)| !text[..*at].ends_with(|c: char| c.is_alphanumeric() || c == '/'))
        .map(|(at, _)| {
            let end = text[at..]
                .find(|c: char| !(c.is_ascii_alphanumeric() || "_/.".contains(c)))
                .unwrap_or(text.len() - at);
            (at, text[at..at + end].trim_end_matches('.'))
        })
        .collect()
}

/// The text with comments, strings and character literals turned to spaces, line breaks kept.
pub fn blanked(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_end(bytes, at);
        if let Some(end) = end {
            for byte in &mut out[at..end] {
                if *byte != b'\n' {
                    *byte = b' ';
                }
            }
            at = end;
        } else {
            at += 1;
        }
    }
    String::from_utf8(out).expect("whole literals were blanked")
}

/// The end of the comment or literal that starts at `at`, if one does.
fn literal_end(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let after = |needle: &[u8], from: usize| {
        let found = rest[from..].windows(needle.len()).position(|window| window == needle);
        found.map_or(bytes.len(), |i| at + from + i + needle.len())
    };
    if rest.starts_with(b"//") {
        return Some(rest.iter().position(|&b| b == b'\n').map_or(bytes.len(), |i| at + i));
    }
    if rest.starts_with(b"/*") {
        return Some(after(b"*/", 2));
    }
    let in_word = at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_');
    if !in_word && (rest[0] == b'r' || rest.starts_with(b"br")) {
        let hashes_from = if rest[0] == b'b' { 2 } else { 1 };
        let hashes = rest[hashes_from..].iter().take_while(|&&b| b == b'#').count();
        if rest.get(hashes_from + hashes) == Some(&b'"') {
            let close = [b"\"".as_slice(), &b"#".repeat(hashes)].concat();
            return Some(after(&close, hashes_from + hashes + 1));
        }
    }
    match rest[0] {
        b'"' => Some(at + 1 + quoted_length(&rest[1..], b'"')),
        b'\'' if rest.get(1) == Some(&b'\\') => Some(at + 1 + quoted_length(&rest[1..], b'\'')),
        b'\'' => {
            // A character is one to four bytes and then a quote; a lifetime has no second quote.
            let length = std::str::from_utf8(&rest[1..rest.len().min(5)])
                .map_or_else(|e| e.valid_up_to(), |s| s.len());
            let first = std::str::from_utf8(&rest[1..1 + length]).ok()?.chars().next()?.len_utf8();
            (rest.get(1 + first) == Some(&b'\'')).then_some(at + first + 2)
        }
        _ => None,
    }
}

/// Bytes up to and including the closing quote, escapes skipped.
fn quoted_length(bytes: &[u8], quote: u8) -> usize {
    let mut at = 0;
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}
