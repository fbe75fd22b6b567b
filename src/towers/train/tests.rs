//! Gradients, sampling, and what trained towers can do on a planted world.

use rand::Rng;
use rand::seq::IndexedRandom;

use super::super::{Device, MISSING, UserInput};
use super::*;
use crate::types::DAY_MS;

pub(super) fn config() -> Config {
    Config {
        dim: 32,
        id_dim: 8,
        code_dim_max: 8,
        hidden: vec![32],
        history_max: 20,
        pool_half_lives_events: vec![f32::INFINITY, 3.0],
        separate_history_tables: false,
        id_rows_max: 1000,
        id_min_count: 2,
        seed: 7,
        threads: 1,
        device: Device::Cpu,
        epochs_max: 6,
        patience_epochs: 2,
        batch_rows: 64,
        random_negatives: 20,
        learning_rate: 0.003,
        table_learning_rate: 0.1,
        weight_decay: 0.01,
        scale: 10.0,
        learn_scale: true,
        id_dropout: 0.1,
        repeat_weight: 0.2,
        mask_owned: true,
        half_life_days: f32::INFINITY,
        basket_damping: 0.0,
    }
}

/// Two groups of users and items that never meet, in owned arrays.
pub(super) struct World {
    items: usize,
    item_codes: Vec<u32>,
    user_codes: Vec<u32>,
    event_items: Vec<ItemIdx>,
    event_weights: Vec<f32>,
    time_ms: Vec<i64>,
    user_offsets: Vec<u32>,
    rows: Vec<Row>,
    row_dense: Vec<f32>,
    snapshots: Vec<Vec<f32>>,
}

const CODES: &[u32] = &[2];

/// The group of items and users is the parity of their number; the last ten items are never
/// touched, so that only their code tells the group.
fn world(users: usize, items: usize, baskets: usize, seed: u64) -> World {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut world = World {
        items,
        item_codes: (0..items as u32).map(|item| item % 2).collect(),
        user_codes: vec![MISSING; users],
        event_items: Vec::new(),
        event_weights: Vec::new(),
        time_ms: Vec::new(),
        user_offsets: vec![0],
        rows: Vec::new(),
        row_dense: Vec::new(),
        snapshots: vec![vec![0.0; items * 2]; 2],
    };
    let touched: Vec<usize> = (0..items - 10).collect();
    for user in 0..users {
        for basket in 0..baskets {
            for _ in 0..3 {
                let item = touched.choose(&mut rng).unwrap() / 2 * 2 + user % 2;
                world.event_items.push(ItemIdx(item as u32));
                world.time_ms.push(basket as i64 * DAY_MS);
            }
        }
        world.user_offsets.push(world.event_items.len() as u32);
    }
    world.event_weights = vec![1.0; world.event_items.len()];
    let split = baskets as i64 / 2 * DAY_MS;
    let until = baskets as i64 * DAY_MS;
    let (offsets, times) = (&world.user_offsets, &world.time_ms);
    world.rows = rows_of(offsets, Some(times), DAY_MS, until, &[0, split]);
    world.row_dense = (0..world.rows.len()).map(|_| rng.random_range(0.0..9.0)).collect();
    for snapshot in &mut world.snapshots {
        snapshot.iter_mut().for_each(|value| *value = rng.random_range(0.0..5.0));
    }
    world
}

impl World {
    fn with<T>(&self, read: impl FnOnce(&Data) -> T) -> T {
        let snapshots: Vec<&[f32]> = self.snapshots.iter().map(|values| &values[..]).collect();
        read(&Data {
            items: self.items,
            item_code_cardinalities: CODES,
            item_codes: &self.item_codes,
            user_code_cardinalities: CODES,
            user_codes: &self.user_codes,
            event_items: &self.event_items,
            event_weights: &self.event_weights,
            user_offsets: &self.user_offsets,
            rows: &self.rows,
            row_dense: &self.row_dense,
            user_dense: 1,
            snapshots: &snapshots,
            item_dense: 2,
        })
    }

    fn train(&self, config: &Config) -> Towers {
        self.with(|data| train(data, config, &mut Silent).unwrap())
    }

    fn user_vector(&self, towers: &Towers, history: &[u32]) -> Vec<f32> {
        let history: Vec<ItemIdx> = history.iter().map(|&item| ItemIdx(item)).collect();
        let mut out = vec![0.0; towers.dim()];
        let input = UserInput { history: &history, codes: &[MISSING], dense: &[4.0] };
        towers.encode_user(&input, &mut towers.scratch(), &mut out);
        out
    }

