//! From what all replicas have counted to the registry's next state.
//!
//! Every replica does this by itself: it writes its own counts, reads everybody's and decides. Two that
//! decide at once write the same number, and one of them wins; nobody waits for a leader.

use crate::bundle::{Course, Registry, RegistryError, Rollout};
use crate::experiments::{Counts, Decision, Settings, Stage, State, Subject, Verdict, decide};

/// Decides for one process.
pub struct Steering {
    pub registry: Registry,
    pub settings: Settings,
    /// Names this process, once: what it counts stands under it.
    pub process: String,
}

impl Steering {
    /// Writes what this process has counted of a trial.
    ///
    /// # Errors
    /// When the registry cannot be written.
    pub async fn tell(
        &self,
        rollout: &Rollout,
        of: Subject,
        own: &Counts,
    ) -> Result<(), RegistryError> {
        let Some(course) = rollout.course(of) else { return Ok(()) };
        self.registry.write_counts(course.first_state, &self.process, own).await
    }

    /// Reads what all processes have counted of a trial, and writes the next state if one is due.
    /// Returns the verdict, and whether it is this process's state that now rules.
    ///
    /// # Errors
    /// When the registry cannot be read or written.
    pub async fn look(
        &self,
        number: u64,
        rollout: &Rollout,
        of: Subject,
        now_ms: i64,
    ) -> Result<Option<(Verdict, bool)>, RegistryError> {
        let Some(course) = rollout.course(of) else { return Ok(None) };
        let (counts, _) = self.registry.read_counts(course.first_state).await?;
        let verdict = verdict(number, course, &counts, now_ms, &self.settings);
        let Some(next) = follows((number, rollout), of, &verdict, now_ms, &self.process) else {
            return Ok(Some((verdict, false)));
        };
        let written = self.registry.succeed(number, &next).await?;
        Ok(Some((verdict, written.is_some())))
    }

    /// Ends a trial because this process cannot serve it.
    ///
    /// # Errors
    /// When the registry cannot be written.
    pub async fn give_up(
        &self,
        number: u64,
        rollout: &Rollout,
        of: Subject,
        why: &str,
    ) -> Result<(), RegistryError> {
        let reason = format!("{} was rolled back: {} {why}", rollout.name(of), self.process);
        let back = rollout.without(of, &reason, &self.process);
        // Another replica may have been faster: then this state is not the last any more.
        self.registry.succeed(number, &back).await.map(drop)
    }
}

/// What the counts say about a trial in the state `number`.
pub fn verdict(
    number: u64,
    course: &Course,
    counts: &Counts,
    now_ms: i64,
    settings: &Settings,
) -> Verdict {
    let state = State {
        stage: course.stage,
        since_ms: course.since_ms,
        paused: course.paused,
        states: [course.first_state, course.state(number)],
    };
    decide(&state, counts, now_ms, settings)
}

/// The state after `number` that a verdict leads to; `None` when everything stays. A bundle that
/// everybody sees serves; settings that everybody sees stay until the configuration has them.
pub fn follows(
    (number, rollout): (u64, &Rollout),
    of: Subject,
    verdict: &Verdict,
    now_ms: i64,
    who: &str,
) -> Option<Rollout> {
    let course = rollout.course(of)?;
    let (name, Verdict { decision, reason, .. }) = (rollout.name(of), verdict);
    match *decision {
        Decision::Hold => None,
        Decision::Advance(100) if of == Subject::Bundle => {
            let reason = format!("{name} serves everybody: {reason}");
            Some(rollout.served_by(&name, &reason, who))
        }
        Decision::Advance(percent) => {
            let at = (Stage::Percent(percent), number + 1);
            let reason = match of {
                Subject::Bundle => reason.clone(),
                Subject::Layer(_) => format!("{name}: {reason}"),
            };
            Some(rollout.at(of, at, now_ms, &reason, who))
        }
        Decision::RollBack => {
            let reason = format!("{name} was rolled back at {}: {reason}", course.stage);
            Some(rollout.without(of, &reason, who))
        }
    }
}
