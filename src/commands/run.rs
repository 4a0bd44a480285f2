//! `run`: polls every pack and publishes, until SIGINT or SIGTERM.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};
use tracing::{debug, info};

use super::once::{Poll, print_line};
use super::{Failure, smart_bms, stop_signal};
use crate::bridge;
use crate::config::{Config, Pack};

pub async fn run(config: Config) -> Result<(), Failure> {
    let stop = stop_signal()?;
    debug!("{}", super::check::describe(&config).trim_end().replace('\n', "; "));
    smart_bms::show(&config);
    if config.console {
        let [pack] = config.packs.as_slice() else {
            return Err(Failure::Usage("out_to=consol is for one pack".to_owned()));
        };
        tokio::select! {
            outcome = print_every_interval(pack) => return outcome,
            () = stop => return Ok(()),
        }
    }
    for Pack { name, address, interval, .. } in &config.packs {
        let every = humantime::format_duration(*interval);
        info!("pack {} \"{}\" at {address}, every {every}", name.id, name.name);
    }
    bridge::run(config, stop).await;
    info!("stopped");
    Ok(())
}

/// What `bms.conf` calls `out_to=consol`: the one-line JSON on standard output.
async fn print_every_interval(pack: &Pack) -> Result<(), Failure> {
    let mut ticks = interval(pack.interval.max(Duration::from_millis(100)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    let mut poll = Poll::new(pack);
    loop {
        ticks.tick().await;
        if !print_line(poll.reading().await.as_ref())? {
            return Ok(());
        }
    }
}
