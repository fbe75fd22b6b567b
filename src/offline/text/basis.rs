//! Principal components: the directions in which vectors differ most, and where vectors stand on them.

use std::path::Path;

use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use crate::sections::{Error, Sections, SectionsWriter};

/// Rounds of orthogonal iteration; directions of equal variance may stay mixed, which loses nothing.
const ROUNDS: usize = 60;
/// Vectors that are looked at, evenly spread.
const SAMPLE_MAX: usize = 20_000;

/// A mean and orthonormal directions.
#[derive(Clone, Debug, PartialEq)]
pub struct Basis {
    /// `dim` numbers.
    mean: Vec<f32>,
    /// `components x dim`, by falling variance.
    directions: Vec<f32>,
}

impl Basis {
    /// The first `components` principal components of `vectors` (`n x dim`), by orthogonal iteration on
    /// their covariance (Golub and Van Loan, Matrix Computations, 8.2.4).
    ///
    /// # Panics
    /// When `components > dim`, or there is no vector.
    pub fn fit(vectors: &[f32], dim: usize, components: usize) -> Self {
        let n = vectors.len() / dim;
        assert!(components <= dim && n > 0, "{components} components of {n} vectors of {dim}");
        let sample: Vec<&[f32]> =
            vectors.chunks_exact(dim).step_by(n.div_ceil(SAMPLE_MAX)).collect();
        let mut mean = vec![0.0f64; dim];
        for vector in &sample {
            mean.iter_mut().zip(*vector).for_each(|(m, x)| *m += f64::from(*x));
        }
        mean.iter_mut().for_each(|m| *m /= sample.len() as f64);
        let covariance = covariance(&sample, &mean);
        let mut random = Pcg64Mcg::seed_from_u64(1);
        let mut directions: Vec<f64> =
            (0..components * dim).map(|_| random.random::<f64>() - 0.5).collect();
        orthonormalise(&mut directions, dim);
        for _ in 0..ROUNDS {
            let turned: Vec<f64> = directions
                .chunks_exact(dim)
                .flat_map(|d| {
                    covariance.chunks_exact(dim).map(|row| dot(row, d)).collect::<Vec<_>>()
                })
                .collect();
            directions = turned;
            orthonormalise(&mut directions, dim);
        }
        let plain = |values: Vec<f64>| values.into_iter().map(|x| x as f32).collect();
        Self { mean: plain(mean), directions: plain(directions) }
    }

    /// Where a vector stands: `components` numbers.
    pub fn project(&self, vector: &[f32], out: &mut [f32]) {
        for (out, direction) in out.iter_mut().zip(self.directions.chunks_exact(self.mean.len())) {
            let along = vector.iter().zip(&self.mean).zip(direction);
            *out = along.map(|((x, m), d)| (x - m) * d).sum();
        }
    }

    /// Writes it.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let mut file = SectionsWriter::create(path, 2)?;
        file.write("mean", &self.mean)?;
        file.write("directions", &self.directions)?;
        file.finish()
    }

    /// Reads it; an error when it is not of these sizes.
    pub fn open(path: &Path, dim: usize, components: usize) -> Result<Self, Error> {
        let file = Sections::open(path)?;
        file.verify()?;
        Ok(Self {
            mean: file.get_exact("mean", dim)?.to_vec(),
            directions: file.get_exact("directions", dim * components)?.to_vec(),
        })
    }
}

/// `dim x dim`.
fn covariance(sample: &[&[f32]], mean: &[f64]) -> Vec<f64> {
    let dim = mean.len();
    let mut sum = vec![0.0; dim * dim];
    let mut centred = vec![0.0; dim];
    for vector in sample {
        for ((c, x), m) in centred.iter_mut().zip(*vector).zip(mean) {
            *c = f64::from(*x) - m;
        }
        for (row, &x) in sum.chunks_exact_mut(dim).zip(&centred) {
            row.iter_mut().zip(&centred).for_each(|(s, y)| *s += x * y);
        }
    }
    sum.iter_mut().for_each(|s| *s /= sample.len() as f64);
    sum
}

/// Modified Gram-Schmidt, row by row. A row that depends on those before it becomes zero.
fn orthonormalise(rows: &mut [f64], dim: usize) {
    for at in 0..rows.len() / dim {
        let (before, rest) = rows.split_at_mut(at * dim);
        let row = &mut rest[..dim];
        for other in before.chunks_exact(dim) {
            let along = dot(row, other);
            row.iter_mut().zip(other).for_each(|(x, o)| *x -= along * o);
        }
        let length = dot(row, row).sqrt();
        let scale = if length > 1e-12 { 1.0 / length } else { 0.0 };
        row.iter_mut().for_each(|x| *x *= scale);
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(x, y)| x * y).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_directions_of_most_variance_are_found_in_order() {
        // Three orthogonal directions of variance 9, 4 and 1 in eight dimensions, around a mean.
        let mut random = Pcg64Mcg::seed_from_u64(7);
        let mut axes: Vec<f64> = (0..3 * 8).map(|_| random.random::<f64>() - 0.5).collect();
        orthonormalise(&mut axes, 8);
        let mut vectors = Vec::new();
        for _ in 0..4000 {
            let mut vector = [5.0f64; 8];
            for (axis, spread) in axes.chunks_exact(8).zip([3.0, 2.0, 1.0]) {
                let along = spread * (random.random::<f64>() * 12.0f64.sqrt() - 3.0f64.sqrt());
                vector.iter_mut().zip(axis).for_each(|(v, a)| *v += along * a);
            }
            vectors.extend(vector.map(|x| x as f32));
        }
        let basis = Basis::fit(&vectors, 8, 3);
        for (found, axis) in basis.directions.chunks_exact(8).zip(axes.chunks_exact(8)) {
            let along: f64 = found.iter().zip(axis).map(|(f, a)| f64::from(*f) * a).sum();
            assert!(along.abs() > 0.99, "{along}");
        }
        let mut variance = [0.0f64; 3];
        for vector in vectors.chunks_exact(8) {
            let mut at = [0.0; 3];
            basis.project(vector, &mut at);
            variance.iter_mut().zip(at).for_each(|(v, x)| *v += f64::from(x).powi(2) / 4000.0);
        }
        for (found, expected) in variance.into_iter().zip([9.0, 4.0, 1.0]) {
            assert!((found / expected - 1.0f64).abs() < 0.1, "{variance:?}");
        }
    }

    #[test]
    fn a_basis_of_another_size_is_refused_and_the_same_one_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("basis");
        let vectors: Vec<f32> = (0..40u32).map(|x| (x * x % 17) as f32).collect();
        let basis = Basis::fit(&vectors, 4, 2);
        basis.save(&path).unwrap();
        assert_eq!(Basis::open(&path, 4, 2).unwrap(), basis);
        assert!(Basis::open(&path, 4, 3).is_err());
    }

    #[test]
    fn texts_that_are_all_the_same_stand_at_zero() {
        let basis = Basis::fit(&[1.0, 2.0, 1.0, 2.0], 2, 1);
        let mut at = [9.0];
        basis.project(&[1.0, 2.0], &mut at);
        assert_eq!(at, [0.0]);
    }
}
