//! What users do: requests through the day, a logging policy that shows items, clicks, purchases.
//!
//! P(click) = examination of the position x logistic(likeness of user and item, quality, price,
//! device), so there is something to learn for retrieval (the vectors), for ranking (quality,
//! price) and for position debiasing. The logging policy draws its item from one of the user's
//! clusters, from a popular cluster, or from the whole catalogue, and shuffles the slate; the
//! probability of a draw is the `propensity` column, before the rejections for region and age.

use rand::Rng;
use rand::seq::SliceRandom;
use rand_distr::{Distribution, Poisson};
use rand_pcg::Pcg64Mcg;

use super::world::{CLUSTERS, DIM, Item, Stream, User, World, stream};
use crate::kernels;

/// Impressions of one request.
pub(super) const SLATE: usize = 10;
/// Draws for one position by the policy, then from the whole catalogue, before it stays empty: a
/// small catalogue has clusters without items, or without any that are sold in the region.
const TRIES: usize = 8;
const TRIES_ANYWHERE: usize = 12;
/// Where the logging policy takes its item from: the user's clusters, popular clusters; else anywhere.
const FROM_TASTE: f64 = 0.6;
const FROM_POPULAR: f64 = 0.3;

const HOUR_US: i64 = 3_600_000_000;
const SECOND_US: i64 = 1_000_000;

/// How much happens.
pub(super) struct Traffic {
    pub(super) impressions_per_user_day: f64,
}

/// Kind of an event, by its name in the tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Impression,
    Click,
    Purchase,
}

impl Kind {
    pub(super) fn name(self) -> &'static str {
        match self {
            Kind::Impression => "impression",
            Kind::Click => "click",
            Kind::Purchase => "purchase",
        }
    }
}

/// One event of a [`UserDay`].
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    pub(super) kind: Kind,
    pub(super) item: u32,
    pub(super) time_us: i64,
    /// Number of the request within the day of the user.
    pub(super) request: u32,
    /// From 0.
    pub(super) position: i32,
    pub(super) device: &'static str,
    pub(super) value: Option<f64>,
    pub(super) propensity: f64,
}

/// All that one user did on one day, by request and position.
pub(super) struct UserDay {
    pub(super) region: u8,
    pub(super) variant: &'static str,
    pub(super) events: Vec<Event>,
}

/// The items by cluster.
pub(super) struct Catalogue<'a> {
    world: &'a World,
    offsets: Vec<u32>,
    members: Vec<u32>,
}

impl<'a> Catalogue<'a> {
    /// Sorts the items (`clusters[item]`) by cluster.
    pub(super) fn new(world: &'a World, clusters: &[u16]) -> Self {
        let mut offsets = vec![0u32; CLUSTERS + 1];
        clusters.iter().for_each(|&cluster| offsets[cluster as usize + 1] += 1);
        for cluster in 0..CLUSTERS {
            offsets[cluster + 1] += offsets[cluster];
        }
        let mut next = offsets.clone();
        let mut members = vec![0; clusters.len()];
        for (item, &cluster) in clusters.iter().enumerate() {
            members[next[cluster as usize] as usize] = item as u32;
            next[cluster as usize] += 1;
        }
        Self { world, offsets, members }
    }

    /// The day number `day` of user `row`.
    pub(super) fn user_day(&self, traffic: &Traffic, day: u32, row: u64) -> UserDay {
        let world = self.world;
        let user = world.user(row);
        let mut rng = stream(world.setting.seed, Stream::Day, row << 16 | u64::from(day));
        let mean = traffic.impressions_per_user_day * user.activity / SLATE as f64;
        let requests =
            Poisson::new(mean).map_or(0, |requests| requests.sample(&mut rng).min(1e4) as u32);
        let variant = if row.is_multiple_of(2) { "a" } else { "b" };
        let mut made = UserDay { region: user.region, variant, events: Vec::new() };
        if requests == 0 {
            return made;
        }
        let mut latent = [0.0; DIM];
        world.user_latent(row, &mut latent);
        let midnight_us = world.setting.start_us + i64::from(day) * 24 * HOUR_US;
        let mut times: Vec<i64> =
            (0..requests).map(|_| midnight_us + time_of_day(&mut rng)).collect();
        times.sort_unstable();
        for (request, time_us) in times.into_iter().enumerate() {
            let person = Person { user: &user, latent: &latent, request: request as u32, time_us };
            self.request(&person, &mut rng, &mut made.events);
        }
        made
    }

