//! The steps in order, each with what it depends on.

mod judge;
mod refresh;

use std::ops::Range;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;

use super::approve::{Asked, Decision, Override};
use super::as_of::Layout;
use super::evaluate::Report;
use super::examples::{Kind, Models, Source};
use super::inputs::Inputs;
use super::load::Loaded;
use super::split::Split;
use super::workspace::{Fingerprint, Workspace, write_atomically};
use super::{
    aggregates, approve, collect, engine, evaluate, load, progress, publish, split, sql, text,
    train_ranker, train_towers,
};
use crate::bundle::{self, Bundle, Registry, TowerUser, files};
use crate::features::{HISTORY_MAX, Schema};
use crate::index::{self, Index};
use crate::pipeline::{PastConfig, RolloutConfig, Settings};
use crate::towers::{self, Towers};
use crate::types::DAY_MS;

/// The steps by name, in order.
pub const STEPS: [&str; 10] = [
    "collect", "split", "features", "towers", "embed", "index", "ranker", "evaluate", "approve",
    "publish",
];

/// Section `[offline]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Where the canonical tables are: a directory, or `s3://BUCKET/PREFIX`.
    pub data_dir: PathBuf,
    /// Where the run works; kept, so that a stopped run goes on.
    pub work_dir: PathBuf,
    /// The feature schema.
    pub features: PathBuf,
    /// Threads of training and evaluation; 0 is all cores.
    pub threads: usize,
    /// Who runs the files of `sql/`.
    pub engine: engine::Kind,
    pub spark: engine::SparkConfig,
    pub text: text::Config,
    pub window: Window,
    /// The moment whose statistics, histories and vectors the bundle serves.
    pub publish_as_of: PublishAsOf,
    pub sql: sql::Config,
    pub aggregates: aggregates::Config,
    pub collect: collect::Config,
    pub split: split::Config,
    pub signals: load::Config,
    pub towers: train_towers::Config,
    pub ranker: train_ranker::Config,
    pub evaluate: evaluate::Config,
    pub gate: approve::Config,
}

/// The moment whose knowledge a bundle holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PublishAsOf {
    /// The end of the collected days: what production serves.
    End,
    /// The start of the test days, so that what is served can be compared with what came: demos.
    Test,
}

/// Section `[offline.window]`: the days that are collected.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Window {
    /// First moment that is not collected, `YYYY-MM-DD`; empty is the day after the last event.
    pub until: String,
    /// Days before it; 0 is all there are.
    pub days: u32,
}

impl Config {
    /// Names all columns that `texts.*` stands for.
    pub fn expand_inputs(&mut self) {
        let dense = &mut self.towers.inputs.item_dense;
        *dense = self.text.expand(dense);
    }

    /// Refuses what a run would only stumble over hours later.
    pub fn check(&self) -> Result<()> {
        self.aggregates.check()?;
        self.gate.check()?;
        self.ranker.check()?;
        self.text.check()?;
        let towers = &self.towers;
        ensure!(
            towers.snapshot_every_days > 0,
            "offline.towers.snapshot_every_days: give at least 1"
        );
        ensure!(towers.warm_up_days >= 0, "offline.towers.warm_up_days: give at least 0");
        ensure!(towers.validation_days >= 0, "offline.towers.validation_days: give at least 0");
        let evaluate = &self.evaluate;
        ensure!(evaluate.ranker_days > 0, "offline.evaluate.ranker_days: give at least 1");
        ensure!(
            evaluate.bootstrap_samples > 0,
            "offline.evaluate.bootstrap_samples: give at least 1"
        );
        let gate = self.gate.recall_at;
        ensure!(
            gate == 0 || evaluate.recall_at.contains(&gate),
            "offline.gate.recall_at = {gate} is not in offline.evaluate.recall_at"
        );
        Ok(())
    }
}

impl Config {
    /// Who runs the files of `sql/`, with its settings.
    pub fn engine(&self) -> engine::Engine<'_> {
        engine::Engine { kind: self.engine, sql: &self.sql, spark: &self.spark }
    }
}

