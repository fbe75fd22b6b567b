//! An open-loop load generator for `POST /v1/recommendations`.
//!
//! Requests leave when the plan says, whether or not earlier ones were answered, and a latency is
//! counted from the moment the plan named. A server that stalls is thereby charged for every
//! request that would have come meanwhile (coordinated omission).
//!
//! A pacer thread names the moments; each connection is a thread that blocks on its socket. Sleeping
//! threads wake within 60 us, where the timers of an async runtime count in milliseconds, which is
//! as much as an answer takes.

mod client;
mod load;
mod plan;
mod report;

use anyhow::Result;
use clap::Parser;

fn main() -> Result<()> {
    // `cargo bench` passes its own flag to every bench.
    let args = std::env::args().filter(|arg| arg != "--bench");
    let args = load::Args::parse_from(args);
    let report = load::run(&args)?;
    if let Some(path) = &args.timeline {
        std::fs::write(path, report.timeline())?;
    }
    let text = serde_json::to_string_pretty(&report.json())?;
    match args.json.as_deref() {
        None | Some("-") => println!("{text}"),
        Some(path) => std::fs::write(path, text)?,
    }
    Ok(())
}