    /// One slate: its impressions, then what came of them.
    fn request(&self, person: &Person, rng: &mut Pcg64Mcg, events: &mut Vec<Event>) {
        let device = device(rng);
        let first = events.len();
        let mut shown: Vec<(u32, Item)> = Vec::with_capacity(SLATE);
        for _ in 0..SLATE {
            shown.extend(self.show(person, &shown, rng));
        }
        // The liked clusters run out first, so the order of drawing is no order of chance.
        shown.shuffle(rng);
        events.extend(shown.iter().zip(0..).map(|((row, item), position)| Event {
            kind: Kind::Impression,
            item: *row,
            time_us: person.time_us,
            request: person.request,
            position,
            device,
            value: None,
            propensity: self.propensity(person.user, item.cluster),
        }));
        for (at, (row, item)) in shown.iter().enumerate() {
            if !rng.random_bool(self.click_chance(person, *row, item, at, device)) {
                continue;
            }
            let mut event = events[first + at].clone();
            event.kind = Kind::Click;
            event.time_us += rng.random_range(SECOND_US..90 * SECOND_US);
            events.push(event.clone());
            if rng.random_bool(purchase_chance(item)) {
                event.kind = Kind::Purchase;
                event.time_us += rng.random_range(30 * SECOND_US..HOUR_US);
                event.value = Some(item.price);
                events.push(event);
            }
        }
    }

    /// One item for the user, sold in their region, created by then, not yet in the slate.
    fn show(
        &self,
        person: &Person,
        shown: &[(u32, Item)],
        rng: &mut Pcg64Mcg,
    ) -> Option<(u32, Item)> {
        for tried in 0..TRIES + TRIES_ANYWHERE {
            let source = if tried < TRIES { rng.random::<f64>() } else { 1.0 };
            let members = if source < FROM_TASTE {
                self.of_cluster(draw_taste_cluster(person.user, rng))
            } else if source < FROM_TASTE + FROM_POPULAR {
                self.of_cluster(self.world.draw_cluster(rng))
            } else {
                &self.members
            };
            if members.is_empty() {
                continue;
            }
            let row = members[rng.random_range(0..members.len())];
            let item = self.world.item(row.into());
            let sold = item.regions >> person.user.region & 1 == 1;
            let known = shown.iter().any(|(other, _)| *other == row);
            if sold && !known && item.created_us <= person.time_us {
                return Some((row, item));
            }
        }
        None
    }

    /// The probability that [`Catalogue::show`] draws an item of `cluster` at its first try.
    fn propensity(&self, user: &User, cluster: u16) -> f64 {
        let taste: f32 =
            user.taste.iter().filter(|(liked, _)| *liked == cluster).map(|(_, share)| share).sum();
        let members = self.of_cluster(cluster).len() as f64;
        let by_cluster =
            FROM_TASTE * f64::from(taste) + FROM_POPULAR * self.world.cluster_share(cluster);
        by_cluster / members + (1.0 - FROM_TASTE - FROM_POPULAR) / self.members.len() as f64
    }

    fn click_chance(&self, person: &Person, row: u32, item: &Item, at: usize, device: &str) -> f64 {
        let mut latent = [0.0; DIM];
        self.world.item_latent(row.into(), &mut latent);
        examined(at) * appeal(person.user, person.latent, item, &latent, device)
    }

    fn of_cluster(&self, cluster: u16) -> &[u32] {
        let cluster = cluster as usize;
        &self.members[self.offsets[cluster] as usize..self.offsets[cluster + 1] as usize]
    }
}

/// The chance that a user clicks on an item that they look at.
pub fn appeal(
    user: &User,
    user_latent: &[f32; DIM],
    item: &Item,
    item_latent: &[f32; DIM],
    device: &str,
) -> f64 {
    let likeness = f64::from(kernels::dot(user_latent, item_latent));
    let price_gap = f64::from(item.price_z - user.price_z);
    let on_mobile = if device == "mobile" { -0.2 } else { 0.0 };
    let quality = f64::from(item.quality);
    logistic(-3.3 + 4.0 * likeness + 0.6 * quality - 0.15 * price_gap * price_gap + on_mobile)
}

/// The chance that a click becomes a purchase.
pub fn purchase_chance(item: &Item) -> f64 {
    logistic(-1.6 + 0.5 * f64::from(item.quality))
}

/// The device of a request.
pub fn device(rng: &mut Pcg64Mcg) -> &'static str {
    match rng.random::<f64>() {
        x if x < 0.6 => "mobile",
        x if x < 0.9 => "desktop",
        _ => "tablet",
    }
}

/// A user at one request.
struct Person<'a> {
    user: &'a User,
    latent: &'a [f32; DIM],
    request: u32,
    time_us: i64,
}

/// The chance that a position is looked at at all.
pub fn examined(position: usize) -> f64 {
    (1.0 + position as f64).powf(-0.35)
}

fn draw_taste_cluster(user: &User, rng: &mut Pcg64Mcg) -> u16 {
    let mut left = rng.random::<f32>();
    let mut last = 0;
    for (cluster, share) in user.taste.iter() {
        last = cluster;
        left -= share;
        if left < 0.0 {
            break;
        }
    }
    last
}

/// From 6:00 to 22:30, most in the middle; a click and a purchase then still fall on the same day.
fn time_of_day(rng: &mut Pcg64Mcg) -> i64 {
    let share = (rng.random::<f64>() + rng.random::<f64>()) / 2.0;
    6 * HOUR_US + (share * 16.5 * HOUR_US as f64) as i64
}

fn logistic(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}
