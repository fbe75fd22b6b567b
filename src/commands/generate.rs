//! `shortlist generate`: a synthetic world of any size, as canonical tables and vectors.
//!
//! ```text
//! OUT/items/items-00000.parquet            item_id, title, category, price, created_at, in_stock,
//!                                          regions, labels, image_url, department, brand, rating
//! OUT/users/users-00000.parquet            user_id, region, age_band, price_level, signed_up_at
//! OUT/events/dt=YYYY-MM-DD/generated-00000.parquet   impressions, clicks and purchases of the day
//! OUT/vectors/items-00000.parquet          item_id, vector (fixed-size list of 128 f32)
//! OUT/vectors/queries-00000.parquet        user_id, vector; the first rows are the users
//! OUT/world.json                           the arguments; written last, so it marks a whole world
//! ```
//! Every row follows from the seed and its own number alone (`world`), so the content is the same
//! for any chunk size, any number of threads, and, item by item, any number of items. Memory is
//! bounded by `--chunk-rows`, plus 4 bytes an item while events are drawn.

pub mod behaviour;
pub mod tables;
#[cfg(test)]
mod tests;
pub mod world;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use chrono::{Days, NaiveDate};
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;

use behaviour::{Catalogue, Traffic};
use tables::TableWriter;
use world::{DIM, Setting, World};

/// Arguments of `shortlist generate`.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// Directory for the tables; created, and refused if it holds anything.
    #[arg(long)]
    pub out: PathBuf,
    /// Number of items.
    #[arg(long, default_value_t = 100_000)]
    pub items: u64,
    /// Number of users.
    #[arg(long, default_value_t = 10_000)]
    pub users: u64,
    /// Query vectors; the first are the users'. Default: as many as users, at least 1000.
    #[arg(long)]
    pub queries: Option<u64>,
    /// Days of events.
    #[arg(long, default_value_t = 14)]
    pub days: u32,
    /// First day of events (UTC).
    #[arg(long, default_value = "2026-01-01")]
    pub start_date: NaiveDate,
    /// Mean impressions a user and day; clicks and purchases come on top.
    #[arg(long, default_value_t = 10.0)]
    pub events_per_user_day: f64,
    /// Impressions in all (expected), instead of --events-per-user-day.
    #[arg(long, conflicts_with = "events_per_user_day")]
    pub events: Option<u64>,
    /// Seed of everything.
    #[arg(long, default_value_t = 42)]
    pub seed: u64,
    /// Let regions follow topics: a filter on the region then has to do with the query.
    #[arg(long)]
    pub region_by_topic: bool,
    /// Isotropic noise of the vectors, as a length; 0.2 is the standard set, more is harder.
    #[arg(long, default_value_t = 0.2)]
    pub noise: f64,
    /// Leave out vectors/.
    #[arg(long)]
    pub no_vectors: bool,
    /// Rows made at once.
    #[arg(long, default_value_t = 65_536)]
    pub chunk_rows: usize,
    /// Threads; 0 takes all processors.
    #[arg(long, default_value_t = 0)]
    pub threads: usize,
}

/// Writes the world.
///
/// # Errors
/// When an argument is out of range, or a file cannot be written.
pub fn run(args: Args) -> Result<()> {
    check(&args)?;
    std::fs::create_dir_all(&args.out)
        .with_context(|| format!("cannot create {}", args.out.display()))?;
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(args.threads)
        .thread_name(|i| format!("generate-{i}"))
        .build()
        .context("cannot start the threads of the generator")?;
    let world = World::new(Setting {
        seed: args.seed,
        noise: args.noise,
        region_by_topic: args.region_by_topic,
        start_us: day_us(args.start_date, 0)?,
        days: args.days,
    });
    let job = Job { args: &args, world: &world, pool: &pool };
    job.items()?;
    job.users()?;
    if !args.no_vectors {
        job.queries()?;
    }
    job.events()?;
    job.record()
}

