//! `scan`: tries every serial port, and prints which one answers as a BMS.

use super::{Failure, print, say};
use crate::board::Direct;
use crate::cli::{Options, ScanArgs};
use crate::config;
use crate::link::{self, Address};

pub async fn run(args: &ScanArgs, options: &Options) -> Result<(), Failure> {
    let mut ports = args.ports.clone();
    ports.extend(options.port.clone());
    if ports.is_empty() {
        ports.extend(link::serial_ports().into_iter().map(|path| path.to_string_lossy().into_owned()));
    }
    if ports.is_empty() {
        return Err(Failure::Running("there is no serial port here; is the adapter plugged in?".to_owned()));
    }
    let mut found = false;
    for port in ports {
        let address = config::address(&port, options.pack.baud.as_deref())?;
        match try_port(&address).await {
            Ok(board) => {
                found = true;
                if !print(format_args!("{port}: {board}\n"))? {
                    // Whoever wanted to know does so.
                    break;
                }
            }
            Err(reason) => say(format_args!("{port}: {reason}")),
        }
    }
    if found { Ok(()) } else { Err(Failure::Running("no port answers as a BMS".to_owned())) }
}

/// Name, cells and voltage of the board at this address.
async fn try_port(address: &Address) -> Result<String, String> {
    let link = link::open(address).await.map_err(|error| error.to_string())?;
    let mut board = Direct::new(link, address.timing());
    let reading = board.poll().await.map_err(|error| error.to_string())?;
    let identity = board.identity().await.map_err(|error| error.to_string())?;
    let name = identity.model.unwrap_or_else(|| "JBD BMS without a name".to_owned());
    let voltage = reading.totals.as_ref().map(|totals| format!(", {} V", totals.voltage)).unwrap_or_default();
    Ok(format!("{name}, {} cells{voltage}", reading.cell_count()))
}
