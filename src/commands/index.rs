//! `shortlist index`: build an index from vectors, look into it, measure it.

mod vectors;

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use rayon::prelude::*;

use crate::config::Config;
use crate::index::{self, Bitmap, Filter, Hit, Index, RECALL_TARGETS, Scratch, audit};
use crate::types::ItemIdx;
use vectors::Vectors;

/// Arguments of `shortlist index`.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Build the index that the section [index] asks for.
    Build {
        /// Unit vectors, row i for item i: an .npy file of 32-bit floats, a Parquet file with a
        /// column `vector`, or a directory of such (what `generate` writes).
        #[arg(long)]
        vectors: PathBuf,
        /// Held-out queries to calibrate on, in the same form; without any, items stand in.
        #[arg(long)]
        queries: Option<PathBuf>,
        /// The index file.
        #[arg(long)]
        out: PathBuf,
    },
    /// Print what an index holds and how far its searches reach.
    Inspect {
        /// An index file.
        index: PathBuf,
    },
    /// Measure recall against exact search over the given vectors, and the time of a search.
    Recall {
        /// An index file.
        index: PathBuf,
        /// The vectors that it was built from.
        #[arg(long)]
        vectors: PathBuf,
        /// Queries; better not those that it was calibrated on.
        #[arg(long)]
        queries: PathBuf,
        /// Neighbours of a query.
        #[arg(long, default_value_t = 500)]
        k: usize,
        /// Queries at most, from the end of the file.
        #[arg(long, default_value_t = 200)]
        queries_max: usize,
        /// Let only this share of the items pass, drawn at random.
        #[arg(long)]
        pass_rate: Option<f64>,
    },
}

/// Runs the command.
pub fn run(args: &Args, config: &Config) -> Result<()> {
    match &args.command {
        Command::Build { vectors, queries, out } => build(config, vectors, queries.as_deref(), out),
        Command::Inspect { index } => inspect(&*index::open(index, &config.index)?),
        Command::Recall { index, vectors, queries, k, queries_max, pass_rate } => {
            let mut index = index::open(index, &config.index)?;
            let vectors = Vectors::open(vectors)?;
            let queries = Vectors::open(queries)?;
            let size = (index.len(), index.dim());
            let found = (vectors.len(), vectors.dim());
            ensure!(size == found, "the index holds {size:?} (items, numbers), vectors {found:?}");
            ensure!(queries.dim() == index.dim(), "queries of {} numbers", queries.dim());
            ensure!(*k > 0 && *queries_max > 0, "--k and --queries-max: give at least 1");
            let trial =
                Trial::new(config, &*index, &vectors, &queries, *k, *queries_max, *pass_rate)?;
            for target in RECALL_TARGETS {
                index.set_recall_target(target)?;
                trial.print(&*index);
            }
            Ok(())
        }
    }
}

fn build(config: &Config, from: &Path, queries: Option<&Path>, out: &Path) -> Result<()> {
    let vectors = Vectors::open(from)?;
    let queries = queries.map(Vectors::open).transpose()?;
    let dim = vectors.dim();
    if let Some(queries) = &queries {
        ensure!(queries.dim() == dim, "queries of {} numbers, vectors of {dim}", queries.dim());
    }
    let style = ProgressStyle::with_template("{msg} {wide_bar} {percent:>3} % {eta} left")?;
    let bar = ProgressBar::new(1).with_style(style).with_message("build index");
    let since = Instant::now();
    let held_out = queries.as_ref().map_or(&[][..], |queries| queries.values());
    let index = index::build(vectors.values(), dim, held_out, &config.index, &|done, of| {
        bar.set_length(of);
        bar.set_position(done);
    })?;
    bar.finish_and_clear();
    println!("built in {:.1} s", since.elapsed().as_secs_f64());
    index.save(out).with_context(|| format!("cannot write {}", out.display()))?;
    inspect(&*index)
}

