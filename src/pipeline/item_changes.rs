//! Changes of items on their way into the bundle that serves: first the registry's log, then the
//! bundle, in the log's order on every replica.
//!
//! A batch is checked against the bundle, appended under the next number, and applied. When another
//! replica took the number, what it wrote is applied first and the check is done anew, so a batch
//! that is in the log was right where it stands. What the log holds is applied even if its writer
//! died in between: by the next batch, or by the next poll.

use std::sync::Arc;

use serde::Deserialize;
use tokio::sync::{Mutex, OwnedMutexGuard};
use tokio::task::{JoinError, spawn_blocking};

use super::ConfigError;
use super::serving::Serving;
use crate::bundle::{Batch, Bundle, Change, ChangeLog, Refused, RegistryError};
use crate::types::DAY_MS;

/// How often a number may be lost to another replica before the writer is told to come back.
const ATTEMPTS_MAX: usize = 16;

/// Section `[items]`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// Time between two looks at the change log for what other replicas took.
    pub poll_ms: u64,
    /// Items that may differ from the build.
    pub changed_max: usize,
    /// Batches are kept until they are this much older than the bundle that serves.
    pub retention_days: u32,
}

impl Config {
    /// Refuses what could never work.
    pub fn check(&self) -> Result<(), ConfigError> {
        match self {
            Self { poll_ms: 0, .. } => Err(ConfigError::Zero { key: "items.poll_ms" }),
            Self { changed_max: 0, .. } => Err(ConfigError::Zero { key: "items.changed_max" }),
            Self { retention_days: 0, .. } => {
                Err(ConfigError::Zero { key: "items.retention_days" })
            }
            _ => Ok(()),
        }
    }
}

