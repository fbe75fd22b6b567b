//! One immutable, versioned directory with everything that a version needs.
