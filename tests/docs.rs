//! What the documents say of the program is so.

use std::fmt::Write;
use std::fs;
use std::path::Path;
use std::process::Command;

use bms2mqtt::catalogue::{CATALOGUE, Entity};
use bms2mqtt::home_assistant::language::Language;
use bms2mqtt::pack::dead_band::Quantity;

const README: &str = include_str!("../README.md");
const SAMPLE: &str = include_str!("../config.yaml");
const ENTITIES: &str = "docs/entities.md";

/// What stands in docs/entities.md: the catalogue as a table.
fn entities() -> String {
    let mut text = "\
# Entities

Every value has a topic `<base>/<pack>/<key>` and an entity with the unique id `bms2mqtt_<pack>_<key>` and, unless the user renames it, the
id `<component>.<pack>_<key>`. What a board does not have has neither. In keys and names, `{n}` is the number of a cell or a temperature sensor,
from 1. The order is that of publishing. Entities that are off can be switched on in Home Assistant.

Numbers are published with the decimals that the board's steps have; `decimals` is what Home Assistant shows. Binary sensors are `ON` or `OFF`. `None` is
unknown: a temperature off the scale of thermistors, a time that cannot be foretold.

* `current`, `power`: + is charging. `mode` is `idle`, `charging` or `discharging` by the current alone; boards show small currents as none.
* `state_of_charge`, `cycles`, capacities: the board's own. `full_charge_capacity` and `state_of_health` (it in % of the nominal capacity) are learned
  by newer boards only.
* `stored_energy`: remaining capacity times voltage now.
* `time_to_full`, `time_to_empty`: at the current, smoothed over three minutes; unknown when idle and beyond ten days.
* `energy_charged`, `energy_discharged`: power added up by the bridge, never fall, over restarts too.
* `problem`: any active protection but the software lock, which is set while a MOSFET is switched off by command.
* `protections`: `none`, or the keys of the active ones, comma separated. `last_protection` and `last_protection_time`: what became active last, kept
  over restarts.
* `implausible_values`: `none`, or the keys of what a right frame says and cannot be.
* From `polls` on: how the line does. Renewed when something goes wrong, and else every five minutes: a poll without changes publishes nothing.

This table is made from the catalogue, `src/catalogue.rs`, by

```sh
BMS2MQTT_UPDATE_DOCS=1 cargo test --test docs
```

| key | name | German | Russian | component | device class | unit | state class | category | decimals | on |
|---|---|---|---|---|---|---|---|---|---|---|
"
    .to_owned();
    for entity in CATALOGUE {
        let &Entity { key, component, device_class, unit, state_class, .. } = entity;
        let [name, german, russian] =
            [Language::English, Language::German, Language::Russian].map(|language| language.name(entity));
        let component = component.as_str();
        let [class, unit, state_class] = [device_class, unit, state_class].map(Option::unwrap_or_default);
        let category = if entity.diagnostic { "diagnostic" } else { "" };
        let precision = entity.precision.map(|places| places.to_string()).unwrap_or_default();
        let on = if entity.enabled { "yes" } else { "no" };
        writeln!(
            text,
            "| `{key}` | {name} | {german} | {russian} | {component} | {class} | {unit} | {state_class} | {category} \
             | {precision} | {on} |"
        )
        .unwrap();
    }
    text
}

#[test]
fn the_table_of_entities_is_current() {
    let current = entities();
    if std::env::var_os("BMS2MQTT_UPDATE_DOCS").is_some() {
        fs::write(ENTITIES, &current).unwrap();
    }
    let found = fs::read_to_string(ENTITIES).unwrap();
    assert!(found == current, "{ENTITIES} is not current; BMS2MQTT_UPDATE_DOCS=1 cargo test --test docs");
}

#[test]
fn the_readmes_example_is_accepted() {
    let example = README.split("```yaml\n").nth(1).and_then(|rest| rest.split("```").next()).unwrap();
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("readme");
    fs::create_dir_all(&directory).unwrap();
    let secret = directory.join("secret");
    fs::write(&secret, "x").unwrap();
    check(&directory, &example.replace("/run/secrets/mqtt", secret.to_str().unwrap()));
}

#[test]
fn the_samples_dead_bands_and_intervals_are_accepted() {
    let (set, examples) = SAMPLE.split_once("# dead_band:").unwrap();
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("sample");
    fs::create_dir_all(&directory).unwrap();
    let text = check(&directory, &format!("{set}dead_band:{}", examples.replace("\n# ", "\n")));
    for (_, name, ..) in Quantity::ALL {
        assert!(text.contains(&format!("{name} is not sent when it changes by less than")), "{name}: {text}");
    }
    assert!(text.contains("current is sent every 30s at most"), "{text}");
}

/// What `check` says of a configuration that it must accept.
fn check(directory: &Path, yaml: &str) -> String {
    fs::write(directory.join("config.yaml"), yaml).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_bms2mqtt"));
    let output = command.arg("check").current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}
