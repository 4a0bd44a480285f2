//! Arguments → command → exit code. Builds the runtime; nothing else does.

#![forbid(unsafe_code)]

use std::env;
use std::process::ExitCode;
use std::time::Duration;

use bms2mqtt::cli::{self, Cli, Command, Options};
use bms2mqtt::commands::{
    Failure, check, dashboard, decode, demo, health, import, once, print, run, say, scan, simulate, smart_bms,
};
use bms2mqtt::config::Config;
use bms2mqtt::logging;
use tracing::level_filters::LevelFilter;

fn main() -> ExitCode {
    let outcome = match cli::parse(env::args_os()) {
        Ok(cli) => start(cli),
        Err(message) if message.use_stderr() => {
            say(message.to_string().trim_end());
            return ExitCode::from(2);
        }
        // What `--help` and `--version` ask for is a result.
        Err(answer) => print(answer).map(drop),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            let text = failure.to_string();
            if !text.is_empty() {
                say(format_args!("bms2mqtt: {text}"));
            }
            ExitCode::from(if matches!(failure, Failure::Usage(_)) { 2 } else { 1 })
        }
    }
}

fn start(Cli { command, once, options }: Cli) -> Result<(), Failure> {
    let level = match &command {
        _ if options.debug && !smart_bms::begin_debug(&options) => LevelFilter::DEBUG,
        // The table says it all.
        Some(Command::Demo(_)) => LevelFilter::WARN,
        _ => LevelFilter::INFO,
    };
    let variable = env::var(logging::VARIABLE).ok().filter(|text| !text.is_empty() && !options.debug);
    let levels = match (&options.log, &variable) {
        (Some(text), _) => logging::levels(Some(text), level).map_err(|error| format!("--log: {error}")),
        (None, text) => {
            logging::levels(text.as_deref(), level).map_err(|error| format!("{}: {error}", logging::VARIABLE))
        }
    };
    logging::start(levels.map_err(Failure::Usage)?, options.log_format);
    // One thread: a poll is a few dozen bytes, and a Pi has better things to do. What blocks (the disk, a name
    // lookup) goes to a thread that ends with it.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_keep_alive(Duration::from_millis(1))
        // A bridge waits for a port a pack and a socket: room for a thousand events, the default, is 12 kB for nothing.
        .max_io_events_per_tick(64)
        .build()?;
    let outcome = runtime.block_on(execute(command, once, options));
    // A name lookup that hangs must not keep a program that has said its last word.
    runtime.shutdown_background();
    outcome
}

async fn execute(command: Option<Command>, once: bool, options: Options) -> Result<(), Failure> {
    match command.unwrap_or(Command::Run) {
        Command::Run if once => once::run(Config::load(&options)?).await,
        Command::Run => run::run(Config::load(&options)?).await,
        Command::Check => check::run(&Config::load(&options)?),
        Command::Health(args) => health::run(&args, &Config::load(&options)?),
        Command::Scan(args) => scan::run(&args, &options).await,
        Command::Dashboard(args) => dashboard::run(&args, &Config::load(&options)?),
        Command::Import(args) => import::run(&args),
        Command::Decode(args) => decode::run(&args),
        Command::Simulate(args) => simulate::run(&args, &options).await,
        Command::Demo(args) => demo::run(&args).await,
    }
}
