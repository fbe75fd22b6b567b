//! Scheduling of the calling thread.

/// Lets every other thread of the machine go first: for work that nobody waits for. Where the
/// system has no such class, nothing changes.
pub fn yield_to_others() {
    #[cfg(target_os = "linux")]
    {
        let parameter = libc::sched_param { sched_priority: 0 };
        // SAFETY: the parameter outlives the call; 0 names the calling thread.
        let result = unsafe { libc::sched_setscheduler(0, libc::SCHED_IDLE, &parameter) };
        if result != 0 {
            tracing::warn!("the system refuses to lower a thread's priority");
        }
    }
}

/// Gives the calling thread a tenth of the share of another one when both want the same core: for
/// work that must get done, but not before an answer.
pub fn stand_back() {
    #[cfg(target_os = "linux")]
    {
        // SAFETY: plain numbers; on Linux a priority belongs to a thread, and 0 names the caller.
        let result = unsafe { libc::setpriority(libc::PRIO_PROCESS, 0, 10) };
        if result != 0 {
            tracing::warn!("the system refuses to lower a thread's priority");
        }
    }
}
