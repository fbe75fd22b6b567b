//! `shortlist simulate`: the users of a generated world ask a running server, look, click and buy.
//!
//! What they like is hidden (`generate::world`); whether a place is looked at depends on the place alone
//! (position-based model; Craswell, Zoeter, Taylor and Ramsey, WSDM 2008). So the true click-through
//! rate of whatever the server shows is known, and that of the best and of a random answer: how much of what
//! could be learnt has been learnt.

mod client;
mod truth;

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use anyhow::{Context, Result, ensure};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use serde::Serialize;
use serde_json::{Value, json};

use super::generate::Made;
use super::generate::behaviour::{device, examined, purchase_chance};
use super::generate::tables::id;
use super::generate::world::REGIONS;
use crate::config::Config;
use client::Client;
use truth::Truth;

/// Two-sided 95 % of a normal distribution.
const Z: f64 = 1.96;

/// Arguments of `shortlist simulate`.
#[derive(clap::Args)]
pub struct Args {
    /// The world's directory, as `shortlist generate` made it.
    #[arg(long)]
    world: PathBuf,
    /// The server, http://HOST:PORT; without one, that of the configuration.
    #[arg(long)]
    url: Option<String>,
    /// Requests of each user.
    #[arg(long, default_value_t = 3)]
    visits: u32,
    /// Items of an answer.
    #[arg(long, default_value_t = 10)]
    num_items: usize,
    /// Seed of what users do.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Users who ask at the same time.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Users, evenly chosen, for whom the best answer is looked for.
    #[arg(long, default_value_t = 500)]
    oracle_users: u64,
    /// Print JSON.
    #[arg(long)]
    json: bool,
}

/// What came of it.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Outcome {
    pub requests: u64,
    pub impressions: u64,
    pub clicks: u64,
    pub purchases: u64,
    pub revenue: f64,
    /// Clicks an impression, and the interval of 95 % over users.
    pub measured_ctr: f64,
    pub measured_low: f64,
    pub measured_high: f64,
    /// The mean chance of a click, which `measured_ctr` is a draw of.
    pub true_ctr: f64,
    /// That of the best answers, which know what users like, and of random ones.
    pub oracle_ctr: f64,
    pub random_ctr: f64,
}

/// Sums of one user.
#[derive(Clone, Copy, Default)]
struct User {
    requests: u64,
    impressions: u64,
    clicks: u64,
    purchases: u64,
    revenue: f64,
    chance: f64,
}

/// Simulates.
pub fn run(args: &Args, config: &Config) -> Result<()> {
    ensure!(args.visits > 0, "--visits 0: give at least 1");
    ensure!(args.threads > 0, "--threads 0: give at least 1");
    let made = Made::read(&args.world)?;
    let truth = Truth::new(&made)?;
    let url = args.url.clone().unwrap_or_else(|| {
        let bind = config.server.bind;
        let host = if bind.is_unspecified() { "127.0.0.1".to_owned() } else { bind.to_string() };
        format!("http://{host}:{}", config.server.port)
    });
    let next = AtomicU64::new(0);
    let work = || -> Result<Vec<User>> {
        let (client, mut users) = (Client::new(&url), Vec::new());
        loop {
            let row = next.fetch_add(1, Relaxed);
            if row >= made.users {
                return Ok(users);
            }
            users.push(visit(args, &truth, &client, row)?);
        }
    };
    let parts = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..args.threads).map(|_| scope.spawn(work)).collect();
        let joined = threads.into_iter().map(|thread| thread.join().expect("no panic in a visit"));
        joined.collect::<Result<Vec<_>>>()
    })?;
    let users: Vec<User> = parts.into_iter().flatten().collect();
    let mut outcome = summary(&users);
    let limits = truth::Limits {
        places: args.num_items,
        per_category: config.rules.max_per_category,
        users: args.oracle_users,
    };
    (outcome.oracle_ctr, outcome.random_ctr) = truth.bounds(&limits);
    if args.json {
        println!("{}", serde_json::to_string(&outcome)?);
    } else {
        lines(&outcome).iter().for_each(|line| println!("{line}"));
    }
    Ok(())
}