/// Why changes were not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error("other replicas took the next number {ATTEMPTS_MAX} times in a row: send it again")]
    Contended,
    #[error("the change log cannot be read or written: {0}")]
    Log(#[from] RegistryError),
    #[error("the changes were not applied: {0}")]
    Stopped(#[from] JoinError),
}

/// The bundle that serves, and the challenger that may serve beside it.
pub type Current = (Arc<Serving>, Option<Arc<Serving>>);

/// Takes changes, and follows those that others took.
pub struct ItemChanges {
    log: ChangeLog,
    config: Config,
    /// Who writes to a bundle holds this. It goes along to the thread that applies, so that a caller
    /// who hangs up meanwhile does not let the next writer in.
    turn: Arc<Mutex<()>>,
}

impl ItemChanges {
    /// Over the log of a registry.
    pub fn new(log: ChangeLog, config: Config) -> Self {
        Self { log, config, turn: Arc::default() }
    }

    /// Applies all that the log holds beyond a bundle that does not serve yet, and removes what is
    /// too old for any bundle; returns the number of batches that were applied.
    ///
    /// # Errors
    /// When the log cannot be read. The bundle must not serve then: it would show what was deleted.
    pub async fn replay(&self, bundle: &Bundle) -> Result<usize, Error> {
        let before_ms = bundle.manifest.as_of_ms - i64::from(self.config.retention_days) * DAY_MS;
        self.log.prune(before_ms).await?;
        bundle.skip_to(self.log.start().await?);
        self.catch_up(bundle).await
    }

    /// Applies what has come to the log; `current` gives the bundles that serve, and is asked when no
    /// other writer can change that. Returns the number of batches that the first of them lacked.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn follow(&self, current: impl FnOnce() -> Current) -> Result<usize, Error> {
        let mut turn = self.turn.clone().lock_owned().await;
        let (stable, challenger) = current();
        let applied;
        (turn, applied) = self.catch_up_beside(&stable, turn).await?;
        if let Some(challenger) = challenger {
            self.catch_up_beside(&challenger, turn).await?;
        }
        Ok(applied)
    }

    /// Catches a new bundle up and calls `publish`, during which nothing is taken.
    ///
    /// # Errors
    /// When the log cannot be read; nothing is published then.
    pub async fn publish<T>(
        &self,
        bundle: &Bundle,
        publish: impl FnOnce() -> T,
    ) -> Result<T, Error> {
        let _turn = self.turn.lock().await;
        self.catch_up(bundle).await?;
        Ok(publish())
    }

    /// Takes a batch at `time_ms`: all of it or nothing. Returns its number in the log; requests that
    /// begin afterwards see it. `current` as for [`ItemChanges::follow`].
    ///
    /// # Errors
    /// When a change is refused, or the log cannot be written.
    pub async fn take(
        &self,
        current: impl FnOnce() -> Current,
        time_ms: i64,
        changes: Vec<Change>,
    ) -> Result<u64, Error> {
        let mut turn = self.turn.clone().lock_owned().await;
        let (current, challenger) = current();
        let batch = Arc::new(Batch { time_ms, changes });
        let changed_max = self.config.changed_max;
        for _ in 0..ATTEMPTS_MAX {
            (turn, _) = self.catch_up_beside(&current, turn).await?;
            let (on, of) = (current.clone(), batch.clone());
            let prepare = move || on.bundle.prepare(&of.changes, changed_max);
            let prepared = spawn_blocking(prepare).await??;
            let n = current.bundle.applied() + 1;
            if self.log.append(n, &batch).await? {
                let on = current.clone();
                (turn, _) = beside(turn, move || on.bundle.commit(n, prepared)).await?;
                // The challenger reads the log. What it cannot read now it will at the next poll.
                if let Some(challenger) = &challenger
                    && let Err(error) = self.catch_up_beside(challenger, turn).await
                {
                    tracing::warn!(%error, "a change of items has not reached the challenger yet");
                }
                return Ok(n);
            }
        }
        Err(Error::Contended)
    }

    /// [`ItemChanges::catch_up`] for a bundle that serves.
    async fn catch_up_beside(
        &self,
        serving: &Arc<Serving>,
        mut turn: Turn,
    ) -> Result<(Turn, usize), Error> {
        let mut applied = 0;
        while let Some(batch) = self.log.read(serving.bundle.applied() + 1).await? {
            let on = serving.clone();
            let counted;
            (turn, counted) = beside(turn, move || apply_next(&on.bundle, &batch)).await?;
            applied += usize::from(counted);
        }
        Ok((turn, applied))
    }

    async fn catch_up(&self, bundle: &Bundle) -> Result<usize, Error> {
        let mut applied = 0;
        while let Some(batch) = self.log.read(bundle.applied() + 1).await? {
            applied += usize::from(apply_next(bundle, &batch));
        }
        Ok(applied)
    }
}

/// Applies the log up to batch `to`, or its end, to a bundle that serves nobody.
///
/// # Errors
/// When the log cannot be read.
pub async fn advance(log: &ChangeLog, bundle: &Bundle, to: u64) -> Result<(), Error> {
    let pruned = log.start().await?.min(to);
    if bundle.applied() < pruned {
        bundle.skip_to(pruned);
    }
    while bundle.applied() < to {
        let Some(batch) = log.read(bundle.applied() + 1).await? else { break };
        apply_next(bundle, &batch);
    }
    Ok(())
}

/// The right to write to a bundle.
type Turn = OwnedMutexGuard<()>;

/// Applies something on a thread that serves no connections: encoding takes its time.
async fn beside<T: Send + 'static>(
    turn: Turn,
    apply: impl FnOnce() -> T + Send + 'static,
) -> Result<(Turn, T), Error> {
    let applied = move || {
        let result = apply();
        (turn, result)
    };
    Ok(spawn_blocking(applied).await?)
}

/// Applies the batch after the last one, or skips it: what is older than the bundle is in the tables
/// that it was built from.
fn apply_next(bundle: &Bundle, batch: &Batch) -> bool {
    let n = bundle.applied() + 1;
    let counts = batch.time_ms >= bundle.manifest.as_of_ms;
    match counts {
        true => bundle.commit(n, bundle.prepare_again(&batch.changes)),
        false => bundle.skip_to(n),
    }
    counts
}