fn inspect(index: &dyn Index) -> Result<()> {
    let layout = index.layout();
    println!("items     {} of {} numbers", layout.items, layout.dim);
    let [least, median, most] = layout.list_rows;
    println!("lists     {}, rows in each: {least} to {most}, median {median}", layout.lists);
    let mut total = 0;
    for (name, bytes) in &layout.parts {
        total += bytes;
        println!("  {name:<24} {bytes:>14} bytes {:>8.2} an item", per(*bytes, layout.items));
    }
    println!("  {:<24} {total:>14} bytes {:>8.2} an item", "resident", per(total, layout.items));
    println!("lists that a fixed number would read, by depth {:?}", layout.depths);
    for (target, lists, again) in &layout.probes {
        println!("  recall {target:.2}  {lists:?}, {again} rows scored for each wanted");
    }
    Ok(())
}

fn per(bytes: usize, items: usize) -> f64 {
    bytes as f64 / items.max(1) as f64
}

/// Queries with their true neighbours.
struct Trial<'a> {
    dim: usize,
    vectors: &'a [f32],
    queries: &'a [f32],
    k: usize,
    set: Option<Bitmap>,
    exact: Vec<Vec<Hit>>,
}

impl<'a> Trial<'a> {
    fn new(
        config: &Config,
        index: &dyn Index,
        vectors: &'a Vectors,
        queries: &'a Vectors,
        k: usize,
        queries_max: usize,
        pass_rate: Option<f64>,
    ) -> Result<Self> {
        let (dim, n) = (index.dim(), index.len());
        let all = queries.values();
        let queries = &all[all.len().saturating_sub(queries_max * dim)..];
        let set = match pass_rate {
            None => None,
            Some(rate) => {
                ensure!((0.0..=1.0).contains(&rate), "--pass-rate {rate}: a share from 0 to 1");
                let mut rng = Pcg64Mcg::seed_from_u64(config.index.seed);
                let set = Bitmap::new(n);
                (0..n as u32).for_each(|item| set.set(ItemIdx(item), rng.random_bool(rate)));
                Some(set)
            }
        };
        let pool = rayon::ThreadPoolBuilder::new().num_threads(config.index.threads).build()?;
        let passes = |item| set.as_ref().is_none_or(|set| set.get(item));
        let exact = pool.install(|| {
            let queries = queries.par_chunks_exact(dim);
            queries.map(|query| audit::exact_search(vectors.values(), query, k, passes)).collect()
        });
        Ok(Self { dim, vectors: vectors.values(), queries, k, set, exact })
    }

    fn print(&self, index: &dyn Index) {
        let allowed = self.set.as_ref().map(|set| index.allow(set));
        let filter = Filter { allowed: allowed.as_ref(), excluded: &[] };
        let (mut scratch, mut found) = (Scratch::default(), Vec::new());
        let (mut recalls, mut times_us) = (Vec::new(), Vec::new());
        // The first round warms caches and buffers and gives the recall.
        for round in 0..4 {
            for (query, exact) in self.queries.chunks_exact(self.dim).zip(&self.exact) {
                let since = Instant::now();
                index.search(query, self.k, &filter, &mut scratch, &mut found);
                match round {
                    0 => {
                        let scores = audit::scores(self.vectors, query, &found);
                        recalls.push(audit::recall(scores, exact));
                    }
                    _ => times_us.push(since.elapsed().as_secs_f64() * 1e6),
                }
            }
        }
        times_us.sort_unstable_by(f64::total_cmp);
        let at = |share: f64| times_us[((times_us.len() - 1) as f64 * share) as usize];
        let (mean, half) = audit::mean_with_interval(&recalls);
        println!(
            "target {:.2}  recall@{} {mean:.4} +- {half:.4} ({} queries)  p50 {:.0} us  p99 {:.0} us",
            index.recall_target(),
            self.k,
            recalls.len(),
            at(0.5),
            at(0.99)
        );
    }
}
