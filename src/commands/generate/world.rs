//! The law of the synthetic world: where items and users lie, and what they are like.
//!
//! Vectors: 128 dimensions with a decaying spectrum, 256 topics, 8,192 clusters each of one topic,
//! cluster weights of a power law. An item is a point of a cluster; a user is a mixture of one to
//! three clusters. In *latent* coordinates the dimensions are ordered by their variance; what is
//! stored is rotated by one random orthogonal matrix, which keeps every inner product.
//!
//! Invariant: a row is a pure function of the setting and its number.

use rand::{Rng, SeedableRng};
use rand_distr::{Distribution, Exp1, StandardNormal};
use rand_pcg::Pcg64Mcg;

use crate::kernels;

/// Length of a vector.
pub const DIM: usize = 128;
/// Number of topics; the category of an item is its topic.
pub const TOPICS: usize = 256;
/// Number of clusters.
pub const CLUSTERS: usize = 8192;
/// Names of the regions, by bit of [`Item::regions`].
pub const REGIONS: [&str; 4] = ["north", "east", "south", "west"];
/// Share of the items in stock.
pub const IN_STOCK_SHARE: f64 = 0.8;
/// Safety labels, with the share of the items that carry each.
pub const LABELS: [(&str, f64); 3] = [("adult", 0.02), ("alcohol", 0.02), ("recalled", 0.002)];

const DAY_US: i64 = 86_400_000_000;

/// What the world depends on.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Seed of everything.
    pub seed: u64,
    /// Length of the isotropic noise of items and users.
    pub noise: f64,
    /// Whether the regions of items and users follow their topics.
    pub region_by_topic: bool,
    /// First instant of the events, microseconds of the epoch.
    pub start_us: i64,
    /// Days of events; one item in ten is created within them.
    pub days: u32,
}

/// What an item is, besides its vector.
#[derive(Clone, Debug, PartialEq)]
pub struct Item {
    pub cluster: u16,
    pub topic: u16,
    /// Hidden attractiveness, N(0, 1); [`Item::rating`] is a noisy view of it.
    pub quality: f32,
    pub price: f64,
    /// Where the price stands among those of its topic, N(0, 1).
    pub price_z: f32,
    pub created_us: i64,
    pub in_stock: bool,
    /// One bit a region of [`REGIONS`]; never 0.
    pub regions: u8,
    /// One bit a label of [`LABELS`].
    pub labels: u8,
    pub brand: u16,
    /// 1 to 5.
    pub rating: f32,
}

/// What a user is, besides their vector.
#[derive(Clone, Debug, PartialEq)]
pub struct User {
    pub taste: Taste,
    /// Position in [`REGIONS`].
    pub region: u8,
    /// Position in the age bands of the users table.
    pub age_band: u8,
    /// Preferred [`Item::price_z`], N(0, 1).
    pub price_z: f32,
    /// Requests relative to the mean user; mean 1.
    pub activity: f64,
    pub signed_up_us: i64,
}

/// The clusters that a user likes.
#[derive(Clone, Debug, PartialEq)]
pub struct Taste {
    clusters: [u16; 3],
    shares: [f32; 3],
    count: u8,
}

impl Taste {
    /// Clusters with their shares, which add up to one.
    pub fn iter(&self) -> impl Iterator<Item = (u16, f32)> + '_ {
        self.clusters.iter().copied().zip(self.shares.iter().copied()).take(self.count as usize)
    }
}

/// Independent streams of random numbers: one a purpose and row.
#[derive(Clone, Copy)]
pub(super) enum Stream {
    World,
    ItemVector,
    Item,
    UserVector,
    User,
    Day,
}

