//! A dashboard of Home Assistant's own cards, for the configured packs.
//!
//! How many cells a pack has is not configured: the dashboard finds out itself, and shows what is there.

use super::language::Language;
use crate::catalogue::Entity;

/// What stands once, and what stands for each pack; `«key»` is replaced.
const VIEW: &str = include_str!("dashboard/view.yaml");
const PACK: &str = include_str!("dashboard/pack.yaml");

/// The dashboard as YAML, of packs with the beginning of their entity ids and their names.
pub fn dashboard<'a>(packs: impl IntoIterator<Item = (&'a str, &'a str)>, language: Language) -> String {
    let mut yaml = fill(VIEW, |key| word(language, key));
    for (id, name) in packs {
        // A JSON text is a YAML text too, whatever is in it.
        let quoted = serde_json::Value::from(name).to_string();
        yaml += &fill(PACK, |key| match key {
            "id" => Some(id.to_owned()),
            "name" => Some(quoted.clone()),
            key => word(language, key),
        });
    }
    yaml
}

/// A heading, or the name of the entity with this key; its number, if any, stands at its end.
fn word(language: Language, key: &str) -> Option<String> {
    if let Some(heading) = language.heading(key) {
        return Some(heading.to_owned());
    }
    match key.rsplit_once('_').map(|(stem, number)| (stem, number.parse().ok())) {
        Some((stem, number @ Some(_))) => {
            let name = language.name_of(&format!("{stem}_{{n}}"))?;
            Some(Entity::numbered(name, number))
        }
        _ => language.name_of(key).map(str::to_owned),
    }
}

/// What is not known stays as it is; a test sees to it that there is none.
fn fill(template: &str, word: impl Fn(&str) -> Option<String>) -> String {
    let mut filled = String::with_capacity(template.len());
    for (place, part) in template.split('«').enumerate() {
        match part.split_once('»').filter(|_| place > 0) {
            Some((key, rest)) => {
                filled += &word(key).unwrap_or_else(|| format!("«{key}»"));
                filled += rest;
            }
            None => filled += part,
        }
    }
    filled
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use serde_yaml::Value;

    use super::*;
    use crate::catalogue::CATALOGUE;

    fn walk(value: &Value, visit: &mut impl FnMut(&str, &Value)) {
        match value {
            Value::Mapping(map) => {
                for (key, value) in map {
                    visit(key.as_str().unwrap_or_default(), value);
                    walk(value, visit);
                }
            }
            Value::Sequence(items) => items.iter().for_each(|item| walk(item, visit)),
            _ => {}
        }
    }

    #[test]
    fn it_is_yaml_in_every_language_and_shows_entities_that_there_are() {
        let known: BTreeSet<String> = CATALOGUE
            .iter()
            .flat_map(|entity| {
                (1..=32).map(|number| {
                    let key = Entity::numbered(entity.key, Some(number));
                    format!("{}.house_{key}", entity.component.as_str())
                })
            })
            .collect();
        for (_, language) in Language::ALL {
            let yaml = dashboard([("house", "My \"house\": #1"), ("van", "Van")], language);
            assert!(!yaml.contains(['«', '»']), "{yaml}");
            let parsed: Value = serde_yaml::from_str(&yaml).unwrap();
            let sections = parsed["views"][0]["sections"].as_sequence().unwrap();
            assert_eq!(sections.len(), 6);
            assert_eq!(sections[0]["cards"][0]["heading"], "My \"house\": #1");
            walk(&parsed, &mut |key, value| {
                // Core cards only.
                assert!(key != "type" || !value.as_str().unwrap().starts_with("custom:"));
                if let ("entity", Some(entity)) = (key, value.as_str()) {
                    assert!(known.contains(&entity.replace("van", "house")), "{entity}");
                }
            });
        }
    }
}
