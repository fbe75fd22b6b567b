//! The files of `sql/` within the portable subset, and what is said when Spark is not there.

use super::*;
use std::fs;
use std::sync::LazyLock;

use crate::offline::sql::tests::config;

/// The engine of this process.
pub(crate) fn datafusion() -> Engine<'static> {
    static SQL: LazyLock<sql::Config> = LazyLock::new(config);
    static SPARK: LazyLock<SparkConfig> = LazyLock::new(|| spark("spark-submit"));
    Engine { kind: Kind::Datafusion, sql: &SQL, spark: &SPARK }
}

fn spark(submit: &str) -> SparkConfig {
    SparkConfig { submit: submit.to_owned(), arguments: Vec::new() }
}

fn sql_files() -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("sql");
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_some_and(|extension| extension == "sql") {
            let name = path.file_stem().unwrap().to_string_lossy().into_owned();
            files.push((name, fs::read_to_string(&path).unwrap()));
        }
    }
    files
}

/// Words that the two engines read differently, or only one of them knows.
const FORBIDDEN: [&str; 30] = [
    "log(",
    "log10(",
    "concat(",
    "max_by(",
    "min_by(",
    "count_if(",
    "approx_",
    "collect_list(",
    "collect_set(",
    "slice(",
    "explode(",
    "unnest(",
    "sha2(",
    "md5(",
    " div ",
    "\"",
    "arrow_cast(",
    "now(",
    "current_",
    "random(",
    "rand(",
    "uuid(",
    "first(",
    "any_value(",
    "date_trunc(",
    "to_timestamp",
    "from_unixtime(",
    "interval ",
    " limit ",
    "::",
];

/// What is wrong with a file, as lines.
fn unportable(name: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let code: Vec<&str> = text.lines().filter(|l| !l.trim_start().starts_with("--")).collect();
    let code = code.join("\n").to_lowercase();
    for word in FORBIDDEN {
        // `mylog(` is another function.
        let own = |at: usize| {
            let letter = |c: char| c.is_alphanumeric() || c == '_';
            !(word.starts_with(char::is_alphabetic) && code[..at].ends_with(letter))
        };
        if code.match_indices(word).any(|(at, _)| own(at)) {
            found.push(format!("{name}: `{word}` does not run alike on both engines"));
        }
    }
    if code.contains(';') || !(code.starts_with("select") || code.starts_with("with")) {
        found.push(format!("{name}: one SELECT a file"));
    }
    for (at, _) in code.match_indices("order by") {
        let clause = &code[at + 8..];
        let clause = &clause[..clause.find(')').unwrap_or(clause.len())];
        let nulls = clause.matches("nulls last").count() + clause.matches("nulls first").count();
        if nulls != clause.split(',').count() {
            found.push(format!("{name}: ORDER BY {clause}: say NULLS FIRST or LAST of each key"));
        }
    }
    // Aggregates over a window or in an order give arrays in different orders.
    for (at, _) in code.match_indices("array_agg(") {
        let rest = &code[at..];
        let end = rest.find(')').unwrap_or(rest.len());
        if rest[..end].contains("order by") || rest[end + 1..].trim_start().starts_with("over") {
            found.push(format!("{name}: array_agg over a window or with ORDER BY"));
        }
    }
    // A bare count is BIGINT here and BIGINT there, but a bare row_number is UINT64 or INT.
    for call in ["row_number()", "dense_rank()", "rank()", "ntile("] {
        for (at, _) in code.match_indices(call) {
            let whole = !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_');
            let before = code[..at].trim_end();
            let compared = before.ends_with("qualify") || before.ends_with("when");
            if whole && !compared && !before.ends_with("cast(") {
                found.push(format!("{name}: CAST({call} ... AS ...): its type differs"));
            }
        }
    }
    // Division of integers truncates here and does not there.
    for (at, _) in code.match_indices('/') {
        let before = code[..at].trim_end();
        let digit_or_double = before.ends_with("double)")
            || before.ends_with("e0")
            || before.ends_with("e0)")
            || ["revenue_all", "basket_value_all", "e.value", "c.ctr)"]
                .iter()
                .any(|f| before.ends_with(f));
        if !digit_or_double {
            let tail = &before[before.len().saturating_sub(30)..];
            found.push(format!("{name}: `{tail} /`: CAST what is divided to DOUBLE"));
        }
    }
    found
}

#[test]
fn sql_files_keep_to_the_portable_subset() {
    let files = sql_files();
    let found: Vec<String> = files.iter().flat_map(|(name, text)| unportable(name, text)).collect();
    assert!(found.is_empty(), "\n{}\n", found.join("\n"));
    let mut names: Vec<&str> = files.iter().map(|(name, _)| name.as_str()).collect();
    let mut known: Vec<&str> = FILES.iter().map(|(name, _)| *name).collect();
    names.sort_unstable();
    known.sort_unstable();
    assert_eq!(names, known, "a new file of sql/ is named in FILES too");
}

#[test]
fn the_lint_finds_what_it_forbids() {
    for (text, what) in [
        ("SELECT concat(a, b) FROM t", "concat("),
        ("SELECT a FROM t; SELECT b FROM t", "one SELECT"),
        ("SELECT a FROM t ORDER BY a", "NULLS FIRST"),
        ("SELECT array_agg(a ORDER BY a NULLS LAST) FROM t", "array_agg"),
        ("SELECT row_number() OVER (ORDER BY a NULLS LAST) FROM t", "CAST(row_number()"),
        ("SELECT a / b FROM t", "DOUBLE"),
    ] {
        let found = unportable("x", text);
        assert!(found.iter().any(|line| line.contains(what)), "{text}: {found:?}");
    }
    assert!(unportable("x", "SELECT mylog(a) FROM t").is_empty());
}

#[test]
fn a_spark_that_is_not_there_is_named_with_the_key_that_says_where() {
    let dir = tempfile::tempdir().unwrap();
    let absent = spark("/nowhere/spark-submit");
    let engine = Engine { kind: Kind::Spark, spark: &absent, ..datafusion() };
    let error = format!("{:#}", engine.run(&Job::default(), dir.path(), &mut |_| {}).unwrap_err());
    assert!(error.contains("/nowhere/spark-submit") && error.contains("Java 17"), "{error}");
    assert!(error.contains("offline.spark.submit"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_spark_that_fails_says_why() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let submit = dir.path().join("submit");
    let run = |script: &str| {
        fs::write(&submit, format!("#!/bin/sh\n{script}\nexit 1\n")).unwrap();
        fs::set_permissions(&submit, fs::Permissions::from_mode(0o755)).unwrap();
        let fake = spark(&submit.display().to_string());
        let engine = Engine { kind: Kind::Spark, spark: &fake, ..datafusion() };
        let mut job = Job::default();
        job.step("repeated", dir.path().join("a"), &[("from_ms", "0"), ("to_ms", "1")]).unwrap();
        job.step("event_days", dir.path().join("b"), &[("from_ms", "0"), ("to_ms", "1")]).unwrap();
        format!("{:#}", engine.run(&job, &dir.path().join("scratch"), &mut |_| {}).unwrap_err())
    };
    let error = run("echo JAVA_HOME is not set >&2");
    assert!(error.contains("install Java 17"), "{error}");
    let error = run("echo made a; echo 'x.AnalysisException: no column z' >&2");
    assert!(error.contains("in sql/event_days.sql") && error.contains("no column z"), "{error}");
    assert!(error.contains("spark.log"), "{error}");
}
