//! Spherical k-means: centroids of length one, nearness by inner product.
//!
//! Lloyd's rounds over a sample (Dhillon and Modha, "Concept decompositions for large sparse text
//! data using clustering", 2001). The result depends on the seed and the data, never on the number
//! of threads: rows are assigned one by one and summed in row order.

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;
use rayon::prelude::*;

use crate::kernels;

/// Rows assigned together, and centroids compared with them together: both blocks stay in cache.
const BLOCK_ROWS: usize = 64;
const BLOCK_CENTROIDS: usize = 128;
/// Rows between two reports of progress.
const REPORT_ROWS: usize = 16_384;

/// For every row of `rows` (`[n * dim]`) the nearest of `centroids` (`[lists * dim]`), lowest first
/// on ties. `done` hears how many rows are new.
pub(super) fn assign(
    pool: &rayon::ThreadPool,
    centroids: &[f32],
    rows: &[f32],
    dim: usize,
    done: &mut dyn FnMut(u64),
) -> Vec<u32> {
    let mut nearest = vec![0u32; rows.len() / dim];
    let chunks = nearest.chunks_mut(REPORT_ROWS).zip(rows.chunks(REPORT_ROWS * dim));
    for (nearest, rows) in chunks {
        pool.install(|| {
            nearest
                .par_chunks_mut(BLOCK_ROWS)
                .zip(rows.par_chunks(BLOCK_ROWS * dim))
                .for_each(|(nearest, rows)| assign_block(centroids, rows, dim, nearest));
        });
        done(nearest.len() as u64);
    }
    nearest
}

fn assign_block(centroids: &[f32], rows: &[f32], dim: usize, nearest: &mut [u32]) {
    let mut best = [f32::NEG_INFINITY; BLOCK_ROWS];
    let mut scores = [0.0f32; BLOCK_CENTROIDS];
    for (block, some) in centroids.chunks(BLOCK_CENTROIDS * dim).enumerate() {
        let scores = &mut scores[..some.len() / dim];
        for (row, vector) in rows.chunks_exact(dim).enumerate() {
            kernels::dots(vector, some, scores);
            for (at, &score) in scores.iter().enumerate() {
                if score > best[row] {
                    best[row] = score;
                    nearest[row] = (block * BLOCK_CENTROIDS + at) as u32;
                }
            }
        }
    }
}

/// `lists` centroids (`[lists * dim]`) of `rows` (`[n * dim]`, `n >= lists`).
pub(super) fn train(
    pool: &rayon::ThreadPool,
    rows: &[f32],
    dim: usize,
    lists: usize,
    iterations: usize,
    seed: u64,
    done: &mut dyn FnMut(u64),
) -> Vec<f32> {
    let mut rng = Pcg64Mcg::seed_from_u64(seed);
    let first = rand::seq::index::sample(&mut rng, rows.len() / dim, lists);
    let mut centroids: Vec<f32> =
        first.iter().flat_map(|row| rows[row * dim..][..dim].iter().copied()).collect();
    for _ in 0..iterations {
        let nearest = assign(pool, &centroids, rows, dim, done);
        let counts = means(rows, dim, &nearest, &mut centroids);
        split_largest(&mut centroids, dim, counts, &mut rng);
    }
    centroids
}

/// Replaces every centroid that has rows by their normalised sum; returns the number of rows of each.
pub(super) fn means(rows: &[f32], dim: usize, nearest: &[u32], centroids: &mut [f32]) -> Vec<u32> {
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
        let centroids = train(&pool(1), &rows, dim, 150, 4, 7, &mut |_| ());
        assert_eq!(centroids, train(&pool(3), &rows, dim, 150, 4, 7, &mut |_| ()));
        let mut reported = 0;
        let nearest = assign(&pool(3), &centroids, &rows, dim, &mut |new| reported += new);
        assert_eq!(reported, 1000);
        for (row, &list) in rows.chunks_exact(dim).zip(&nearest) {
            let score = |list: usize| kernels::dot(row, &centroids[list * dim..][..dim]);
            assert!((0..150).all(|other| score(other) <= score(list as usize)));
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
        let mut centroids: Vec<f32> = many[..dim].repeat(8);
        let nearest = assign(&pool(1), &centroids, &many, dim, &mut |_| ());
        let counts = means(&many, dim, &nearest, &mut centroids);
        assert_eq!(counts.iter().filter(|&&count| count > 0).count(), 1);
        let mut rng = Pcg64Mcg::seed_from_u64(1);
        split_largest(&mut centroids, dim, counts, &mut rng);
        let nearest = assign(&pool(1), &centroids, &many, dim, &mut |_| ());
        let used: std::collections::BTreeSet<u32> = nearest.into_iter().collect();
        assert!(used.len() >= 4, "only {used:?} of 8 lists are used");
    }
}