impl Window {
    /// The window in epoch milliseconds, given the days that have events.
    fn resolve(&self, event_days: &[i64]) -> Result<Range<i64>> {
        let (Some(&first), Some(&last)) = (event_days.first(), event_days.last()) else {
            bail!("offline.data_dir holds no day of events; run `shortlist import` first")
        };
        let end = if self.until.is_empty() {
            last + DAY_MS
        } else {
            let date: chrono::NaiveDate = self.until.parse().with_context(|| {
                format!("offline.window.until = \"{}\": give a date YYYY-MM-DD", self.until)
            })?;
            date.and_time(chrono::NaiveTime::MIN).and_utc().timestamp_millis()
        };
        let start = if self.days == 0 { first } else { end - i64::from(self.days) * DAY_MS };
        Ok(start..end)
    }
}

/// Sections that the day shares with serving.
pub struct Shared<'a> {
    pub towers: &'a towers::Config,
    pub index: &'a index::Config,
    pub registry: &'a bundle::Config,
    /// Whether a new bundle is put on trial.
    pub rollout: &'a RolloutConfig,
    /// How requests are answered.
    pub serving: Settings,
}

impl Shared<'_> {
    /// What decides the candidates that the ranker learns from.
    fn past(&self) -> PastConfig<'_> {
        let pipeline = &self.serving.pipeline;
        PastConfig { candidates: pipeline.candidates, sources: &pipeline.sources }
    }
}

/// A run of the day.
pub struct Day<'a> {
    config: &'a Config,
    shared: Shared<'a>,
    work: Workspace,
    schema_text: String,
    schema: Schema,
    pool: rayon::ThreadPool,
    overridden: Option<Override>,
}

/// The moments whose item vectors a run makes: before the ranker's rows, before the test days,
/// and the one that the bundle serves.
#[derive(Clone, Copy)]
enum Moment {
    Ranker,
    Test,
    Publish,
}

impl Moment {
    fn name(self) -> &'static str {
        match self {
            Moment::Ranker => "ranker",
            Moment::Test => "test",
            Moment::Publish => "publish",
        }
    }

    const ALL: [Moment; 3] = [Moment::Ranker, Moment::Test, Moment::Publish];

    fn time_ms(self, split: &Split, publish: PublishAsOf) -> i64 {
        match (self, publish) {
            (Moment::Ranker, _) => split.ranker_ms.start,
            (Moment::Test, _) | (Moment::Publish, PublishAsOf::Test) => split.test_ms.start,
            (Moment::Publish, PublishAsOf::End) => split.test_ms.end,
        }
    }
}

impl<'a> Day<'a> {
    /// Checks the configuration and the schema. `overridden` lets a refused bundle out.
    pub fn new(
        config: &'a Config,
        shared: Shared<'a>,
        overridden: Option<Override>,
    ) -> Result<Self> {
        config.check()?;
        ensure!(
            shared.towers.history_max as usize <= HISTORY_MAX,
            "towers.history_max = {}: histories keep {HISTORY_MAX} events",
            shared.towers.history_max
        );
        let path = &config.features;
        let schema_text = std::fs::read_to_string(path)
            .with_context(|| format!("offline.features: read {}", path.display()))?;
        let schema = Schema::parse(&schema_text).with_context(|| path.display().to_string())?;
        let pool = rayon::ThreadPoolBuilder::new().num_threads(config.threads).build()?;
        let work = Workspace::open(&config.work_dir)?;
        Ok(Self { config, shared, work, schema_text, schema, pool, overridden })
    }

