//! `shortlist import`: one's own files and database become the canonical tables.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use crate::objects::{self, Objects};
use crate::offline::import::{self, Database, Options};
use crate::offline::{postgres, sql};

/// Turns files and tables of PostgreSQL into the canonical tables, and checks them.
///
/// Every CSV, TSV, Parquet or JSON file of the input becomes a table named after its stem (lower
/// case, other characters than letters and digits as `_`; column names likewise). The SQL makes
/// tables or views named events, items, users and histories; users and histories may be missing.
///
/// What --read names becomes a table too. Without a SQL file it is a canonical one as it is, and
/// those that are not read stay: `--postgres URL --read users=crm.profiles --read "items=SELECT ..."`.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The SQL file; `{{name}}` or `{{name=default}}` in it is a parameter.
    #[arg(long, value_name = "FILE", required_unless_present = "postgres")]
    pub sql: Option<PathBuf>,
    /// A directory of files, or single files.
    #[arg(long, value_name = "DIR|FILE", required_unless_present = "postgres", requires = "sql",
          num_args = 1..)]
    pub input: Vec<PathBuf>,
    /// A database, postgres://USER@HOST/NAME; its password in the URL or in PGPASSWORD.
    #[arg(long, value_name = "URL", requires = "read")]
    pub postgres: Option<String>,
    /// A table or query of the database and the table's name here; may be repeated.
    #[arg(long, value_name = "NAME=TABLE|SELECT", value_parser = parameter, requires = "postgres")]
    pub read: Vec<(String, String)>,
    /// Where the canonical tables are written: a directory, or s3://BUCKET/PREFIX.
    #[arg(long, value_name = "DIR|URL")]
    pub out: PathBuf,
    /// A value for a parameter of the SQL file; may be repeated.
    #[arg(long = "param", value_name = "NAME=VALUE", value_parser = parameter)]
    pub parameters: Vec<(String, String)>,
    /// Also writes the report as JSON to this file.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
}

/// Runs the import; fails when it cannot be done or a check passes its threshold.
pub fn run(
    args: &Args,
    engine: &sql::Config,
    config: &import::Config,
    work_dir: &Path,
) -> anyhow::Result<()> {
    // Tables for a bucket are made beside the work, and sent when they are whole.
    let bucket = objects::is_remote(&args.out.to_string_lossy());
    let out = if bucket { work_dir.join("import") } else { args.out.clone() };
    if bucket && out.exists() {
        std::fs::remove_dir_all(&out).with_context(|| format!("delete {}", out.display()))?;
    }
    let database = match &args.postgres {
        Some(url) => Some(Database {
            address: postgres::Address::parse(url).context("--postgres")?,
            tables: args.read.clone(),
        }),
        None => None,
    };
    let options = Options {
        sql: args.sql.clone(),
        inputs: args.input.clone(),
        database,
        out: out.clone(),
        parameters: args.parameters.clone(),
    };
    let report = import::import(&options, engine, config, &|step| eprintln!("import: {step}"))?;
    for line in report.lines() {
        eprintln!("{line}");
    }
    if let Some(path) = &args.report {
        std::fs::write(path, serde_json::to_vec_pretty(&report)?)
            .with_context(|| format!("{}: the report cannot be written", path.display()))?;
    }
    if let Some(failure) = report.failure() {
        bail!("{failure}");
    }
    if bucket {
        let objects = Objects::open(&args.out.to_string_lossy()).context("--out")?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let sent = runtime.block_on(objects.send(&out)).context("--out")?;
        eprintln!("import: {sent} files are in {}", objects.url());
    }
    eprintln!("import: {} written in {:.1} s", report.out, report.seconds);
    Ok(())
}

fn parameter(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is not NAME=VALUE")),
    }
}
