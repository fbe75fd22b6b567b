//! `shortlist features materialize`: a bundle's users into Redis, a batch a thread at a time.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::Instant;

use anyhow::Result;
use indicatif::{ProgressBar, ProgressStyle};
use rayon::prelude::*;
use tokio::runtime::{self, Runtime};

use crate::bundle::{Bundle, ChangeLog, EncodeScratch, Registry};
use crate::config::Config;
use crate::pipeline::{self, ItemChanges};
use crate::store::items::View;
use crate::store::{Embedding, Fit, Materialized, Materializer};

/// Arguments of `shortlist features materialize`.
#[derive(clap::Args)]
pub struct Args {
    /// A bundle's directory; without one, the bundle that the registry says serves.
    #[arg(long)]
    bundle: Option<PathBuf>,
    /// Write embeddings too, of the history that a request will see.
    #[arg(long)]
    embeddings: bool,
    /// Write histories too, where Redis has none of the user.
    #[arg(long)]
    histories: bool,
    /// Write features as Feast does (store.feast), instead of as `store.users = "redis"` reads them.
    #[arg(long)]
    feast: bool,
}

/// Runs the command.
pub fn run(args: &Args, config: &Config) -> Result<()> {
    config.check()?;
    let dir = match &args.bundle {
        Some(dir) => dir.clone(),
        None => crate::commands::bundle::serving(config)?,
    };
    // Drives the connections; the work is done by threads of its own.
    let runtime = runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let into = runtime.block_on(Materializer::connect(&config.store, args.feast))?;
    let bundle = Bundle::open(&dir, config.registry.verify, &config.index)?;
    // A stored event may be of an item that came after the build.
    let log = ChangeLog::new(Registry::open(&config.registry)?);
    runtime.block_on(ItemChanges::new(log, config.items.clone()).replay(&bundle))?;
    let fit = bundle.fit();
    into.check(&fit)?;
    let threads = match config.store.materialize.threads {
        0 => 2 * std::thread::available_parallelism().map_or(1, usize::from),
        threads => threads,
    };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build()?;
    let (users, batch) = (bundle.users.ids().len(), config.store.materialize.batch_users);
    let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta} left")?;
    let bar = ProgressBar::new(users as u64).with_style(style).with_message("users");
    let items = bundle.items.view();
    let (bundle, items, fit, into, runtime) = (&bundle, &items, &fit, &into, &runtime);
    let left_out = &AtomicUsize::new(0);
    let work = Work { args, bundle, items, fit, into, runtime, left_out };
    let since = Instant::now();
    pool.install(|| {
        (0..users).into_par_iter().step_by(batch).try_for_each_init(
            || bundle.encode_scratch(),
            |scratch, first| {
                let rows = first as u32..users.min(first + batch) as u32;
                bar.inc(u64::from(rows.end - rows.start));
                work.batch(rows, scratch)
            },
        )
    })?;
    bar.finish_and_clear();
    let took_s = since.elapsed().as_secs_f64();
    println!("{users} users in {took_s:.1} s, {:.0} a second", users as f64 / took_s);
    if args.feast {
        println!("{} rows of Feast are as new and stay", left_out.load(Relaxed));
    }
    Ok(())
}

/// What all threads share.
struct Work<'a> {
    args: &'a Args,
    bundle: &'a Bundle,
    items: &'a View<'a>,
    fit: &'a Fit,
    into: &'a Materializer,
    runtime: &'a Runtime,
    /// Rows of Feast that are as new.
    left_out: &'a AtomicUsize,
}

impl<'a> Work<'a> {
    fn batch(&self, rows: std::ops::Range<u32>, scratch: &mut EncodeScratch) -> Result<()> {
        let ids: Vec<&str> = rows.clone().map(|row| self.bundle.users.ids().id(row)).collect();
        let mut users: Vec<_> =
            rows.clone().zip(&ids).map(|(row, id)| self.user(row, id)).collect();
        if self.args.embeddings {
            let stored = self.runtime.block_on(self.into.histories(&ids))?;
            for ((row, user), stored) in rows.zip(&mut users).zip(&stored) {
                let past = pipeline::history(self.bundle, stored.newest_first(), Some(row));
                let mut vector = vec![0.0; self.bundle.towers.dim()];
                self.bundle.encode_user(user.row, &past.0, scratch, &mut vector);
                let sequence = Embedding::sequence(&past.0, &past.1);
                user.embedding = Some(Embedding { sequence, vector: vector.into() });
            }
        }
        let as_of_ms = self.bundle.manifest.as_of_ms;
        let left_out = self.runtime.block_on(self.into.write(self.fit, as_of_ms, &users))?;
        self.left_out.fetch_add(left_out, Relaxed);
        Ok(())
    }

    /// A user without an embedding yet.
    fn user(&self, row: u32, id: &'a str) -> Materialized<'a> {
        let user = self.bundle.users.row(row);
        let (items, times_ms) = user.history();
        let events = items.iter().map(|&item| self.items.id(item)).zip(times_ms.iter().copied());
        let history = if self.args.histories { events.collect() } else { Vec::new() };
        Materialized { id, row: user, embedding: None, history }
    }
}
