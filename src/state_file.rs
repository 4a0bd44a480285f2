//! Small files that survive a power cut: written beside, synced, and moved into place.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

/// The file's text, or `None` when there is none yet.
///
/// # Errors
/// When there is a file that cannot be read.
pub fn load(path: &Path) -> io::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Replaces the file: whoever reads it finds the old text or the new one, whenever the power goes.
/// Blocks until the text is on the disk.
///
/// # Errors
/// When the directory cannot be made or written; the old file is then still there.
pub fn save(path: &Path, text: &str) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(directory)?;
    let beside = path.with_extension("new");
    let mut file = File::create(&beside)?;
    file.write_all(text.as_bytes())?;
    // Without this a power cut may keep the move and lose the text.
    file.sync_all()?;
    fs::rename(&beside, path)?;
    File::open(directory)?.sync_all()
}

/// Held until it is dropped, or the program ends in whatever way.
pub struct Lock(#[allow(dead_code)] Flock<File>); // held, never read

/// Locks a file, which is made if there is none; `None` when another program holds it.
///
/// # Errors
/// When the file cannot be made or locked.
pub fn lock(path: &Path) -> io::Result<Option<Lock>> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(Lock(lock))),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_saved_is_loaded_and_nothing_else_lies_about() {
        let directory = std::env::temp_dir().join(format!("bms2mqtt-state-{}", std::process::id()));
        let path = directory.join("deep/house.json");
        assert_eq!(load(&path).unwrap(), None);
        save(&path, "one").unwrap();
        save(&path, "two").unwrap();
        assert_eq!(load(&path).unwrap().as_deref(), Some("two"));
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1);
        // A half-written file of an earlier power cut is in nobody's way.
        fs::write(path.with_extension("new"), "ha").unwrap();
        save(&path, "three").unwrap();
        assert_eq!(load(&path).unwrap().as_deref(), Some("three"));
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_lock_has_one_holder() {
        let path = std::env::temp_dir().join(format!("bms2mqtt-lock-{}", std::process::id()));
        let held = lock(&path).unwrap();
        assert!(held.is_some());
        assert!(lock(&path).unwrap().is_none());
        drop(held);
        assert!(lock(&path).unwrap().is_some());
        fs::remove_file(path).unwrap();
    }
}
