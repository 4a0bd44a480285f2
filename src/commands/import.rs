//! `import`: an older `bms.conf` → a `config.yaml` that does the same, and what becomes of cron lines and scripts.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use serde::Serialize;

use super::{Failure, print};
use crate::cli::ImportArgs;
use crate::config::{BmsConf, Config, bms_conf};

/// The keys of `config.yaml` that `bms.conf` has a counterpart of; and id and name, which are better written down.
#[derive(Serialize)]
struct Yaml<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    mqtt: Option<YamlMqtt<'a>>,
    packs: [YamlPack<'a>; 1],
}

#[derive(Serialize)]
struct YamlMqtt<'a> {
    url: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    username: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    password: Option<&'a str>,
}

#[derive(Serialize)]
struct YamlPack<'a> {
    id: &'a str,
    name: &'a str,
    port: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    interval: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    json_topic: Option<&'a str>,
}

pub fn run(args: &ImportArgs) -> Result<(), Failure> {
    let conf = bms_conf(&args.file)?;
    let output = args.output.display();
    let mut options = File::options();
    options.write(true).create_new(true);
    if conf.password.is_some() {
        options.mode(0o600);
    }
    let file = options.open(&args.output);
    let mut file = file.map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => {
            Failure::Usage(format!("{output} is there already; move it away, or give another --output"))
        }
        _ => Failure::Running(format!("{output}: {error}")),
    })?;
    file.write_all(yaml(&args.file.display().to_string(), &conf)?.as_bytes())?;
    print(advice(&output.to_string(), &conf.config))?;
    Ok(())
}

fn yaml(source: &str, conf: &BmsConf) -> Result<String, Failure> {
    let [pack] = conf.config.packs.as_slice() else {
        return Err(Failure::Running(format!("{source}: has no pack")));
    };
    let yaml = Yaml {
        mqtt: conf.url.as_deref().map(|url| YamlMqtt {
            url,
            username: conf.username.as_deref(),
            password: conf.password.as_deref(),
        }),
        packs: [YamlPack {
            id: &pack.name.id,
            name: &pack.name.name,
            port: conf.port.as_deref().unwrap_or_default(),
            interval: conf.interval.as_deref(),
            json_topic: conf.json_topic.as_deref(),
        }],
    };
    let yaml = serde_yaml::to_string(&yaml).map_err(|error| Failure::Running(error.to_string()))?;
    Ok(format!("# Made from {source} by bms2mqtt import. The README tells what else there is.\n{yaml}"))
}

fn advice(output: &str, config: &Config) -> String {
    let mut advice = format!(
        "\
{output} is written. `bms2mqtt -c {output} check` tells what it does.

* Cron lines and scripts that call `smart_bms` go on as they are with a link of that name where they expect the
  program. Most call ./smart_bms, so in their own folder: ln -sf \"$(command -v bms2mqtt)\" ./smart_bms
  Where one calls it by its name alone: ln -s \"$(command -v bms2mqtt)\" /usr/local/bin/smart_bms
  By that name bms.conf comes before config.yaml: keep it for as long as something calls ./smart_bms.
* A cron line that only kept `smart_bms` running goes: `bms2mqtt` stays, as a service. While it runs it has
  the port to itself: `bms2mqtt -1` with the same configuration, as the same user or as root, then prints
  what it read last.
"
    );
    if config.packs.iter().any(|pack| pack.json_topic.is_some()) {
        advice += "* What listened to MQTTtopik goes on: the line is published there at every poll, as json_topic.\n";
    }
    if config.console {
        advice += "\
* out_to=consol printed the line every interval, which config.yaml has no counterpart of: it publishes.
  What read that output goes on with `bms2mqtt -c bms.conf`, or with `bms2mqtt -1` as often as it likes.
";
    }
    advice + "* `bms2mqtt` does not read bms.conf where config.yaml stands beside it.\n"
}
