//! Every rule against small samples: what it must refuse, and what it must let through.

use super::source::blanked;
use super::*;

/// The violations of `rule` in files given as path and text, without the message.
fn places(rule: fn(&[Source]) -> Vec<String>, files: &[(&str, &str)]) -> Vec<String> {
    let files: Vec<Source> = files.iter().map(|(path, text)| Source::new(path, text)).collect();
    rule(&files).iter().map(|v| v.split(": ").next().unwrap_or(v).to_owned()).collect()
}

#[test]
fn comments_and_literals_are_blanked() {
    let text =
        "a /* x */ b // y\n\"q\\\"z\" r#\"w\"\"# 'c' '\\'' '\\u{1F600}' 'é' &'life t br\"v\" for";
    let code = blanked(text);
    assert_eq!(code.len(), text.len());
    assert_eq!(code.split_whitespace().collect::<Vec<_>>(), ["a", "b", "&'life", "t", "for"]);
    assert_eq!(code.lines().count(), 2);
}

#[test]
fn tiers_are_kept() {
    let bad = [
        ("src/index/mod.rs", "use crate::types::A;\nuse crate::store::Items;"),
        (
            "src/store/mod.rs",
            "//! `crate::server` is prose\nuse crate::{types::A, pipeline::{B, C}, monitor};",
        ),
        ("src/monitor/mod.rs", "fn f() { crate::events::log() }"),
        ("src/pipeline/context.rs", "use crate::offline::dataset;"),
        (
            "src/towers/mod.rs",
            "use crate::config::Config;\nuse super::forest;\nmod tests { use super::x; }",
        ),
        ("src/surprise.rs", ""),
    ];
    let expected = [
        "src/index/mod.rs:2",
        "src/store/mod.rs:2",
        "src/monitor/mod.rs:1",
        "src/pipeline/context.rs:1",
        "src/towers/mod.rs:1",
        "src/towers/mod.rs:2",
        "src/surprise.rs:1",
    ];
    assert_eq!(places(tiers, &bad), expected);
    let good = [
        ("src/sections.rs", "use crate::ffi::mmap::Mmap;"),
        ("src/offline/mod.rs", "use crate::pipeline::Pipeline; pub(crate) fn f() {}"),
        ("src/config.rs", "use crate::{server, store, index};"),
        ("src/index/ivf.rs", "use super::Index;\nmod tests { use super::super::Index; }"),
    ];
    assert!(places(tiers, &good).is_empty());
}

#[test]
fn engines_stay_plain() {
    let bad = "use tokio::sync::Mutex;\nfn f() { figment::new() }\nasync fn g() {}";
    let expected = ["src/index/a.rs:1", "src/index/a.rs:2", "src/index/a.rs:3"];
    assert_eq!(places(engine_crates, &[("src/index/a.rs", bad)]), expected);
    assert!(places(engine_crates, &[("src/store/a.rs", bad)]).is_empty());
    let good = [(
        "src/features/a.rs",
        "use serde::Deserialize; fn fred() { toml::from_str(\"tokio::x\") }",
    )];
    assert!(places(engine_crates, &good).is_empty());
}

#[test]
fn stages_stay_apart() {
    let names = ["s1_a", "s2_b", "s3_c", "s4_d", "s5_e", "s6_f"];
    let paths: Vec<String> = names.iter().map(|n| format!("src/pipeline/{n}.rs")).collect();
    let mut files: Vec<(&str, &str)> = paths.iter().map(|p| (p.as_str(), "")).collect();
    let all = "use super::s1_a; fn f() { s2_b::r(); s3_c::r(); s4_d::r(); s5_e::r(); s6_f::r(); }";
    files.push(("src/pipeline/mod.rs", all));
    assert!(places(stages, &files).is_empty());
    files.push(("src/commands/bench.rs", all));
    assert_eq!(places(stages, &files), ["src/commands/bench.rs:1"]);
    files.pop();
    files[1].1 = "\nuse super::s1_a::Embedding;";
    assert_eq!(places(stages, &files), ["src/pipeline/s2_b.rs:2"]);
}