/// The drawn topics and clusters.
pub struct World {
    pub(super) setting: Setting,
    sigma: [f32; DIM],
    tau: [f32; DIM],
    /// `[DIM * DIM]`, orthogonal.
    rotation: Vec<f32>,
    topic_of: Vec<u16>,
    /// `[CLUSTERS * DIM]`, latent.
    means: Vec<f32>,
    /// Standard deviation of a cluster.
    spread: Vec<f32>,
    /// Running sums of the cluster weights.
    cumulative: Vec<f64>,
    /// The clusters of each topic, with running sums of their weights.
    of_topic: Vec<Vec<(u16, f64)>>,
    /// Mean of the logarithm of the prices of each topic.
    price_level: Vec<f64>,
}

impl World {
    /// Draws rotation, topics and clusters.
    pub fn new(setting: Setting) -> Self {
        let mut rng = stream(setting.seed, Stream::World, 0);
        let rotation = orthogonal(&mut rng);
        let (sigma, tau) = (spectrum(8.0), spectrum(16.0));
        let topics: Vec<f32> = (0..TOPICS * DIM).map(|_| normal(&mut rng)).collect();
        let topic_of: Vec<u16> =
            (0..CLUSTERS).map(|_| rng.random_range(0..TOPICS as u16)).collect();
        let mut means = Vec::with_capacity(CLUSTERS * DIM);
        let half = 0.5f32.sqrt();
        for &topic in &topic_of {
            let topic = &topics[topic as usize * DIM..][..DIM];
            means.extend((0..DIM).map(|j| {
                let own: f32 = normal(&mut rng);
                sigma[j] * (half * topic[j] + half * own)
            }));
        }
        let spread = (0..CLUSTERS).map(|_| 0.55 * (0.25 * normal(&mut rng)).exp()).collect();
        let price_level = (0..TOPICS).map(|_| 3.0 + 0.8 * f64::from(normal(&mut rng))).collect();
        let mut of_topic = vec![Vec::new(); TOPICS];
        let mut cumulative = Vec::with_capacity(CLUSTERS);
        let mut total = 0.0;
        for (cluster, &topic) in topic_of.iter().enumerate() {
            let weight = weight(cluster);
            total += weight;
            cumulative.push(total);
            let of_topic: &mut Vec<(u16, f64)> = &mut of_topic[topic as usize];
            let before = of_topic.last().map_or(0.0, |last| last.1);
            of_topic.push((cluster as u16, before + weight));
        }
        Self {
            setting,
            sigma,
            tau,
            rotation,
            topic_of,
            means,
            spread,
            cumulative,
            of_topic,
            price_level,
        }
    }

    /// The cluster of item `row`; what [`World::item`] says too, for less.
    pub fn item_cluster(&self, row: u64) -> u16 {
        self.draw_cluster(&mut stream(self.setting.seed, Stream::ItemVector, row))
    }

    /// Writes the latent vector of item `row`, of length one.
    pub fn item_latent(&self, row: u64, out: &mut [f32; DIM]) {
        let mut rng = stream(self.setting.seed, Stream::ItemVector, row);
        let cluster = self.draw_cluster(&mut rng) as usize;
        let mean = &self.means[cluster * DIM..][..DIM];
        let (spread, noise) = (self.spread[cluster], self.noise_sd());
        for j in 0..DIM {
            let sd = (spread * spread * self.tau[j] * self.tau[j] + noise * noise).sqrt();
            out[j] = mean[j] + normal(&mut rng) * sd;
        }
        kernels::normalise(out);
    }

