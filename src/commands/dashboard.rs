//! `dashboard`: prints a Lovelace dashboard for the configured packs.

use super::{Failure, print};
use crate::cli::DashboardArgs;
use crate::config::Config;
use crate::home_assistant::dashboard::dashboard;
use crate::home_assistant::language::Language;

pub fn run(args: &DashboardArgs, config: &Config) -> Result<(), Failure> {
    let language = config.names.language;
    let ids = config.packs.iter().map(|pack| match args.ids_from_names {
        true => id_from_name(&pack.name.name, language),
        false => Ok(pack.name.id.clone()),
    });
    let ids: Vec<String> = ids.collect::<Result<_, _>>()?;
    let packs = ids.iter().zip(&config.packs).map(|(id, pack)| (id.as_str(), pack.name.name.as_str()));
    print(dashboard(packs, language))?;
    Ok(())
}

/// The beginning of the entity ids that Home Assistant makes from a device of this name.
fn id_from_name(name: &str, language: Language) -> Result<String, Failure> {
    if language != Language::English || !name.is_ascii() {
        return Err(Failure::Usage(
            "--ids-from-names: how names in other letters become ids only Home Assistant knows; \
             take version 2025.10 or later, or English names"
                .to_owned(),
        ));
    }
    let words = name.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    Ok(words.collect::<Vec<_>>().join("_").to_ascii_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_slugs_of_names() {
        let id = |name| id_from_name(name, Language::English).ok();
        assert_eq!(id("House battery").as_deref(), Some("house_battery"));
        assert_eq!(id(" Van (No. 2)").as_deref(), Some("van_no_2"));
        assert_eq!(id("Hütte"), None);
    }
}
