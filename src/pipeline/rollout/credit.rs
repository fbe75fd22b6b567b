//! Whom events belong to: they come later than their requests, some after the end of a trial.

use std::sync::Arc;

use super::tag;
use super::tally::{Outcome, Tallies};
use super::{Panel, Seat, variant};
use crate::experiments::{Arm, Layer, Subject, draw};

/// The newest trial of each kind, also after its end.
#[derive(Clone, Default)]
pub struct Credits {
    accounts: Vec<Account>,
}

/// What is remembered of a trial.
#[derive(Clone)]
pub struct Account {
    of: Subject,
    tallies: Arc<Tallies>,
    latest_state: u64,
    salt: String,
    /// Of a bundle's trial, by [`Arm`].
    versions: Option<[String; 2]>,
}

/// To whom an event belongs.
pub struct Credit {
    /// Names what answered, as the answer did.
    pub variant: Option<String>,
    pub bundle_version: Option<String>,
    seats: Vec<Seat>,
}

impl Account {
    /// Of a trial that has come to this panel.
    pub fn new(of: Subject, panel: &Panel, versions: Option<[String; 2]>) -> Self {
        let (tallies, latest_state) = (panel.tallies.clone(), panel.state);
        Self { of, tallies, latest_state, salt: panel.share.salt.clone(), versions }
    }
}

impl Credits {
    /// With this trial in place of an earlier one of its kind.
    pub fn with(&self, account: Account) -> Self {
        let others = self.accounts.iter().filter(|other| other.of != account.of).cloned();
        Self { accounts: others.chain([account.clone()]).collect() }
    }

    /// Whom the answer of this request id, shown to this user, is credited to; `configured` names
    /// answers of the stable version.
    pub fn of(&self, request_id: &str, user: &str, configured: &str) -> Option<Credit> {
        let (mut arm, mut bundle_version, mut seats) = (None, None, Vec::new());
        let mut layers: Vec<Layer> = Vec::new();
        for (of, state, drawn) in tag::read(request_id) {
            let account = self.accounts.iter().find(|account| account.of == of);
            let Some(account) = account else { continue };
            let Some(tally) = account.tallies.state(state, account.latest_state) else { continue };
            match (of, drawn) {
                (Subject::Bundle, _) => arm = Some(drawn),
                (Subject::Layer(layer), Arm::Challenger) => layers.push(layer),
                (Subject::Layer(_), Arm::Stable) => {}
            }
            if let Some(versions) = &account.versions {
                bundle_version = Some(versions[drawn as usize].clone());
            }
            let draw = draw(&account.salt, user);
            seats.push(Seat { of, tally, arm: drawn, draw });
        }
        layers.sort_unstable();
        let variant = variant(configured, arm, &layers);
        (!seats.is_empty()).then_some(Credit { variant, bundle_version, seats })
    }
}

impl Credit {
    /// Counts what came of the answer.
    pub fn count(&self, outcome: Outcome) {
        for seat in &self.seats {
            seat.tally.outcome(seat.arm, seat.draw, outcome);
        }
    }
}
