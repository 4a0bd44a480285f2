//! What a pack remembers over restarts, on the disk: its energy and its last alarm. Nothing is shown before it has been
//! saved.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use tokio::sync::oneshot::{self, error::TryRecvError};
use tokio::time::Instant;
use tracing::{error, info};

use crate::blocking;
use crate::pack::decimal::Decimal;
use crate::pack::protection::Protections;
use crate::pack::record::Record;
use crate::pack::state::Remembered;
use crate::state_file;

/// At most one write a minute: an SD card lasts, and a power cut costs a minute's energy.
const SAVE_ENERGY_EVERY: Duration = Duration::from_secs(60);
/// A pack that switches off may take this machine's power with it. But alarms that come and go must not wear a card out.
const SAVE_ALARMS_EVERY: Duration = Duration::from_secs(5);

pub struct Memory {
    pack: String,
    path: PathBuf,
    /// Over a longer silence nobody knows what flowed, so it is not counted.
    longest_gap: Duration,
    last: Option<(Instant, Decimal)>,
    /// Has the file been read? Until then the record has only what has been counted since the start.
    loaded: bool,
    record: Record,
    saved: Option<Record>,
    saving: Option<oneshot::Receiver<Result<Saved, String>>>,
    /// When the last saving began.
    began: Instant,
    complained: bool,
}

/// What a writer brings back.
struct Saved {
    /// What the file held before, if it was to be read first.
    loaded: Option<Record>,
    record: Record,
}

impl Memory {
    /// Begins to load what was kept before.
    pub fn new(pack: &str, path: PathBuf, longest_gap: Duration) -> Memory {
        let mut memory = Memory {
            pack: pack.to_owned(),
            path,
            longest_gap,
            last: None,
            loaded: false,
            record: Record::default(),
            saved: None,
            saving: None,
            began: Instant::now(),
            complained: false,
        };
        memory.begin_saving();
        memory
    }

    /// Counts from the last reading to this one, and gives the time between them if it is not too long.
    ///
    /// `power` is W with four decimals, + is charging.
    pub fn count(&mut self, now: Instant, power: Decimal) -> Option<Duration> {
        let (then, before) = self.last.replace((now, power))?;
        let interval = Some(now - then).filter(|&interval| interval <= self.longest_gap)?;
        self.record.energy.add(before, power, interval);
        Some(interval)
    }

    /// Takes in which protections are active. Before the file has been read nobody knows which of them are new.
    pub fn see(&mut self, active: Protections) {
        if self.loaded {
            // A clock before 1970 has not been set yet.
            let time = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
            let time = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
            self.record.alarms.see(active, time);
        }
    }

    /// What may be shown now; saves when there is more to show and it is time. Never waits.
    pub fn keep(&mut self) -> Option<Remembered> {
        match self.saving.as_mut().map(oneshot::Receiver::try_recv) {
            None | Some(Err(TryRecvError::Empty)) => {}
            Some(outcome) => self.saving_ended(outcome.unwrap_or_else(|error| Err(error.to_string()))),
        }
        let due = match &self.saved {
            Some(saved) if saved.alarms != self.record.alarms => Some(SAVE_ALARMS_EVERY),
            Some(saved) if saved.energy.energy() == self.record.energy.energy() => None,
            _ => Some(SAVE_ENERGY_EVERY),
        };
        if self.saving.is_none() && due.is_some_and(|pause| self.began.elapsed() >= pause) {
            self.begin_saving();
        }
        let shown =
            |saved: &Record| Remembered { energy: saved.energy.energy(), last_alarm: saved.alarms.last() };
        self.saved.as_ref().map(shown)
    }

    /// Saves what has come since the last time.
    pub async fn close(mut self) {
        self.finish_saving().await;
        self.begin_saving();
        self.finish_saving().await;
    }

    /// On a thread of its own, which ends with the work: a card can take seconds to sync.
    fn begin_saving(&mut self) {
        let (path, read_first, mut record) = (self.path.clone(), !self.loaded, self.record);
        self.began = Instant::now();
        let saving = blocking::start(move || {
            let loaded = if read_first { Some(load(&path)?) } else { None };
            if let Some(loaded) = &loaded {
                record = loaded.and(&record);
            }
            state_file::save(&path, &record.to_json()).map_err(|error| {
                format!("cannot write {}: {error}; give a writable state_dir", path.display())
            })?;
            Ok(Saved { loaded, record })
        });
        match saving {
            Ok(saving) => self.saving = Some(saving),
            Err(reason) => self.saving_ended(Err(reason)),
        }
    }

    async fn finish_saving(&mut self) {
        if let Some(saving) = self.saving.take() {
            let outcome = saving.await.unwrap_or_else(|error| Err(error.to_string()));
            self.saving_ended(outcome);
        }
    }