    /// Runs the steps up to and including `last`; what is done is kept.
    pub fn run(&self, last: &str) -> Result<()> {
        let wanted = STEPS.iter().position(|step| *step == last);
        let wanted = wanted.with_context(|| format!("no step `{last}`"))?;
        let reached = |step: &str| STEPS.iter().position(|s| *s == step) <= Some(wanted);
        let config = self.config;
        let (collected, window, fp) = self.collect()?;
        if !reached("split") {
            return Ok(());
        }
        let fp = fp.and(format!("{:?}{:?}", config.split, config.signals));
        let split = Split::new(window.start, window.end, &config.split)?;
        self.work.step("split", &fp, |dir| {
            write_atomically(&dir.join("split.json"), &serde_json::to_vec_pretty(&split)?)
        })?;
        if !reached("features") {
            return Ok(());
        }
        let report = collect::report(self.work.root())?;
        let timed = report.is_timed(split.towers_ms.end);
        let snapshots = train_towers::snapshot_times(timed, &split, &config.towers);
        let days = self.days(&snapshots, &split);
        self.features(&days)?;
        if !reached("towers") {
            return Ok(());
        }
        let loaded = self.pool.install(|| Loaded::open(&collected, &config.signals))?;
        let fp = fp.and(&self.schema_text).and(format!("{days:?}")).and(aggregates::queries());
        let fp = fp.and(format!("{:?}", config.aggregates));
        let features = self.work.dir("features");
        let latest = aggregates::day_dir(&features, split.test_ms.start);
        let layout = Layout::new(&self.schema, &config.towers.inputs, &loaded, &latest)?;
        let run = Run {
            day: self,
            loaded: &loaded,
            layout: &layout,
            split: &split,
            snapshots: &snapshots,
            features,
        };
        let mut fp = fp;
        for step in ["towers", "embed", "index", "ranker"] {
            if !reached(step) {
                return Ok(());
            }
            fp = fp.and(run.settings(step));
            self.work.step(step, &fp, |dir| self.pool.install(|| run.train(step, dir)))?;
        }
        if !reached("evaluate") {
            return Ok(());
        }
        let registry = Registry::open(self.shared.registry)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let current = runtime.block_on(registry.current())?.map(|(_, rollout)| rollout.bundle);
        fetch(&runtime, &registry, current.as_deref());
        let current = current.and_then(|version| run.baseline(&registry, version));
        fetch(&runtime, &registry, current.as_deref());
        let fp = fp.and(format!("{:?}{:?}", config.evaluate, current));
        let fp = fp.and(serde_json::to_string(&self.shared.serving)?);
        self.work.step("evaluate", &fp, |dir| {
            self.pool.install(|| run.evaluate(dir, &registry, current.as_deref()))
        })?;
        let report = self.report()?;
        report.lines().iter().for_each(|line| tracing::info!("{line}"));
        if !reached("approve") {
            return Ok(());
        }
        let window_ms = [split.test_ms.start, split.test_ms.end];
        let asked = Asked { window_ms, serving: current.as_deref() };
        let decision = self.approve(&report, asked)?;
        if !reached("publish") {
            return Ok(());
        }
        let (dir, version) = self.pool.install(|| run.assemble(&report, &decision, current))?;
        Bundle::open(&dir, true, self.shared.index)
            .context("the assembled bundle does not open")?;
        let (reason, who) = match &decision.overridden {
            Some(word) => (format!("the gate refused; overridden: {}", word.why), &*word.who),
            None => ("approved by the gate".to_owned(), publish::WHO),
        };
        runtime.block_on(publish::publish(
            &registry,
            &dir,
            &version,
            (&reason, who),
            self.shared.rollout,
            self.shared.registry.bundles_kept,
        ))?;
        tracing::info!("published {version} to {}", self.shared.registry.url);
        Ok(())
    }

    /// Collects the window; where the tables are, the window, and what they depend on.
    fn collect(&self) -> Result<(PathBuf, Range<i64>, Fingerprint)> {
        let config = self.config;
        let inputs = Inputs::open(&config.data_dir, self.work.root())?;
        let window = config.window.resolve(&inputs.event_days()?)?;
        let fp = Fingerprint::start()
            .and(format!("{window:?}{:?}{:?}", config.engine, config.collect))
            .and(config.signals.positive_events.join(","))
            .and(collect::queries())
            .and(serde_json::to_string(&config.text)?)
            .and(inputs.listing(&window)?);
        self.work.step("collect", &fp, |_| {
            let bar = progress::spinner("collect");
            let note = |what: &str| bar.set_message(what.to_owned());
            let root = self.work.root();
            bar.set_message("inputs");
            let data = inputs.directory(&window)?;
            let report = collect::collect(
                &data,
                root,
                window.clone(),
                &config.engine(),
                &config.collect,
                &config.signals.positive_events,
                &note,
            )?;
            bar.finish_and_clear();
            tracing::info!(
                "collected {} of {} events ({} in the quarantine), {} items, {} users from {} to {}",
                report.events_kept,
                report.events_read,
                report.events_quarantined,
                report.items.kept,
                report.users.kept,
                report.from,
                report.to
            );
            self.embed_texts(root)?;
            Ok(())
        })?;
        Ok((self.work.dir("collect"), window, fp))
    }

