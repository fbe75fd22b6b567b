//! Bounded queues in front of pinned threads.