/// All requests of one user. Everything they do follows from seed and row, whatever other users do.
fn visit(args: &Args, truth: &Truth, client: &Client, row: u64) -> Result<User> {
    let mut rng = Pcg64Mcg::seed_from_u64(args.seed ^ row.wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let person = truth.person(row);
    let (name, region) = (id('u', row), REGIONS[person.user.region as usize]);
    let mut sums = User::default();
    for _ in 0..args.visits {
        let device = device(&mut rng);
        let ask = json!({
            "user_id": name, "num_items": args.num_items, "device": device, "region": region,
        });
        let answer = client.post("/v1/recommendations", &ask)?;
        let items = answer["items"].as_array().context("an answer without items")?;
        sums.requests += 1;
        let event = |item: &Value, at: usize, kind: &str, value: Option<f64>| {
            json!({
                "user_id": name, "item_id": item["item_id"], "event": kind, "value": value,
                "request_id": answer["request_id"], "position": at + 1,
                "device": device, "region": region,
            })
        };
        let mut events = Vec::new();
        for (at, item) in items.iter().enumerate() {
            let shown = item["item_id"].as_str().context("an item without an id")?;
            let shown = truth.item_of(shown)?;
            let chance = examined(at) * truth.appeal(&person, shown, device);
            events.push(event(item, at, "impression", None));
            sums.impressions += 1;
            sums.chance += chance;
            if !rng.random_bool(chance) {
                continue;
            }
            events.push(event(item, at, "click", None));
            sums.clicks += 1;
            if rng.random_bool(purchase_chance(truth.item(shown))) {
                let price = truth.item(shown).price;
                events.push(event(item, at, "purchase", Some(price)));
                sums.purchases += 1;
                sums.revenue += price;
            }
        }
        if !events.is_empty() {
            client.post("/v1/events", &Value::Array(events))?;
        }
    }
    Ok(sums)
}

fn summary(users: &[User]) -> Outcome {
    let mut all = Outcome::default();
    let mut chance = 0.0;
    for user in users {
        all.requests += user.requests;
        all.impressions += user.impressions;
        all.clicks += user.clicks;
        all.purchases += user.purchases;
        all.revenue += user.revenue;
        chance += user.chance;
    }
    let shown = (all.impressions as f64).max(1.0);
    let ctr = all.clicks as f64 / shown;
    // Users are independent, their impressions are not.
    let off = |user: &User| (user.clicks as f64 - ctr * user.impressions as f64).powi(2);
    let n = users.len() as f64;
    let variance = users.iter().map(off).sum::<f64>() * n / (n - 1.0).max(1.0);
    let error = Z * variance.sqrt() / shown;
    Outcome {
        measured_ctr: ctr,
        measured_low: (ctr - error).max(0.0),
        measured_high: ctr + error,
        true_ctr: chance / shown,
        ..all
    }
}

fn lines(outcome: &Outcome) -> Vec<String> {
    let percent = |value: f64| format!("{:.2} %", 100.0 * value);
    let learnt =
        (outcome.true_ctr - outcome.random_ctr) / (outcome.oracle_ctr - outcome.random_ctr);
    vec![
        format!(
            "{} requests, {} impressions, {} clicks, {} purchases worth {:.2}",
            outcome.requests,
            outcome.impressions,
            outcome.clicks,
            outcome.purchases,
            outcome.revenue
        ),
        format!(
            "CTR measured {} [{}, {}], true {}",
            percent(outcome.measured_ctr),
            percent(outcome.measured_low),
            percent(outcome.measured_high),
            percent(outcome.true_ctr)
        ),
        format!(
            "random answers {}, the best ones {}: {:.0} % of the way",
            percent(outcome.random_ctr),
            percent(outcome.oracle_ctr),
            100.0 * learnt
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_measured_rate_is_a_draw_of_the_true_one() {
        let mut held = 0;
        for seed in 0..200 {
            let mut rng = Pcg64Mcg::seed_from_u64(seed);
            let users: Vec<User> = (0..300)
                .map(|at| {
                    let rate = if at % 3 == 0 { 0.3 } else { 0.05 };
                    let clicks = (0..20).filter(|_| rng.random_bool(rate)).count() as u64;
                    User { impressions: 20, clicks, chance: 20.0 * rate, ..User::default() }
                })
                .collect();
            let outcome = summary(&users);
            assert!((outcome.true_ctr - 0.4 / 3.0).abs() < 1e-9);
            let held_here = outcome.measured_low..outcome.measured_high;
            held += usize::from(held_here.contains(&outcome.true_ctr));
        }
        assert!(held >= 180, "{held} of 200 intervals hold the truth");
    }
}
