//! The steps `evaluate` and `approve` of a run: what is compared with what, and the gate's word.

use std::path::Path;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};

use super::{Day, Moment, Run};
use crate::bundle::{self, Bundle, Registry, files};
use crate::forest::Forest;
use crate::offline::approve::{self, Asked, Decision};
use crate::offline::evaluate::rival::{self, Rival};
use crate::offline::evaluate::served::{self, Question};
use crate::offline::evaluate::{self, Baseline, Report, Subject};
use crate::offline::workspace::write_atomically;
use crate::offline::{aggregates, audit, page, progress, recall};
use crate::pipeline::Serving;
use crate::types::DAY_MS;

impl Day<'_> {
    /// Asks the gate; writes what it said, and stops the day where it refuses.
    pub(super) fn approve(&self, report: &Report, asked: Asked) -> Result<Decision> {
        let word = self.overridden.clone();
        let decision = approve::decide(report, asked, &self.config.gate, word);
        for check in &decision.checks {
            let mark = if check.passed { "passed" } else { "REFUSED" };
            tracing::info!("gate: {mark} {}: {}", check.name, check.text);
        }
        let dir = self.work.dir("approve");
        std::fs::create_dir_all(&dir)?;
        let path = dir.join("decision.json");
        write_atomically(&path, &serde_json::to_vec_pretty(&decision)?)?;
        let page = self.work.dir("evaluate").join(files::REPORT_PAGE);
        write_atomically(&page, page::render(report, Some(&decision)).as_bytes())?;
        tracing::info!("for a person: {}", page.display());
        if let Some(word) = &decision.overridden {
            tracing::warn!("gate: refused, and overridden by {}: {}", word.who, word.why);
        }
        if !decision.approved && decision.overridden.is_none() {
            bail!(
                "the gate refused the new models (see {}); nothing was published, the serving \
                 bundle stays. `--override REASON` publishes all the same and is recorded",
                path.display()
            );
        }
        Ok(decision)
    }
}

