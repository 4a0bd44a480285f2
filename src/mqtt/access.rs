//! How the broker is reached, as it is configured: which it is, or who knows it; and as whom.

use std::fmt;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::supervisor::Supervisor;

pub struct Access {
    pub whereabouts: Whereabouts,
    pub client_id: String,
    pub keep_alive: Duration,
    /// Where Home Assistant says `online` when it has started.
    pub birth_topic: String,
}

pub enum Whereabouts {
    Given(Endpoint),
    Supervisor(Supervisor),
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.whereabouts {
            Whereabouts::Given(endpoint) => endpoint.fmt(f),
            Whereabouts::Supervisor(_) => f.write_str("that Home Assistant's Supervisor names"),
        }
    }
}

impl Access {
    /// The broker to connect to now. The Supervisor is asked each time: it may have another password by now.
    ///
    /// # Errors
    /// When the Supervisor does not name one: why, and what to do.
    pub(super) async fn endpoint(&self) -> Result<Endpoint, String> {
        match &self.whereabouts {
            Whereabouts::Given(endpoint) => Ok(endpoint.clone()),
            Whereabouts::Supervisor(supervisor) => supervisor.endpoint().await,
        }
    }
}
