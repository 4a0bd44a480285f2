//! Small files that survive a power cut: written beside, synced, and moved into place.
//!
//! No link is followed: who can write in this directory must not make the bridge, which may be
//! root, write elsewhere.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg, OFlag};

/// The file's text, or `None` when there is none yet.
///
/// # Errors
/// When there is a file that cannot be read.
pub fn load(path: &Path) -> io::Result<Option<String>> {
    match open(path, File::options().read(true)) {
        Ok(mut file) => {
            let mut text = String::new();
            file.read_to_string(&mut text)?;
            Ok(Some(text))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

fn open(path: &Path, options: &mut OpenOptions) -> io::Result<File> {
    let opened = options.custom_flags(OFlag::O_NOFOLLOW.bits()).open(path);
    opened.map_err(|error| match error.raw_os_error() {
        Some(number) if number == Errno::ELOOP as i32 => {
            io::Error::new(error.kind(), "it is a link, and nothing here follows one")
        }
        _ => error,
    })
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
    // Whatever is there (half a file of a power cut, or a link) goes, so that what is written is a
    // file made just now.
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = File::create_new(&beside)?;
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
    let file = open(path, File::options().create(true).truncate(false).write(true))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(Some(Lock(lock))),
        Err((_, Errno::EWOULDBLOCK)) => Ok(None),
        Err((_, error)) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

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
    fn no_link_leads_elsewhere() {
        let directory = std::env::temp_dir().join(format!("bms2mqtt-links-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let [path, precious, nothing] =
            ["house.json", "precious", "nothing"].map(|name| directory.join(name));
        fs::write(&precious, "precious").unwrap();
        let kept = || fs::read_to_string(&precious).unwrap() == "precious" && !nothing.exists();
        for target in [&precious, &nothing] {
            symlink(target, path.with_extension("new")).unwrap();
            save(&path, "one").unwrap();
            assert_eq!(load(&path).unwrap().as_deref(), Some("one"));
            assert!(kept(), "written through the file beside");

            fs::remove_file(&path).unwrap();
            symlink(target, &path).unwrap();
            let error = load(&path).unwrap_err().to_string();
            assert_eq!(error, "it is a link, and nothing here follows one");
            save(&path, "two").unwrap();
            assert_eq!(fs::read_to_string(&path).unwrap(), "two");
            assert!(kept(), "written through the file");

            let lock_file = path.with_extension("lock");
            symlink(target, &lock_file).unwrap();
            let error = lock(&lock_file).err().map(|error| error.to_string());
            assert_eq!(error.as_deref(), Some("it is a link, and nothing here follows one"));
            assert!(kept(), "made through the lock");
            fs::remove_file(lock_file).unwrap();
        }
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
