//! The program at work between boards and a broker, and what the operating system says that it has used.

use std::env;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::sleep;
use std::time::Duration;

use bms2mqtt::jbd::simulator::Pace;

use crate::bare;
use crate::board::{BAUD, Battery, Board, Change};
use crate::broker::{Broker, Proxy};
use crate::machine::{Process, Result, Scratch, wait_for};

/// After so long a bridge that has announced everything has stopped reading back what it left (5 s).
const SETTLED: Duration = Duration::from_millis(5500);

/// The same of this program, of the build it is compared with, and of the least there can be.
#[derive(Clone, Debug)]
pub struct Of<T> {
    pub this: T,
    pub before: Option<T>,
    pub floor: Option<T>,
}

impl<T> Of<T> {
    pub fn only(this: T) -> Of<T> {
        Of { this, before: None, floor: None }
    }

    pub fn map<U>(&self, mut work: impl FnMut(&T) -> U) -> Of<U> {
        Of {
            this: work(&self.this),
            before: self.before.as_ref().map(&mut work),
            floor: self.floor.as_ref().map(&mut work),
        }
    }

    /// As `map`, one after the other, until one fails.
    pub fn each<U>(&self, mut work: impl FnMut(&T) -> Result<U>) -> Result<Of<U>> {
        Ok(Of {
            this: work(&self.this)?,
            before: self.before.as_ref().map(&mut work).transpose()?,
            floor: self.floor.as_ref().map(&mut work).transpose()?,
        })
    }

    pub fn each_mut<'t, U>(&'t mut self, mut work: impl FnMut(&'t mut T) -> Result<U>) -> Result<Of<U>> {
        Ok(Of {
            this: work(&mut self.this)?,
            before: self.before.as_mut().map(&mut work).transpose()?,
            floor: self.floor.as_mut().map(&mut work).transpose()?,
        })
    }

    pub fn into_each<U>(self, mut work: impl FnMut(T) -> Result<U>) -> Result<Of<U>> {
        Ok(Of {
            this: work(self.this)?,
            before: self.before.map(&mut work).transpose()?,
            floor: self.floor.map(&mut work).transpose()?,
        })
    }

    pub fn iter(&self) -> impl Iterator<Item = &T> {
        [Some(&self.this), self.before.as_ref(), self.floor.as_ref()].into_iter().flatten()
    }

    pub fn iter_mut(&mut self) -> impl Iterator<Item = &mut T> {
        [Some(&mut self.this), self.before.as_mut(), self.floor.as_mut()].into_iter().flatten()
    }

    /// With another floor, or one at all.
    pub fn with_floor(self, floor: T) -> Of<T> {
        Of { floor: Some(floor), ..self }
    }
}

#[derive(Clone, Debug)]
pub enum Subject {
    /// A build of the program.
    Program(PathBuf),
    /// [`bare`], which knows no broker.
    Bare,
}

/// What the program runs under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Under {
    Nothing,
    Callgrind,
    Memcheck,
    Strace,
}

/// How a program is put to work.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    pub packs: usize,
    pub cells: usize,
    /// Begins when the board is told so.
    pub change: Change,
    pub pace: Pace,
    pub baud: u32,
    pub interval: Duration,
    pub under: Under,
    /// Is what goes to the broker counted? That is a thread and a socket more on the way.
    pub proxied: bool,
    pub debug: bool,
    /// What else stands in `config.yaml`.
    pub more: &'static str,
}

impl Setup {
    /// 16 cells, 50 polls a second, each answer handed over at once.
    pub fn unpaced() -> Setup {
        Setup {
            packs: 1,
            cells: 16,
            change: Change::Nothing,
            pace: Pace::Unpaced,
            baud: BAUD,
            interval: Duration::from_millis(20),
            under: Under::Nothing,
            proxied: true,
            debug: false,
            more: "",
        }
    }

