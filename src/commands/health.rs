//! `shortlist health`: is the server of this configuration ready? For container health checks.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use anyhow::{Context, bail};

use crate::config::Config;

/// Arguments of `shortlist health`.
#[derive(clap::Args)]
pub struct Args {
    /// Overrides server.port.
    #[arg(long)]
    port: Option<u16>,
}

const TIMEOUT: Duration = Duration::from_secs(2);

/// Asks `/readyz` and fails unless it answers 200.
pub fn run(args: &Args, config: &Config) -> anyhow::Result<()> {
    let bind = config.server.bind;
    let host = if bind.is_unspecified() { "127.0.0.1".to_owned() } else { bind.to_string() };
    let port = args.port.unwrap_or(config.server.port);
    let mut stream = TcpStream::connect((host.as_str(), port))
        .with_context(|| format!("connect to {host}:{port}"))?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    write!(stream, "GET /readyz HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("read the answer of /readyz")?;
    let status = answer.lines().next().unwrap_or_default();
    if !status.contains(" 200 ") {
        bail!("{host}:{port} is not ready: {status}");
    }
    println!("ready");
    Ok(())
}
