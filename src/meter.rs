//! Counts a pack's energy and keeps it on the disk: nothing is shown before it has been saved.

use std::path::PathBuf;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio::time::Instant;
use tracing::{error, info};

use crate::pack::decimal::Decimal;
use crate::pack::energy::{Energy, Totals};
use crate::state_file;

/// At most one write a minute: an SD card lasts, and a power cut costs a minute's energy.
const SAVE_EVERY: Duration = Duration::from_secs(60);

pub struct Meter {
    pack: String,
    path: PathBuf,
    /// Over a longer silence nobody knows what flowed, so it is not counted.
    longest_gap: Duration,
    last: Option<(Instant, Decimal)>,
    /// What the file held; `None` until it has been read.
    before: Option<Totals>,
    /// What has been counted since the start.
    counted: Totals,
    saved: Option<Energy>,
    saving: Option<JoinHandle<Result<Saved, String>>>,
    next_save: Instant,
    complained: bool,
}

/// What a writer brings back.
struct Saved {
    before: Totals,
    shown: Energy,
}

impl Meter {
    /// Begins to load what was counted before.
    pub fn new(pack: &str, path: PathBuf, longest_gap: Duration) -> Meter {
        let mut meter = Meter {
            pack: pack.to_owned(),
            path,
            longest_gap,
            last: None,
            before: None,
            counted: Totals::default(),
            saved: None,
            saving: None,
            next_save: Instant::now(),
            complained: false,
        };
        meter.begin_saving();
        meter
    }

    /// Counts from the last reading to this one.
    ///
    /// `power` is W with four decimals, + is charging.
    pub fn count(&mut self, now: Instant, power: Decimal) {
        if let Some((then, before)) = self.last.replace((now, power)) {
            let interval = now - then;
            if interval <= self.longest_gap {
                self.counted.add(before, power, interval);
            }
        }
    }

    /// What may be shown now; saves when there is more to show and it is time. Never waits.
    pub async fn keep(&mut self) -> Option<Energy> {
        if self.saving.as_ref().is_some_and(JoinHandle::is_finished) {
            self.finish_saving().await;
        }
        let more = self.before.is_none_or(|before| Some(before.plus(self.counted).energy()) != self.saved);
        if more && self.saving.is_none() && Instant::now() >= self.next_save {
            self.begin_saving();
        }
        self.saved
    }

    /// Saves what has been counted since the last time.
    pub async fn close(mut self) {
        self.finish_saving().await;
        self.begin_saving();
        self.finish_saving().await;
    }

    /// On a thread of its own, which ends with the work: a card can take seconds to sync.
    fn begin_saving(&mut self) {
        let (path, before, counted) = (self.path.clone(), self.before, self.counted);
        self.next_save = Instant::now() + SAVE_EVERY;
        self.saving = Some(tokio::task::spawn_blocking(move || {
            let before = match before {
                Some(before) => before,
                None => load(&path)?,
            };
            let totals = before.plus(counted);
            state_file::save(&path, &totals.to_json()).map_err(|error| {
                format!("cannot write {}: {error}; give a writable state_dir", path.display())
            })?;
            Ok(Saved { before, shown: totals.energy() })
        }));
    }

    async fn finish_saving(&mut self) {
        let Some(saving) = self.saving.take() else {
            return;
        };
        match saving.await.unwrap_or_else(|error| Err(error.to_string())) {
            Ok(Saved { before, shown }) => {
                self.before = Some(before);
                self.saved = Some(shown);
                if std::mem::take(&mut self.complained) {
                    info!(pack = self.pack, "energy is saved again");
                }
            }
            Err(reason) if !self.complained => {
                self.complained = true;
                error!(pack = self.pack, "energy is not shown: {reason}");
            }
            Err(_) => {}
        }
    }
}

fn load(path: &std::path::Path) -> Result<Totals, String> {
    let text = state_file::load(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    let Some(text) = text else {
        return Ok(Totals::default());
    };
    // Beginning at zero again would add false energy to the statistics of years: a person decides that.
    Totals::from_json(&text)
        .map_err(|error| format!("{} is damaged ({error}); delete it to begin at zero", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scratch(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("bms2mqtt-meter-{name}-{}", std::process::id()))
    }

    async fn shown(meter: &mut Meter) -> Option<String> {
        meter.finish_saving().await;
        meter.keep().await.map(|energy| energy.charged.to_string())
    }

    #[tokio::test]
    async fn what_was_counted_is_there_at_the_next_start_and_gaps_are_not_counted() {
        let directory = scratch("restart");
        let path = directory.join("house.json");
        let start = Instant::now();
        let kilowatt = Decimal::new(1000, 0);

        let mut meter = Meter::new("house", path.clone(), Duration::from_secs(3600));
        assert_eq!(shown(&mut meter).await.as_deref(), Some("0.00"));
        meter.count(start, kilowatt);
        meter.count(start + Duration::from_secs(3600), kilowatt);
        meter.count(start + Duration::from_secs(9000), kilowatt); // too long a silence
        meter.close().await;

        let mut meter = Meter::new("house", path, Duration::from_secs(3600));
        assert_eq!(shown(&mut meter).await.as_deref(), Some("1.00"));
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[tokio::test]
    async fn a_damaged_file_is_neither_shown_nor_overwritten() {
        let directory = scratch("damaged");
        let path = directory.join("house.json");
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(&path, "{").unwrap();
        let mut meter = Meter::new("house", path.clone(), Duration::from_secs(60));
        assert_eq!(shown(&mut meter).await, None);
        meter.close().await;
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "{");
        std::fs::remove_dir_all(directory).unwrap();
    }
}
