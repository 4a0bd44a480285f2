//! What the README says of the program is so.

use bms2mqtt::home_assistant::catalogue::CATALOGUE;

const README: &str = include_str!("../README.md");

#[test]
fn the_readme_lists_every_entity_in_the_catalogues_order() {
    let listed: Vec<[&str; 3]> = README
        .split("## Entities")
        .nth(1)
        .unwrap()
        .lines()
        .filter_map(|line| {
            let mut columns = line.strip_prefix("| `")?.split('|').map(str::trim);
            Some([columns.next()?.trim_end_matches('`'), columns.next()?, columns.next()?])
        })
        .take_while(|[key, ..]| !key.contains(' '))
        .collect();
    assert_eq!(listed.len(), CATALOGUE.len());
    for ([key, name, unit], entity) in listed.into_iter().zip(CATALOGUE) {
        assert_eq!((key, name), (entity.key, entity.name));
        assert!(unit.starts_with(entity.unit.unwrap_or_default()), "{key}: {unit}");
    }
}

#[test]
fn the_readmes_example_is_accepted() {
    let example = README.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let directory = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("readme");
    std::fs::create_dir_all(&directory).unwrap();
    let secret = directory.join("secret");
    std::fs::write(&secret, "x").unwrap();
    let yaml = example.replace("/run/secrets/mqtt", secret.to_str().unwrap());
    std::fs::write(directory.join("config.yaml"), yaml).unwrap();
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_bms2mqtt"))
        .arg("check")
        .current_dir(&directory)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