    /// Everything else about item `row`.
    pub fn item(&self, row: u64) -> Item {
        let cluster = self.item_cluster(row);
        let topic = self.topic_of[cluster as usize];
        let mut rng = stream(self.setting.seed, Stream::Item, row);
        let quality = normal(&mut rng);
        let price_z = normal(&mut rng);
        let price = (self.price_level[topic as usize] + 0.5 * f64::from(price_z)).exp();
        let created_us = if self.setting.days > 0 && rng.random_bool(0.1) {
            self.setting.start_us + rng.random_range(0..i64::from(self.setting.days) * DAY_US)
        } else {
            let age_days: f64 = Exp1.sample(&mut rng);
            self.setting.start_us - ((age_days * 365.0).min(1825.0) * DAY_US as f64) as i64
        };
        let in_stock = rng.random_bool(IN_STOCK_SHARE);
        let regions = self.draw_regions(topic, &mut rng);
        let mut labels = 0;
        for (bit, (_, share)) in LABELS.iter().enumerate() {
            labels |= u8::from(rng.random_bool(*share)) << bit;
        }
        // Four brands share a cluster, so a brand says something about the vector.
        let brand = (u32::from(cluster) * 4 + rng.random_range(0..4)).wrapping_mul(2_654_435_761);
        Item {
            cluster,
            topic,
            quality,
            price: (price * 100.0).round().max(1.0) / 100.0,
            price_z,
            created_us,
            in_stock,
            regions,
            labels,
            brand: (brand >> 22) as u16,
            rating: (3.5 + 0.6 * quality + 0.4 * normal(&mut rng)).clamp(1.0, 5.0),
        }
    }

    /// Writes the latent vector of user (or query) `row`, of length one.
    pub fn user_latent(&self, row: u64, out: &mut [f32; DIM]) {
        let mut rng = stream(self.setting.seed, Stream::UserVector, row);
        let taste = self.draw_taste(&mut rng);
        // The shares are divided by their length, so that a mixture is as long as one cluster.
        let length = taste.iter().map(|(_, share)| share * share).sum::<f32>().sqrt();
        out.fill(0.0);
        for (cluster, share) in taste.iter() {
            let mean = &self.means[cluster as usize * DIM..][..DIM];
            out.iter_mut().zip(mean).for_each(|(x, mean)| *x += share / length * mean);
        }
        let noise = self.noise_sd();
        for (x, sigma) in out.iter_mut().zip(&self.sigma) {
            *x += 0.45 * sigma * normal(&mut rng) + noise * normal(&mut rng);
        }
        kernels::normalise(out);
    }

    /// Everything else about user `row`.
    pub fn user(&self, row: u64) -> User {
        let seed = self.setting.seed;
        let taste = self.draw_taste(&mut stream(seed, Stream::UserVector, row));
        let mut rng = stream(seed, Stream::User, row);
        let topic = self.topic_of[taste.clusters[0] as usize];
        let any = rng.random_range(0..REGIONS.len() as u8);
        let stays = rng.random_bool(0.7);
        let region = if self.setting.region_by_topic && stays { home_region(topic) } else { any };
        let age_days: f64 = Exp1.sample(&mut rng);
        User {
            taste,
            region,
            age_band: rng.random_range(0..5),
            price_z: normal(&mut rng),
            // A lognormal of mean one.
            activity: (0.7 * f64::from(normal(&mut rng)) - 0.245).exp(),
            signed_up_us: self.setting.start_us - ((age_days * 300.0) * DAY_US as f64) as i64,
        }
    }

    /// Turns a latent vector into the stored one.
    pub fn rotate(&self, latent: &[f32; DIM], out: &mut [f32]) {
        kernels::dots(latent, &self.rotation, out);
        // The rotation is orthogonal to rounding only; what is stored has length one.
        kernels::normalise(out);
    }

    /// The share of the items that lie in `cluster`.
    pub fn cluster_share(&self, cluster: u16) -> f64 {
        weight(cluster as usize) / self.cumulative[CLUSTERS - 1]
    }

    /// Draws a cluster by its weight.
    pub(super) fn draw_cluster(&self, rng: &mut Pcg64Mcg) -> u16 {
        let at = rng.random::<f64>() * self.cumulative[CLUSTERS - 1];
        self.cumulative.partition_point(|&sum| sum <= at).min(CLUSTERS - 1) as u16
    }

