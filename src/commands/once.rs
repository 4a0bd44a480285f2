//! `--once`: one poll of every pack, one line of JSON each, in the order of the configuration. A
//! bridge of this configuration that runs has the ports: then it is asked what it read.

use std::io::{self, Write};

use tracing::{debug, error, warn};

use super::Failure;
use crate::bridge::{control_address, ports};
use crate::config::{Config, Pack};
use crate::control::{self, Request};
use crate::jbd::board::{self, Board};
use crate::json_line::json_line;
use crate::link::{self, Link};
use crate::pack::reading::Reading;

pub async fn run(config: Config) -> Result<(), Failure> {
    debug!("{}", super::check::describe(&config).trim_end().replace('\n', "; "));
    if let Some(lines) = ask_bridge(&config) {
        for line in &lines {
            writeln!(io::stdout(), "{line}")?;
        }
        let silent = json_line(None);
        return if lines.contains(&silent) { Err(Failure::Silent) } else { Ok(()) };
    }
    // All at the same time: a silent pack does not hold up the others.
    let mut polls = Vec::new();
    for pack in config.packs {
        polls.push(tokio::spawn(async move { Poll::new(&pack).reading().await }));
    }
    let mut all_answered = true;
    for poll in polls {
        let reading = poll.await.map_err(|error| Failure::Running(error.to_string()))?;
        all_answered &= reading.as_ref().is_some_and(|reading| reading.totals.is_some());
        print_line(reading.as_ref())?;
    }
    if all_answered { Ok(()) } else { Err(Failure::Silent) }
}

/// The packs' lines, if a bridge of this configuration runs and tells them.
fn ask_bridge(config: &Config) -> Option<Vec<String>> {
    let asked = control_address(config).and_then(|address| control::ask(&address, Request::Once));
    let why = match asked {
        Ok((true, response)) => {
            let lines = control::lines_of(&response, &ports(config))?;
            debug!("the running bridge of this configuration has the ports: these are its last readings");
            return Some(lines.into_iter().map(str::to_owned).collect());
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => return None,
        Err(error) => format!("does not answer: {error}"),
        Ok((false, response)) if response.starts_with("refused") => {
            "tells what it reads to its own user and root only".to_owned()
        }
        Ok((false, _)) => "is of an older version and cannot tell what it reads: start it again".to_owned(),
    };
    warn!("the running bridge of this configuration {why}");
    None
}

pub fn print_line(reading: Option<&Reading>) -> io::Result<()> {
    writeln!(io::stdout(), "{}", json_line(reading))
}

/// Polls one pack outside the bridge; what goes wrong goes to the log.
pub struct Poll<'a> {
    pack: &'a Pack,
    board: Option<Board<Link>>,
}

impl<'a> Poll<'a> {
    pub fn new(pack: &'a Pack) -> Poll<'a> {
        Poll { pack, board: None }
    }

    pub async fn reading(&mut self) -> Option<Reading> {
        let board = match self.board.as_mut() {
            Some(board) => board,
            None => match link::open(&self.pack.address).await {
                Ok(link) => self.board.insert(Board::new(link)),
                Err(error) => {
                    let advice = match error.port_is_taken() {
                        true => {
                            "; a running bms2mqtt is asked by `--once` with its configuration (--config FILE)"
                        }
                        false => "",
                    };
                    error!(pack = self.pack.name.id, "{error}{advice}");
                    return None;
                }
            },
        };
        match board.poll().await {
            Ok(reading) => Some(reading),
            Err(error) => {
                error!(pack = self.pack.name.id, "{}: {error}", self.pack.address);
                if matches!(error, board::Error::Line(_)) {
                    self.board = None;
                }
                None
            }
        }
    }
}