fn check(args: &Args) -> Result<()> {
    let rows_max = u64::from(u32::MAX) - 1;
    ensure!((1..=rows_max).contains(&args.items), "--items {}: 1 to {rows_max}", args.items);
    ensure!(args.users <= rows_max, "--users {}: at most {rows_max}", args.users);
    ensure!(args.chunk_rows > 0, "--chunk-rows 0: at least 1");
    ensure!((0.0..=10.0).contains(&args.noise), "--noise {}: a length from 0 to 10", args.noise);
    ensure!(
        (0.0..=10_000.0).contains(&args.events_per_user_day),
        "--events-per-user-day {}: 0 to 10000",
        args.events_per_user_day
    );
    ensure!(
        args.events.is_none_or(|events| events == 0 || args.users > 0 && args.days > 0),
        "--events needs at least one user and one day"
    );
    if args.out.is_file() {
        bail!("--out {}: is a file", args.out.display());
    }
    let held = std::fs::read_dir(&args.out).is_ok_and(|mut dir| dir.next().is_some());
    ensure!(!held, "--out {}: is not empty; remove it or choose another", args.out.display());
    Ok(())
}

/// Midnight UTC, `days` after `date`, in microseconds of the epoch.
fn day_us(date: NaiveDate, days: u32) -> Result<i64> {
    let day = date.checked_add_days(Days::new(days.into())).context("--start-date out of range")?;
    let midnight = day.and_hms_opt(0, 0, 0).context("--start-date out of range")?;
    Ok(midnight.and_utc().timestamp_micros())
}

struct Job<'a> {
    args: &'a Args,
    world: &'a World,
    pool: &'a rayon::ThreadPool,
}

impl Job<'_> {
    fn items(&self) -> Result<()> {
        let out = &self.args.out;
        let mut table = TableWriter::create(&out.join("items"), "items", tables::items_schema())?;
        let mut vectors = self.vectors("items", "item_id")?;
        let stage = Stage::start("items", self.args.items);
        for rows in self.chunks(self.args.items) {
            let items = self.map(rows.clone(), |row| self.world.item(row));
            table.write(&tables::items(rows.start, &items)?)?;
            if let Some(vectors) = &mut vectors {
                let flat = self.rotated(rows.clone(), |row, latent| {
                    self.world.item_latent(row, latent);
                });
                vectors.write(&tables::vectors("item_id", 'i', rows.clone(), flat)?)?;
            }
            stage.advance(rows.end - rows.start);
        }
        table.finish()?;
        vectors.map_or(Ok(()), TableWriter::finish)?;
        stage.end();
        Ok(())
    }

    fn users(&self) -> Result<()> {
        let dir = self.args.out.join("users");
        let mut table = TableWriter::create(&dir, "users", tables::users_schema())?;
        let stage = Stage::start("users", self.args.users);
        for rows in self.chunks(self.args.users) {
            let users = self.map(rows.clone(), |row| self.world.user(row));
            table.write(&tables::users(rows.start, &users)?)?;
            stage.advance(rows.end - rows.start);
        }
        table.finish()?;
        stage.end();
        Ok(())
    }

    fn queries(&self) -> Result<()> {
        let count = self.args.queries.unwrap_or(self.args.users.max(1000));
        let Some(mut table) = self.vectors("queries", "user_id")? else { return Ok(()) };
        let stage = Stage::start("queries", count);
        for rows in self.chunks(count) {
            let flat = self.rotated(rows.clone(), |row, latent| {
                self.world.user_latent(row, latent);
            });
            table.write(&tables::vectors("user_id", 'u', rows.clone(), flat)?)?;
            stage.advance(rows.end - rows.start);
        }
        table.finish()?;
        stage.end();
        Ok(())
    }

    fn events(&self) -> Result<()> {
        let user_days = self.args.users * u64::from(self.args.days);
        let traffic = Traffic {
            impressions_per_user_day: match self.args.events {
                Some(events) => events as f64 / user_days.max(1) as f64,
                None => self.args.events_per_user_day,
            },
        };
        if user_days == 0 || traffic.impressions_per_user_day == 0.0 {
            return Ok(());
        }
        let clusters = self.map(0..self.args.items, |row| self.world.item_cluster(row));
        let catalogue = Catalogue::new(self.world, &clusters);
        drop(clusters);
        let stage = Stage::start("user-days", user_days);
        let mut events = 0;
        for day in 0..self.args.days {
            let date = self.args.start_date + Days::new(day.into());
            let dir = self.args.out.join("events").join(format!("dt={date}"));
            let mut table = TableWriter::create(&dir, "generated", tables::events_schema())?;
            for rows in self.chunks(self.args.users) {
                let made = self.map(rows.clone(), |row| catalogue.user_day(&traffic, day, row));
                events += made.iter().map(|user| user.events.len()).sum::<usize>();
                table.write(&tables::events(day, rows.start, &made)?)?;
                stage.advance(rows.end - rows.start);
            }
            table.finish()?;
        }
        stage.end();
        println!("  {events} events");
        Ok(())
    }

    /// The arguments that made the world, beside it; [`Made::read`] reads them.
    fn record(&self) -> Result<()> {
        let args = self.args;
        let record = serde_json::json!({
            "items": args.items,
            "users": args.users,
            "days": args.days,
            "start_date": args.start_date.to_string(),
            "events_per_user_day": args.events_per_user_day,
            "events": args.events,
            "seed": args.seed,
            "region_by_topic": args.region_by_topic,
            "noise": args.noise,
            "dimension": DIM,
        });
        let path = args.out.join("world.json");
        std::fs::write(&path, serde_json::to_vec_pretty(&record)?)
            .with_context(|| format!("cannot write {}", path.display()))
    }

    fn vectors(&self, prefix: &str, id: &str) -> Result<Option<TableWriter>> {
        if self.args.no_vectors {
            return Ok(None);
        }
        let dir = self.args.out.join("vectors");
        TableWriter::create(&dir, prefix, tables::vectors_schema(id)).map(Some)
    }

    fn chunks(&self, rows: u64) -> impl Iterator<Item = std::ops::Range<u64>> {
        let step = self.args.chunk_rows as u64;
        (0..rows).step_by(self.args.chunk_rows).map(move |start| start..(start + step).min(rows))
    }

    fn map<T: Send>(&self, rows: std::ops::Range<u64>, make: impl Fn(u64) -> T + Sync) -> Vec<T> {
        let count = (rows.end - rows.start) as usize;
        let rows = |at: usize| make(rows.start + at as u64);
        self.pool.install(|| (0..count).into_par_iter().map(rows).collect())
    }

    /// Vectors of `rows` as they are stored: latent, then rotated.
    fn rotated(
        &self,
        rows: std::ops::Range<u64>,
        make: impl Fn(u64, &mut [f32; DIM]) + Sync,
    ) -> Vec<f32> {
        let mut flat = vec![0.0f32; (rows.end - rows.start) as usize * DIM];
        self.pool.install(|| {
            flat.par_chunks_exact_mut(DIM).enumerate().for_each(|(at, out)| {
                let mut latent = [0.0; DIM];
                make(rows.start + at as u64, &mut latent);
                self.world.rotate(&latent, out);
            });
        });
        flat
    }
}

