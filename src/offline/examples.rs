//! The ranker's examples: requests of the past with their candidates, labels and feature rows.
//!
//! Where impressions were logged they are the examples: what was shown, and whether it was a
//! success. Where none exist, a moment at which a user succeeded (a basket) is a request, its
//! candidates are what retrieval and the user's repeats would have brought then, and its labels are what
//! the user took then, or within a [`Horizon`].
//! Point in time: the user's history ends strictly before the moment, and every statistic is of
//! the last daily materialisation before it.

use std::collections::HashSet;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use super::aggregates;
use super::as_of::{AsOf, Layout, history};
use super::dataset::Event;
use super::load::Loaded;
use crate::bundle::{EncodeScratch, TowerInputs, TowerUser};
use crate::features::{Candidate, History, Plan, RequestInput, Schema, UserRow};
use crate::index::Index;
use crate::pipeline::{Past, PastConfig, Repeats};
use crate::towers::Towers;
use crate::types::{DAY_MS, ItemIdx, day_start_ms};

/// One request of the past.
#[derive(Clone, Debug)]
pub struct Group {
    pub user: u32,
    pub time_ms: i64,
    /// Codes in the order of the schema's context names.
    pub context: Vec<f32>,
    pub candidates: Vec<Candidate>,
    /// 1 for a success, parallel to the candidates.
    pub labels: Vec<f32>,
    /// How many candidates each stands for, parallel to them: sampled ones stand for more.
    pub weights: Vec<f32>,
    /// Successes of the moment that are not among the candidates.
    pub missed: u32,
}

/// Filled rows of some groups.
#[derive(Clone, Debug, Default)]
pub struct Rows {
    /// Row-major, `labels.len()` rows.
    pub values: Vec<f32>,
    pub labels: Vec<f32>,
    pub weights: Vec<f32>,
    /// Rows of each group.
    pub group_rows: Vec<u32>,
    /// User of each group.
    pub users: Vec<u32>,
}

/// The models that place users and items, and what they read.
#[derive(Clone, Copy)]
pub struct Models<'a> {
    pub schema: &'a Schema,
    pub towers: &'a Towers,
    pub tower_inputs: &'a TowerInputs,
    pub index: &'a dyn Index,
    /// What brings candidates where none were shown.
    pub past: PastConfig<'a>,
}

/// What a run has, and where its daily tables are.
#[derive(Clone, Copy)]
pub struct Source<'a> {
    pub loaded: &'a Loaded,
    pub layout: &'a Layout,
    /// The directory of the daily tables.
    pub features: &'a Path,
    /// The event that shows an item.
    pub impression: &'a str,
}

impl Source<'_> {
    /// The tables of a midnight.
    pub fn day(&self, day_ms: i64) -> Result<AsOf> {
        self.layout.read(&aggregates::day_dir(self.features, day_ms), day_ms, self.loaded)
    }
}

/// Where examples come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Impressions,
    Retrieval,
}

impl Kind {
    /// Impressions, when the window has any.
    pub fn of(loaded: &Loaded, impression: &str, window_ms: [i64; 2]) -> Self {
        let kind = loaded.data.kinds.iter().position(|k| k == impression);
        let shown = |e: &Event| {
            Some(e.kind as usize) == kind
                && e.timed
                && (window_ms[0]..window_ms[1]).contains(&e.time_ms)
        };
        if loaded.data.events.iter().any(shown) { Kind::Impressions } else { Kind::Retrieval }
    }
}

/// How long after a moment what a user takes is its success, where nothing was shown.
#[derive(Clone, Copy, Debug)]
pub struct Horizon {
    pub within_ms: i64,
    /// From when on nothing is known.
    pub until_ms: i64,
}

impl Horizon {
    /// What is taken at the moment alone.
    pub const MOMENT: Self = Self { within_ms: 0, until_ms: i64::MIN };

    fn end_ms(self, time_ms: i64) -> i64 {
        (time_ms + self.within_ms).min(self.until_ms)
    }
}

