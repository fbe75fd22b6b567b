//! Building: check, sample, cluster, assign, order, calibrate.

use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;

use super::{Calibration, IvfIndex, calibrate};
use crate::index::{Config, Error, kmeans};
use crate::kernels;
use crate::types::ItemIdx;

/// More lists than this make the comparison with all centroids the larger part of a search.
const LISTS_MAX: usize = 16_384;
/// How far from one the length of a vector may be: rounding, not carelessness.
const NORM_TOLERANCE: f32 = 1e-3;

impl IvfIndex {
    /// Builds the index of `vectors` (`[n * dim]`, row `i` is item `i`, each of length one).
    ///
    /// `queries` (`[m * dim]`, of length one) are held-out queries on which the number of lists to
    /// read is calibrated; without any, sampled items stand in for them. `progress` hears
    /// `(done, total)` in comparisons of one vector with all centroids. The result depends on the
    /// arguments and `config.seed`, not on the number of threads.
    ///
    /// # Errors
    /// When a vector is not of length one (so also when it is zero or not a number), when the
    /// lengths do not fit `dim`, or when the configuration is out of range.
    pub fn build(
        vectors: &[f32],
        dim: usize,
        queries: &[f32],
        config: &Config,
        progress: &dyn Fn(u64, u64),
    ) -> Result<Self, Error> {
        let target = check(vectors, dim, queries, config)?;
        let n = vectors.len() / dim;
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(config.threads)
            .thread_name(|i| format!("index-build-{i}"))
            .build()
            .map_err(|source| Error::Threads { threads: config.threads, source })?;

        let lists = list_count(n, config);
        let mut rng = Pcg64Mcg::seed_from_u64(config.seed);
        let sample = sample_rows(vectors, dim, lists * config.sample_rows_per_list, &mut rng);
        let queries = match queries {
            [] => sample_rows(vectors, dim, config.calibration_queries_max, &mut rng),
            _ => sample_rows(queries, dim, config.calibration_queries_max, &mut rng),
        };
        let query_cost = (n / lists.max(1)).max(1) as u64;
        let total = (sample.len() / dim * config.iterations + n) as u64
            + (queries.len() / dim) as u64 * query_cost;
        let mut so_far = 0;
        let mut done = |new: u64| {
            so_far += new;
            progress(so_far, total);
        };

        let mut centroids =
            kmeans::train(&pool, &sample, dim, lists, config.iterations, config.seed, &mut done);
        drop(sample);
        let nearest = kmeans::assign(&pool, &centroids, vectors, dim, &mut done);
        // One more step towards the means, of all rows this time: the lists stay, their
        // representatives get better.
        kmeans::means(vectors, dim, &nearest, &mut centroids);
        let (centroids, offsets, ids) = order(&centroids, dim, &nearest);
        let mut slots = vec![0u32; n];
        ids.iter().zip(0..).for_each(|(item, slot)| slots[item.row()] = slot);
        let mut ordered = Vec::with_capacity(vectors.len());
        ids.iter().for_each(|item| ordered.extend(&vectors[item.row() * dim..][..dim]));

        let mut index = Self {
            dim,
            centroids: centroids.into(),
            offsets: offsets.into(),
            ids: ids.into(),
            vectors: ordered.into(),
            slots,
            calibration: Calibration::default(),
            target,
            exact_rows_max: config.exact_rows_max,
        };
        index.calibration = calibrate::calibrate(&index, &queries, &pool, &mut |queries| {
            done(queries * query_cost)
        });
        Ok(index)
    }
}

fn check(vectors: &[f32], dim: usize, queries: &[f32], config: &Config) -> Result<usize, Error> {
    if dim == 0 {
        return Err(Error::NoDimension);
    }
    let at_least = [
        ("sample_rows_per_list", config.sample_rows_per_list),
        ("iterations", config.iterations),
        ("calibration_queries_max", config.calibration_queries_max),
    ];
    if let Some(&(key, found)) = at_least.iter().find(|(_, found)| *found == 0) {
        return Err(Error::Config { key, found, min: 1 });
    }
    for (what, values) in [("item", vectors), ("query", queries)] {
        if !values.len().is_multiple_of(dim) {
            return Err(Error::Ragged { what, values: values.len(), dim });
        }
        for (row, vector) in values.chunks_exact(dim).enumerate() {
            let norm = kernels::dot(vector, vector).sqrt();
            if norm.is_nan() || (norm - 1.0).abs() > NORM_TOLERANCE {
                return Err(Error::NotUnit { what, row, norm });
            }
        }
    }
    let rows = vectors.len() / dim;
    if rows >= u32::MAX as usize {
        return Err(Error::TooMany { rows });
    }
    calibrate::target_row(config.recall_target)
}

fn list_count(n: usize, config: &Config) -> usize {
    let wanted = match config.lists {
        0 => (4.0 * (n as f64).sqrt()).round() as usize,
        lists => lists,
    };
    // Below some eight rows a list, reading a list costs more than its rows do.
    wanted.min(LISTS_MAX).min(n / 8).max(n.min(1))
}

/// At most `rows_max` rows, drawn without repetition, in their order.
fn sample_rows(rows: &[f32], dim: usize, rows_max: usize, rng: &mut Pcg64Mcg) -> Vec<f32> {
    let n = rows.len() / dim;
    if n <= rows_max {
        return rows.to_vec();
    }
    let mut chosen = rand::seq::index::sample(rng, n, rows_max).into_vec();
    chosen.sort_unstable();
    chosen.into_iter().flat_map(|row| &rows[row * dim..][..dim]).copied().collect()
}

/// Counting sort of the items by list, without the lists that nothing fell into.
fn order(centroids: &[f32], dim: usize, nearest: &[u32]) -> (Vec<f32>, Vec<u64>, Vec<ItemIdx>) {
    let mut counts = vec![0u64; centroids.len() / dim];
    nearest.iter().for_each(|&list| counts[list as usize] += 1);
    let mut kept = Vec::new();
    let mut offsets = vec![0u64];
    let mut cursor = vec![0usize; counts.len()];
    for (list, &count) in counts.iter().enumerate().filter(|(_, count)| **count > 0) {
        let start = offsets[offsets.len() - 1];
        cursor[list] = start as usize;
        offsets.push(start + count);
        kept.extend_from_slice(&centroids[list * dim..][..dim]);
    }
    let mut ids = vec![ItemIdx(0); nearest.len()];
    for (&list, item) in nearest.iter().zip(0..) {
        let slot = &mut cursor[list as usize];
        ids[*slot] = ItemIdx(item);
        *slot += 1;
    }
    (kept, offsets, ids)
}
