//! `shortlist rollout rehearse`: the decision code that ships, under a simulated clock, over
//! simulated users whose true CTR is known.

use std::num::NonZero;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};

use crate::experiments::Settings;
use crate::experiments::rehearsal::{Ended, Outcome, World, rehearse};

/// Arguments of `shortlist rollout rehearse`.
#[derive(clap::Args)]
pub struct Args {
    /// Requests a day, over all replicas.
    #[arg(long, default_value_t = 1_000_000.0)]
    requests_per_day: f64,
    /// Users who come at all.
    #[arg(long, default_value_t = 200_000)]
    users: usize,
    /// Items of an answer that a user looks at.
    #[arg(long, default_value_t = 8)]
    impressions: usize,
    /// Clicks over impressions of the bundle that serves.
    #[arg(long, default_value_t = 0.04)]
    ctr: f64,
    /// Standard deviation of the logarithm of the users' own CTRs.
    #[arg(long, default_value_t = 0.5)]
    ctr_spread: f64,
    /// The same of how often they come.
    #[arg(long, default_value_t = 1.0)]
    activity_spread: f64,
    /// Share of the clicks that become sales.
    #[arg(long, default_value_t = 0.02)]
    sales_per_click: f64,
    /// Relative effects on the CTR, each rehearsed `--runs` times; 0 four times as often.
    #[arg(long, value_delimiter = ',', allow_hyphen_values = true, default_values_t = [-0.05, 0.05, 0.0])]
    effects: Vec<f64>,
    /// Rollouts of each effect.
    #[arg(long, default_value_t = 50)]
    runs: u64,
    /// Minutes between two looks at the counts.
    #[arg(long, default_value_t = 15.0)]
    look_minutes: f64,
    /// Days after which a rollout counts as undecided.
    #[arg(long, default_value_t = 30.0)]
    days_max: f64,
    /// Threads; one a core by default.
    #[arg(long)]
    threads: Option<usize>,
    /// Appends the figures to this file, in the columns of bench/record.
    #[arg(long)]
    record: Option<PathBuf>,
    /// First columns of the record: the commit, and the machine.
    #[arg(long, default_value = "-")]
    run_id: String,
    #[arg(long, default_value = "-")]
    machine: String,
}

/// Rehearses and prints a table.
pub fn run(args: &Args, settings: &Settings) -> Result<()> {
    let world = args.world()?;
    println!(
        "{} requests a day of {} users, {} impressions each, CTR {}; looks every {} minutes",
        args.requests_per_day, args.users, args.impressions, args.ctr, args.look_minutes
    );
    println!(
        "{:>7} {:>5} {:>12} {:>10} {:>9} {:>10} {:>24} {:>16}",
        "effect",
        "runs",
        "rolled back",
        "before 50%",
        "promoted",
        "undecided",
        "hours p10 / p50 / p90",
        "interval held"
    );
    let mut rows = Vec::new();
    for &effect in &args.effects {
        let runs = if effect == 0.0 { 4 * args.runs } else { args.runs };
        let outcomes = all(&world, settings, effect, runs, args.threads);
        let summary = Summary::of(&outcomes);
        println!(
            "{:>+6.1}% {:>5} {:>12} {:>10} {:>9} {:>10} {:>24} {:>16}",
            100.0 * effect,
            runs,
            summary.rolled_back,
            summary.before_half,
            summary.promoted,
            summary.undecided,
            format!("{:.1} / {:.1} / {:.1}", summary.hours[0], summary.hours[1], summary.hours[2]),
            format!("{:.1} %", 100.0 * summary.held_always),
        );
        rows.push((effect, runs, summary));
    }
    println!("hours: from the first user that sees the challenger to the decision.");
    println!("interval held: the true effect was inside the interval at every look.");
    match &args.record {
        Some(path) => record(path, args, &rows),
        None => Ok(()),
    }
}

impl Args {
    fn world(&self) -> Result<World> {
        ensure!(
            self.users > 0 && self.impressions > 0,
            "give at least one user and one impression"
        );
        ensure!(
            self.requests_per_day > 0.0,
            "--requests-per-day {}: give more",
            self.requests_per_day
        );
        ensure!(self.ctr > 0.0 && self.ctr < 0.5, "--ctr {}: give 0 to 0.5", self.ctr);
        ensure!(self.look_minutes >= 1.0, "--look-minutes {}: give at least 1", self.look_minutes);
        ensure!(self.runs > 0, "--runs 0: give at least 1");
        let spreads = [self.ctr_spread, self.activity_spread];
        ensure!(spreads.iter().all(|s| (0.0..=3.0).contains(s)), "give spreads from 0 to 3");
        ensure!(
            self.effects.iter().all(|effect| effect.abs() < 0.5),
            "--effects: give relative effects between -0.5 and 0.5"
        );
        Ok(World {
            users: self.users,
            requests_per_day: self.requests_per_day,
            impressions_per_request: self.impressions,
            ctr: self.ctr,
            ctr_spread: self.ctr_spread,
            activity_spread: self.activity_spread,
            sales_per_click: self.sales_per_click,
            sale_value: 30.0,
            look_minutes: self.look_minutes,
            days_max: self.days_max,
        })
    }
}

