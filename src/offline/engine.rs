//! Who runs the files of `sql/`: DataFusion inside this process, or Spark by `spark-submit`.
//!
//! A [`Job`] is Parquet in, SELECTs in order, Parquet out; both engines read the same text and make
//! the same tables (docs/day.md; `tests/sql_engines.rs` compares them row by row). A table is
//! a file here and a directory of part files on Spark; every reader of the day takes either.
//! Must not know what the tables mean.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};

use super::sql::{self, SqlText};

/// Key `offline.engine`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    Datafusion,
    Spark,
}

/// Section `[offline.spark]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SparkConfig {
    /// The program that submits.
    pub submit: String,
    /// Its options.
    pub arguments: Vec<String>,
}

/// An engine and its settings.
#[derive(Debug, Clone, Copy)]
pub struct Engine<'a> {
    pub kind: Kind,
    pub sql: &'a sql::Config,
    pub spark: &'a SparkConfig,
}

/// A named table and where it is.
#[derive(Debug, Clone, Serialize)]
pub struct Input {
    pub name: String,
    pub path: PathBuf,
}

/// A table, where its rows go and what gives them: one SELECT and a file, or one for each part of a directory.
#[derive(Debug, Clone)]
pub struct Step {
    pub name: String,
    pub path: PathBuf,
    pub parts: Vec<SqlText>,
}

/// Inputs and the SELECTs over them, in order.
#[derive(Debug, Clone, Default)]
pub struct Job {
    pub inputs: Vec<Input>,
    pub steps: Vec<Step>,
}

impl Job {
    /// Adds a table to read.
    pub fn input(&mut self, name: &str, path: PathBuf) {
        self.inputs.push(Input { name: name.to_owned(), path });
    }

    /// Adds the file of `sql/` that makes `name`, which later steps can read.
    pub fn step(&mut self, name: &str, path: PathBuf, parameters: &[(&str, &str)]) -> Result<()> {
        self.step_of(name, name, path, parameters)
    }

    /// As [`Job::step`], by a file that makes several tables.
    pub fn step_of(
        &mut self,
        file: &str,
        name: &str,
        path: PathBuf,
        parameters: &[(&str, &str)],
    ) -> Result<()> {
        let parts = vec![builtin(file).with(parameters)?];
        self.steps.push(Step { name: name.to_owned(), path, parts });
        Ok(())
    }

    /// As [`Job::step`], in so many parts that are made one after the other, each in the memory of its own rows: the
    /// file has parameters `part`, from 0, and `parts`.
    pub fn step_in_parts(&mut self, name: &str, path: PathBuf, parts: u64) -> Result<()> {
        let all = parts.to_string();
        let part = |part: u64| builtin(name).with(&[("parts", &all), ("part", &part.to_string())]);
        let parts = (0..parts).map(part).collect::<Result<_, _>>()?;
        self.steps.push(Step { name: name.to_owned(), path, parts });
        Ok(())
    }
}

impl Step {
    /// The SELECTs and the files of their rows.
    fn files(&self) -> impl Iterator<Item = (&SqlText, PathBuf)> {
        let whole = self.parts.len() == 1;
        self.parts.iter().enumerate().map(move |(part, sql)| match whole {
            true => (sql, self.path.clone()),
            false => (sql, self.path.join(format!("part-{part:05}.parquet"))),
        })
    }
}

