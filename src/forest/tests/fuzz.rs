//! Mutated models: refused or scored, never a panic, and the evaluator agrees with the walk.
//!
//! A few thousand executions in the ordinary run; `SHORTLIST_FUZZ_S=600` runs for so many seconds.

use std::time::{Duration, Instant};

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64Mcg;

use super::evaluator::{evaluate_if_possible, model};
use super::*;

const EXECUTIONS: u64 = 3000;

/// One change somewhere in the text.
fn mutate(text: &mut String, other: &str, random: &mut Pcg64Mcg) {
    let mut lines: Vec<String> = text.lines().map(str::to_owned).collect();
    if lines.is_empty() {
        return;
    }
    let at = random.random_range(0..lines.len());
    match random.random_range(0..9) {
        0 => {
            lines.remove(at);
        }
        1 => lines.insert(at, lines[random.random_range(0..lines.len())].clone()),
        2 => {
            let to = random.random_range(0..lines.len());
            lines.swap(at, to);
        }
        3 => lines.truncate(at),
        4 => lines.insert(at, other.lines().nth(at).unwrap_or("").to_owned()),
        5 | 6 => {
            // A value of the line becomes another number.
            let (key, values) = lines[at].split_once('=').unwrap_or((&lines[at], ""));
            let mut values: Vec<&str> = values.split(' ').collect();
            let place = random.random_range(0..values.len());
            values[place] = NUMBERS.choose(random).unwrap();
            lines[at] = format!("{key}={}", values.join(" "));
        }
        _ => {
            // Some characters of the line become others.
            let mut bytes = lines[at].clone().into_bytes();
            if !bytes.is_empty() {
                let place = random.random_range(0..bytes.len());
                let letters = b"0123456789-+.e= inf\tnan";
                bytes[place] = *letters.choose(random).unwrap();
                lines[at] = String::from_utf8_lossy(&bytes).into_owned();
            }
        }
    }
    *text = lines.join("\n");
}

/// True when the text was accepted.
fn execute(text: &str, random: &mut Pcg64Mcg) -> bool {
    let Ok(forest) = Forest::parse(text) else { return false };
    // Whatever the text claims, what it became is no larger than the text.
    let held = forest.nodes.len() + forest.leaves.len() + forest.bits.len();
    assert!(held <= text.len(), "{held} entries from {} bytes", text.len());
    let (features, rows) = (forest.feature_count(), 3);
    let constants = random.random_range(0..=features);
    let wild = [f32::NAN, 0.0, -0.0, 1.0, -1.5, 33.0, 1e30, f32::INFINITY, f32::NEG_INFINITY];
    let mut values =
        |count: usize| -> Vec<f32> { (0..count).map(|_| *wild.choose(random).unwrap()).collect() };
    let (fixed, columns) = (values(constants), values((features - constants) * rows));
    let matrix = Matrix { constants: &fixed, columns: &columns, rows };
    let cached: Vec<bool> = (constants..features).map(|feature| feature % 2 == 0).collect();
    // A matrix without columns has no rows to tell.
    if constants < features
        && let Some(found) = evaluate_if_possible(&forest, &matrix, &cached)
    {
        let mut walked = vec![0.0; rows];
        forest.score(&matrix, &mut walked);
        let same = |(a, b): (&f64, &f64)| a.to_bits() == b.to_bits();
        assert!(found.iter().zip(&walked).all(same), "{found:?} {walked:?}\n{text}");
    }
    forest.contributions(&values(features));
    forest.importance();
    true
}

#[test]
fn mutated_models_are_refused_or_scored() {
    let seconds: Option<u64> = std::env::var("SHORTLIST_FUZZ_S").ok().and_then(|s| s.parse().ok());
    let (start, mut executions, mut accepted) = (Instant::now(), 0_u64, 0_u64);
    let mut random = Pcg64Mcg::seed_from_u64(seconds.unwrap_or(0));
    loop {
        let over = match seconds {
            Some(seconds) => start.elapsed() > Duration::from_secs(seconds),
            None => executions >= EXECUTIONS,
        };
        if over {
            break;
        }
        let (base, other) = if random.random_bool(0.3) {
            (SMALL.to_owned(), model(&mut random, 5))
        } else {
            (model(&mut random, 9), SMALL.to_owned())
        };
        for _ in 0..20 {
            let mut text = base.clone();
            for _ in 0..random.random_range(0..4) {
                mutate(&mut text, &other, &mut random);
            }
            accepted += u64::from(execute(&text, &mut random));
            executions += 1;
        }
    }
    eprintln!("{executions} executions, {accepted} accepted, in {:?}", start.elapsed());
    assert!(accepted * 20 > executions, "only {accepted} of {executions} models were accepted");
}
