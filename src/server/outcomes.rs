//! What answers led to, as metrics: by variant, device and region, each one of a set that the bundle and the
//! configuration bound.

use crate::events::EventRecord;
use crate::monitor;
use crate::pipeline::{Engine, Outcome, is_variant};

/// Devices, and regions, that have a series of their own: the first ones of the bundle's list.
const NAMED_MAX: usize = 32;
/// The value of a label that is none of those.
const OTHER: &str = "other";
/// ... and of one that the event does not say.
const NONE: &str = "none";

/// Counts an event.
pub fn count(engine: &Engine, event: &EventRecord, outcome: Outcome) {
    let serving = engine.serving();
    let (bundle, settings) = (&serving.bundle, &serving.settings);
    let variant =
        bounded(event.variant.as_deref(), |name| is_variant(name, &settings.pipeline.variant));
    let device = bounded(event.device.as_deref(), |name| {
        let dictionary = bundle.dictionaries.get("context.device");
        let code = dictionary.and_then(|dictionary| dictionary.code(name));
        code.is_some_and(|code| (code as usize) < NAMED_MAX)
    });
    let region = bounded(event.region.as_deref(), |name| {
        bundle.items.regions().iter().take(NAMED_MAX).any(|region| region == name)
    });
    match outcome {
        Outcome::Impression => monitor::outcome("impression", variant, device, region),
        Outcome::Click => monitor::outcome("click", variant, device, region),
        Outcome::Value(value) => {
            monitor::outcome("sale", variant, device, region);
            monitor::revenue(value, variant, device, region);
        }
    }
}

/// The value, when it is one of the set.
fn bounded(value: Option<&str>, known: impl Fn(&str) -> bool) -> &str {
    match value {
        Some(value) if known(value) => value,
        Some(_) => OTHER,
        None => NONE,
    }
}