/// The groups of one day, by user and time; `as_of` is of that day's midnight.
pub fn groups_of_day(
    source: &Source,
    models: &Models,
    as_of: &AsOf,
    kind: Kind,
    horizon: Horizon,
) -> Result<Vec<Group>> {
    let Source { loaded, impression, .. } = *source;
    let day_ms = as_of.time_ms;
    ensure!(day_ms == day_start_ms(day_ms), "tables of a day are of its midnight");
    let window = day_ms..day_ms + DAY_MS;
    let tower_user = TowerUser::new(models.tower_inputs, as_of.users.columns())?;
    let repeats = models.past.repeats(models.schema, &as_of.users, &as_of.items);
    let repeats = repeats.context("pipeline.sources.repeats.map")?;
    let impression = loaded.data.kinds.iter().position(|k| k == impression);
    let names = models.schema.context_names();
    let groups = (0..loaded.data.users.len() as u32)
        .into_par_iter()
        .map_init(
            || (Finder::new(models), Vec::new()),
            |(finder, moments), user| {
                moments.clear();
                moments_of(loaded, user, &window, kind, impression, moments);
                let make = |moment: &Moment| {
                    let past = history(loaded, user, moment.time_ms);
                    let past: Vec<ItemIdx> = past.into_iter().map(|(item, _)| item).collect();
                    finder.encode(models, &tower_user, as_of, user, &past);
                    let (candidates, labels, missed) = match kind {
                        Kind::Impressions => finder.shown(loaded, models, user, moment),
                        Kind::Retrieval => {
                            let end_ms = horizon.end_ms(moment.time_ms);
                            let taken = taken(loaded.data.user(user), moment.time_ms, end_ms);
                            let row = as_of.users.row(user);
                            finder.found(models, (&repeats, row), &past, &taken)
                        }
                    };
                    let context = context_of(loaded, &names, moment);
                    let weights = vec![1.0; labels.len()];
                    let time_ms = moment.time_ms;
                    Group { user, time_ms, context, candidates, labels, weights, missed }
                };
                moments.iter().map(make).collect::<Vec<_>>()
            },
        )
        .flatten_iter()
        .collect();
    Ok(groups)
}

/// Fills the rows of groups, all of one day.
pub fn rows_of_day(
    loaded: &Loaded,
    schema: &Schema,
    as_of: &AsOf,
    groups: &[Group],
) -> Result<Rows> {
    let plan = Plan::new(schema, &as_of.users, &as_of.items)?;
    let parts: Vec<Rows> =
        groups.par_iter().map(|group| group_rows(loaded, &plan, as_of, group)).collect();
    let mut rows = Rows::default();
    parts.into_iter().for_each(|part| rows.append(part));
    Ok(rows)
}

/// The feature columns of one group, as serving would fill them: constants, then column-major.
pub fn columns_of(
    loaded: &Loaded,
    plan: &Plan,
    as_of: &AsOf,
    group: &Group,
) -> (Vec<f32>, Vec<f32>) {
    let (items, times): (Vec<_>, Vec<_>) =
        history(loaded, group.user, group.time_ms).into_iter().unzip();
    let request = RequestInput {
        time_ms: group.time_ms,
        user: as_of.users.row(group.user),
        context: &group.context,
        history: History::new(&items, &times),
    };
    let mut constants = vec![0.0; plan.constant_count()];
    let mut columns = vec![0.0; plan.column_count() * group.candidates.len()];
    plan.constants(&request, &mut constants);
    let mut scratch = plan.scratch(group.candidates.len());
    plan.columns(&request, &as_of.items, &group.candidates, &mut scratch, &mut columns);
    (constants, columns)
}

impl Rows {
    /// Where every impression is a request of its own, there is nothing to order in a request: those
    /// of a user that follow one another become one.
    pub fn join_single_rows(&mut self) {
        if self.group_rows.iter().any(|&rows| rows > 1) {
            return;
        }
        let (mut sizes, mut users) = (Vec::new(), Vec::new());
        for &user in &self.users {
            match sizes.last_mut().filter(|_| users.last() == Some(&user)) {
                Some(size) => *size += 1,
                None => {
                    sizes.push(1);
                    users.push(user);
                }
            }
        }
        (self.group_rows, self.users) = (sizes, users);
    }

    /// Appends the rows of another.
    pub fn append(&mut self, other: Rows) {
        self.values.extend(other.values);
        self.labels.extend(other.labels);
        self.weights.extend(other.weights);
        self.group_rows.extend(other.group_rows);
        self.users.extend(other.users);
    }
}

fn group_rows(loaded: &Loaded, plan: &Plan, as_of: &AsOf, group: &Group) -> Rows {
    let (constants, columns) = columns_of(loaded, plan, as_of, group);
    let n = group.candidates.len();
    let mut values = Vec::with_capacity(n * (constants.len() + plan.column_count()));
    for row in 0..n {
        values.extend_from_slice(&constants);
        values.extend((0..plan.column_count()).map(|column| columns[column * n + row]));
    }
    Rows {
        values,
        labels: group.labels.clone(),
        weights: group.weights.clone(),
        group_rows: vec![n as u32],
        users: vec![group.user],
    }
}

