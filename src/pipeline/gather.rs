//! From a request to what decides it: the user's past, the region, the context's codes.

use super::context::{self, Inputs};
use super::engine::Request;
use super::region;
use super::serving::Serving;
use crate::bundle::Bundle;
use crate::store::{Embedding, UserState};
use crate::types::{ItemId, ItemIdx};

/// The inputs of a request on this version; true when its region is unknown and another stands in.
/// `user` is the user's row, `candidates` how many retrieval shall give.
pub fn inputs(
    serving: &Serving,
    user: Option<u32>,
    state: &UserState,
    request: &Request,
    candidates: usize,
) -> (Inputs, bool) {
    let bundle = &serving.bundle;
    let (history, history_times_ms) = match &request.history {
        None => history(bundle, state.history(), user),
        Some(inline) => inline_history(serving, inline),
    };
    let mut shown = Vec::new();
    let of_shown = state.shown(request.time_ms).map(|id| (id, ()));
    bundle.items.find_each(of_shown, |(), item| shown.extend(item));
    let mut inputs = Inputs {
        request_id: request.request_id.clone(),
        num_items: request.num_items,
        time_ms: request.time_ms,
        user,
        record: state.record.clone(),
        region: None,
        context: Vec::new(),
        history,
        history_times_ms,
        shown,
        candidates: candidates.max(request.num_items),
        repeats: None,
        asked: None,
    };
    let resolved = region::resolve(
        &serving.settings.regions,
        &bundle.items,
        request.region.as_deref(),
        request.location.as_ref(),
        serving.own_region(context::user(serving, &inputs)),
    );
    inputs.region = resolved.region;
    inputs.context =
        context_codes(serving, request.device.as_deref(), &request.context, resolved.region);
    (inputs, resolved.fallback)
}

/// A user's last events, oldest first, with their times: those that the bundle knows, then those
/// stored (in any order) since the bundle was made; all that are stored when the bundle knows none.
pub fn history<'a>(
    bundle: &Bundle,
    stored: impl Iterator<Item = (&'a str, i64)>,
    user: Option<u32>,
) -> (Vec<ItemIdx>, Vec<i64>) {
    let (items, times_ms) = bundle.users.user(user).history();
    let since_ms = if items.is_empty() { i64::MIN } else { bundle.manifest.as_of_ms };
    let mut events = Vec::new();
    let since = stored.filter(|&(_, time_ms)| time_ms >= since_ms);
    bundle.items.find_each(since, |time_ms, item| events.extend(item.map(|item| (time_ms, item))));
    // The store says in no order, and some twice, what every replica must read alike.
    events.sort_unstable();
    events.dedup();
    let known = items.iter().copied().zip(times_ms.iter().copied());
    known.chain(events.into_iter().map(|(time_ms, item)| (item, time_ms))).unzip()
}

/// Names the history that a cached vector must be of; `None` when the vector is not to be
/// kept: an inline history is the caller's, and nothing is known of an unknown user.
pub fn sequence(request: &Request, inputs: &Inputs) -> Option<u64> {
    let known = inputs.user.is_some() || inputs.record.is_some() || !inputs.history.is_empty();
    (request.history.is_none() && known)
        .then(|| Embedding::sequence(&inputs.history, &inputs.history_times_ms))
}

fn inline_history(serving: &Serving, history: &[ItemId]) -> (Vec<ItemIdx>, Vec<i64>) {
    let mut items = Vec::new();
    let ids = history.iter().map(|id| (id.0.as_str(), ()));
    serving.bundle.items.find_each(ids, |(), item| items.extend(item));
    let times = vec![i64::MIN; items.len()];
    (items, times)
}

/// Codes of the context in the schema's order, from what was asked and the region that serves.
pub fn context_codes(
    serving: &Serving,
    device: Option<&str>,
    further: &[(String, String)],
    region: Option<usize>,
) -> Vec<f32> {
    let bundle = &serving.bundle;
    let value = |name: &str| match name {
        "context.device" => device,
        "context.region" => region.map(|at| bundle.items.regions()[at].as_str()),
        _ => {
            let key = name.trim_start_matches("context.");
            further.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
        }
    };
    let code = |name: &String| bundle.dictionaries.feature(name, value(name));
    serving.context_names.iter().map(code).collect()
}
