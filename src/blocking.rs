//! Work that blocks (a disk, a name server), on a thread of its own that ends with it.
//!
//! tokio has threads for such work too, but panics where the system starts none: there are limits
//! on services, containers and users. Here that is an error like any other.

use std::fs;
use std::io;
use std::path::Path;
use std::thread::{self, Builder, JoinHandle};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

/// How long a thread that has ended may still count as one. Microseconds, mostly.
const GONE: Duration = Duration::from_millis(100);

/// Begins the work, whose result will be received.
///
/// # Errors
/// When the system starts no thread: that, and what to do.
pub fn start<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<oneshot::Receiver<T>, String> {
    let (sender, receiver) = oneshot::channel();
    // Who no longer waits for the result does not want it.
    spawn(move || drop(sender.send(work())))?;
    Ok(receiver)
}

/// Does the work and waits for its result.
///
/// # Errors
/// As [`start`].
pub async fn run<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    start(work)?.await.map_err(|_| "a thread has ended without a result".to_owned())
}

/// Can a thread be started now? To be asked right before a library starts one and would panic.
///
/// # Errors
/// As [`start`].
pub fn can_start() -> Result<(), String> {
    let name = spawn(|| fs::read_link("/proc/thread-self"))?.join();
    // A thread that was joined counts until the system has cleared it away, and may be the last
    // that there is room for.
    if let Ok(Ok(name)) = name {
        let (thread, until) = (Path::new("/proc").join(name), Instant::now() + GONE);
        while thread.exists() && Instant::now() < until {
            thread::yield_now();
        }
    }
    Ok(())
}

fn spawn<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<JoinHandle<T>, String> {
    Builder::new().spawn(work).map_err(|error: io::Error| {
        format!(
            "this system starts no further thread ({error}); raise the limit: TasksMax of a service, \
             --pids-limit of a container, or ulimit -u of a user"
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_is_done_on_another_thread() {
        let here = thread::current().id();
        assert_eq!(run(move || thread::current().id() != here).await, Ok(true));
        assert_eq!(can_start(), Ok(()));
    }
}
