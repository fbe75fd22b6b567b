//! The file and the encoders, on small random towers.

use std::path::Path;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::model::Shape;
use super::*;
use crate::types::ItemIdx;

fn shape() -> Shape {
    Shape {
        dim: 32,
        id_dim: 6,
        code_dim_max: 8,
        hidden: vec![20, 12],
        history_max: 5,
        pool_half_lives_events: vec![f32::INFINITY, 2.0],
        separate_history_tables: true,
        items: 40,
        id_rows: 11,
        item_codes: vec![3, 70],
        user_codes: vec![4],
        item_dense: 3,
        user_dense: 2,
    }
}

fn towers(seed: u64) -> Towers {
    let mut rng = StdRng::seed_from_u64(seed);
    let shape = shape();
    let rows = (0..shape.items).map(|_| rng.random_range(0..shape.id_rows)).collect::<Vec<_>>();
    let codes = (0..shape.items as usize * 2)
        .map(|at| rng.random_range(0..=shape.item_codes[at % 2]) as u16)
        .collect::<Vec<_>>();
    let mut towers = train::random(shape, rows, codes, &mut rng);
    towers.item_standard.mean = vec![0.5, 1.0, -0.25].into();
    towers.item_standard.inverse = vec![2.0, 0.5, 1.0].into();
    towers.version = towers.fingerprint();
    towers
}

fn item(towers: &Towers, item: u32, codes: &[u32], dense: &[f32]) -> Vec<f32> {
    let mut out = vec![f32::NAN; towers.dim()];
    let input = ItemInput { item: ItemIdx(item), codes, dense };
    towers.encode_item(&input, &mut towers.scratch(), &mut out);
    out
}

fn user(towers: &Towers, history: &[u32], codes: &[u32], dense: &[f32]) -> Vec<f32> {
    let history: Vec<ItemIdx> = history.iter().map(|&item| ItemIdx(item)).collect();
    let mut out = vec![f32::NAN; towers.dim()];
    let input = UserInput { history: &history, codes, dense };
    towers.encode_user(&input, &mut towers.scratch(), &mut out);
    out
}

fn assert_unit(vector: &[f32]) {
    let length: f32 = vector.iter().map(|x| x * x).sum();
    assert!((length - 1.0).abs() < 1e-5, "squared length {length}");
}

#[test]
fn every_input_gives_a_finite_unit_vector() {
    let towers = towers(1);
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    assert_unit(&user(&towers, &[], &[MISSING], &[nan, nan]));
    assert_unit(&user(&towers, &[39, 40, u32::MAX], &[4], &[inf, -inf]));
    assert_unit(&item(&towers, 0, &[MISSING, MISSING], &[nan, inf, -inf]));
    assert_unit(&item(&towers, u32::MAX, &[3, 70], &[f32::MAX, f32::MIN, 0.0]));
}

#[test]
fn unknown_codes_and_items_count_as_absent() {
    let towers = towers(2);
    let dense = [1.0, 2.0, 3.0];
    let absent = item(&towers, 1_000, &[MISSING, 5], &dense);
    assert_eq!(item(&towers, 40, &[3, 5], &dense), absent);
    assert_ne!(item(&towers, 40, &[2, 5], &dense), absent);
}

#[test]
fn a_history_is_read_from_its_newest_end_and_in_order() {
    let towers = towers(3);
    let read = |history: &[u32]| user(&towers, history, &[1], &[0.0, 1.0]);
    assert_eq!(read(&[30, 31, 1, 2, 3, 4, 5]), read(&[7, 8, 9, 1, 2, 3, 4, 5]));
    assert_ne!(read(&[1, 2, 3, 4, 5]), read(&[5, 4, 3, 2, 1]), "newer events weigh more");
    assert_ne!(read(&[]), read(&[1]));
}

#[test]
fn scratch_carries_nothing_from_one_call_to_the_next() {
    let towers = towers(4);
    let mut scratch = towers.scratch();
    let mut first = vec![0.0; towers.dim()];
    let mut again = vec![0.0; towers.dim()];
    let history = [ItemIdx(3), ItemIdx(9)];
    let input = UserInput { history: &history, codes: &[2], dense: &[1.0, f32::NAN] };
    towers.encode_user(&input, &mut scratch, &mut first);
    let other = ItemInput { item: ItemIdx(5), codes: &[1, 2], dense: &[9.0, 9.0, 9.0] };
    towers.encode_item(&other, &mut scratch, &mut again);
    towers.encode_user(&input, &mut scratch, &mut again);
    assert_eq!(first, again);
}

#[test]
fn a_written_file_encodes_bit_for_bit_alike() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("towers.bin");
    let made = towers(5);
    made.save(&path).unwrap();
    let read = Towers::open(&path).unwrap();
    assert_eq!(read.version(), made.version());
    assert_eq!(read.shape(), made.shape());
    for at in 0..40 {
        let (codes, dense) = ([at % 4, at], [at as f32, f32::NAN, -1.0]);
        assert_eq!(item(&read, at, &codes, &dense), item(&made, at, &codes, &dense));
        let history: Vec<u32> = (0..at).collect();
        let of = |towers| user(towers, &history, &[at % 5], &[at as f32, 0.5]);
        assert_eq!(of(&read), of(&made));
    }
    assert_ne!(towers(6).version(), made.version());
}

#[test]
fn a_damaged_file_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("towers.bin");
    towers(7).save(&path).unwrap();
    let good = std::fs::read(&path).unwrap();
    let broken = dir.path().join("broken.bin");
    for at in (0..good.len()).step_by(997).chain([good.len() - 65]) {
        let mut bytes = good.clone();
        bytes[at] ^= 0x11;
        std::fs::write(&broken, &bytes).unwrap();
        // A byte between two sections belongs to nothing; every other one is caught.
        if let Ok(read) = Towers::open(&broken) {
            assert_eq!(read.version(), towers(7).version(), "byte {at} flipped");
        }
    }
    std::fs::write(&broken, &good[..good.len() / 2]).unwrap();
    assert!(Towers::open(&broken).is_err());
}

/// Writes towers that `change` made inconsistent and returns why they are refused.
fn refusal(change: impl FnOnce(&mut Towers)) -> Error {
    fn open(path: &Path) -> Error {
        Towers::open(path).expect_err("inconsistent towers must be refused")
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("towers.bin");
    let mut made = towers(8);
    change(&mut made);
    made.save(&path).unwrap();
    open(&path)
}

#[test]
fn a_well_formed_file_with_wrong_content_is_refused() {
    let found = refusal(|towers| towers.id_row = vec![11; 40].into());
    assert!(matches!(found, Error::Range { what: "id row", found: 11, limit: 11, .. }), "{found}");
    let found = refusal(|towers| towers.item_code_row = vec![4; 80].into());
    assert!(matches!(found, Error::Range { what: "code row", found: 4, limit: 4, .. }), "{found}");
    let found =
        refusal(|towers| towers.item.params = vec![f32::NAN; towers.item.params.len()].into());
    assert!(matches!(found, Error::NotFinite { .. }), "{found}");
    let found = refusal(|towers| towers.shape.items = 41);
    assert!(matches!(found, Error::Sections(_)), "{found}");
    let found = refusal(|towers| towers.shape.dim = 0);
    assert!(matches!(found, Error::Shape { .. }), "{found}");
    let found = refusal(|towers| towers.shape.pool_half_lives_events = vec![0.0]);
    assert!(matches!(found, Error::Shape { .. }), "{found}");
}
