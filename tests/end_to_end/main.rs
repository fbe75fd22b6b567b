//! Everything that needs a world: generated, taken through the day and served by the real binary,
//! once a test run.

mod alerts;
mod events;
mod feast;
mod foreign;
mod gate;
mod http;
mod kuairand;
mod leak;
mod live_items;
mod object_store;
mod onnx;
mod parity;
mod refit;
mod replay;
mod report;
mod resume;
mod rollout;
mod simulate;
mod skew;
mod suggest;
mod support;
mod swap;
