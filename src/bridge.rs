//! Starts one poller a pack and the publisher, and ends them in order: when the last poller has polled its last the
//! states are closed, and the publisher says `offline`.

use std::fs;
use std::io;
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::warn;

use crate::config::{Config, Pack};
use crate::control::{self, Control};
use crate::health::Health;
use crate::mqtt::session::{Feed, Publisher};
use crate::pack::state::PackState;
use crate::poller::{self, Desk};
use crate::state_file;

/// How long a poller may take to save its energy at the end.
const SAVE_TIMEOUT: Duration = Duration::from_secs(2);
/// How long the broker may take over the last `offline`.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs until `stop` is done.
pub async fn run(config: Config, stop: impl Future<Output = ()>) {
    let health = Health::new(
        config.packs.iter().map(|pack| (pack.name.id.clone(), pack.interval, pack.offline_after)),
    );
    let mut background = JoinSet::new();
    let (sender, receiver) = watch::channel(vec![PackState::default(); config.packs.len()]);
    match control_address(&config) {
        Ok(address) => {
            let control = Control { health: health.clone(), states: receiver.clone(), ports: ports(&config) };
            background.spawn(control.serve(address));
        }
        Err(error) => warn!("`bms2mqtt health` and `--once` will not reach this bridge: {error}"),
    }
    let Config { access, names, packs, state_dir, damping, .. } = config;
    // Locks are files: there must be something to hold them.
    let _ = fs::create_dir_all(&state_dir);
    let _locks = lock_packs(&state_dir, &packs);
    let feeds =
        packs.iter().map(|pack| Feed { name: pack.name.clone(), json_topic: pack.json_topic.clone() });
    let publisher = Publisher {
        access,
        names,
        feeds: feeds.collect(),
        former: former_packs(&state_dir, &packs),
        health: health.clone(),
    };
    let publishing = tokio::spawn(async move { publisher.run(receiver).await });
    health.publishes(publishing.abort_handle());

    let sender = Arc::new(sender);
    let (stop_sender, stop_receiver) = watch::channel(false);
    let mut pollers = JoinSet::new();
    for (place, pack) in packs.into_iter().enumerate() {
        let desk = Desk { states: Arc::clone(&sender), place, health: health.clone() };
        let (stop, state_dir) = (stop_receiver.clone(), state_dir.clone());
        pollers.spawn(async move { poller::run(&pack, damping, &state_dir, desk, stop).await });
    }
    drop(sender);
    background.spawn(health.tell_systemd());

    stop.await;
    stop_sender.send_replace(true);
    // Both at once: `offline` does not wait for a slow disk, nor the disk for a slow broker.
    let saved = timeout(SAVE_TIMEOUT, async { while pollers.join_next().await.is_some() {} });
    let publishing_is_over = publishing.abort_handle();
    let (saved, said) = tokio::join!(saved, timeout(GOODBYE_TIMEOUT, publishing));
    if saved.is_err() {
        warn!("the disk is too slow: the last minute's energy is lost");
    }
    if said.is_err() {
        warn!("the broker takes no more: its last will says offline");
        publishing_is_over.abort();
    }
}

/// Where the bridge of this configuration is asked.
///
/// # Errors
/// When the system does not take the name.
pub fn control_address(config: &Config) -> io::Result<SocketAddr> {
    let ids: Vec<&str> = config.packs.iter().map(|pack| pack.name.id.as_str()).collect();
    control::address((config.access.to_string(), &config.names.base_topic, ids))
}

/// The packs' ports as the bridge names them on its socket.
pub fn ports(config: &Config) -> Vec<String> {
    config.packs.iter().map(|pack| pack.address.to_string()).collect()
}

/// Says that these packs have a living bridge, for as long as the locks are held.
fn lock_packs(state_dir: &Path, packs: &[Pack]) -> Vec<state_file::Lock> {
    let lock = |pack: &Pack| {
        let file = lock_file(state_dir, &pack.name.id);
        match state_file::lock(&file) {
            Ok(None) => {
                warn!(
                    pack = pack.name.id,
                    "another bms2mqtt on this machine has this pack too: give it another id"
                );
                None
            }
            Ok(lock) => lock,
            Err(error) if file.is_symlink() => {
                warn!(pack = pack.name.id, "{}: {error}; take it away", file.display());
                None
            }
            // Whoever counts the energy says that this directory cannot be written.
            Err(_) => None,
        }
    };
    packs.iter().filter_map(lock).collect()
}

/// Packs that this machine had and that no bridge here has now: what they left at the broker goes.
fn former_packs(state_dir: &Path, packs: &[Pack]) -> Vec<String> {
    let files = fs::read_dir(state_dir).into_iter().flatten().flatten();
    files
        .filter_map(|file| Some(file.file_name().to_str()?.strip_suffix(".json")?.to_owned()))
        .filter(|former| !packs.iter().any(|pack| pack.name.id == *former))
        .filter(|former| matches!(state_file::lock(&lock_file(state_dir, former)), Ok(Some(_))))
        .collect()
}

fn lock_file(state_dir: &Path, pack: &str) -> PathBuf {
    state_dir.join(format!("{pack}.lock"))
}