    /// The table of the items' texts, beside the collected items.
    fn embed_texts(&self, root: &Path) -> Result<()> {
        let bar = progress::bar("embed texts", 0);
        let note = |read: usize, of: usize| {
            bar.set_length(of as u64);
            bar.set_position(read as u64);
        };
        let collected = root.join("collect");
        let made = self.pool.install(|| text::run(&self.config.text, &collected, &note))?;
        bar.finish_and_clear();
        match made {
            Some(text::Summary { items, texts, read }) => tracing::info!(
                "{texts} distinct texts of {items} items; {read} of them were not embedded before"
            ),
            None => tracing::info!("items have no text embeddings: offline.text.model is empty"),
        }
        Ok(())
    }

    /// Materialises the aggregates of these midnights; those that are there are kept as long as
    /// the collected events and the queries are the same.
    fn features(&self, days: &[i64]) -> Result<()> {
        let collected = std::fs::read(self.work.dir("collect").join("done.json"))?;
        let fp = Fingerprint::start().and(collected).and(aggregates::queries());
        let fp = fp.and(format!("{:?}{:?}", self.config.engine, self.config.aggregates));
        self.work.own("features", &fp)?;
        let bar = progress::bar("features", days.len() as u64);
        let computed = aggregates::materialise(
            self.work.root(),
            days,
            &self.config.engine(),
            &self.config.aggregates,
            &mut |done, _, date| {
                bar.set_position(done as u64);
                bar.set_message(date.to_owned());
            },
        )?;
        bar.finish_and_clear();
        tracing::info!("features: {computed} days computed, {} kept", days.len() - computed);
        Ok(())
    }

    /// The evaluation's report of the last run.
    pub fn report(&self) -> Result<Report> {
        read_json(&self.work.dir("evaluate").join(files::REPORT))
    }

    /// Every midnight whose aggregates a row or a bundle of this run reads.
    fn days(&self, snapshots: &[(i64, i64)], split: &Split) -> Vec<i64> {
        let towers = &self.config.towers;
        let mut days: Vec<i64> = snapshots.iter().map(|&(_, day)| day).collect();
        days.push(train_towers::validation_start(split, towers));
        let test_days = i64::from(self.config.evaluate.ranker_days);
        let end = split.test_ms.end.min(split.test_ms.start + test_days * DAY_MS);
        days.extend((split.ranker_ms.start..end).step_by(DAY_MS as usize));
        let moments = Moment::ALL.map(|m| m.time_ms(split, self.config.publish_as_of));
        days.extend(moments);
        days.sort_unstable();
        days.dedup();
        days
    }
}

/// What every step after the tables reads.
struct Run<'a> {
    day: &'a Day<'a>,
    loaded: &'a Loaded,
    layout: &'a Layout,
    split: &'a Split,
    /// Moments from which a snapshot of the numbers counts, and the day it is of.
    snapshots: &'a [(i64, i64)],
    features: PathBuf,
}

