//! Two-level spherical k-means: centroids of length one, nearness by inner product.
//!
//! Lloyd's rounds over a sample (Dhillon and Modha, "Concept decompositions for large sparse text
//! data using clustering", 2001), first for some sqrt(lists) groups, then within each group, then
//! for all lists together. Rows are compared with centroids in whole steps: several times cheaper
//! than in floats. Comparing a row only with the lists of the nearest groups was cheaper still, and
//! cost a quarter more lists in every search (docs/decisions/0005). The result depends on the seed
//! and the data, never on the number of threads.

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use rayon::prelude::*;

use crate::kernels::{self, int8};

/// Rows between two reports of progress.
const REPORT_ROWS: usize = 1 << 17;
/// Rows that one task assigns.
const TASK_ROWS: usize = 1024;
/// Up to so many lists there are no groups.
const FLAT_LISTS_MAX: usize = 256;
/// Rounds for all lists together, after those within the groups.
const JOINT_ROUNDS: usize = 6;

/// The directions that lists stand for.
#[derive(Clone, Debug, Default)]
pub(super) struct Centroids {
    pub(super) dim: usize,
    /// `[lists * dim]`, each of length one.
    pub(super) rows: Vec<f32>,
}

impl Centroids {
    /// `lists` centroids of `rows` (`[n * dim]`, `n >= lists`). `done` hears how many rows have
    /// been compared; [`work`] says how many it will be.
    pub(super) fn train(
        pool: &rayon::ThreadPool,
        rows: &[f32],
        dim: usize,
        lists: usize,
        iterations: usize,
        seed: u64,
        done: &mut dyn FnMut(u64),
    ) -> Self {
        if lists <= FLAT_LISTS_MAX {
            let mut rng = Pcg64Mcg::seed_from_u64(seed);
            let rows = lloyd(pool, rows, dim, lists, iterations, &mut rng, done);
            return Self { dim, rows };
        }
        let mut rng = Pcg64Mcg::seed_from_u64(seed);
        let groups = (lists as f64).sqrt().round() as usize;
        let centres = lloyd(pool, rows, dim, groups, iterations, &mut rng, done);
        let one = Self { dim, rows: centres };
        let members = members(&one.assign(pool, rows, done), groups);
        let shares = shares(&members, lists);
        let parts: Vec<Vec<f32>> = pool.install(|| {
            (0..groups)
                .into_par_iter()
                .map(|group| {
                    let own: Vec<f32> = members[group]
                        .iter()
                        .flat_map(|&row| &rows[row as usize * dim..][..dim])
                        .copied()
                        .collect();
                    let mut rng = Pcg64Mcg::seed_from_u64(seed ^ (group as u64 + 1) << 32);
                    lloyd(pool, &own, dim, shares[group], iterations, &mut rng, &mut |_| ())
                })
                .collect()
        });
        done((rows.len() / dim * iterations) as u64);
        let mut all = Self { dim, rows: parts.concat() };
        for _ in 0..JOINT_ROUNDS {
            let nearest = all.assign(pool, rows, done);
            let counts = all.means(rows, &nearest);
            split_largest(&mut all.rows, dim, counts, &mut rng);
        }
        all
    }

    /// The nearest list of every row of `rows` (`[n * dim]`), lowest first on ties.
    /// `done` hears how many rows are new.
    pub(super) fn assign(
        &self,
        pool: &rayon::ThreadPool,
        rows: &[f32],
        done: &mut dyn FnMut(u64),
    ) -> Vec<u32> {
        let (centroids, _) = in_steps(&self.rows, self.dim);
        let mut nearest = vec![0u32; rows.len() / self.dim];
        let chunks = nearest.chunks_mut(REPORT_ROWS).zip(rows.chunks(REPORT_ROWS * self.dim));
        for (nearest, rows) in chunks {
            pool.install(|| {
                nearest
                    .par_chunks_mut(TASK_ROWS)
                    .zip(rows.par_chunks(TASK_ROWS * self.dim))
                    .for_each(|(nearest, rows)| assign_some(&centroids, self.dim, rows, nearest));
            });
            done(nearest.len() as u64);
        }
        nearest
    }

