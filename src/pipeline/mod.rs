//! One request: six stages that meet in the context.
