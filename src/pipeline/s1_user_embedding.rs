//! s1: the user's unit vector.
//!
//! The engine has already asked the caches; a vector of exactly this history is used as it is,
//! anything else is encoded here. A user of whom nothing is known is encoded from an empty
//! history: the tower's cold-start vector.

use super::Context;
use super::context::user;

/// Leaves the vector in the scratch.
pub fn run(cx: &mut Context) {
    let scratch = &mut *cx.scratch;
    match &cx.cached {
        Some(cached) => scratch.vector.copy_from_slice(cached),
        None => {
            let bundle = &cx.serving.bundle;
            let user = user(&cx.serving, &cx.inputs);
            let history = &cx.inputs.history;
            bundle.encode_user(user, history, &mut scratch.encode, &mut scratch.vector);
        }
    }
}