#[test]
fn json_stays_in_wire() {
    let bad =
        "#[derive(Debug, serde::Serialize)]\nstruct Answer;\nfn f() { serde_json::json!({}) }";
    let expected = ["src/server/routes.rs:1", "src/server/routes.rs:3"];
    assert_eq!(places(wire, &[("src/server/routes.rs", bad)]), expected);
    assert!(places(wire, &[("src/server/wire.rs", bad)]).is_empty());
    let config =
        "#[derive(Clone, serde::Deserialize)]\n#[serde(deny_unknown_fields)]\npub struct Config {}";
    assert!(places(wire, &[("src/server/mod.rs", config)]).is_empty());
}

#[test]
fn words_out_of_place_are_found() {
    let text = "fn f() {\n unsafe { g() }\n todo!();\n println!();\n}\n#[ignore]\nfn h() -> anyhow::Result<()> {}";
    let file = [("src/store/mod.rs", text)];
    assert_eq!(places(unsafe_code, &file), ["src/store/mod.rs:2"]);
    assert_eq!(places(unfinished, &file), ["src/store/mod.rs:3", "src/store/mod.rs:6"]);
    assert_eq!(places(printing, &file), ["src/store/mod.rs:4"]);
    assert_eq!(places(anyhow, &file), ["src/store/mod.rs:7"]);
    assert_eq!(places(module_docs, &file), ["src/store/mod.rs:1"]);
    assert!(places(unsafe_code, &[("src/ffi/mod.rs", text)]).is_empty());
    assert!(places(printing, &[("src/commands/serve.rs", text)]).is_empty());
    assert!(places(anyhow, &[("src/offline/mod.rs", text)]).is_empty());
}

#[test]
fn long_files_are_found() {
    let (fits, long) = ("//\n".repeat(FILE_LINES_MAX), "//\n".repeat(FILE_LINES_MAX + 1));
    assert!(places(file_lengths, &[("tests/a.rs", &fits)]).is_empty());
    assert_eq!(places(file_lengths, &[("tests/a.rs", &long)]), ["tests/a.rs:1"]);
}

#[test]
fn bare_keys_are_found() {
    let text = "# title\n\n[server]\nlisten = \"x\"\n# bytes, why\nbody_max = 1\nbody_min = 0\nthird = 3\nlist = [ # why\n \"a=b\",\n]\nnext = 2";
    let expected = ["config/default.toml:4", "config/default.toml:8", "config/default.toml:12"];
    assert_eq!(places(configuration_comments, &[("config/default.toml", text)]), expected);
    assert_eq!(places(configuration_comments, &[]), ["config/default.toml:1"]);
}

#[test]
fn the_code_map_is_compared() {
    let sources = [("src/lib.rs", ""), ("src/types.rs", ""), ("src/index/mod.rs", "")];
    let with = |map: &'static str, log: &'static str| {
        let mut files = sources.to_vec();
        files.extend([("ARCHITECTURE.md", map), ("CHANGELOG.md", log)]);
        places(documents, &files)
    };
    assert!(with("`src/types.rs`, `src/index/`.", "`types` `index`").is_empty());
    assert_eq!(
        with("`src/types.rs`, \n`src/gone.rs`", "`types` `index`"),
        ["ARCHITECTURE.md:1", "ARCHITECTURE.md:2"]
    );
    assert_eq!(with("`src/types.rs` `src/index/`", "`types` `indexes`"), ["CHANGELOG.md:1"]);
}

#[test]
fn addresses_are_found() {
    let text = concat!("fine\nsee https://py", "pi.org/x and /ro", "ot/y");
    assert_eq!(places(foreign_addresses, &[("README.md", text)]), ["README.md:2", "README.md:2"]);
    assert!(places(foreign_addresses, &[("Cargo.lock", text)]).is_empty());
}
