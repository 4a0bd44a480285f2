//! Processes, threads and directories that end with their owner, and patience.

use std::env;
use std::error::Error;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::runtime::Runtime;
use tokio::sync::oneshot;

use crate::support::scratch;

pub type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// What does not happen within this does not happen. Programs under valgrind are in no hurry, many at once even less.
const PATIENCE: Duration = Duration::from_secs(60);

pub fn wait_for<T>(what: &str, mut condition: impl FnMut() -> Option<T>) -> Result<T> {
    let began = Instant::now();
    while began.elapsed() < PATIENCE {
        if let Some(value) = condition() {
            return Ok(value);
        }
        sleep(Duration::from_millis(5));
    }
    Err(format!("waited in vain for {what}").into())
}

/// As the program's own.
pub fn runtime() -> io::Result<Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

/// Is there such a program?
pub fn installed(tool: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).any(|directory| directory.join(tool).is_file())
}

pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new() -> Scratch {
        Scratch(scratch("figures"))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

pub struct Process(Child);

impl Process {
    pub fn start(command: &mut Command) -> Result<Process> {
        let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn();
        let child = child.map_err(|error| format!("cannot start {:?}: {error}", command.get_program()))?;
        Ok(Process(child))
    }

    pub fn id(&self) -> u32 {
        self.0.id()
    }

    /// Ends it as the system would, and waits for it.
    pub fn end(&mut self) -> Result<()> {
        kill(Pid::from_raw(self.0.id().try_into()?), Signal::SIGTERM)?;
        wait_for("a process to end", || self.0.try_wait().transpose())??;
        Ok(())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Work on a thread with a runtime of its own, so that nobody else's turn is in its way.
pub struct Worker {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Worker {
    /// Calls `begin` in the runtime, and does the work that it returns until the end. Returns what else it returns.
    pub fn start<T: Send + 'static, W: Future>(
        begin: impl AsyncFnOnce() -> io::Result<(T, W)> + Send + 'static,
    ) -> Result<(T, Worker)> {
        let (stop, stopped) = oneshot::channel::<()>();
        let (tell, told) = mpsc::channel();
        let work = async move |tell: mpsc::Sender<io::Result<T>>| {
            let work = match begin().await {
                Ok((value, work)) => tell.send(Ok(value)).map(|()| work),
                Err(error) => return drop(tell.send(Err(error))),
            };
            if let Ok(work) = work {
                tokio::select! { _ = work => {}, _ = stopped => {} }
            }
        };
        let thread = thread::spawn(move || match runtime() {
            Ok(runtime) => runtime.block_on(work(tell)),
            Err(error) => drop(tell.send(Err(error))),
        });
        let value = told.recv()??;
        Ok((value, Worker { stop: Some(stop), thread: Some(thread) }))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        self.stop.take();
        let _ = self.thread.take().map(JoinHandle::join);
    }
}
