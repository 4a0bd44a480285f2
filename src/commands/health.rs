//! `health`: asks the running bridge of the same configuration whether every pack was read and the broker was reached
//! lately; with `--alive`, only whether it is at work, for whoever starts it again if it is not.

use super::{Failure, print};
use crate::bridge::control_address;
use crate::cli::HealthArgs;
use crate::config::Config;
use crate::control::{self, Request};

pub fn run(args: &HealthArgs, config: &Config) -> Result<(), Failure> {
    let request = if args.alive { Request::Alive } else { Request::Health };
    let asked = control_address(config).and_then(|address| control::ask(&address, request));
    let (well, report) = asked.map_err(|error| {
        Failure::Running(format!("no bridge runs with this configuration, or it does not answer: {error}"))
    })?;
    print(report)?;
    if well { Ok(()) } else { Err(Failure::Silent) }
}