    /// Items, most similar first.
    fn ranked(&self, towers: &Towers, user: &[f32]) -> Vec<u32> {
        let vectors = encode_all(towers, &self.item_codes, &self.snapshots[1]);
        let scores: Vec<f32> = vectors.chunks_exact(towers.dim()).map(|v| dot(v, user)).collect();
        let mut order: Vec<u32> = (0..self.items as u32).collect();
        order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]));
        order
    }
}

fn dot(a: &[f32], b: &[f32]) -> f32 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

struct Silent;

impl Observer for Silent {
    fn progress(&mut self, _: &Progress) {}
    fn judge(&mut self, _: u32, _: &Towers) -> Option<f64> {
        None
    }
}

/// A batch of the world in a workspace, and the towers it is for.
fn step_of(data: &Data, config: &Config) -> (Towers, Workspace) {
    let mut rng = StdRng::seed_from_u64(3);
    let towers = init::towers(data, config, &mut rng);
    let sampler = Sampler::new(data, config).unwrap();
    let mut work = Workspace::new(&towers, config).unwrap();
    let plan = sampler.epoch(&mut rng);
    sampler.fill(&towers, &plan[0], &mut rng, &mut work.batch);
    (towers, work)
}

/// The derivative along a random direction agrees with the difference of two losses, for every
/// group of parameters. `separate` covers the tables of the history on their own.
#[test]
fn gradients_agree_with_finite_differences() {
    let world = world(20, 60, 6, 1);
    for separate in [false, true] {
        let config = Config { separate_history_tables: separate, hidden: vec![24, 16], ..config() };
        world.with(|data| {
            let (towers, mut work) = step_of(data, &config);
            step::loss_and_gradients(data, &towers, &mut work);
            let mut groups = vec![work.grads.item.clone(), work.grads.user.clone()];
            groups.extend(work.grads.tables.iter().map(|gradient| gradient.values.clone()));
            for (group, gradient) in groups.iter().enumerate() {
                let length = dot(gradient, gradient).sqrt();
                assert!(length > 1e-6, "parameter group {group} has no gradient at all");
                // Half along the gradient, half at random, so that the slope is well above noise.
                let mut rng = StdRng::seed_from_u64(group as u64);
                let noise = length / (gradient.len() as f32).sqrt();
                let direction: Vec<f32> = gradient
                    .iter()
                    .map(|g| (g + noise * rng.random_range(-1.5..1.5)) / length)
                    .collect();
                let expected = f64::from(dot(gradient, &direction));
                let mut loss_at = |step: f32| {
                    let mut moved = towers.clone();
                    let values = match group {
                        0 => owned(&mut moved.item.params),
                        1 => owned(&mut moved.user.params),
                        table => owned(&mut moved.tables[table - 2].values),
                    };
                    values.iter_mut().zip(&direction).for_each(|(v, d)| *v += step * d);
                    step::loss_and_gradients(data, &moved, &mut work).loss
                };
                let step = 4e-3;
                let found = (loss_at(step) - loss_at(-step)) / (2.0 * f64::from(step));
                let error = (found - expected).abs() / expected.abs();
                assert!(error < 0.02, "group {group}: {found} by differences, {expected} expected");
            }
        });
    }
}

