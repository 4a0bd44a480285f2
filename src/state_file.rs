//! Small files that survive a power cut: written beside, synced, and moved into place.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;

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
}
