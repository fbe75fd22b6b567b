//! What a request id tells about the answer that bore it: the state of the rollout, and the arm.
//!
//! `01928f...-...` becomes `01928f...-....7c`: state 7, challenger. Whoever gets an event with such an id can credit
//! it, without having served the request or asked another replica. Callers treat ids as opaque.

use crate::experiments::Arm;

/// The id with its tag.
pub fn tagged(id: &str, state: u64, arm: Arm) -> String {
    format!("{id}.{state}{}", letter(arm))
}

/// State and arm of an id that has a tag.
pub fn read(id: &str) -> Option<(u64, Arm)> {
    let (_, tag) = id.rsplit_once('.')?;
    let arm = *Arm::ALL.iter().find(|arm| tag.ends_with(letter(**arm)))?;
    let digits = &tag[..tag.len() - 1];
    let plain = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_digit());
    if plain { Some((digits.parse().ok()?, arm)) } else { None }
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
    fn a_tag_is_read_back_and_nothing_else_is_taken_for_one() {
        for (state, arm) in [(1, Arm::Stable), (u64::MAX, Arm::Challenger)] {
            assert_eq!(read(&tagged("0192-ab", state, arm)), Some((state, arm)));
        }
        for id in ["", "0192-ab", "a.b", "a.c", "a.12", "a.1x", "a.+1c", "a.99999999999999999999c"]
        {
            assert_eq!(read(id), None, "{id}");
        }
    }
}
