//! From what all replicas have counted to the registry's next state.
//!
//! Every replica does this by itself: it writes its own counts, reads everybody's and decides. Two that
//! decide at once write the same number, and one of them wins; nobody waits for a leader.

use crate::bundle::{Challenger, Registry, RegistryError, Rollout};
use crate::experiments::{Counts, Decision, Settings, State, Verdict, decide};

/// Decides for one process.
pub struct Steering {
    pub registry: Registry,
    pub settings: Settings,
    /// Names this process, once: what it counts stands under it.
    pub process: String,
}

impl Steering {
    /// Writes what this process has counted, reads what all have, and writes the next state if one
    /// is due. Returns the verdict, and whether it is this process's state that now rules.
    ///
    /// # Errors
    /// When the registry cannot be read or written.
    pub async fn look(
        &self,
        number: u64,
        rollout: &Rollout,
        own: &Counts,
        now_ms: i64,
    ) -> Result<Option<(Verdict, bool)>, RegistryError> {
        let Some(challenger) = &rollout.challenger else { return Ok(None) };
        self.registry.write_counts(challenger.first_state, &self.process, own).await?;
        let (counts, _) = self.registry.read_counts(challenger.first_state).await?;
        let verdict = verdict(number, challenger, &counts, now_ms, &self.settings);
        let Some(next) = follows(rollout, &verdict, now_ms, &self.process) else {
            return Ok(Some((verdict, false)));
        };
        let written = self.registry.succeed(number, &next).await?;
        Ok(Some((verdict, written.is_some())))
    }

    /// Ends a rollout because this process cannot serve the challenger.
    ///
    /// # Errors
    /// When the registry cannot be written.
    pub async fn give_up(
        &self,
        number: u64,
        rollout: &Rollout,
        why: &str,
    ) -> Result<(), RegistryError> {
        let Some(challenger) = &rollout.challenger else { return Ok(()) };
        let reason = format!("{} was rolled back: {} {why}", challenger.bundle, self.process);
        let back = Rollout::whole(&rollout.bundle, &reason, &self.process);
        // Another replica may have been faster: then this state is not the last any more.
        self.registry.succeed(number, &back).await.map(drop)
    }
}

/// What the counts say about a challenger of state `number`.
pub fn verdict(
    number: u64,
    challenger: &Challenger,
    counts: &Counts,
    now_ms: i64,
    settings: &Settings,
) -> Verdict {
    let state = State {
        stage: challenger.stage,
        since_ms: challenger.since_ms,
        paused: challenger.paused,
        states: [challenger.first_state, number],
    };
    decide(&state, counts, now_ms, settings)
}

/// The state that a verdict leads to; `None` when everything stays.
pub fn follows(rollout: &Rollout, verdict: &Verdict, now_ms: i64, who: &str) -> Option<Rollout> {
    let challenger = rollout.challenger.as_ref()?;
    let Verdict { decision, reason, .. } = verdict;
    match *decision {
        Decision::Hold => None,
        Decision::Advance(100) => {
            let reason = format!("{} serves everybody: {reason}", challenger.bundle);
            Some(Rollout::whole(&challenger.bundle, &reason, who))
        }
        Decision::Advance(percent) => {
            let stage = crate::experiments::Stage::Percent(percent);
            Some(rollout.at(stage, now_ms, reason, who))
        }
        Decision::RollBack => {
            let reason =
                format!("{} was rolled back at {}: {reason}", challenger.bundle, challenger.stage);
            Some(Rollout::whole(&rollout.bundle, &reason, who))
        }
    }
}