impl Engine<'_> {
    /// Runs the steps; `scratch` is a directory for what only the run needs. `made` gets the number
    /// of steps that are done.
    pub fn run(&self, job: &Job, scratch: &Path, made: &mut dyn FnMut(usize)) -> Result<()> {
        match self.kind {
            Kind::Datafusion => self.here(job, scratch, made),
            Kind::Spark => self.submit(job, scratch, made),
        }
    }

    fn here(&self, job: &Job, scratch: &Path, made: &mut dyn FnMut(usize)) -> Result<()> {
        let engine = sql::Engine::spilling_to(scratch, self.sql)?;
        for table in &job.inputs {
            engine.register_parquet(&table.name, &table.path)?;
        }
        for (done, step) in job.steps.iter().enumerate() {
            for (sql, path) in step.files() {
                let rows = engine.write(sql, &path)?;
                tracing::debug!("{}: {rows} rows", path.display());
            }
            engine.register_parquet(&step.name, &step.path)?;
            made(done + 1);
        }
        Ok(())
    }

    fn submit(&self, job: &Job, scratch: &Path, made: &mut dyn FnMut(usize)) -> Result<()> {
        std::fs::create_dir_all(scratch)?;
        let (script, plan) = (scratch.join("runner_spark.py"), scratch.join("job.json"));
        std::fs::write(&script, include_str!("../../sql/runner_spark.py"))?;
        std::fs::write(&plan, serde_json::to_vec_pretty(&job.absolute()?)?)?;
        let log = scratch.join("spark.log");
        let program = &self.spark.submit;
        let mut child = Command::new(program)
            .args(&self.spark.arguments)
            .arg(&script)
            .arg(&plan)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(std::fs::File::create(&log)?)
            .spawn()
            .with_context(|| {
                format!(
                    "cannot start `{program}` (offline.spark.submit): install Spark (`pip install \
                     pyspark`, Java 17 or later) and name its spark-submit, or set offline.engine = \
                     \"datafusion\""
                )
            })?;
        let lines = BufReader::new(child.stdout.take().expect("piped above")).lines();
        let mut done = 0;
        for line in lines {
            if line?.starts_with("made ") {
                done += 1;
                made(done);
            }
        }
        let status = child.wait()?;
        if !status.success() {
            let text = std::fs::read_to_string(&log).unwrap_or_default();
            bail!("`{program}` ended with {status}{}", why(&text, job.steps.get(done), &log));
        }
        Ok(())
    }
}

/// What to tell of a Spark that failed.
fn why(log: &str, step: Option<&Step>, path: &Path) -> String {
    let java = ["JAVA_HOME is not set", "java: command not found", "java: not found"];
    if java.iter().any(|sign| log.contains(sign)) {
        return ": it found no Java; install Java 17 or later (Debian: openjdk-17-jre-headless), \
                or set JAVA_HOME"
            .to_owned();
    }
    let origin = step.and_then(|step| step.parts.first());
    let step = origin.map_or(String::new(), |sql| format!(" in {}", sql.origin));
    let sign = |line: &&str| line.contains("Exception") || line.contains("Error");
    let line = log.lines().find(sign).or(log.lines().last()).unwrap_or("").trim();
    format!("{step}: {line} (all of it is in {})", path.display())
}

#[derive(Serialize)]
struct Plan {
    inputs: Vec<Input>,
    steps: Vec<PlanStep>,
}

#[derive(Serialize)]
struct PlanStep {
    name: String,
    path: PathBuf,
    parts: Vec<String>,
}

impl Job {
    /// What the runner reads; another process may have another working directory.
    fn absolute(&self) -> Result<Plan> {
        let inputs = self.inputs.iter().map(|table| {
            Ok(Input { name: table.name.clone(), path: std::path::absolute(&table.path)? })
        });
        let steps = self.steps.iter().map(|step| {
            let path = std::path::absolute(&step.path)?;
            let parts = step.parts.iter().map(|sql| sql.text.clone()).collect();
            Ok(PlanStep { name: step.name.clone(), path, parts })
        });
        Ok(Plan { inputs: inputs.collect::<Result<_>>()?, steps: steps.collect::<Result<_>>()? })
    }
}

/// The files of `sql/` by name, which are part of the program.
const FILES: [(&str, &str); 15] = [
    ("repeated", include_str!("../../sql/repeated.sql")),
    ("validate", include_str!("../../sql/validate.sql")),
    ("event_days", include_str!("../../sql/event_days.sql")),
    ("quarantine", include_str!("../../sql/quarantine.sql")),
    ("events", include_str!("../../sql/events.sql")),
    ("item_keys", include_str!("../../sql/item_keys.sql")),
    ("user_keys", include_str!("../../sql/user_keys.sql")),
    ("facts", include_str!("../../sql/facts.sql")),
    ("pairs", include_str!("../../sql/pairs.sql")),
    ("user_group", include_str!("../../sql/user_group.sql")),
    ("user_item", include_str!("../../sql/user_item.sql")),
    ("item_stats", include_str!("../../sql/item_stats.sql")),
    ("user_stats", include_str!("../../sql/user_stats.sql")),
    ("region_item", include_str!("../../sql/region_item.sql")),
    ("report", include_str!("../../sql/report.sql")),
];

/// The text of a file of `sql/`.
pub fn builtin(name: &str) -> SqlText {
    let file = FILES.iter().find(|(known, _)| *known == name);
    let (_, text) = file.unwrap_or_else(|| unreachable!("no file sql/{name}.sql"));
    SqlText::builtin(name, text)
}

#[cfg(test)]
#[path = "engine_tests.rs"]
pub(crate) mod tests;