    fn saving_ended(&mut self, outcome: Result<Saved, String>) {
        self.saving = None;
        match outcome {
            Ok(Saved { loaded, record }) => {
                if let Some(loaded) = loaded {
                    self.record = loaded.and(&self.record);
                    self.loaded = true;
                }
                self.saved = Some(record);
                if std::mem::take(&mut self.complained) {
                    info!(pack = self.pack, "energy is saved again");
                }
            }
            Err(reason) if !self.complained => {
                self.complained = true;
                error!(pack = self.pack, "energy and the last protection are not shown: {reason}");
            }
            Err(_) => {}
        }
    }
}

fn load(path: &Path) -> Result<Record, String> {
    let text = state_file::load(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let Some(text) = text else {
        return Ok(Record::default());
    };
    // Beginning at zero again would add false energy to the statistics of years: a person decides that.
    Record::from_json(&text).map_err(|error| format!("{} {error}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("bms2mqtt-memory-{name}-{}", std::process::id()))
    }

    async fn shown(memory: &mut Memory) -> Option<String> {
        memory.finish_saving().await;
        memory.keep().map(|remembered| remembered.energy.charged.to_string())
    }

    #[tokio::test]
    async fn what_was_counted_is_there_at_the_next_start_and_gaps_are_not_counted() {
        let directory = scratch("restart");
        let path = directory.join("house.json");
        let start = Instant::now();
        let kilowatt = Decimal::new(1000, 0);

        let mut memory = Memory::new("house", path.clone(), Duration::from_secs(3600));
        assert_eq!(shown(&mut memory).await.as_deref(), Some("0.00"));
        assert_eq!(memory.count(start, kilowatt), None);
        let hour = Duration::from_secs(3600);
        assert_eq!(memory.count(start + hour, kilowatt), Some(hour));
        assert_eq!(memory.count(start + 3 * hour, kilowatt), None); // too long a silence
        memory.close().await;

        let mut memory = Memory::new("house", path, Duration::from_secs(3600));
        assert_eq!(shown(&mut memory).await.as_deref(), Some("1.00"));
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[tokio::test]
    async fn an_alarm_is_there_at_the_next_start_and_no_new_one_then() {
        let directory = scratch("alarm");
        let path = directory.join("house.json");
        let overvoltage = Protections::from_bits(1);

        let mut memory = Memory::new("house", path.clone(), Duration::from_secs(60));
        memory.finish_saving().await;
        memory.see(overvoltage);
        memory.close().await;

        let mut memory = Memory::new("house", path.clone(), Duration::from_secs(60));
        memory.finish_saving().await;
        let alarm = memory.keep().unwrap().last_alarm.unwrap();
        assert_eq!(alarm.protections, overvoltage);
        memory.see(overvoltage);
        assert_eq!(memory.record.alarms.last(), Some(alarm));
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[tokio::test]
    async fn a_damaged_file_is_neither_shown_nor_overwritten() {
        let directory = scratch("damaged");
        let path = directory.join("house.json");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(&path, "{").unwrap();
        let mut memory = Memory::new("house", path.clone(), Duration::from_secs(60));
        assert_eq!(shown(&mut memory).await, None);
        memory.close().await;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{");
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_file_of_a_newer_version_is_called_that() {
        let directory = scratch("newer");
        let path = directory.join("house.json");
        std::fs::create_dir_all(&directory).unwrap();
        let own = env!("CARGO_PKG_VERSION");
        let said = |text: &str| {
            std::fs::write(&path, text).unwrap();
            load(&path).unwrap_err().replace(path.to_str().unwrap(), "FILE")
        };
        let newer = |version: &str| {
            format!(
                "FILE was written by a newer version{version}, and this is {own}; install that one again, or move \
                 the file away to begin at zero"
            )
        };
        // Something new in it; and something that is known, and has another form now.
        let numbers = r#""charged_100nj":1,"discharged_100nj":2"#;
        assert_eq!(said(&format!(r#"{{"version":"97.1.0",{numbers},"cost":3}}"#)), newer(", 97.1.0"));
        assert_eq!(said(&format!(r#"{{"version":"97.1.0",{numbers},"alarms":[]}}"#)), newer(", 97.1.0"));
        assert_eq!(said(r#"{"version":"97.1.0"}"#), newer(", 97.1.0"));
        assert_eq!(said(&format!(r#"{{{numbers},"cost":3}}"#)), newer(""));
        // What is understood is taken, whoever has written it.
        std::fs::write(&path, format!(r#"{{"version":"97.1.0",{numbers}}}"#)).unwrap();
        assert_ne!(load(&path).unwrap(), Record::default());

        for text in
            ["{", r#"{"version":"0.0.1"}"#, &format!(r#"{{"version":"{own}"}}"#), r#"{"version":"97""#]
        {
            assert!(said(text).starts_with("FILE is damaged ("), "{text}");
        }
        std::fs::remove_dir_all(directory).unwrap();
    }
}