    /// 16 cells, 10 polls a second, byte by byte as a wire hands them over.
    pub fn paced() -> Setup {
        let pace = Pace::Wire { baud: BAUD };
        Setup { pace, interval: Duration::from_millis(100), ..Setup::unpaced() }
    }
}

/// What a program is put between: boards, broker, and a directory with its configuration.
pub struct Surroundings {
    pub boards: Vec<Board>,
    pub broker: Broker,
    pub proxy: Option<Proxy>,
    pub directory: Scratch,
}

pub const CONFIG: &str = "config.yaml";

impl Surroundings {
    pub fn start(setup: &Setup) -> Result<Surroundings> {
        let battery = Battery::of(setup.cells)?;
        let boards = Board::start_many(setup.packs, &battery, setup.change, setup.pace)?;
        let broker = Broker::start()?;
        let proxy = if setup.proxied { Some(Proxy::start(broker.address)?) } else { None };
        let directory = Scratch::new();
        let address = proxy.as_ref().map_or(broker.address, |proxy| proxy.address);
        fs::write(directory.path().join(CONFIG), config(setup, address, &directory, &boards))?;
        Ok(Surroundings { boards, broker, proxy, directory })
    }

    /// With one pack: its board.
    pub fn board(&self) -> &Board {
        &self.boards[0]
    }
}

fn config(setup: &Setup, broker: SocketAddr, directory: &Scratch, boards: &[Board]) -> String {
    // A ping in the middle of what is counted would be one too many.
    let mut text = format!("mqtt:\n  url: mqtt://{broker}\n  keep_alive: 60s\npacks:\n");
    text.insert_str(0, &format!("state_dir: {}\n", directory.path().join("state").display()));
    for (place, board) in boards.iter().enumerate() {
        let id = if boards.len() == 1 { "bank".to_owned() } else { format!("bank_{}", place + 1) };
        let interval = setup.interval.as_millis();
        text += &format!("  - id: {id}\n    port: {}\n    baud: {}\n", board.port, setup.baud);
        text += &format!("    interval: {interval}ms\n");
    }
    text + setup.more
}

/// A program at work.
pub struct Rig {
    // In this order: the program ends before what it talks to.
    process: Process,
    surroundings: Surroundings,
    is_bare: bool,
}

impl Rig {
    pub fn start(subject: &Subject, setup: &Setup) -> Result<Rig> {
        Rig::start_in(subject, setup, Surroundings::start(setup)?)
    }

    pub fn start_in(subject: &Subject, setup: &Setup, surroundings: Surroundings) -> Result<Rig> {
        let directory = surroundings.directory.path();
        let (program, arguments) = match subject {
            Subject::Program(path) => {
                let mut arguments = vec!["run".to_owned(), "--config".to_owned(), CONFIG.to_owned()];
                if setup.debug {
                    arguments.push("--debug".to_owned());
                }
                (path.clone(), arguments)
            }
            Subject::Bare => {
                let interval = setup.interval.as_millis().to_string();
                let port = surroundings.board().port.clone();
                let arguments = vec![bare::ARGUMENT.to_owned(), port, setup.baud.to_string(), interval];
                (env::current_exe()?, arguments)
            }
        };
        let mut command = under(setup.under, &program);
        command.args(arguments).current_dir(directory).env_clear();
        command.env("PATH", env::var_os("PATH").unwrap_or_default());
        command.stderr(File::create(directory.join("log"))?);
        let process = Process::start(&mut command)?;
        Ok(Rig { process, surroundings, is_bare: matches!(subject, Subject::Bare) })
    }

    pub fn board(&self) -> &Board {
        self.surroundings.board()
    }

    pub fn around(&self) -> &Surroundings {
        &self.surroundings
    }

    pub fn log(&self) -> String {
        self.file("log")
    }

    /// What the tool says that it runs under.
    pub fn tool_log(&self) -> String {
        self.file(TOOL_LOG)
    }

