//! What a request id tells about the answer that bore it: of each trial its state, and the arm.
//!
//! `01928f...-...` becomes `01928f...-....7c`: state 7, challenger; `.r9s` says the same of the rules, `.b4c` of the
//! blending. Whoever gets an event with such an id can credit it, without having served the request or asked
//! another replica. Callers treat ids as opaque.

use crate::experiments::{Arm, Layer, Subject};

/// The id with a tag.
pub fn tagged(id: &str, of: Subject, state: u64, arm: Arm) -> String {
    format!("{id}.{}{state}{}", prefix(of), letter(arm))
}

/// The tags of an id, the last one first.
pub fn read(mut id: &str) -> impl Iterator<Item = (Subject, u64, Arm)> + '_ {
    std::iter::from_fn(move || {
        let (rest, tag) = id.rsplit_once('.')?;
        id = rest;
        one(tag)
    })
}

fn one(tag: &str) -> Option<(Subject, u64, Arm)> {
    let layers = Layer::ALL.into_iter().map(Subject::Layer);
    // Longest prefix first: the bundle's is empty.
    let of = layers.chain([Subject::Bundle]).find(|of| tag.starts_with(prefix(*of)))?;
    let tag = &tag[prefix(of).len()..];
    let arm = *Arm::ALL.iter().find(|arm| tag.ends_with(letter(**arm)))?;
    let digits = &tag[..tag.len() - 1];
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if plain { Some((of, digits.parse().ok()?, arm)) } else { None }
}

const fn prefix(of: Subject) -> &'static str {
    match of {
        Subject::Bundle => "",
        Subject::Layer(Layer::Rules) => "r",
        Subject::Layer(Layer::Blending) => "b",
    }
}

const fn letter(arm: Arm) -> char {
    match arm {
        Arm::Stable => 's',
        Arm::Challenger => 'c',
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_read_back_and_nothing_else_is_taken_for_one() {
        let tags = [
            (Subject::Bundle, u64::MAX, Arm::Challenger),
            (Subject::Layer(Layer::Rules), 1, Arm::Stable),
            (Subject::Layer(Layer::Blending), 9, Arm::Challenger),
        ];
        for tags in [&tags[..], &tags[..1], &tags[1..2]] {
            let whole = tags
                .iter()
                .fold("0192-ab".to_owned(), |id, &(of, state, arm)| tagged(&id, of, state, arm));
            let mut found: Vec<_> = read(&whole).collect();
            found.reverse();
            assert_eq!(found, tags, "{whole}");
        }
        for id in [
            "",
            "0192-ab",
            "a.b",
            "a.c",
            "a.rc",
            "a.12",
            "a.1x",
            "a.+1c",
            "a.99999999999999999999c",
        ] {
            assert_eq!(read(id).count(), 0, "{id}");
        }
    }
}