impl Run<'_> {
    /// The settings that a step's output depends on.
    fn settings(&self, step: &str) -> String {
        let (config, shared) = (self.day.config, &self.day.shared);
        match step {
            "towers" => format!("{:?}{:?}", config.towers, shared.towers),
            "index" => format!("{:?}", shared.index),
            "ranker" => {
                let PastConfig { candidates, sources } = shared.past();
                format!("{:?}{candidates}{:?}", config.ranker, sources.repeats)
            }
            _ => String::new(),
        }
    }

    fn train(&self, step: &str, dir: &Path) -> Result<()> {
        match step {
            "towers" => self.towers(dir),
            "embed" => self.embed(dir),
            "index" => self.index(dir),
            "ranker" => self.ranker(dir),
            _ => bail!("no step `{step}`"),
        }
    }

    fn towers(&self, dir: &Path) -> Result<()> {
        let (config, model) = (&self.day.config.towers, self.day.shared.towers);
        train_towers::run(
            self.loaded,
            self.layout,
            &self.features,
            train_towers::Moments { split: self.split, snapshots: self.snapshots },
            config,
            model,
            dir,
        )
    }

    fn time_ms(&self, moment: Moment) -> i64 {
        moment.time_ms(self.split, self.day.config.publish_as_of)
    }

    fn source(&self) -> Source<'_> {
        Source {
            loaded: self.loaded,
            layout: self.layout,
            features: &self.features,
            impression: &self.day.config.signals.impression_event,
        }
    }

    /// The towers of a moment: with `offline.towers.refit` the ranker's rows are of towers that have seen no label
    /// of theirs, and what is judged and served is of those that learnt from these days too.
    fn towers_path(&self, moment: Moment) -> PathBuf {
        let refit = self.day.config.towers.refit && !matches!(moment, Moment::Ranker);
        let name = if refit { train_towers::REFIT } else { files::TOWERS };
        self.day.work.dir("towers").join(name)
    }

    fn open_towers(&self, moment: Moment) -> Result<Towers> {
        Ok(Towers::open(&self.towers_path(moment))?)
    }

    fn embed(&self, dir: &Path) -> Result<()> {
        for moment in Moment::ALL {
            let towers = self.open_towers(moment)?;
            let day = aggregates::day_dir(&self.features, self.time_ms(moment));
            let items = self.layout.item_columns(&day, self.loaded)?;
            let inputs = &self.day.config.towers.inputs;
            let vectors = train_towers::item_vectors(&towers, inputs, &items)?;
            let path = dir.join(format!("{}.bin", moment.name()));
            let mut file = crate::sections::SectionsWriter::create(&path, 1)?;
            file.write("vectors", &vectors)?;
            file.finish()?;
        }
        Ok(())
    }

    fn vectors(&self, moment: Moment) -> Result<crate::sections::Column<f32>> {
        let path = self.day.work.dir("embed").join(format!("{}.bin", moment.name()));
        Ok(crate::sections::Sections::open(&path)?.get("vectors")?)
    }

    fn index(&self, dir: &Path) -> Result<()> {
        for moment in Moment::ALL {
            let (towers, vectors) = (self.open_towers(moment)?, self.vectors(moment)?);
            let queries = self.queries(moment, &towers)?;
            let bar = progress::bar("build index", 0);
            let note = |at, of| {
                bar.set_length(of);
                bar.set_position(at);
            };
            let config = self.day.shared.index;
            let index = index::build(&vectors, towers.dim(), &queries, config, &note)?;
            bar.finish_and_clear();
            index.save(&dir.join(format!("{}.bin", moment.name())))?;
        }
        Ok(())
    }

    /// Vectors of users with a past as of a moment.
    fn queries(&self, moment: Moment, towers: &Towers) -> Result<Vec<f32>> {
        let as_of = self.source().day(self.time_ms(moment))?;
        let tower_user = TowerUser::new(&self.day.config.towers.inputs, as_of.users.columns())?;
        Ok(self.day.some_users(&as_of.users, towers, &tower_user))
    }

    fn open_index(&self, moment: Moment) -> Result<Box<dyn Index>> {
        let path = self.day.work.dir("index").join(format!("{}.bin", moment.name()));
        Ok(index::open(&path, self.day.shared.index)?)
    }

    fn models<'b>(&'b self, towers: &'b Towers, index: &'b dyn Index) -> Models<'b> {
        Models {
            schema: &self.day.schema,
            towers,
            tower_inputs: &self.day.config.towers.inputs,
            index,
            past: self.day.shared.past(),
        }
    }

    fn ranker(&self, dir: &Path) -> Result<()> {
        let (towers, index) = (self.open_towers(Moment::Ranker)?, self.open_index(Moment::Ranker)?);
        let summary = train_ranker::run(
            &self.source(),
            &self.models(&towers, &*index),
            self.split,
            &self.day.config.ranker,
            self.day.pool.current_num_threads(),
            dir,
        )?;
        write_atomically(&dir.join("ranker.json"), &serde_json::to_vec_pretty(&summary)?)
    }

    /// Puts the parts into one directory, manifest last.
    fn assemble(
        &self,
        report: &Report,
        decision: &Decision,
        parent: Option<String>,
    ) -> Result<(PathBuf, String)> {
        let dir = self.day.work.dir("publish");
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        std::fs::create_dir_all(&dir)?;
        self.parts(&dir, Moment::Publish)?;
        let mut report_json = serde_json::to_value(report)?;
        report_json["gate"] = serde_json::to_value(decision)?;
        report_json["data"] = serde_json::to_value(collect::report(self.day.work.root())?)?;
        std::fs::write(dir.join(files::REPORT), serde_json::to_vec_pretty(&report_json)?)?;
        let page = super::page::render(report, Some(decision));
        std::fs::write(dir.join(files::REPORT_PAGE), page)?;
        let version = self.manifest(&dir, Moment::Publish, Some(report), parent)?;
        Ok((dir, version))
    }

    /// Writes the manifest of a directory whose other files are there.
    fn manifest(
        &self,
        dir: &Path,
        moment: Moment,
        report: Option<&Report>,
        parent: Option<String>,
    ) -> Result<String> {
        let towers = self.open_towers(moment)?;
        let headline = |(name, e): (&String, &super::metrics::Estimate)| (name.clone(), e.mean);
        let about = publish::About {
            tower_version: towers.version(),
            schema_fingerprint: self.day.schema.fingerprint(),
            as_of_ms: self.time_ms(moment),
            training_window_ms: [self.split.towers_ms.start, self.split.validation_ms.end],
            tower_inputs: &self.day.config.towers.inputs,
            ranker_sources: self.ranker_sources(),
            metrics: report.map(|r| r.ranker.iter().map(headline).collect()).unwrap_or_default(),
            parents: parent.into_iter().collect(),
        };
        publish::write_manifest(dir, about)
    }

    /// Sources whose candidates taught the ranker; what was shown came from any.
    fn ranker_sources(&self) -> Vec<String> {
        let source = self.source();
        let Range { start, end } = self.split.ranker_ms;
        match Kind::of(source.loaded, source.impression, [start, end]) {
            Kind::Impressions => Vec::new(),
            Kind::Retrieval => {
                self.day.shared.past().taught().iter().map(|s| s.name().to_owned()).collect()
            }
        }
    }

    /// Writes every file of a bundle of a moment but report and manifest.
    fn parts(&self, dir: &Path, moment: Moment) -> Result<()> {
        let time_ms = self.time_ms(moment);
        let day = aggregates::day_dir(&self.features, time_ms);
        let as_of = self.layout.read(&day, time_ms, self.loaded)?;
        publish::write_tables(dir, self.loaded, &as_of)?;
        let work = &self.day.work;
        let copies = [
            (self.towers_path(moment), files::TOWERS),
            (work.dir("index").join(format!("{}.bin", moment.name())), files::INDEX),
            (work.dir("ranker").join(files::RANKER), files::RANKER),
            (work.dir("ranker").join(files::REFERENCE), files::REFERENCE),
        ];
        for (from, name) in copies {
            std::fs::copy(&from, dir.join(name))
                .with_context(|| format!("copy {}", from.display()))?;
        }
        std::fs::write(dir.join(files::FEATURES), &self.day.schema_text)?;
        let dictionaries = serde_json::to_vec(&self.layout.dictionaries)?;
        std::fs::write(dir.join(files::DICTIONARIES), dictionaries)?;
        Ok(())
    }
}

/// Brings a bundle here. One that does not come is no baseline, and the gate says so.
fn fetch(runtime: &tokio::runtime::Runtime, registry: &Registry, version: Option<&str>) {
    if let Some(version) = version
        && let Err(error) = runtime.block_on(registry.bundle(version))
    {
        tracing::warn!("{version} serves and cannot be read: {error}");
    }
}

fn read_json<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let bytes = std::fs::read(path).with_context(|| format!("read {}", path.display()))?;
    serde_json::from_slice(&bytes).with_context(|| format!("parse {}", path.display()))
}
