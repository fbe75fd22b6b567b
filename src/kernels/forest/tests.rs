use proptest::prelude::*;

use super::*;

const PLANES: u16 = 7;

fn any_operand() -> impl Strategy<Value = Operand> {
    prop_oneof![(0..=LEAF_MAX).prop_map(Operand::leaf), (0..PLANES).prop_map(Operand::plane)]
}

fn any_test() -> impl Strategy<Value = Test> {
    prop_oneof![
        (any::<u8>(), 0_u8..2).prop_map(|(bound, shift)| Test::below(bound, shift)),
        (0_u32..3).prop_map(Test::in_set),
    ]
}

fn any_op() -> impl Strategy<Value = Op> {
    let planes = (0..PLANES, 0..PLANES);
    (any_operand(), any_operand(), any_test(), planes)
        .prop_map(|(left, right, test, (column, target))| Op { left, right, test, column, target })
}

/// Planes of bytes that look random, with missing ones.
fn planes(seed: u32) -> Vec<Plane> {
    let mut state = seed | 1;
    let mut byte = || {
        state = state.wrapping_mul(0x9e37_79b1).rotate_left(13) ^ 0x5bd1_e995;
        if state.is_multiple_of(9) { MISSING } else { (state >> 24) as u8 }
    };
    (0..PLANES).map(|_| Plane(std::array::from_fn(|_| byte()))).collect()
}

proptest! {
    #[test]
    fn every_path_equals_the_scalar_twin(
        ops in prop::collection::vec(any_op(), 0..40),
        sets in prop::collection::vec(any::<Set>(), 3),
        rows in prop_oneof![0..=ROWS, Just(ROWS)],
        seed in any::<u32>(),
        byte in 0_u32..3,
    ) {
        let (mut fast, mut slow) = (planes(seed), planes(seed));
        run(&ops, &sets, &mut fast, rows, byte);
        scalar::run(&ops, &sets, &mut slow, rows, byte);
        let same = |fast: &[Plane]| {
            fast.iter().zip(&slow).all(|(fast, slow)| fast.0[..rows] == slow.0[..rows])
        };
        prop_assert!(same(&fast));
        // The one that `run` does not take where both are there.
        #[cfg(target_arch = "x86_64")]
        if level() == Level::Avx2Fma {
            let mut fast = planes(seed);
            // SAFETY: `level` has seen AVX2 on this processor.
            unsafe { avx2::run(&ops, &sets, &mut fast, rows, byte) };
            prop_assert!(same(&fast));
        }
    }

    #[test]
    fn leaves_are_added_in_tree_order(
        trees in 0_usize..=TOGETHER,
        rows in 0..=ROWS,
        seed in any::<u32>(),
    ) {
        let trees = trees.min(usize::from(PLANES));
        let results = planes(seed);
        let values: Vec<[f64; 256]> =
            (0..trees).map(|t| std::array::from_fn(|i| ((i + 7 * t) as f64).sin())).collect();
        let values: Vec<&[f64; 256]> = values.iter().collect();
        let mut out = vec![0.1; rows];
        add_leaves(&results[..trees], &values, &mut out);
        for (row, found) in out.iter().enumerate() {
            let add = |sum, t: usize| sum + values[t][usize::from(results[t].0[row])];
            let expected: f64 = (0..trees).fold(0.1, add);
            prop_assert_eq!(found.to_bits(), expected.to_bits());
        }
    }
}

#[test]
fn eight_trees_at_once_are_as_one_by_one() {
    let results: Vec<Plane> = (0..2).flat_map(planes).take(TOGETHER).collect();
    let values: [f64; 256] = std::array::from_fn(|i| (i as f64).sqrt());
    let (mut together, mut single) = (vec![0.0; 300], vec![0.0; 300]);
    add_leaves(&results, &[&values; TOGETHER], &mut together);
    for result in &results {
        add_leaves(std::slice::from_ref(result), &[&values], &mut single);
    }
    assert_eq!(together, single);
}

#[test]
fn rows_are_spread_over_planes() {
    let table: Vec<u8> = (0..50).collect();
    let mut planes = vec![Plane::filled(0); 3];
    gather(&table, (5, 1), &[9, 0, 4], &mut planes);
    let heads: Vec<&[u8]> = planes.iter().map(|plane| &plane.0[..3]).collect();
    assert_eq!(heads, [[46, 1, 21], [47, 2, 22], [48, 3, 23]]);
}

#[test]
#[should_panic]
fn an_operation_outside_its_planes_is_refused() {
    let leaf = Operand::leaf(0);
    let op =
        Op { left: Operand::plane(9), right: leaf, test: Test::below(1, 0), column: 0, target: 0 };
    run(&[op], &[], &mut planes(1), ROWS, 0);
}

#[test]
#[should_panic]
fn a_set_that_is_not_there_is_refused() {
    let leaf = Operand::leaf(0);
    let op = Op { left: leaf, right: leaf, test: Test::in_set(3), column: 0, target: 0 };
    run(&[op], &[[0; 16]; 3], &mut planes(1), ROWS, 0);
}

#[test]
fn missing_goes_where_the_shift_says() {
    assert!(!passes(Test::below(254, 0), &[], MISSING));
    assert!(passes(Test::below(1, 1), &[], MISSING));
    assert!(!passes(Test::in_set(0), &[[255; 16]], MISSING));
    assert!(passes(Test::in_set(0), &[[255; 16]], 127));
}