    /// Replaces every centroid that has rows by their normalised sum; returns the rows of each.
    pub(super) fn means(&mut self, rows: &[f32], nearest: &[u32]) -> Vec<u32> {
        means(rows, self.dim, nearest, &mut self.rows)
    }
}

/// The nearest of `centroids`, in whole steps, to each of `rows`.
fn assign_some(centroids: &[i8], dim: usize, rows: &[f32], nearest: &mut [u32]) {
    let bytes = int8::row_bytes(dim);
    let mut steps = vec![0i8; bytes];
    let mut dots = vec![0i32; centroids.len() / bytes];
    for (row, nearest) in rows.chunks_exact(dim).zip(nearest) {
        int8::quantise(row, int8::step_of(row), &mut steps);
        int8::dots(&steps, centroids, &mut dots);
        let mut best = i32::MIN;
        for (&dot, list) in dots.iter().zip(0..) {
            if dot > best {
                (best, *nearest) = (dot, list);
            }
        }
    }
}

/// Rows compared by [`Centroids::train`], as its `done` counts them.
pub(super) fn work(sample_rows: usize, lists: usize, iterations: usize) -> u64 {
    let rounds =
        if lists <= FLAT_LISTS_MAX { iterations } else { 2 * iterations + 1 + JOINT_ROUNDS };
    (sample_rows * rounds) as u64
}

/// Rows of length about one in whole steps of one size, padded, and that size.
pub(super) fn in_steps(rows: &[f32], dim: usize) -> (Vec<i8>, f32) {
    let (step, bytes) = (int8::step_of(rows), int8::row_bytes(dim));
    let mut out = vec![0i8; rows.len() / dim * bytes];
    for (row, out) in rows.chunks_exact(dim).zip(out.chunks_exact_mut(bytes)) {
        int8::quantise(row, step, out);
    }
    (out, step)
}

/// Plain rounds for `lists` centroids (`[lists * dim]`) of `rows` (`[n * dim]`, `n >= lists`).
fn lloyd(
    pool: &rayon::ThreadPool,
    rows: &[f32],
    dim: usize,
    lists: usize,
    iterations: usize,
    rng: &mut Pcg64Mcg,
    done: &mut dyn FnMut(u64),
) -> Vec<f32> {
    if lists == 0 {
        return Vec::new();
    }
    let first = rand::seq::index::sample(rng, rows.len() / dim, lists);
    let mut flat = Centroids {
        dim,
        rows: first.iter().flat_map(|row| rows[row * dim..][..dim].iter().copied()).collect(),
    };
    for _ in 0..iterations {
        let nearest = flat.assign(pool, rows, done);
        let counts = flat.means(rows, &nearest);
        split_largest(&mut flat.rows, dim, counts, rng);
    }
    flat.rows
}

/// The rows of each group.
fn members(nearest: &[u32], groups: usize) -> Vec<Vec<u32>> {
    let mut members = vec![Vec::new(); groups];
    nearest.iter().zip(0..).for_each(|(&group, row)| members[group as usize].push(row));
    members
}

/// Lists of each group, in proportion to its rows, `lists` in all and no more than its rows.
fn shares(members: &[Vec<u32>], lists: usize) -> Vec<usize> {
    let rows: usize = members.iter().map(Vec::len).sum();
    let (mut seen, mut given) = (0, 0);
    members
        .iter()
        .map(|own| {
            seen += own.len();
            // Rounding the running sum gives `lists` in all; there are at least as many rows.
            let share = seen * lists / rows - given;
            given += share;
            share
        })
        .collect()
}

