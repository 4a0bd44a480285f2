//! What the program takes of the disk and of memory, with TLS compiled in.

use std::time::Duration;

use crate::Place;
use crate::machine::Result;
use crate::program::{Of, Rig, Setup, Subject, settle};
use crate::table::{Aim, Cell, Table};

pub const FIGURES: &str =
    "size of the binary; memory resident, anonymous, private dirty, private clean, Pss, threads; packs";

pub fn take(place: &Place, table: &mut Table) -> Result<()> {
    let size = place.programs().each(|subject| match subject {
        Subject::Program(path) => Ok(Cell::count(path.metadata()?.len() as f64).of("bytes")),
        Subject::Bare => Err("the floor has no size".into()),
    })?;
    table.row("size of the binary", size, Aim::Most(3e6, "3 MB or less".to_owned()));

    let kinds = [1, 16, 64]
        .map(|packs| (packs, if packs == 1 { place.programs_and_bare() } else { place.programs() }));
    let mut rigs: Vec<(usize, Of<Rig>)> = Vec::new();
    for (packs, subjects) in kinds {
        let setup = Setup { packs, interval: Duration::from_secs(1), ..Setup::unpaced() };
        rigs.push((packs, subjects.each(|subject| Rig::start(subject, &setup))?));
    }
    settle(rigs.iter().flat_map(|(_, rigs)| rigs.iter()))?;
    for (packs, rigs) in rigs {
        let one = packs == 1;
        let packs = if one { "1 pack".to_owned() } else { format!("{packs} packs") };
        let most = |bytes: f64, words: &str| if one { Aim::Most(bytes, words.to_owned()) } else { Aim::None };
        for (name, file, key, aim) in [
            ("resident", "status", "VmRSS:", most(5e6, "5 MB or less")),
            ("resident, anonymous", "status", "RssAnon:", Aim::None),
            ("private, dirty", "smaps_rollup", "Private_Dirty:", most(5e5, "0.5 MB or less")),
            // The part of the program's own file that nobody else uses.
            ("private, clean", "smaps_rollup", "Private_Clean:", Aim::None),
            ("Pss", "smaps_rollup", "Pss:", Aim::None),
        ] {
            let cells = rigs.each(|rig| {
                let kilobytes = rig.number(file, key)?;
                Ok(Cell::new(kilobytes as f64 * 1024.0, format!("{kilobytes} kB")))
            })?;
            table.row(format!("memory {name}, {packs}"), cells, aim);
        }
        let threads = rigs.each(|rig| Ok(Cell::count(rig.number("status", "Threads:")? as f64)))?;
        table.row(format!("threads, {packs}"), threads, most(1.0, "1"));
    }
    Ok(())
}