/// What `world.json` says of the world beside it.
#[derive(Debug, Clone, serde::Deserialize)]
pub struct Made {
    pub items: u64,
    pub users: u64,
    pub days: u32,
    pub start_date: NaiveDate,
    pub seed: u64,
    pub region_by_topic: bool,
    pub noise: f64,
}

impl Made {
    /// Of the world in this directory.
    ///
    /// # Errors
    /// When there is no whole world.
    pub fn read(dir: &Path) -> Result<Self> {
        let path = dir.join("world.json");
        let text = std::fs::read_to_string(&path).with_context(|| {
            format!("{}: make a world with `shortlist generate`", path.display())
        })?;
        serde_json::from_str(&text).with_context(|| format!("parse {}", path.display()))
    }

    /// The law of that world.
    ///
    /// # Errors
    /// When its first day is out of range.
    pub fn world(&self) -> Result<World> {
        Ok(World::new(Setting {
            seed: self.seed,
            noise: self.noise,
            region_by_topic: self.region_by_topic,
            start_us: day_us(self.start_date, 0)?,
            days: self.days,
        }))
    }
}

/// One table in the making: its progress bar and its speed.
struct Stage {
    bar: ProgressBar,
    name: &'static str,
    rows: u64,
    since: Instant,
}

impl Stage {
    fn start(name: &'static str, rows: u64) -> Self {
        let style = "{msg:>10} {wide_bar} {human_pos}/{human_len} {per_sec} {eta}";
        let style = ProgressStyle::with_template(style).expect("a valid template");
        let bar = ProgressBar::new(rows).with_style(style).with_message(name);
        Self { bar, name, rows, since: Instant::now() }
    }

    fn advance(&self, rows: u64) {
        self.bar.inc(rows);
    }

    fn end(self) {
        self.bar.finish_and_clear();
        let seconds = self.since.elapsed().as_secs_f64();
        let per_s = self.rows as f64 / seconds.max(1e-9);
        println!("{}: {} in {seconds:.1} s, {per_s:.0}/s", self.name, self.rows);
    }
}

/// Whether `dir` holds a world that was written to its end.
pub fn is_complete(dir: &Path) -> bool {
    dir.join("world.json").is_file()
}
