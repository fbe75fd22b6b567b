//! From a request to what decides it: the user's past, the region, the context's codes.

use super::context::Inputs;
use super::engine::Request;
use super::region;
use super::serving::Serving;
use crate::store::Users;
use crate::types::{ItemIdx, UserId};

/// The inputs of a request on this version; true when its region is unknown and another stands in.
/// `candidates` is how many retrieval shall give.
pub fn inputs(
    serving: &Serving,
    users: &Users,
    request: &Request,
    candidates: usize,
) -> (Inputs, bool) {
    let bundle = &serving.bundle;
    let (history, history_times_ms) = match &request.history {
        None => history(serving, users, &request.user_id),
        Some(inline) => {
            let items: Vec<_> = inline.iter().filter_map(|id| bundle.items.find(&id.0)).collect();
            let times = vec![i64::MIN; items.len()];
            (items, times)
        }
    };
    let mut shown = Vec::new();
    let row_of = |id: &str| bundle.items.find(id);
    users.live.shown(&request.user_id, request.time_ms, serving.number, row_of, &mut shown);
    let user = bundle.users.row_of(&request.user_id.0);
    let resolved = region::resolve(
        &serving.settings.regions,
        &bundle.items,
        request.region.as_deref(),
        request.location.as_ref(),
        serving.own_region(user),
    );
    let inputs = Inputs {
        request_id: request.request_id.clone(),
        num_items: request.num_items,
        time_ms: request.time_ms,
        user,
        region: resolved.region,
        context: context_codes(serving, request, resolved.region),
        history,
        history_times_ms,
        shown,
        candidates: candidates.max(request.num_items),
    };
    (inputs, resolved.fallback)
}

/// A user's events that the bundle knows and those since, oldest first, with their times.
pub fn history(serving: &Serving, users: &Users, user: &UserId) -> (Vec<ItemIdx>, Vec<i64>) {
    let bundle = &serving.bundle;
    let (items, times) = bundle.users.find(&user.0).history();
    let (mut items, mut times) = (items.to_vec(), times.to_vec());
    let since_ms = bundle.manifest.as_of_ms - 1;
    let row_of = |id: &str| bundle.items.find(id);
    users.live.history(user, since_ms, serving.number, row_of, &mut items, &mut times);
    (items, times)
}

/// Names the history that a cached vector must be of; `None` when the vector is not to be
/// kept: an inline history is the caller's, and nothing is known of an unknown user.
pub fn sequence(serving: &Serving, users: &Users, request: &Request) -> Option<u64> {
    let bundle = &serving.bundle;
    let live = users.live.sequence(&request.user_id);
    let known = live != 0 || bundle.users.contains(&request.user_id.0);
    (request.history.is_none() && known)
        .then(|| live.rotate_left(32) ^ bundle.manifest.as_of_ms as u64)
}

fn context_codes(serving: &Serving, request: &Request, region: Option<usize>) -> Vec<f32> {
    let bundle = &serving.bundle;
    let value = |name: &str| match name {
        "context.device" => request.device.as_deref(),
        "context.region" => region.map(|at| bundle.items.regions()[at].as_str()),
        _ => {
            let key = name.trim_start_matches("context.");
            request.context.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
        }
    };
    let code = |name: &String| bundle.dictionaries.feature(name, value(name));
    serving.context_names.iter().map(code).collect()
}
