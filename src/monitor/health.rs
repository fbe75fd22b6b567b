//! Whether this process should get traffic, and what its parts say of themselves.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU8, Ordering};

/// The life of a process. Only `Ready` takes traffic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// The bundle is being loaded and warmed.
    Starting = 0,
    Ready = 1,
    /// Told to stop: the load balancer should look elsewhere, requests in flight finish.
    Draining = 2,
}

/// One part's word on itself. A part that is not ok makes answers worse, not impossible.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Component {
    pub name: &'static str,
    pub ok: bool,
    pub text: String,
}

/// Shared by whoever starts the process, its parts and the probe.
#[derive(Debug, Default)]
pub struct Health {
    phase: AtomicU8,
    components: Mutex<Vec<Component>>,
}

impl Health {
    /// A starting process without parts.
    pub fn new() -> Self {
        Self::default()
    }

    /// Where the process stands.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Starting,
            1 => Phase::Ready,
            _ => Phase::Draining,
        }
    }

    /// Whether traffic should come here.
    pub fn is_ready(&self) -> bool {
        self.phase() == Phase::Ready
    }

    /// Opens for traffic; a draining process stays closed.
    pub fn set_ready(&self) {
        let (from, to) = (Phase::Starting as u8, Phase::Ready as u8);
        let _ = self.phase.compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Closes for traffic for good.
    pub fn set_draining(&self) {
        self.phase.store(Phase::Draining as u8, Ordering::Release);
    }

    /// Adds or replaces what a part says of itself.
    pub fn set(&self, name: &'static str, ok: bool, text: impl Into<String>) {
        let component = Component { name, ok, text: text.into() };
        let mut components = self.components.lock().unwrap_or_else(|e| e.into_inner());
        match components.iter_mut().find(|c| c.name == name) {
            Some(slot) => *slot = component,
            None => components.push(component),
        }
    }

    /// What all parts said last, in the order in which they first spoke.
    pub fn components(&self) -> Vec<Component> {
        self.components.lock().unwrap_or_else(|e| e.into_inner()).clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn draining_is_final_and_a_part_has_one_line() {
        let health = Health::new();
        assert_eq!(health.phase(), Phase::Starting);
        health.set("redis", false, "connecting");
        health.set("bundle", true, "v1");
        health.set("redis", true, "connected");
        let lines: Vec<_> = health.components().into_iter().map(|c| (c.name, c.ok)).collect();
        assert_eq!(lines, [("redis", true), ("bundle", true)]);
        health.set_ready();
        assert!(health.is_ready());
        health.set_draining();
        health.set_ready();
        assert_eq!(health.phase(), Phase::Draining, "a late `ready` does not reopen the door");
    }
}
