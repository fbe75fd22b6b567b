//! Experiments on live traffic: who sees what, what is counted, and what the counts allow to say.
//!
//! ```text
//! user id, salt -- assignment --> slot 0..9999: which arm        group 0..511: whom counts belong to
//!                                     |                                |
//! requests, impressions, clicks, value by arm, stage and group -- counts, pooled over replicas
//!                                                                      |
//!                 ratio: relative difference of two ratios, variance over groups of users
//!                                                                      |
//!                 sequential: an interval that holds at every look; tests by betting
//!                                                                      |
//!                 rollout: hold, advance or roll back, with the reason in words
//! ```
//! `layer` names what may be tried at once. Beside this stands `off_policy`: what a ranking would have earned that nobody has seen.
//! Invariant: a decision is a function of the state, the counts, the time that is handed in and the
//! settings; the same four give the same decision and the same words, on every replica and in a
//! rehearsal. Users are the unit that is drawn, so users (in groups) are the unit of every variance.
//!
//! Knows no clock, no registry and no request; `rehearsal` drives it with a simulated clock.

mod assignment;
mod counts;
mod layer;
pub mod off_policy;
mod ratio;
pub mod rehearsal;
mod rollout;
mod sequential;

pub use assignment::{Arm, Draw, GROUPS, SLOTS, Share, draw};
pub use counts::{ArmCounts, Counts, Drift, Groups, Latency, StageCounts};
pub use layer::{Layer, Subject};
pub use ratio::{Comparison, Metric, compare, rate};
pub use rollout::{Decision, Reading, Settings, SettingsError, Stage, State, Verdict, decide};
pub use sequential::{Bets, Mixture};
