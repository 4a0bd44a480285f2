//! Starts one poller a pack and the publisher, and ends them in order: when the last poller is done the states are
//! closed, and the publisher says `offline`.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::warn;

use crate::config::Config;
use crate::mqtt::session::{Feed, Publisher};
use crate::pack::state::PackState;
use crate::poller;

/// How long a poller may take to save its energy at the end.
const SAVE_TIMEOUT: Duration = Duration::from_secs(3);

/// Runs until `stop` is done.
pub async fn run(config: Config, stop: impl Future<Output = ()>) {
    let Config { broker, names, packs, state_dir, .. } = config;
    let feeds =
        packs.iter().map(|pack| Feed { name: pack.name.clone(), json_topic: pack.json_topic.clone() });
    let publisher = Publisher {
        broker,
        names,
        feeds: feeds.collect(),
        former: former_packs(&state_dir, packs.iter().map(|pack| pack.name.id.as_str())),
    };
    let (sender, receiver) = watch::channel(vec![PackState::default(); packs.len()]);
    let publishing = tokio::spawn(async move { publisher.run(receiver).await });

    let sender = Arc::new(sender);
    let (stop_sender, stop_receiver) = watch::channel(false);
    let mut pollers = JoinSet::new();
    for (place, pack) in packs.into_iter().enumerate() {
        let (sender, stop, state_dir) = (Arc::clone(&sender), stop_receiver.clone(), state_dir.clone());
        pollers.spawn(async move { poller::run(&pack, &state_dir, sender, place, stop).await });
    }
    drop(sender);

    stop.await;
    stop_sender.send_replace(true);
    let done = async { while pollers.join_next().await.is_some() {} };
    if tokio::time::timeout(SAVE_TIMEOUT, done).await.is_err() {
        warn!("the disk is too slow: the last minute's energy is lost");
    }
    // Those that are not done let go of the states too.
    pollers.shutdown().await;
    if let Err(error) = publishing.await {
        warn!("{error}");
    }
}

/// Packs that this machine had under ids that are not configured any more: what they left at the broker goes.
fn former_packs<'a>(state_dir: &std::path::Path, ids: impl Iterator<Item = &'a str> + Clone) -> Vec<String> {
    let files = std::fs::read_dir(state_dir).into_iter().flatten().flatten();
    files
        .filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".json")?.to_owned()))
        .filter(|former| !ids.clone().any(|id| id == former))
        .collect()
}
