//! The rules of the house that no compiler checks, read from the sources as text.
//!
//! Each rule is a function from files to violations, each violation a line `file:line: what, and the
//! fix`. Comments, strings and character literals are blanked first, so that prose about a rule does
//! not break it. `tidy/samples.rs` shows every rule what it must refuse.

#[path = "tidy/samples.rs"]
mod samples;
#[path = "tidy/source.rs"]
mod source;

use source::{Source, crate_paths, source_paths, super_paths_to_root, tree, words};

/// Every top-level module with its rank: a module names only modules of a lower rank.
/// Tiers are tens; inside a tier the order is the one that ARCHITECTURE.md gives.
const RANKS: &[(&str, u32)] = &[
    ("types", 0),
    ("ffi", 1),
    ("kernels", 1),
    ("sections", 2),
    ("ids", 3),
    ("packed", 3),
    ("index", 10),
    ("forest", 10),
    ("towers", 10),
    ("features", 10),
    ("experiments", 10),
    ("drift", 10),
    ("objects", 20),
    ("monitor", 20),
    ("store", 21),
    ("bundle", 22),
    ("executor", 22),
    ("events", 22),
    ("pipeline", 30),
    ("offline", 31),
    ("server", 40),
    ("config", 50),
    ("commands", 51),
    ("cli", 52),
    ("lib", 99),
    ("main", 99),
];

/// What the engines (tiers 0 and 1) know nothing of: async runtimes, HTTP, Redis, object stores,
/// configuration and the command line.
const NOT_IN_ENGINES: &[&str] = &[
    "actix_rt",
    "actix_web",
    "clap",
    "figment",
    "fred",
    "futures",
    "hyper",
    "metrics_exporter_prometheus",
    "object_store",
    "reqwest",
    "tokio",
    "ureq",
];
const ENGINE_RANK_MAX: u32 = 19;
const FILE_LINES_MAX: usize = 800;
const STAGES: usize = 6;
/// With port 0, stdout is how a caller learns the port.
const ANNOUNCES_ITS_ADDRESS: &str = "src/server/mod.rs";

// ---------------------------------------------------------------- the tree against the rules

#[test]
fn modules_import_lower_tiers_only() {
    check(tiers);
}

#[test]
fn engines_know_no_runtime_http_redis_or_configuration() {
    check(engine_crates);
}

#[test]
fn stages_never_import_one_another() {
    check(stages);
}

#[test]
fn only_wire_defines_http_json() {
    check(wire);
}

#[test]
fn unsafe_only_in_kernels_and_ffi() {
    check(unsafe_code);
}

#[test]
fn anyhow_only_in_commands_and_offline() {
    check(anyhow);
}

#[test]
fn every_module_says_what_it_does() {
    check(module_docs);
}

#[test]
fn files_are_short() {
    check(file_lengths);
}

#[test]
fn nothing_is_unfinished_or_switched_off() {
    check(unfinished);
}

#[test]
fn only_commands_print() {
    check(printing);
}

#[test]
fn every_configuration_key_is_commented() {
    check(configuration_comments);
}

#[test]
fn the_documents_name_every_module_and_only_what_exists() {
    check(documents);
}

#[test]
fn no_machine_paths_or_registry_addresses() {
    check(foreign_addresses);
}

