//! What the users of a world like: hidden from the server, known here.

use anyhow::{Context, Result};
use rayon::prelude::*;

use super::super::generate::Made;
use super::super::generate::behaviour::{appeal, examined};
use super::super::generate::tables::id;
use super::super::generate::world::{DIM, Item, User, World};

/// A device that is neither liked nor disliked.
const DEVICE: &str = "desktop";

/// All items of a world, and its law.
pub struct Truth {
    world: World,
    users: u64,
    items: Vec<Item>,
    latents: Vec<[f32; DIM]>,
}

/// A user with their taste.
pub struct Person {
    pub user: User,
    latent: [f32; DIM],
}

/// What a best answer must keep to.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub places: usize,
    pub per_category: usize,
    /// For so many users it is looked for.
    pub users: u64,
}

impl Truth {
    /// Of a generated world.
    ///
    /// # Errors
    /// When its first day is out of range.
    pub fn new(made: &Made) -> Result<Self> {
        let world = made.world()?;
        let items: Vec<Item> = (0..made.items).into_par_iter().map(|row| world.item(row)).collect();
        let latent = |row| {
            let mut latent = [0.0; DIM];
            world.item_latent(row, &mut latent);
            latent
        };
        let latents = (0..made.items).into_par_iter().map(latent).collect();
        Ok(Self { world, users: made.users, items, latents })
    }

    pub fn person(&self, row: u64) -> Person {
        let mut latent = [0.0; DIM];
        self.world.user_latent(row, &mut latent);
        Person { user: self.world.user(row), latent }
    }

    pub fn item(&self, row: usize) -> &Item {
        &self.items[row]
    }

    /// The row of an item by its id.
    ///
    /// # Errors
    /// When it is of another world.
    pub fn item_of(&self, name: &str) -> Result<usize> {
        let number = name.strip_prefix('i').and_then(|digits| digits.parse::<usize>().ok());
        let row = number.and_then(|number| number.checked_sub(1));
        let known = row.filter(|&row| row < self.items.len() && id('i', row as u64) == name);
        known.with_context(|| format!("the server shows `{name}`, which this world does not have"))
    }

    /// The chance that a person clicks on an item that they look at.
    pub fn appeal(&self, person: &Person, item: usize, device: &str) -> f64 {
        appeal(&person.user, &person.latent, &self.items[item], &self.latents[item], device)
    }

    /// The click-through rate of the best answers and of random ones, over items that are sold where the
    /// user is. The best answer keeps to the cap of a category, since the server must.
    pub fn bounds(&self, limits: &Limits) -> (f64, f64) {
        let step = self.users.div_ceil(limits.users.max(1)).max(1);
        let rows: Vec<u64> = (0..self.users).step_by(step as usize).collect();
        let looks: Vec<f64> = (0..limits.places).map(examined).collect();
        let of_user = |&row: &u64| {
            let person = self.person(row);
            let sold = |item: &Item| item.in_stock && item.regions >> person.user.region & 1 == 1;
            let rows = (0..self.items.len()).filter(|&at| sold(&self.items[at]));
            let mut likes: Vec<(f64, u16)> =
                rows.map(|at| (self.appeal(&person, at, DEVICE), self.items[at].topic)).collect();
            let mean =
                likes.iter().map(|(chance, _)| chance).sum::<f64>() / likes.len().max(1) as f64;
            likes.sort_by(|a, b| b.0.total_cmp(&a.0));
            let mut taken: Vec<u16> = Vec::new();
            let mut best = 0.0;
            for (chance, topic) in likes {
                if taken.len() == limits.places {
                    break;
                }
                if taken.iter().filter(|&&t| t == topic).count() < limits.per_category {
                    best += looks[taken.len()] * chance;
                    taken.push(topic);
                }
            }
            (best, looks.iter().sum::<f64>() * mean)
        };
        let sums: Vec<(f64, f64)> = rows.par_iter().map(of_user).collect();
        let places = (rows.len() * limits.places).max(1) as f64;
        let best: f64 = sums.iter().map(|(best, _)| best).sum();
        let random: f64 = sums.iter().map(|(_, random)| random).sum();
        (best / places, random / places)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_better_than_the_best_answer() {
        let made = Made {
            items: 400,
            users: 40,
            days: 3,
            start_date: chrono::NaiveDate::from_ymd_opt(2026, 1, 1).unwrap(),
            seed: 7,
            region_by_topic: false,
            noise: 0.2,
        };
        let truth = Truth::new(&made).unwrap();
        let limits = Limits { places: 5, per_category: 3, users: 40 };
        let (best, random) = truth.bounds(&limits);
        assert!(best > 1.3 * random && random > 0.0, "{best} {random}");
        let capped = truth.bounds(&Limits { per_category: 1, ..limits }).0;
        assert!(capped <= best);
        // Any other answer, for one user.
        let one = Limits { users: 1, ..limits };
        let (best, _) = truth.bounds(&one);
        let person = truth.person(0);
        let sold = |at: &usize| {
            let item = truth.item(*at);
            item.in_stock && item.regions >> person.user.region & 1 == 1
        };
        let some: Vec<usize> = (0..400).filter(sold).collect();
        for window in some.windows(5) {
            let chances = window.iter().enumerate();
            let sum: f64 =
                chances.map(|(at, &i)| examined(at) * truth.appeal(&person, i, DEVICE)).sum();
            assert!(sum / 5.0 <= best + 1e-12);
        }
        assert_eq!(truth.item_of("i0000001").unwrap(), 0);
        assert!(truth.item_of("i0000401").is_err() && truth.item_of("x").is_err());
    }
}