/// The order of adding is all that a device may change.
#[cfg(feature = "cuda")]
#[test]
fn a_step_on_the_device_is_that_of_the_processor() {
    if let Err(error) = crate::kernels::matmul::cuda::Gpu::open() {
        eprintln!("skipped: {error}");
        return;
    }
    let (world, config) = (world(20, 60, 6, 1), config());
    world.with(|data| {
        let [cpu, device] = [Device::Cpu, Device::Cuda].map(|device| {
            let (towers, mut work) = step_of(data, &Config { device, ..config.clone() });
            let loss = step::loss_and_gradients(data, &towers, &mut work).loss;
            (loss, [work.grads.item, work.grads.user].concat())
        });
        assert!((cpu.0 - device.0).abs() < 1e-5 * cpu.0, "{} {}", cpu.0, device.0);
        let most = cpu.1.iter().fold(0.0, |most: f32, g| most.max(g.abs()));
        let differs = |(a, b): (&f32, &f32)| (a - b).abs() > 1e-4 * most;
        assert!(!cpu.1.iter().zip(&device.1).any(differs), "gradients differ");
    });
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_program_without_cuda_says_how_to_get_it() {
    let world = world(20, 60, 6, 1);
    world.with(|data| {
        let config = Config { device: Device::Cuda, ..config() };
        let refused = train(data, &config, &mut Silent).err().unwrap().to_string();
        assert!(refused.contains("--features cuda"), "{refused}");
    });
}

#[test]
fn the_gradient_of_the_scale_agrees_with_finite_differences() {
    let world = world(20, 60, 6, 2);
    world.with(|data| {
        let (towers, mut work) = step_of(data, &config());
        step::loss_and_gradients(data, &towers, &mut work);
        let expected = f64::from(work.grads.log_scale);
        let start = work.log_scale;
        let mut loss_at = |log_scale: f32| {
            work.log_scale = log_scale;
            step::loss_and_gradients(data, &towers, &mut work).loss
        };
        let found = (loss_at(start + 1e-3) - loss_at(start - 1e-3)) / 2e-3;
        assert!((found - expected).abs() < 0.01 * expected.abs(), "{found}, {expected} expected");
    });
}

/// With every row in the batch and every item drawn, the loss is the plain softmax over the
/// whole catalogue without the user's own items.
#[test]
fn the_loss_of_a_full_batch_is_the_full_softmax() {
    let world = world(6, 40, 4, 3);
    let config = Config { batch_rows: 1000, random_negatives: 40, id_dropout: 0.0, ..config() };
    world.with(|data| {
        let (towers, mut work) = step_of(data, &config);
        // Uniform draws miss some items; all are made certain here.
        let batch = &mut work.batch;
        let found = {
            batch.log_inclusion.fill(0.0);
            step::loss_and_gradients(data, &towers, &mut work).loss
        };
        let batch = &work.batch;
        let vectors = encode_all(&towers, &world.item_codes, &world.snapshots[batch.snapshot]);
        let mut expected = 0.0f64;
        let mut weight = 0.0f64;
        for target in &batch.targets {
            let row = &world.rows[batch.rows[target.row as usize] as usize];
            let past = data.user_offsets[row.user as usize] as usize..row.begin as usize;
            let history = &data.event_items[past];
            let dense = [world.row_dense[batch.rows[target.row as usize] as usize]];
            let mut user = vec![0.0; towers.dim()];
            let input = UserInput { history, codes: &[MISSING], dense: &dense };
            towers.encode_user(&input, &mut towers.scratch(), &mut user);
            let logit = |item: u32| {
                let at = item as usize * towers.dim();
                f64::from(10.0 * dot(&vectors[at..at + towers.dim()], &user))
            };
            let item = batch.candidates[target.candidate as usize];
            let basket = &data.event_items[row.begin as usize..row.end as usize];
            let others: f64 = batch
                .candidates
                .iter()
                .filter(|&&j| !history.contains(&ItemIdx(j)) && !basket.contains(&ItemIdx(j)))
                .map(|&j| logit(j).exp())
                .sum();
            let cost = (logit(item).exp() + others).ln() - logit(item);
            expected += f64::from(target.weight) * cost;
            weight += f64::from(target.weight);
        }
        expected /= weight;
        assert!((found - expected).abs() < 1e-4, "{found}, {expected} expected");
    });
}

#[test]
fn baskets_are_rows_and_their_past_ends_before_them() {
    let times = [10, 10, 20, 5, 30, 30].map(|day| day * DAY_MS);
    let rows = rows_of(&[0, 3, 6], Some(&times), 10 * DAY_MS, 40 * DAY_MS, &[0, 15 * DAY_MS]);
    let row = |user, begin, end, snapshot, age_days| Row { user, begin, end, snapshot, age_days };
    let expected = [row(0, 0, 2, 0, 30.0), row(0, 2, 3, 1, 20.0), row(1, 4, 6, 1, 10.0)];
    assert_eq!(rows, expected, "day 5 is only history");
    let untimed = rows_of(&[0, 2, 3], None, 0, 0, &[]);
    assert_eq!(untimed.len(), 3, "without times every event is its own moment");
}

#[test]
fn repeats_weigh_less_and_duplicates_in_a_basket_count_once() {
    let mut world = world(2, 40, 3, 4);
    world.event_items =
        [1, 1, 2, 1, 3, 3, 4, 5, 6, 4, 8, 4, 7, 7, 7, 7, 7, 7].map(ItemIdx).to_vec();
    let config = Config { batch_rows: 10, random_negatives: 0, ..config() };
    world.rows.iter_mut().for_each(|row| row.snapshot = 0);
    world.with(|data| {
        let (_, work) = step_of(data, &config);
        let batch = &work.batch;
        let mut found: Vec<(u32, u32, u32, f32)> = batch
            .targets
            .iter()
            .map(|target| {
                let row = &data.rows[batch.rows[target.row as usize] as usize];
                (row.user, row.begin, batch.candidates[target.candidate as usize], target.weight)
            })
            .collect();
        found.sort_by_key(|&(user, begin, item, _)| (user, begin, item));
        let expected = [
            (0, 3, 1, 0.2),
            (0, 3, 3, 1.0),
            (0, 6, 4, 1.0),
            (0, 6, 5, 1.0),
            (0, 6, 6, 1.0),
            (1, 12, 7, 1.0),
            (1, 15, 7, 0.2),
        ];
        assert_eq!(found, expected);
    });
}

#[test]
fn two_planted_groups_are_told_apart_and_a_cold_item_joins_its_own() {
    let world = world(200, 210, 6, 5);
    let towers = world.train(&config());
    for group in 0..2u32 {
        let history: Vec<u32> = (0..6).map(|i| 20 * i + group).collect();
        let order = world.ranked(&towers, &world.user_vector(&towers, &history));
        // Popularity would find half of each group.
        let own = order[..105].iter().filter(|&&item| item % 2 == group).count();
        assert!(own >= 100, "group {group}: {own} of the first 105 are its own");
        let cold: Vec<_> = order[..105].iter().filter(|&&item| item >= 200).collect();
        assert!(cold.len() >= 4, "cold items among the first half: {cold:?}");
        assert!(cold.iter().all(|&&item| item % 2 == group), "cold items {cold:?}");
    }
}

#[test]
fn sequences_without_times_train_as_well() {
    let mut world = world(150, 110, 4, 6);
    world.rows = rows_of(&world.user_offsets, None, 0, 0, &[]);
    world.row_dense = vec![f32::NAN; world.rows.len()];
    let towers = world.train(&config());
    let order = world.ranked(&towers, &world.user_vector(&towers, &[1, 21, 41]));
    let own = order[..50].iter().filter(|&&item| item % 2 == 1).count();
    assert!(own >= 45, "{own} of the first 50 are of the user's group");
}

#[test]
fn training_repeats_itself_for_a_seed_and_differs_for_another() {
    let world = world(40, 60, 4, 7);
    for threads in [1, 2] {
        let config = Config { epochs_max: 2, threads, ..config() };
        let first = world.train(&config);
        assert_eq!(first.version(), world.train(&config).version(), "{threads} threads");
        assert_ne!(first.version(), world.train(&Config { seed: 8, ..config }).version());
    }
}

#[test]
fn the_best_judged_epoch_wins_and_patience_ends_training() {
    struct Judge(Vec<String>);
    impl Observer for Judge {
        fn progress(&mut self, _: &Progress) {}
        fn judge(&mut self, epoch: u32, towers: &Towers) -> Option<f64> {
            self.0.push(towers.version().to_owned());
            Some([0.1, 0.3, 0.2, 0.2, 0.9, 0.9][epoch as usize])
        }
    }
    let mut judge = Judge(Vec::new());
    let config = Config { patience_epochs: 1, ..config() };
    let towers = world(40, 60, 4, 8).with(|data| train(data, &config, &mut judge).unwrap());
    assert_eq!(judge.0.len(), 4, "two epochs without a better one end it");
    assert_eq!(towers.version(), judge.0[1]);
}

#[test]
fn bad_configurations_and_data_are_refused_by_name() {
    let mut world = world(4, 40, 3, 9);
    let refused = |world: &World, config: &Config| {
        world.with(|data| train(data, config, &mut Silent)).unwrap_err().to_string()
    };
    let found = refused(&world, &Config { dim: 100, ..config() });
    assert_eq!(found, "towers.dim is 100; it must be a multiple of 32 up to 1024");
    world.event_weights.fill(0.0);
    assert!(refused(&world, &config()).contains("no positive"));
    world.event_weights.pop();
    assert!(refused(&world, &config()).contains("event_weights holds 35 values, expected 36"));
    world.event_weights.push(1.0);
    world.event_items[3] = ItemIdx(40);
    assert!(refused(&world, &config()).contains("item 40 is out of range (below 40)"));
}
