//! `simulate`: serves a virtual BMS on a pseudo-terminal or a TCP port, and says where on standard output.

use std::fs;

use tokio::net::TcpListener;
use tracing::info;

use super::{Failure, print, stop_signal};
use crate::cli::{Options, SimulateArgs};
use crate::config;
use crate::jbd::simulator::{
    Faults, LivingPack, Pace, Pack, Profile, Settings, profile, serve_with, terminal,
};

pub async fn run(args: &SimulateArgs, options: &Options) -> Result<(), Failure> {
    let stop = stop_signal()?;
    let baud = config::baud(options.pack.baud.as_deref())?;
    let pace = if args.unpaced { Pace::Unpaced } else { Pace::Wire { baud } };
    let mut pack = pack(args)?;
    let seed = args.seed.unwrap_or(Settings::default().seed);
    let faults =
        Faults::new(&args.fault, seed).map_err(|error| Failure::Usage(format!("--fault {error}")))?;
    let serving = async {
        match args.listen {
            Some(address) => {
                let listener = TcpListener::bind(address).await.map_err(|error| {
                    Failure::Running(format!("cannot listen on {address}: {error}; choose another port"))
                })?;
                print(format_args!("tcp://{}\n", listener.local_addr()?))?;
                serve_tcp(&listener, pack.as_mut(), pace, &faults).await
            }
            None => {
                let (terminal, line) = terminal(args.link.as_deref())?;
                print(format_args!("{}\n", terminal.path().display()))?;
                Ok(serve_with(line, pack.as_mut(), pace, &faults).await?)
            }
        }
    };
    tokio::select! {
        outcome = serving => outcome,
        () = stop => Ok(()),
    }
}

/// As a serial server: one client at a time, and a new one takes the place of one that may have vanished.
async fn serve_tcp(
    listener: &TcpListener,
    pack: &mut dyn Pack,
    pace: Pace,
    faults: &Faults,
) -> Result<(), Failure> {
    let (mut socket, mut peer) = listener.accept().await?;
    loop {
        info!("serving {peer}");
        socket.set_nodelay(true)?;
        let next = tokio::select! {
            // What becomes of one client is nothing to the next.
            _ = serve_with(socket, pack, pace, faults) => listener.accept().await,
            next = listener.accept() => next,
        };
        (socket, peer) = next?;
    }
}

fn pack(args: &SimulateArgs) -> Result<Box<dyn Pack>, Failure> {
    let profile = match &args.profile {
        None => Profile::Living(Settings::default()),
        Some(path) => {
            let failure = |error: String| Failure::Usage(format!("{}: {error}", path.display()));
            let text = fs::read_to_string(path).map_err(|error| failure(error.to_string()))?;
            profile(&text).map_err(failure)?
        }
    };
    let mut settings = match profile {
        Profile::Captured(_) if args.cells.is_some() || args.speed.is_some() => {
            let message = "captured frames have their own cells; --cells and --speed are for a living pack";
            return Err(Failure::Usage(message.to_owned()));
        }
        Profile::Captured(_) if args.seed.is_some() && args.fault.is_empty() => {
            let message = "captured frames leave nothing to chance; --seed is for a living pack or --fault";
            return Err(Failure::Usage(message.to_owned()));
        }
        Profile::Captured(pack) => return Ok(Box::new(pack)),
        Profile::Living(settings) => settings,
    };
    settings.cells = args.cells.unwrap_or(settings.cells);
    settings.speed = args.speed.unwrap_or(settings.speed);
    settings.seed = args.seed.unwrap_or(settings.seed);
    Ok(Box::new(LivingPack::new(settings).map_err(Failure::Usage)?))
}