    fn draw_taste(&self, rng: &mut Pcg64Mcg) -> Taste {
        let count = match rng.random::<f64>() {
            x if x < 0.4 => 1,
            x if x < 0.75 => 2,
            _ => 3,
        };
        let first = self.draw_cluster(rng);
        let mut taste = Taste { clusters: [first; 3], shares: [0.0; 3], count };
        for other in 1..count as usize {
            taste.clusters[other] = if rng.random_bool(0.5) {
                self.draw_cluster_of(self.topic_of[first as usize], rng)
            } else {
                self.draw_cluster(rng)
            };
        }
        // Dirichlet(2): normalised Gamma(2) draws, each the sum of two exponentials.
        for share in &mut taste.shares[..count as usize] {
            let (a, b): (f32, f32) = (Exp1.sample(rng), Exp1.sample(rng));
            *share = a + b;
        }
        let sum: f32 = taste.shares.iter().sum();
        taste.shares.iter_mut().for_each(|share| *share /= sum);
        taste
    }

    fn draw_cluster_of(&self, topic: u16, rng: &mut Pcg64Mcg) -> u16 {
        let clusters = &self.of_topic[topic as usize];
        let last = clusters[clusters.len() - 1];
        let at = rng.random::<f64>() * last.1;
        clusters[clusters.partition_point(|entry| entry.1 <= at).min(clusters.len() - 1)].0
    }

    fn draw_regions(&self, topic: u16, rng: &mut Pcg64Mcg) -> u8 {
        let mut regions = 0;
        for region in 0..REGIONS.len() as u8 {
            let share = match self.setting.region_by_topic {
                true if region == home_region(topic) => 0.95,
                true => 0.15,
                false => 0.5,
            };
            regions |= u8::from(rng.random_bool(share)) << region;
        }
        let any = rng.random_range(0..REGIONS.len() as u8);
        if regions == 0 { 1 << any } else { regions }
    }

    fn noise_sd(&self) -> f32 {
        (self.setting.noise / (DIM as f64).sqrt()) as f32
    }
}

/// The region that a topic belongs to when regions follow topics.
fn home_region(topic: u16) -> u8 {
    (topic % REGIONS.len() as u16) as u8
}

fn weight(cluster: usize) -> f64 {
    (cluster as f64 + 5.0).powf(-0.8)
}

/// `(1 + j / scale)^-0.875`, scaled to a unit sum of squares.
fn spectrum(scale: f64) -> [f32; DIM] {
    let raw: [f64; DIM] = std::array::from_fn(|j| (1.0 + j as f64 / scale).powf(-0.875));
    let length = raw.iter().map(|x| x * x).sum::<f64>().sqrt();
    raw.map(|x| (x / length) as f32)
}

/// A uniformly random orthogonal matrix: Gaussian rows, orthonormalised one after the other, twice
/// for the rounding.
fn orthogonal(rng: &mut Pcg64Mcg) -> Vec<f32> {
    let mut rows: Vec<[f64; DIM]> = Vec::with_capacity(DIM);
    for _ in 0..DIM {
        let mut row: [f64; DIM] = std::array::from_fn(|_| StandardNormal.sample(rng));
        for _ in 0..2 {
            for done in &rows {
                let along: f64 = row.iter().zip(done).map(|(a, b)| a * b).sum();
                row.iter_mut().zip(done).for_each(|(x, d)| *x -= along * d);
            }
        }
        let length = row.iter().map(|x| x * x).sum::<f64>().sqrt();
        rows.push(row.map(|x| x / length));
    }
    rows.iter().flatten().map(|&x| x as f32).collect()
}

#[inline]
pub(super) fn normal(rng: &mut Pcg64Mcg) -> f32 {
    StandardNormal.sample(rng)
}

/// The stream of one purpose and row. The three numbers are mixed by the finaliser of SplitMix64
/// (Steele, Lea and Flood, "Fast splittable pseudorandom number generators", 2014).
pub(super) fn stream(seed: u64, purpose: Stream, row: u64) -> Pcg64Mcg {
    let mix = |x: u64| {
        let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        x ^ (x >> 31)
    };
    let step = 0x9e37_79b9_7f4a_7c15u64;
    let base = mix(seed.wrapping_add(step)).wrapping_add((purpose as u64 + 1).wrapping_mul(step));
    Pcg64Mcg::seed_from_u64(mix(mix(base).wrapping_add(row.wrapping_mul(step))))
}
