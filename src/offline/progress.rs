//! Progress bars of the day's steps: drawn on a terminal, silent elsewhere.

use indicatif::{ProgressBar, ProgressStyle};

/// A bar of `len` units.
pub fn bar(title: &'static str, len: u64) -> ProgressBar {
    let template = "{prefix:>16} [{bar:32}] {pos}/{len} {elapsed_precise} {msg}";
    let style = ProgressStyle::with_template(template).expect("a constant template");
    ProgressBar::new(len).with_style(style.progress_chars("=> ")).with_prefix(title)
}

/// A line that only says what is going on.
pub fn spinner(title: &'static str) -> ProgressBar {
    let style = ProgressStyle::with_template("{prefix:>16} {elapsed_precise} {msg}");
    ProgressBar::new_spinner().with_style(style.expect("a constant template")).with_prefix(title)
}
