//! Asks the server over HTTP.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

const TIMEOUT: Duration = Duration::from_secs(10);
/// A request that is refused comes again so often, after this time each.
const TRIES: u32 = 20;
const PAUSE: Duration = Duration::from_millis(50);

/// One connection.
pub struct Client {
    agent: ureq::Agent,
    url: String,
}

impl Client {
    /// To `http://HOST:PORT`.
    pub fn new(url: &str) -> Self {
        let config = ureq::Agent::config_builder().http_status_as_error(false);
        let agent = config.timeout_global(Some(TIMEOUT)).build().into();
        Self { agent, url: url.trim_end_matches('/').to_owned() }
    }

    /// Sends a body; one that the server refuses for now is sent again.
    ///
    /// # Errors
    /// When the server does not answer, or refuses for good.
    pub fn post(&self, path: &str, body: &Value) -> Result<Value> {
        let (url, text) = (format!("{}{path}", self.url), body.to_string());
        for tried in 1.. {
            let request = self.agent.post(&url).content_type("application/json");
            let mut response = request.send(&text).with_context(|| url.clone())?;
            let status = response.status().as_u16();
            let answer = response.body_mut().read_to_string().with_context(|| url.clone())?;
            if matches!(status, 429 | 503) && tried < TRIES {
                std::thread::sleep(PAUSE);
                continue;
            }
            ensure!(matches!(status, 200 | 202), "{url}: {status} {answer}");
            return serde_json::from_str(&answer).with_context(|| format!("{url}: {answer}"));
        }
        unreachable!("the last try returns")
    }
}