/// Keeps every success and at most `negatives` other candidates of each group, evenly spread over
/// the ranking from a place that depends on the group: cheap, seeded by nothing, and never biased
/// to the top. What is kept stands for what is not, so that probabilities stay those of all
/// candidates.
pub fn sample_negatives(groups: &mut Vec<Group>, negatives: usize) {
    for (number, group) in groups.iter_mut().enumerate() {
        let others = group.labels.iter().filter(|&&label| label == 0.0).count();
        let step = others.div_ceil(negatives.max(1)).max(1);
        let phase = number % step;
        let kept_others = (others + step - 1).saturating_sub(phase) / step;
        let weight = others as f32 / kept_others.max(1) as f32;
        let mut seen = 0;
        let (mut candidates, mut labels, mut weights) = (Vec::new(), Vec::new(), Vec::new());
        for (&candidate, &label) in group.candidates.iter().zip(&group.labels) {
            let keep = label != 0.0 || seen % step == phase;
            seen += usize::from(label == 0.0);
            if keep {
                candidates.push(candidate);
                labels.push(label);
                weights.push(if label == 0.0 { weight } else { 1.0 });
            }
        }
        (group.candidates, group.labels, group.weights) = (candidates, labels, weights);
    }
    groups.retain(|group| group.labels.contains(&1.0));
}

/// A user at a moment, with what was shown (or taken) then: positions in the dataset's events.
struct Moment {
    time_ms: i64,
    events: std::ops::Range<usize>,
}

fn moments_of(
    loaded: &Loaded,
    user: u32,
    window: &std::ops::Range<i64>,
    kind: Kind,
    impression: Option<usize>,
    out: &mut Vec<Moment>,
) {
    let span = loaded.data.range(user);
    let counts = |e: &Event| match kind {
        Kind::Impressions => Some(e.kind as usize) == impression && e.timed,
        Kind::Retrieval => e.positive && e.timed,
    };
    for at in span {
        let event = &loaded.data.events[at];
        if !window.contains(&event.time_ms) || !counts(event) {
            continue;
        }
        let same = |m: &&mut Moment| m.time_ms == event.time_ms && m.events.end == at;
        match out.last_mut().filter(same) {
            Some(moment) => moment.events.end = at + 1,
            None => out.push(Moment { time_ms: event.time_ms, events: at..at + 1 }),
        }
    }
}

/// The context of a moment: codes in the order of the names.
fn context_of(loaded: &Loaded, names: &[String], moment: &Moment) -> Vec<f32> {
    let code = |name: &String| {
        let column = loaded.data.context.iter().find(|(n, _)| n == name);
        column.map_or(f32::NAN, |(_, codes)| codes[moment.events.start])
    };
    names.iter().map(code).collect()
}

/// Candidates, their labels, and how many successes are not among them.
type Judged = (Vec<Candidate>, Vec<f32>, u32);

/// Buffers to place a user and find candidates.
struct Finder {
    encode: EncodeScratch,
    past: Past,
    vector: Vec<f32>,
    scores: Vec<f32>,
}

impl Finder {
    fn new(models: &Models) -> Self {
        Self {
            encode: EncodeScratch::new(models.towers),
            past: Past::default(),
            vector: vec![0.0; models.towers.dim()],
            scores: Vec::new(),
        }
    }

    fn encode(
        &mut self,
        models: &Models,
        tower_user: &TowerUser,
        as_of: &AsOf,
        user: u32,
        past: &[ItemIdx],
    ) {
        let row = as_of.users.row(user);
        tower_user.encode(models.towers, row, past, &mut self.encode, &mut self.vector);
    }

    /// What was shown at a moment.
    fn shown(&mut self, loaded: &Loaded, models: &Models, user: u32, moment: &Moment) -> Judged {
        let events = &loaded.data.events[moment.events.clone()];
        let items: Vec<ItemIdx> = events.iter().map(|e| ItemIdx(e.item)).collect();
        self.past.similarities(models.index, &self.vector, &items, &mut self.scores);
        let candidate = |(&item, &similarity): (&ItemIdx, &f32)| Candidate {
            item,
            similarity,
            retrieval_rank: f32::NAN,
            retrieval_score: f32::NAN,
        };
        let label = |e: &Event| if succeeded(loaded, user, e) { 1.0 } else { 0.0 };
        let candidates = items.iter().zip(&self.scores).map(candidate).collect();
        (candidates, events.iter().map(label).collect(), 0)
    }

    /// What a request of that moment would have found.
    fn found(
        &mut self,
        models: &Models,
        (repeats, user): (&Repeats, UserRow),
        history: &[ItemIdx],
        taken: &HashSet<u32>,
    ) -> Judged {
        let sources = (models.index, repeats);
        let candidates = self.past.candidates(models.past, sources, &self.vector, user, history);
        let label = |c: &Candidate| if taken.contains(&c.item.0) { 1.0 } else { 0.0 };
        let labels: Vec<f32> = candidates.iter().map(label).collect();
        let found = labels.iter().filter(|&&label| label == 1.0).count();
        (candidates, labels, (taken.len() - found) as u32)
    }
}

