//! s1: the user's unit vector.
//!
//! The engine has already asked the caches; a vector of exactly this history is used as it is,
//! anything else is encoded here. A user of whom nothing is known is encoded from an empty
//! history: the tower's cold-start vector.

use super::Context;

/// Leaves the vector in the scratch.
pub fn run(cx: &mut Context) {
    let vector = &mut cx.scratch.vector;
    match cx.cached {
        Some(cached) => vector.copy_from_slice(cached),
        None => {
            let history = &cx.inputs.history;
            cx.bundle.encode_user(cx.user, history, &mut cx.scratch.encode, vector);
        }
    }
}