/// Runs them on some threads; run n has seed n.
fn all(
    world: &World,
    settings: &Settings,
    effect: f64,
    runs: u64,
    threads: Option<usize>,
) -> Vec<Outcome> {
    let cores = std::thread::available_parallelism().map_or(1, NonZero::get);
    let (next, outcomes) = (AtomicU64::new(0), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..threads.unwrap_or(cores).max(1) {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= runs {
                        return;
                    }
                    let outcome = rehearse(world, settings, effect, seed);
                    outcomes.lock().unwrap_or_else(PoisonError::into_inner).push(outcome);
                }
            });
        }
    });
    outcomes.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// What came of the rollouts of one effect.
struct Summary {
    rolled_back: usize,
    before_half: usize,
    promoted: usize,
    undecided: usize,
    /// 10th, 50th and 90th percentile.
    hours: [f64; 3],
    /// Share of the runs.
    held_always: f64,
    /// Share of the single 95 % intervals of a CTR that held the true one, and their number.
    held_once: (f64, usize),
}

impl Summary {
    fn of(outcomes: &[Outcome]) -> Self {
        let count = |is: &dyn Fn(&Outcome) -> bool| outcomes.iter().filter(|o| is(o)).count();
        let back = |o: &Outcome| o.ended == Ended::RolledBack;
        let mut hours: Vec<f64> = outcomes.iter().map(|o| o.hours).collect();
        hours.sort_by(f64::total_cmp);
        let once: Vec<bool> = outcomes.iter().filter_map(|o| o.held_once).flatten().collect();
        let held = once.iter().filter(|held| **held).count();
        Self {
            rolled_back: count(&back),
            before_half: count(&|o| back(o) && o.percent < 50),
            promoted: count(&|o| o.ended == Ended::Promoted),
            undecided: count(&|o| o.ended == Ended::Undecided),
            hours: [0.1, 0.5, 0.9].map(|q| hours[(q * (hours.len() - 1) as f64).round() as usize]),
            held_always: count(&|o| o.held_always) as f64 / outcomes.len() as f64,
            held_once: (held as f64 / once.len().max(1) as f64, once.len()),
        }
    }
}

/// Appends the figures.
fn record(path: &Path, args: &Args, rows: &[(f64, u64, Summary)]) -> Result<()> {
    use std::io::Write;

    let shown = || path.display().to_string();
    let mut file =
        std::fs::OpenOptions::new().create(true).append(true).open(path).with_context(shown)?;
    if file.metadata().with_context(shown)?.len() == 0 {
        writeln!(file, "run_id,work,system,setting,metric,value,unit,date,machine")?;
    }
    let date = chrono::Utc::now().format("%Y-%m-%d");
    for (effect, runs, summary) in rows {
        let setting = format!(
            "effect={effect:+} requests/day={} users={} impressions={} ctr={} runs={runs}",
            args.requests_per_day, args.users, args.impressions, args.ctr
        );
        let (once, intervals) = summary.held_once;
        for (metric, value, unit) in [
            ("rolled_back", summary.rolled_back as f64, "runs"),
            ("rolled_back_before_50", summary.before_half as f64, "runs"),
            ("promoted", summary.promoted as f64, "runs"),
            ("undecided", summary.undecided as f64, "runs"),
            ("hours_p10", summary.hours[0], "h"),
            ("hours_p50", summary.hours[1], "h"),
            ("hours_p90", summary.hours[2], "h"),
            ("interval_held_at_every_look", summary.held_always, "share"),
            ("ctr_interval_held_once", once, "share"),
            ("ctr_intervals", intervals as f64, "intervals"),
        ] {
            let (id, machine) = (&args.run_id, &args.machine);
            writeln!(
                file,
                "{id},rollout-rehearsal,shortlist,{setting},{metric},{value},{unit},{date},{machine}"
            )?;
        }
    }
    Ok(())
}
