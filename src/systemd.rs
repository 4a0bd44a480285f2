//! Tells systemd that the bridge has started, and feeds its watchdog as long as it is alive.

use std::sync::Arc;

use sd_notify::NotifyState;
use tokio::time::interval;
use tracing::{debug, info, warn};

use crate::health::{Expected, stuck};
use crate::hub::Hub;

/// Ends at once where there is no watchdog.
pub async fn notify(hub: Arc<Hub>, packs: Vec<Expected>) {
    if let Err(error) = sd_notify::notify(&[NotifyState::Ready]) {
        debug!("systemd is not told: {error}");
    }
    let Some(timeout) = sd_notify::watchdog_enabled() else {
        return;
    };
    info!("feeding systemd's watchdog, which bites after {} s", timeout.as_secs());
    let mut ticks = interval(timeout / 3);
    loop {
        ticks.tick().await;
        match hub.look(|states| stuck(&packs, states, hub.broker(), hub.uptime())) {
            Some(who) => warn!("{who} makes no progress: the watchdog is not fed"),
            None => {
                if let Err(error) = sd_notify::notify(&[NotifyState::Watchdog]) {
                    warn!("systemd's watchdog cannot be fed: {error}");
                }
            }
        }
    }
}
