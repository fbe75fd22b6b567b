//! Building: check, sample, cluster, assign, order, encode, calibrate.

use rand::SeedableRng;
use rand_pcg::Pcg64Mcg;
use rayon::prelude::*;

use super::{Calibration, Coarse, DIM_MAX, IvfIndex, Live, Pq, ROWS_MAX, calibrate, kmeans, pq};
use crate::index::{Codes, Config, Error, Index, Rerank, check_unit};
use crate::kernels::{half, int8, pq as scan};
use crate::sections::Column;
use crate::types::ItemIdx;

/// More lists than this make the comparison with all centroids the larger part of a search.
const LISTS_MAX: usize = 16_384;
/// Sampled residuals from which codewords are learnt.
const CODEWORD_ROWS: usize = 65_536;

impl IvfIndex {
    /// Builds the index of `vectors` (`[n * dim]`, row `i` is item `i`, each of length one).
    ///
    /// `queries` (`[m * dim]`, of length one) are held-out queries on which the number of lists to
    /// read is calibrated; without any, sampled items stand in for them. `progress` hears
    /// `(done, total)` in rows compared with centroids. The result depends on the arguments and
    /// `config.seed`, not on the number of threads. `vectors` may be a mapped file: it is read in
    /// order but for the sample and once list by list, and beyond the index itself memory is
    /// bounded by the sample and a few bytes an item.
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
        let pool = rayon::ThreadPoolBuilder::new()
            .num_threads(config.threads)
            .thread_name(|i| format!("index-build-{i}"))
            .build()
            .map_err(|source| Error::Threads { threads: config.threads, source })?;
        let target = check(&pool, vectors, dim, queries, config)?;
        let n = vectors.len() / dim;
        let lists = list_count(n, config);
        let mut rng = Pcg64Mcg::seed_from_u64(config.seed);
        let sample = sample_rows(vectors, dim, lists * config.sample_rows_per_list, &mut rng);
        let queries = match queries {
            [] => sample_rows(vectors, dim, config.calibration_queries_max, &mut rng),
            _ => sample_rows(queries, dim, config.calibration_queries_max, &mut rng),
        };
        let query_cost = (n / 2048).max(1) as u64;
        let total = kmeans::work(sample.len() / dim, lists, config.iterations)
            + 2 * n as u64
            + (queries.len() / dim) as u64 * query_cost;
        let mut so_far = 0;
        let mut done = |new: u64| {
            so_far += new;
            progress(so_far, total);
        };

        let rounds = config.iterations;
        let mut centroids =
            kmeans::Centroids::train(&pool, &sample, dim, lists, rounds, config.seed, &mut done);
        let nearest = centroids.assign(&pool, vectors, &mut done);
        // One more step towards the means, of all rows this time: the lists stay, their
        // representatives get better.
        centroids.means(vectors, &nearest);
        let with_pq = match config.codes {
            Codes::Auto => n >= config.pq_rows_min,
            codes => codes == Codes::Pq,
        };
        let (rows, offsets, ids) = order(&centroids.rows, dim, &nearest);
        drop(nearest);
        let mut encoder =
            Encoder { dim, vectors, rows: &rows, offsets: &offsets, ids: &ids, codewords: None };
        let codewords = with_pq.then(|| pq::train(&pool, &encoder.some_residuals(), dim));
        drop(sample);
        encoder.codewords = codewords.as_deref();
        let codes = encoder.encode(&pool, config.rerank == Rerank::F16);
        done(n as u64);
        let mut slots = vec![0u32; n];
        ids.iter().zip(0..).for_each(|(item, slot)| slots[item.row()] = slot);

        let mut index = Self {
            dim,
            coarse: Coarse::new(&rows, dim),
            pq: codewords.map(|codewords| Pq {
                codewords: codewords.into(),
                codes: codes.pq.into(),
                blocks: pq::blocks(&offsets),
            }),
            centroids: rows.into(),
            offsets: offsets.into(),
            ids: ids.into(),
            slots: slots.into(),
            steps: codes.steps.into(),
            residuals: codes.residuals.into(),
            halves: (config.rerank == Rerank::F16).then(|| Column::from(codes.halves)),
            calibration: Calibration::default(),
            target,
            exact_rows_max: config.exact_rows_max,
            live: Live::new(n, dim, 0),
        };
        calibrate::calibrate(&mut index, vectors, &queries, &pool, &mut |queries| {
            done(queries * query_cost)
        });
        index.set_live_rows_max(config.live_rows_max);
        Ok(index)
    }
}