    fn file(&self, name: &str) -> String {
        let bytes = fs::read(self.surroundings.directory.path().join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// To what went wrong, what the program says of it.
    pub fn explain<T>(&self, result: Result<T>) -> Result<T> {
        result.map_err(|error| {
            let log = self.log();
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(5)..].join("\n");
            format!("{error}\nThe program's last log lines:\n{last}").into()
        })
    }

    /// Has it told the broker who it is and what it knows?
    fn has_begun(&self) -> bool {
        let proxy = self.surroundings.proxy.as_ref().filter(|_| !self.is_bare);
        self.surroundings.boards.iter().all(|board| board.polls() >= 3)
            && proxy.is_none_or(|proxy| proxy.meter.sent().bytes > 10_000)
    }

    /// Ends it in order.
    pub fn end(&mut self) -> Result<()> {
        self.process.end()
    }

    fn proc(&self, file: &str) -> Result<String> {
        let path = format!("/proc/{}/{file}", self.process.id());
        // Of a program that has ended, this fails too.
        self.explain(fs::read_to_string(&path).map_err(|error| format!("{path}: {error}").into()))
    }

    /// The number behind a key of `status`, or of a file like it.
    pub fn number(&self, file: &str, key: &str) -> Result<u64> {
        let text = self.proc(file)?;
        let value = text.lines().find_map(|line| line.strip_prefix(key)?.split_whitespace().next());
        Ok(self.explain(value.ok_or_else(|| format!("no {key} in its {file}").into()))?.parse()?)
    }

    /// What its threads have used since they began. A thread that has ended is not in it: the program has such only
    /// for the disk and for names.
    pub fn used(&self) -> Result<Used> {
        let mut used = Used { polls: self.board().polls(), processor: Duration::ZERO, wakeups: 0 };
        let tasks = format!("/proc/{}/task", self.process.id());
        for task in fs::read_dir(&tasks).map_err(|error| format!("{tasks}: {error}"))? {
            let task = task?.file_name().to_string_lossy().into_owned();
            let times = self.proc(&format!("task/{task}/schedstat"))?;
            let nanos = times.split_whitespace().next().unwrap_or_default().parse()?;
            used.processor += Duration::from_nanos(nanos);
            used.wakeups += self.number(&format!("task/{task}/status"), "voluntary_ctxt_switches:")?;
        }
        Ok(used)
    }
}

/// Processor time is user's and system's together; a wake-up is a thread that went to sleep by itself and came back.
#[derive(Clone, Copy, Debug)]
pub struct Used {
    pub polls: u64,
    pub processor: Duration,
    pub wakeups: u64,
}

const TOOL_LOG: &str = "tool";

/// The command that runs `program` under a tool, whose own words go to a file in the current directory.
fn under(tool: Under, program: &Path) -> Command {
    let (name, options): (_, &[&str]) = match tool {
        Under::Nothing => return Command::new(program),
        Under::Callgrind => ("valgrind", &["--tool=callgrind", "--callgrind-out-file=/dev/null"]),
        Under::Memcheck => ("valgrind", &["--tool=memcheck", "--leak-check=no", "--undef-value-errors=no"]),
        // The process that is started is the program (`-D`), so that it can be ended as such.
        Under::Strace => ("strace", &["-D", "-f", "-xx", "-o", TOOL_LOG]),
    };
    let mut command = Command::new(name);
    command.args(options);
    if name == "valgrind" {
        command.arg(format!("--log-file={TOOL_LOG}"));
    }
    command.arg(program);
    command
}

/// Waits until all of them have announced what there is, and do nothing any more but poll.
pub fn settle<'r>(rigs: impl IntoIterator<Item = &'r Rig>) -> Result<()> {
    for rig in rigs {
        rig.explain(wait_for("its announcement", || rig.has_begun().then_some(())))?;
    }
    sleep(SETTLED);
    Ok(())
}