fn check(rule: fn(&[Source]) -> Vec<String>) {
    let violations = rule(&tree());
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

// ---------------------------------------------------------------- the rules

fn tiers(files: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files.iter().filter(|f| f.is_rust_in("src/")) {
        let own = file.module();
        let Some(own_rank) = rank(own) else {
            found.push(
                file.at(0, format!("module `{own}` has no rank: give it one in tests/tidy.rs")),
            );
            continue;
        };
        for (at, target) in crate_paths(&file.code) {
            if target == own {
                continue;
            }
            if let Some(target_rank) = rank(target)
                && target_rank >= own_rank
            {
                found.push(file.at(
                    at,
                    format!(
                        "`{own}` must not know `{target}`, which is not below it: move the shared \
                         part down, or hand it in as an argument"
                    ),
                ));
            }
        }
        for at in super_paths_to_root(file) {
            found.push(file.at(
                at,
                "`super` reaches the crate root: write `crate::`, so that the tier is seen",
            ));
        }
    }
    found
}

fn engine_crates(files: &[Source]) -> Vec<String> {
    let engine = |f: &&Source| {
        f.is_rust_in("src/") && rank(f.module()).is_some_and(|rank| rank <= ENGINE_RANK_MAX)
    };
    let mut found = Vec::new();
    for file in files.iter().filter(engine) {
        for (at, word) in words(&file.code) {
            let crate_name = NOT_IN_ENGINES.contains(&word)
                && !file.code[..at].trim_end().ends_with("::")
                && (file.code[at + word.len()..].starts_with("::")
                    || file.code[..at].trim_end().ends_with("use"));
            if crate_name || word == "async" || word == "await" {
                found.push(file.at(
                    at,
                    format!("`{word}` in an engine: engines are plain functions; do this in tier 2 or above"),
                ));
            }
        }
    }
    found
}

fn stages(files: &[Source]) -> Vec<String> {
    let mut names: Vec<&str> = files.iter().filter_map(stage_of).collect();
    names.sort_unstable();
    names.dedup();
    let mut found = Vec::new();
    for file in files.iter().filter(|f| f.is_rust_in("src/")) {
        let mut used: Vec<&str> = Vec::new();
        for (at, word) in words(&file.code).filter(|(_, word)| names.contains(word)) {
            match stage_of(file) {
                Some(own) if own != word => found.push(file.at(
                    at,
                    format!(
                        "stage `{own}` names stage `{word}`: pass it through pipeline/context.rs"
                    ),
                )),
                Some(_) => {}
                None if file.path == "src/pipeline/mod.rs" => {}
                None => {
                    let path = file.code[at + word.len()..].starts_with("::")
                        || file.code[..at].ends_with("::");
                    if path && !used.contains(&word) {
                        used.push(word);
                    }
                    if used.len() == STAGES && path {
                        found.push(file.at(
                            at,
                            "names all six stages: only pipeline/mod.rs puts them together",
                        ));
                    }
                }
            }
        }
    }
    found
}

fn wire(files: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    let server =
        |f: &&Source| f.is_rust_in("src/server/") && !f.path.starts_with("src/server/wire");
    for file in files.iter().filter(server) {
        let code = file.production();
        for (at, word) in words(code) {
            let rest = &code[at + word.len()..];
            let derived = matches!(word, "Serialize" | "Deserialize") && !declares_config(rest);
            if derived || (word == "json" && rest.starts_with('!')) {
                found.push(
                    file.at(at, format!("`{word}`: HTTP JSON is defined in server/wire.rs only")),
                );
            }
        }
    }
    found
}

fn unsafe_code(files: &[Source]) -> Vec<String> {
    let outside = |f: &&Source| {
        f.is_rust_in("src/")
            && !f.path.starts_with("src/kernels/")
            && !f.path.starts_with("src/ffi/")
    };
    let mut found = Vec::new();
    for file in files.iter().filter(outside) {
        for (at, _) in words(&file.code).filter(|(_, word)| *word == "unsafe") {
            found.push(file.at(at, "`unsafe`: put it behind a safe function in kernels/ or ffi/"));
        }
    }
    found
}

fn anyhow(files: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files.iter().filter(|f| f.is_rust_in("src/")) {
        if ["offline", "commands", "cli", "main"].contains(&file.module()) {
            continue;
        }
        for (at, _) in words(&file.code).filter(|(_, word)| *word == "anyhow") {
            found.push(
                file.at(
                    at,
                    "`anyhow`: this module has an error type of its own; name the case there",
                ),
            );
        }
    }
    found
}

fn module_docs(files: &[Source]) -> Vec<String> {
    let opens =
        |f: &&Source| f.is_rust_in("src/") && (f.path.ends_with("/mod.rs") || f.depth() == 1);
    files
        .iter()
        .filter(opens)
        .filter(|f| !f.text.starts_with("//!"))
        .map(|f| {
            f.at(0, "must open with `//!`: what it does, its invariant, what it must not know")
        })
        .collect()
}

fn file_lengths(files: &[Source]) -> Vec<String> {
    let long = |f: &&Source| f.is_rust_in("") && f.text.lines().count() > FILE_LINES_MAX;
    files
        .iter()
        .filter(long)
        .map(|f| {
            let lines = f.text.lines().count();
            f.at(
                0,
                format!(
                    "{lines} lines, at most {FILE_LINES_MAX}: split it, or move its tests to a file"
                ),
            )
        })
        .collect()
}

fn unfinished(files: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files.iter().filter(|f| f.is_rust_in("")) {
        for (at, word) in words(&file.code) {
            let rest = &file.code[at + word.len()..];
            if matches!(word, "todo" | "unimplemented" | "dbg") && rest.starts_with('!') {
                found.push(file.at(at, format!("`{word}!`: finish it, or leave it out")));
            }
            if word == "ignore" && file.code[..at].ends_with("#[") {
                found.push(
                    file.at(at, "an ignored test: let it skip itself and say why, or delete it"),
                );
            }
        }
    }
    found
}

fn printing(files: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for file in files.iter().filter(|f| f.is_rust_in("src/")) {
        let may_print = ["commands", "cli", "main"].contains(&file.module())
            || file.path.ends_with("tests.rs")
            || file.path == ANNOUNCES_ITS_ADDRESS;
        if may_print {
            continue;
        }
        for (at, word) in words(file.production()) {
            let prints = matches!(word, "print" | "println")
                && file.code[at + word.len()..].starts_with('!');
            if prints {
                found.push(
                    file.at(at, format!("`{word}!`: use `tracing`, or return it to commands/")),
                );
            }
        }
    }
    found
}

fn configuration_comments(files: &[Source]) -> Vec<String> {
    let Some(file) = files.iter().find(|f| f.path == "config/default.toml") else {
        return vec!["config/default.toml:1: missing: it holds every default".to_owned()];
    };
    let mut found = Vec::new();
    let mut offset = 0;
    let is_comment = |line: &str| line.trim_start().starts_with('#');
    // The two lines above: one comment may speak for a pair, as for a lower and an upper bound.
    let mut above = ["", ""];
    for line in file.text.lines() {
        let at = offset;
        offset += line.len() + 1;
        if let Some((key, value)) = line.split_once('=') {
            let key = key.trim();
            let is_key = !key.is_empty()
                && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-.".contains(c));
            let pair = is_comment(above[0]) && above[1].contains('=');
            let commented = is_comment(above[1]) || pair || value.contains('#');
            if is_key && !commented {
                found.push(file.at(
                    at,
                    format!("`{key}` needs a comment above it: its unit, and why this value"),
                ));
            }
        }
        above = [above[1], line];
    }
    found
}

fn documents(files: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    let mut modules: Vec<&str> =
        files.iter().filter(|f| f.is_rust_in("src/")).map(Source::module).collect();
    modules.sort_unstable();
    modules.dedup();
    for (document, prefix) in [("ARCHITECTURE.md", "`src/"), ("CHANGELOG.md", "`")] {
        let Some(file) = files.iter().find(|f| f.path == document) else {
            found.push(format!("{document}:1: missing"));
            continue;
        };
        for module in modules.iter().filter(|m| !matches!(**m, "lib" | "main")) {
            let named = file.text.match_indices(&format!("{prefix}{module}")).any(|(at, name)| {
                matches!(file.text.as_bytes().get(at + name.len()), Some(b'`' | b'/' | b'.'))
            });
            if !named {
                found.push(file.at(
                    0,
                    format!("does not mention `{module}`: add it where a reader looks for it"),
                ));
            }
        }
        for (at, path) in source_paths(&file.text) {
            let folder = format!("{}/", path.trim_end_matches('/'));
            if !files.iter().any(|f| f.path == path || f.path.starts_with(&folder)) {
                found.push(
                    file.at(
                        at,
                        format!("names {path}, which does not exist: correct the code map"),
                    ),
                );
            }
        }
    }
    found
}

fn foreign_addresses(files: &[Source]) -> Vec<String> {
    // Put together here, so that this file does not break its own rule.
    let forbidden = [
        (concat!("/wo", "rk/"), "a path of one machine"),
        (concat!("/ro", "ot/"), "a path of one machine"),
        (concat!("/tmp/", "cj"), "a path of one machine"),
        (concat!("pypi", ".org"), "a registry's address"),
        (concat!("python", "hosted"), "a registry's address"),
        (concat!("crates", ".io"), "a registry's address"),
        (concat!("npm", "js"), "a registry's address"),
        (concat!("deb.", "debian.org"), "a registry's address"),
    ];
    let mut found = Vec::new();
    for file in files.iter().filter(|f| f.path != "Cargo.lock") {
        for (word, what) in forbidden {
            for (at, _) in file.text.match_indices(word) {
                found.push(file.at(at, format!("`{word}`, {what}: name the thing, not the place")));
            }
        }
    }
    found
}

fn rank(module: &str) -> Option<u32> {
    RANKS.iter().find(|(name, _)| *name == module).map(|(_, rank)| *rank)
}

/// The stage a file belongs to: `src/pipeline/s2_candidates.rs` is of `s2_candidates`.
fn stage_of(file: &Source) -> Option<&str> {
    let inside = file.path.strip_prefix("src/pipeline/")?;
    let name = inside.split('/').next()?.trim_end_matches(".rs");
    let mut start = name.bytes();
    let is_stage = start.next() == Some(b's')
        && start.next().is_some_and(|b| b.is_ascii_digit())
        && start.next() == Some(b'_');
    is_stage.then_some(name)
}

/// Whether the item that follows a derive is a `...Config`, which its owner reads from TOML.
fn declares_config(after_derive: &str) -> bool {
    let mut following = words(after_derive).map(|(_, word)| word);
    following
        .find(|word| matches!(*word, "struct" | "enum"))
        .and_then(|_| following.next())
        .is_some_and(|name| name.ends_with("Config"))
}
