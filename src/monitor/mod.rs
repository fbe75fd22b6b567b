//! Metrics and health. Imported by everything above tier 1; imports nothing of tier 2.