fn means(rows: &[f32], dim: usize, nearest: &[u32], centroids: &mut [f32]) -> Vec<u32> {
    let mut counts = vec![0u32; centroids.len() / dim];
    let mut sums = vec![0.0f32; centroids.len()];
    for (row, &list) in rows.chunks_exact(dim).zip(nearest) {
        counts[list as usize] += 1;
        let sum = &mut sums[list as usize * dim..][..dim];
        sum.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    for (sum, centroid) in sums.chunks_exact_mut(dim).zip(centroids.chunks_exact_mut(dim)) {
        // Opposite rows can add up to nothing; the old centroid is then as good as any.
        if kernels::normalise(sum) > 1e-6 {
            centroid.copy_from_slice(sum);
        }
    }
    counts
}
/// Gives every empty list a slightly turned copy of the centroid of the fullest one, so that the
/// next round divides its rows.
fn split_largest(centroids: &mut [f32], dim: usize, mut counts: Vec<u32>, rng: &mut Pcg64Mcg) {
    use std::collections::BinaryHeap;
    let mut fullest: BinaryHeap<(u32, usize)> = counts.iter().copied().zip(0..).collect();
    for empty in 0..counts.len() {
        if counts[empty] > 0 {
            continue;
        }
        let Some((count, from)) = fullest.pop().filter(|&(count, _)| count > 1) else { return };
        let (a, b) = (count / 2, count - count / 2);
        counts[empty] = a;
        fullest.extend([(a, empty), (b, from)]);
        centroids.copy_within(from * dim..(from + 1) * dim, empty * dim);
        let copy = &mut centroids[empty * dim..][..dim];
        copy.iter_mut().for_each(|x| *x += rng.random_range(-0.5..0.5) / (dim as f32).sqrt() * 0.2);
        kernels::normalise(copy);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    fn rows(n: usize, dim: usize) -> Vec<f32> {
        let mut rng = Pcg64Mcg::seed_from_u64(5);
        let mut rows: Vec<f32> = (0..n * dim).map(|_| rng.random_range(-1.0..1.0)).collect();
        rows.chunks_exact_mut(dim).for_each(|row| assert!(kernels::normalise(row) > 0.0));
        rows
    }

    #[test]
    fn assignment_is_the_nearest_centroid_for_any_number_of_threads() {
        let (rows, dim) = (rows(1000, 12), 12);
        for lists in [150, 300] {
            let train =
                |threads| Centroids::train(&pool(threads), &rows, dim, lists, 4, 7, &mut |_| ());
            let centroids = train(1);
            assert_eq!(centroids.rows.len(), lists * dim);
            assert_eq!(centroids.rows, train(3).rows);
            let mut reported = 0;
            let nearest = centroids.assign(&pool(3), &rows, &mut |new| reported += new);
            assert_eq!(reported, 1000);
            for (row, &list) in rows.chunks_exact(dim).zip(&nearest) {
                let score = |list: usize| kernels::dot(row, &centroids.rows[list * dim..][..dim]);
                // Compared in whole steps, so but for their rounding.
                assert!((0..lists).all(|other| score(other) <= score(list as usize) + 0.02));
            }
        }
    }

    #[test]
    fn progress_is_what_work_promises() {
        let rows = rows(1000, 12);
        for lists in [100, 300] {
            let mut compared = 0;
            Centroids::train(&pool(2), &rows, 12, lists, 3, 7, &mut |new| compared += new);
            assert_eq!(compared, work(1000, lists, 3));
        }
    }

    #[test]
    fn empty_lists_are_filled_from_the_fullest() {
        // Two places, eight centroids: six of them start as copies and win nothing.
        let dim = 4;
        let mut many = Vec::new();
        for i in 0..400 {
            let mut row = if i % 2 == 0 { [1.0, 0.0, 0.0, 0.0] } else { [0.0, 1.0, 0.0, 0.0] };
            row[2] = (i as f32 * 0.7).sin() * 0.3;
            row[3] = (i as f32 * 1.3).cos() * 0.3;
            kernels::normalise(&mut row);
            many.extend(row);
        }
        let mut centroids = Centroids { dim, rows: many[..dim].repeat(8) };
        let nearest = centroids.assign(&pool(1), &many, &mut |_| ());
        let counts = centroids.means(&many, &nearest);
        assert_eq!(counts.iter().filter(|&&count| count > 0).count(), 1);
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        split_largest(&mut centroids.rows, dim, counts, &mut rng);
        let nearest = centroids.assign(&pool(1), &many, &mut |_| ());
        let used: std::collections::BTreeSet<u32> = nearest.into_iter().collect();
        assert!(used.len() >= 4, "only {used:?} of 8 lists are used");
    }
}