impl Run<'_> {
    /// Measures the new models, and the bundle that serves, on the test days; `report.json`.
    pub(super) fn evaluate(
        &self,
        dir: &Path,
        registry: &Registry,
        serving: Option<&str>,
    ) -> Result<()> {
        let test = &self.split.test_ms;
        let mut report = Report { window_ms: [test.start, test.end], ..Report::default() };
        let (rival, baseline) = match serving {
            Some(version) => self.rival(registry, version),
            None => (None, None),
        };
        report.baseline = baseline;
        if self.day.config.evaluate.audit {
            report.leaks = self.audit()?;
        }
        let measured = self.measure(rival.as_ref(), &mut report);
        drop(rival);
        let measured = measured.and_then(|()| self.shown(dir, registry, &mut report));
        if let Err(fault) = measured {
            // What cannot be measured is the gate's to refuse, with the reason.
            report.faults.push(format!("{fault:#}"));
        }
        write_atomically(&dir.join(files::REPORT_PAGE), page::render(&report, None).as_bytes())?;
        write_atomically(&dir.join(files::REPORT), &serde_json::to_vec_pretty(&report)?)
    }

    fn measure(&self, rival: Option<&Rival>, report: &mut Report) -> Result<()> {
        let path = self.day.work.dir("ranker").join(files::RANKER);
        let ranker = Forest::parse(&std::fs::read_to_string(&path)?)
            .map_err(|error| anyhow::anyhow!("{}: {error}", files::RANKER))?;
        let (towers, index) = (self.open_towers(Moment::Test)?, self.open_index(Moment::Test)?);
        let vectors = self.vectors(Moment::Test)?;
        let bad = vectors.iter().filter(|value| !value.is_finite()).count();
        ensure!(bad == 0, "{bad} numbers of the item vectors are not finite");
        let models = self.models(&towers, &*index);
        let subject = Subject { models, vectors: &vectors, ranker: &ranker };
        let (test, config) = (&self.split.test_ms, &self.day.config.evaluate);
        evaluate::run(&self.source(), &subject, rival, test, config, report)
    }

    /// What users would have been shown by the new models, and by the bundle that serves.
    fn shown(&self, dir: &Path, registry: &Registry, report: &mut Report) -> Result<()> {
        let config = &self.day.config.evaluate;
        let most = config.served_users_max;
        if most == 0 || !report.faults.is_empty() {
            return Ok(());
        }
        let dir = dir.join("served");
        if dir.exists() {
            std::fs::remove_dir_all(&dir)?;
        }
        std::fs::create_dir_all(&dir)?;
        self.parts(&dir, Moment::Test)?;
        std::fs::write(dir.join(files::REPORT), "{}")?;
        self.manifest(&dir, Moment::Test, None, None)?;
        let (window_ms, vectors) = (report.window_ms, self.vectors(Moment::Test)?);
        let recent_ms = window_ms[0] - config.recent_days * DAY_MS;
        let question = Question {
            loaded: self.loaded,
            window_ms,
            users: &recall::users_with(self.loaded, window_ms, most),
            vectors: &vectors,
            popular: &recall::popularity(self.loaded, [recent_ms, window_ms[0]]),
            bootstrap: evaluate::bootstrap(config),
        };
        let open = |dir: &Path| -> Result<Arc<Serving>> {
            let bundle = Bundle::open(dir, false, self.day.shared.index)?;
            served::serving(bundle, &self.day.shared.serving)
        };
        let ours = open(&dir)?;
        let mut systems = vec![
            ("served", question.ask(&ours)),
            ("ranked", question.ask(&served::ranked(&ours))),
            ("popularity", question.popular()),
            ("repeats", question.repeats()),
        ];
        drop(ours);
        std::fs::remove_dir_all(&dir)?;
        // A bundle is asked as it serves. One of a later moment holds what the test days brought.
        if let Some(Baseline { version, as_of_ms, silent: None, .. }) = &report.baseline
            && *as_of_ms <= window_ms[0]
        {
            systems.push(("previous", question.ask(&open(&registry.bundle_dir(version)?)?)));
        }
        let found = question.judge(&systems, 2);
        report.served = found.figures;
        report.differences.extend(found.differences);
        Ok(())
    }

    /// Features of the ranker's and the test's first rows that know what came later.
    fn audit(&self) -> Result<Vec<audit::Leak>> {
        let config = self.day.config;
        let maker = audit::Maker {
            engine: config.engine(),
            aggregates: &config.aggregates,
            signals: &config.signals,
        };
        let bar = progress::spinner("audit");
        let mut leaks = Vec::new();
        for day_ms in [self.split.ranker_ms.start, self.split.test_ms.start] {
            bar.set_message(crate::types::date_of(day_ms));
            let root = self.day.work.root();
            let found = audit::leaks(&self.source(), &self.day.schema, root, day_ms, maker)?;
            leaks.extend(found);
        }
        bar.finish_and_clear();
        Ok(leaks)
    }

    /// What the new models are compared with: the serving bundle; when that is this very run's,
    /// published before, the one it replaced.
    pub(super) fn baseline(&self, registry: &Registry, serving: String) -> Option<String> {
        let manifest = bundle::Manifest::open(&registry.bundle_dir(&serving).ok()?, false).ok();
        let Some(manifest) = manifest else { return Some(serving) };
        let ours = |(name, path): (&str, std::path::PathBuf)| {
            manifest.files.get(name) == bundle::FileEntry::of(&path).ok().as_ref()
        };
        let ranker = self.day.work.dir("ranker").join(files::RANKER);
        let models = [(files::TOWERS, self.towers_path(Moment::Publish)), (files::RANKER, ranker)];
        if models.into_iter().all(ours) { manifest.parents.first().cloned() } else { Some(serving) }
    }

    /// The serving bundle as a rival, and what the report says of it.
    fn rival(&self, registry: &Registry, version: &str) -> (Option<Rival>, Option<Baseline>) {
        let tables = aggregates::day_dir(&self.features, self.split.test_ms.start);
        let mut about = Baseline {
            version: version.to_owned(),
            as_of_ms: 0,
            trained_until_ms: 0,
            silent: None,
        };
        let opened = registry.bundle_dir(version).map_err(anyhow::Error::from).and_then(|dir| {
            let manifest = bundle::Manifest::open(&dir, false)?;
            about.as_of_ms = manifest.as_of_ms;
            about.trained_until_ms = manifest.training_window_ms[1];
            rival::open(&dir, self.day.shared.index, self.loaded, &tables)
        });
        let rival = match opened {
            Ok(rival) => Some(rival),
            Err(error) => {
                tracing::warn!("{version} serves and is no baseline: {error:#}");
                about.silent = Some(format!("{error:#}"));
                None
            }
        };
        (rival, Some(about))
    }
}