fn check(
    pool: &rayon::ThreadPool,
    vectors: &[f32],
    dim: usize,
    queries: &[f32],
    config: &Config,
) -> Result<usize, Error> {
    if !(1..=DIM_MAX).contains(&dim) {
        return Err(Error::Dimension { dim });
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
        let rows = values.par_chunks_exact(dim).enumerate();
        let refused = |(row, vector)| check_unit(what, row, vector).err();
        if let Some(error) = pool.install(|| rows.find_map_first(refused)) {
            return Err(error);
        }
    }
    let rows = vectors.len() / dim;
    if rows > ROWS_MAX {
        return Err(Error::TooMany { rows });
    }
    crate::index::target_row(config.recall_target)
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
fn order(centroids: &[f32], dim: usize, nearest: &[u32]) -> (Vec<f32>, Vec<u32>, Vec<ItemIdx>) {
    let mut counts = vec![0u32; centroids.len() / dim];
    nearest.iter().for_each(|&list| counts[list as usize] += 1);
    let mut kept = Vec::new();
    let mut offsets = vec![0u32];
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

struct Encoder<'a> {
    dim: usize,
    vectors: &'a [f32],
    rows: &'a [f32],
    offsets: &'a [u32],
    ids: &'a [ItemIdx],
    codewords: Option<&'a [f32]>,
}

/// All rows in slot order; see [`IvfIndex`].
#[derive(Default)]
struct Encoded {
    steps: Vec<u16>,
    residuals: Vec<i8>,
    pq: Vec<u8>,
    halves: Vec<u16>,
}

/// Where the rows of one list go.
struct ListOut<'a> {
    list: usize,
    steps: &'a mut [u16],
    residuals: &'a mut [i8],
    pq: &'a mut [u8],
    halves: &'a mut [u16],
}

impl Encoder<'_> {
    fn lists(&self) -> usize {
        self.offsets.len() - 1
    }

    /// Residuals of evenly spread slots.
    fn some_residuals(&self) -> Vec<f32> {
        let step = self.ids.len().div_ceil(CODEWORD_ROWS).max(1);
        let mut out = vec![0.0; self.ids.len().div_ceil(step) * self.dim];
        let mut list = 0;
        for (slot, out) in (0..self.ids.len()).step_by(step).zip(out.chunks_exact_mut(self.dim)) {
            while self.offsets[list + 1] as usize <= slot {
                list += 1;
            }
            self.residual(list, slot, out);
        }
        out
    }

    fn residual(&self, list: usize, slot: usize, out: &mut [f32]) {
        let dim = self.dim;
        let vector = &self.vectors[self.ids[slot].row() * dim..][..dim];
        let centroid = &self.rows[list * dim..][..dim];
        out.iter_mut().zip(vector).zip(centroid).for_each(|((out, x), c)| *out = x - c);
    }

    fn encode(&self, pool: &rayon::ThreadPool, with_halves: bool) -> Encoded {
        let (n, bytes) = (self.ids.len(), int8::row_bytes(self.dim));
        let half = if with_halves { self.dim } else { 0 };
        let blocks = pq::blocks(self.offsets);
        let block = self.codewords.map_or(0, |_| scan::block_bytes(pq::parts(self.dim)));
        let mut out = Encoded {
            steps: vec![0; n],
            residuals: vec![0; n * bytes],
            pq: vec![0; blocks[self.lists()] as usize * block],
            halves: vec![0; n * half],
        };
        let mut rest = (&mut *out.steps, &mut *out.residuals, &mut *out.pq, &mut *out.halves);
        let mut lists = Vec::with_capacity(self.lists());
        for list in 0..self.lists() {
            let rows = (self.offsets[list + 1] - self.offsets[list]) as usize;
            let own = (blocks[list + 1] - blocks[list]) as usize * block;
            let (steps, residuals, pq, halves);
            (steps, rest.0) = rest.0.split_at_mut(rows);
            (residuals, rest.1) = rest.1.split_at_mut(rows * bytes);
            (pq, rest.2) = rest.2.split_at_mut(own);
            (halves, rest.3) = rest.3.split_at_mut(rows * half);
            lists.push(ListOut { list, steps, residuals, pq, halves });
        }
        pool.install(|| lists.into_par_iter().for_each(|list| self.encode_list(list)));
        out
    }

    fn encode_list(&self, out: ListOut) {
        let (dim, bytes, parts) = (self.dim, int8::row_bytes(self.dim), pq::parts(self.dim));
        let first = self.offsets[out.list] as usize;
        let mut residual = vec![0.0; dim];
        let mut codes = vec![0u8; parts];
        for (row, step) in out.steps.iter_mut().enumerate() {
            self.residual(out.list, first + row, &mut residual);
            *step = step_above(int8::step_of(&residual));
            let rounded = f32::from_bits((*step as u32) << 16);
            int8::quantise(&residual, rounded, &mut out.residuals[row * bytes..][..bytes]);
            if let Some(codewords) = self.codewords {
                pq::encode(codewords, &residual, &mut codes);
                let block = scan::block_bytes(parts);
                let (at, within) = (row / scan::BLOCK_ROWS, row % scan::BLOCK_ROWS);
                scan::pack(&codes, within, &mut out.pq[at * block..][..block]);
            }
            if !out.halves.is_empty() {
                let vector = &self.vectors[self.ids[first + row].row() * dim..][..dim];
                half::narrow(vector, &mut out.halves[row * dim..][..dim]);
            }
        }
    }
}

/// The upper half of the next number at or above `step` whose lower half is zero.
fn step_above(step: f32) -> u16 {
    ((step.to_bits() + 0xffff) >> 16) as u16
}
