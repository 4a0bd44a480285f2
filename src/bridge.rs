//! Starts the hub, a poller a bus, and the faces, and ends them in order: pollers end what they have begun, while the
//! publisher says `offline`.

use std::fs;
use std::io;
use std::os::unix::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::warn;

use crate::config::{Config, Pack};
use crate::control::{self, Control};
use crate::health::Expected;
use crate::hub::Hub;
use crate::mqtt::session::{Feed, Publisher};
use crate::poller;
use crate::state_file;
use crate::stop::Stopper;
use crate::systemd;

/// How long pollers may take to end an exchange and to save their energy.
const POLLERS_TIMEOUT: Duration = Duration::from_millis(2300);
/// How long the broker may take over the last `offline`.
const GOODBYE_TIMEOUT: Duration = Duration::from_secs(2);

/// Runs until `stop` is done.
pub async fn run(config: Config, stop: impl Future<Output = ()>) {
    let control_address = control_address(&config);
    let Config { access, names, packs, state_dir, dead_bands, .. } = config;
    // Locks are files: there must be something to hold them.
    let _ = fs::create_dir_all(&state_dir);
    let _locks = lock_packs(&state_dir, &packs);

    let (stopper, stopped) = Stopper::new();
    let buses = buses(&packs);
    let (hub, commands) = Hub::new(&buses);
    let expected: Vec<Expected> = packs.iter().map(expected).collect();

    let mut background = JoinSet::new();
    match control_address {
        Ok(address) => {
            let ports = packs.iter().map(|pack| pack.address.to_string()).collect();
            let control = Control { hub: Arc::clone(&hub), packs: expected.clone(), ports };
            background.spawn(control.serve(address));
        }
        Err(error) => warn!("`bms2mqtt health` and `--once` will not reach this bridge: {error}"),
    }
    let feeds =
        packs.iter().map(|pack| Feed { name: pack.name.clone(), json_topic: pack.json_topic.clone() });
    let publisher = Publisher {
        access,
        names,
        feeds: feeds.collect(),
        former: former_packs(&state_dir, &packs),
        dead_bands,
        hub: Arc::clone(&hub),
    };
    let publishing = tokio::spawn({
        let stopped = stopped.clone();
        async move {
            publisher.run(stopped).await;
            publisher.hub.broker_abandoned();
        }
    });

    let mut members: Vec<Vec<_>> = commands.iter().map(|_| Vec::new()).collect();
    for (index, (pack, bus)) in packs.into_iter().zip(buses).enumerate() {
        members[bus].push((index, pack));
    }
    let mut pollers = JoinSet::new();
    for (packs, commands) in members.into_iter().zip(commands) {
        let (hub, state_dir, stopped) = (Arc::clone(&hub), state_dir.clone(), stopped.clone());
        pollers.spawn(async move { poller::run(packs, &state_dir, hub, commands, stopped).await });
    }
    background.spawn(systemd::notify(hub, expected));

    stop.await;
    stopper.stop();
    // Both at once: `offline` does not wait for a slow disk, nor the disk for a slow broker.
    let saved = timeout(POLLERS_TIMEOUT, async { while pollers.join_next().await.is_some() {} });
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

/// The bus of each pack: packs with the same address share one.
fn buses(packs: &[Pack]) -> Vec<usize> {
    let mut addresses = Vec::new();
    let bus = |pack: &Pack| {
        addresses.iter().position(|address| *address == pack.address).unwrap_or_else(|| {
            addresses.push(pack.address.clone());
            addresses.len() - 1
        })
    };
    packs.iter().map(bus).collect()
}

fn expected(pack: &Pack) -> Expected {
    Expected { id: pack.name.id.clone(), interval: pack.interval, offline_after: pack.offline_after }
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