/// What a user with these events, in order of time, took at a moment, and after it until another.
fn taken(events: &[Event], time_ms: i64, until_ms: i64) -> HashSet<u32> {
    let from = events.partition_point(|e| e.time_ms < time_ms);
    let soon = |e: &&Event| e.time_ms == time_ms || e.time_ms < until_ms;
    let soon = events[from..].iter().take_while(soon);
    soon.filter(|e| e.positive && e.timed).map(|e| e.item).collect()
}

/// Whether what was shown led to a success: the same request (or, without request ids, the same
/// user within a day) has a positive of the item; else the imported label says.
fn succeeded(loaded: &Loaded, user: u32, shown: &Event) -> bool {
    let later = loaded.data.user(user);
    let from = later.partition_point(|e| e.time_ms < shown.time_ms);
    let joins = |e: &&Event| {
        e.item == shown.item && e.positive && e.kind != shown.kind && e.request == shown.request
    };
    let window_end = shown.time_ms + DAY_MS;
    let hit = later[from..].iter().take_while(|e| e.time_ms < window_end).any(|e| joins(&e));
    hit || shown.label >= 0.5
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(labels: &[f32]) -> Group {
        let candidate = |at: usize| Candidate {
            item: ItemIdx(at as u32),
            similarity: 0.0,
            retrieval_rank: at as f32,
            retrieval_score: 0.0,
        };
        Group {
            user: 0,
            time_ms: 0,
            context: vec![],
            candidates: (0..labels.len()).map(candidate).collect(),
            labels: labels.to_vec(),
            weights: vec![1.0; labels.len()],
            missed: 0,
        }
    }

    #[test]
    fn a_success_is_taken_at_the_moment_or_soon_after_but_not_when_nothing_is_known() {
        let event = |item: u32, time_ms: i64| Event {
            user: 0,
            item,
            kind: 0,
            time_ms,
            timed: true,
            positive: item != 9,
            value: f32::NAN,
            label: f32::NAN,
            request: 0,
        };
        let events =
            [event(1, 5), event(2, 10), event(3, 10), event(9, 11), event(4, 12), event(5, 20)];
        let at_ten = |until_ms| {
            let mut found: Vec<u32> = taken(&events, 10, until_ms).into_iter().collect();
            found.sort_unstable();
            found
        };
        assert_eq!(at_ten(10), [2, 3], "of the moment alone");
        assert_eq!(at_ten(20), [2, 3, 4], "9 was not a success");
        assert_eq!(at_ten(21), [2, 3, 4, 5]);
        let within = Horizon { within_ms: 10, until_ms: 15 };
        assert_eq!(at_ten(within.end_ms(10)), [2, 3, 4], "nothing is known from 15 on");
        assert_eq!(at_ten(Horizon::MOMENT.end_ms(10)), [2, 3]);
    }

    #[test]
    fn impressions_of_a_user_become_one_group_and_requests_stay() {
        let rows = |sizes: &[u32], users: &[u32]| Rows {
            group_rows: sizes.to_vec(),
            users: users.to_vec(),
            ..Rows::default()
        };
        let mut single = rows(&[1, 1, 1, 1], &[4, 4, 9, 4]);
        single.join_single_rows();
        assert_eq!((single.group_rows, single.users), (vec![2, 1, 1], vec![4, 9, 4]));
        let mut requests = rows(&[1, 3, 1], &[4, 4, 4]);
        requests.join_single_rows();
        assert_eq!(requests.group_rows, [1, 3, 1]);
    }

    #[test]
    fn sampling_keeps_successes_bounds_the_rest_and_keeps_the_total_weight() {
        let mut labels = vec![0.0; 103];
        (labels[5], labels[90]) = (1.0, 1.0);
        let mut groups: Vec<Group> = (0..7).map(|_| group(&labels)).collect();
        groups.push(group(&[0.0; 9]));
        sample_negatives(&mut groups, 10);
        assert_eq!(groups.len(), 7, "a group without a success teaches nothing");
        let mut firsts = HashSet::new();
        for group in &groups {
            let others = group.labels.iter().filter(|&&label| label == 0.0).count();
            assert_eq!(group.labels.len() - others, 2);
            assert!((1..=10).contains(&others), "{others} negatives");
            let weight: f32 = group.weights.iter().sum();
            assert!((weight - 103.0).abs() < 1e-3, "total weight {weight}");
            firsts.insert(group.candidates[0].item);
        }
        assert!(firsts.len() > 3, "each group starts elsewhere");
    }
}
