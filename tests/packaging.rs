//! What packages, images and the release are made by: scripts, run as they are, and names that have to agree.

mod support;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use support::{scratch, write_script};

/// Exit code of a command in a folder, and what it said.
fn run(command: &mut Command, folder: &Path) -> (Option<i32>, String) {
    let output = command.current_dir(folder).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8(said).unwrap())
}

fn file(path: &str) -> String {
    fs::read_to_string(path).unwrap()
}

/// A copy of what `packaging/versions` reads, to be changed.
fn copy(name: &str) -> PathBuf {
    let folder = scratch(name);
    for path in ["packaging", "ha-addon"] {
        fs::create_dir_all(folder.join(path)).unwrap();
    }
    for path in [
        "Cargo.toml",
        "Cargo.lock",
        "CHANGELOG.md",
        "ha-addon/config.yaml",
        "ha-addon/CHANGELOG.md",
        "packaging/common",
        "packaging/versions",
    ] {
        fs::copy(path, folder.join(path)).unwrap();
    }
    folder
}

#[test]
fn every_file_says_the_same_of_where_the_project_is() {
    let repository = env!("CARGO_PKG_REPOSITORY");
    let name = repository.strip_prefix("https://github.com/").unwrap();
    let mut seen = 0;
    for path in [
        "README.md",
        "compose.yaml",
        "repository.yaml",
        "Dockerfile",
        ".github/workflows/release.yml",
        "ha-addon/config.yaml",
        "ha-addon/DOCS.md",
        "packaging/debian/bms2mqtt.service",
        "packaging/debian/control",
        "packaging/debian/copyright",
    ] {
        let text = file(path);
        for (host, names) in [
            ("github.com/", vec![name.to_owned()]),
            ("ghcr.io/", vec![name.to_owned(), format!("{name}-app")]),
        ] {
            for (at, _) in text.match_indices(host) {
                let rest = &text[at + host.len()..];
                let named = |c: char| c.is_ascii_alphanumeric() || "-_./".contains(c);
                let found = &rest[..rest.find(|c| !named(c)).unwrap_or(rest.len())];
                let found = found.split('/').take(2).collect::<Vec<_>>().join("/");
                let found = found.trim_end_matches('.').trim_end_matches(".git");
                assert!(names.iter().any(|name| name == found), "{path}: {host}{found}, not {names:?}");
                seen += 1;
            }
        }
    }
    assert!(seen > 12, "{seen}");
    let app = file("ha-addon/config.yaml");
    assert!(app.contains(&format!("\nimage: ghcr.io/{name}-app\n")));
    assert!(file("compose.yaml").contains(&format!("image: ghcr.io/{name}\n")));
}

#[test]
fn a_release_has_one_version_everywhere() {
    let version = env!("CARGO_PKG_VERSION");
    let folder = copy("versions");
    let versions = |tag: &[&str]| run(Command::new("bash").arg("packaging/versions").args(tag), &folder);
    let edit = |path: &str, from: &str, to: &str| {
        let text = fs::read_to_string(folder.join(path)).unwrap();
        assert!(text.contains(from), "{path}: {from}");
        fs::write(folder.join(path), text.replacen(from, to, 1)).unwrap();
    };
    // As it is now.
    let (code, said) = versions(&[]);
    assert_eq!(code, Some(0), "{said}");

    // As it is released.
    for path in ["CHANGELOG.md", "ha-addon/CHANGELOG.md"] {
        let text = fs::read_to_string(folder.join(path)).unwrap();
        fs::write(folder.join(path), format!("# Changelog\n\n## {version} (2026-01-01)\n\n{text}")).unwrap();
    }
    let tag = format!("v{version}");
    let (code, said) = versions(&[&tag]);
    assert_eq!(code, Some(0), "{said}");
    let repository = env!("CARGO_PKG_REPOSITORY").replace("https://github.com/", "ghcr.io/");
    assert_eq!(said, format!("version={version}\nprerelease=false\nimage={repository}\n"));

    let (code, said) = versions(&["v99.0.0"]);
    assert_eq!((code, said), (Some(1), format!("the tag says 99.0.0, Cargo.toml {version}\n")));
    edit("CHANGELOG.md", &format!("## {version} "), "## Unreleased ");
    let (code, said) = versions(&[&tag]);
    assert_eq!(code, Some(1));
    assert!(said.contains(&format!("CHANGELOG.md says Unreleased, Cargo.toml {version}")), "{said}");
    assert!(said.contains("ha-addon/CHANGELOG.md is not CHANGELOG.md"), "{said}");
    edit("ha-addon/config.yaml", &format!("version: \"{version}\""), "version: \"99.0.0\"");
    let (code, said) = versions(&[]);
    assert_eq!(code, Some(1));
    assert!(said.contains(&format!("ha-addon/config.yaml says 99.0.0, Cargo.toml {version}")), "{said}");

    // One before the release, which is not the latest and needs no section of its own.
    let folder = copy("versions-pre");
    for (path, line) in [
        ("Cargo.toml", "version = \""),
        ("ha-addon/config.yaml", "version: \""),
        ("Cargo.lock", "name = \"bms2mqtt\"\nversion = \""),
    ] {
        let text = fs::read_to_string(folder.join(path)).unwrap();
        let new = text.replacen(&format!("{line}{version}\""), &format!("{line}{version}-rc.1\""), 1);
        assert_ne!(text, new, "{path}");
        fs::write(folder.join(path), new).unwrap();
    }
    let mut versions = Command::new("bash");
    let (code, said) = run(versions.arg("packaging/versions").arg(format!("v{version}-rc.1")), &folder);
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("prerelease=true\n"), "{said}");
}

#[test]
fn nothing_is_installed_on_somebodys_own_machine() {
    let folder = scratch("install");
    // Whoever calls it is found out.
    for program in ["apt-get", "sudo"] {
        write_script(&folder.join(program), "#!/bin/sh\necho CALLED \"$0\" \"$@\"\n");
    }
    // Debian is asked what there is; here that is nothing.
    write_script(&folder.join("dpkg-query"), "#!/bin/sh\nexit 1\n");
    let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
    let install = |ci: Option<&str>| {
        let mut bash = Command::new("bash");
        bash.args(["-euc", ". packaging/common; install one two=2; echo AFTER"])
            .env("PATH", &path)
            .env_remove("CI");
        if let Some(ci) = ci {
            bash.env("CI", ci);
        }
        run(&mut bash, Path::new("."))
    };
    let (code, said) = install(None);
    assert_eq!(code, Some(1), "{said}");
    let line = "sudo apt-get install --no-install-recommends --allow-downgrades one two=2\n";
    assert!(said.ends_with(line) && said.lines().count() == 1, "{said}");
    let (code, said) = install(Some("true"));
    assert_eq!(
        (code, said.as_str()),
        (Some(0), format!("CALLED {} update -qq\nAFTER\n", folder.join("apt-get").display()).as_str())
    );
}

#[test]
fn the_packages_service_waits_until_a_port_is_named() {
    let folder = scratch("configured");
    let script = fs::canonicalize("packaging/debian/configured").unwrap();
    let config = folder.join("config.yaml");
    let configured = |text: &str, port: &str| {
        fs::write(&config, text).unwrap();
        let mut command = Command::new("sh");
        command.arg(&script).env("BMS2MQTT_CONFIG", &config).env("BMS2MQTT_PORT", port);
        run(&mut command, &folder)
    };
    let sample = file("config.yaml");
    let unnamed = sample.replace("    port: /dev/ttyUSB0", "    # port: /dev/ttyUSB0");
    assert_ne!(sample, unnamed);
    let (code, said) = configured(&unnamed, "");
    assert_eq!(code, Some(1));
    assert!(said.contains(&format!("no port is named in {} yet", config.display())), "{said}");
    assert!(said.contains("sudo systemctl restart bms2mqtt") && said.lines().count() == 1, "{said}");
    for named in [
        sample.as_str(),
        "packs:\n- port: /dev/ttyUSB0\n",
        "packs: [{id: a, port: tcp://192.168.1.20:2000}]\n",
        "packs:\n  - \"port\": /dev/ttyUSB0 # of the shed\n",
        "packs:\n  - device: /dev/ttyUSB0\n",
        "device=/dev/ttyUSB0\n",
    ] {
        assert_eq!(configured(named, ""), (Some(0), String::new()), "{named}");
    }
    for unnamed in
        ["", "mqtt:\n  url: mqtt://broker:1883\npacks: []\n", "# port: /dev/ttyUSB0\n", "transport: x\n"]
    {
        assert_eq!(configured(unnamed, "").0, Some(1), "{unnamed}");
    }
    // Or by a variable, or in a file that is not there: what is wrong then the program says.
    assert_eq!(configured("", "/dev/ttyUSB0").0, Some(0));
    fs::remove_file(&config).unwrap();
    let mut command = Command::new("sh");
    assert_eq!(run(command.arg(&script).env("BMS2MQTT_CONFIG", &config), &folder).0, Some(0));
}

#[test]
fn an_armv6_machine_is_told_by_the_package() {
    let folder = scratch("preinst");
    let script = fs::canonicalize("packaging/debian/preinst").unwrap();
    let install = |machine: &str| {
        write_script(&folder.join("uname"), &format!("#!/bin/sh\necho {machine}\n"));
        let path = format!("{}:{}", folder.display(), std::env::var("PATH").unwrap());
        run(Command::new("sh").arg(&script).arg("install").env("PATH", path), &folder)
    };
    let (code, said) = install("armv6l");
    assert_eq!(code, Some(1));
    assert!(said.contains("this processor is armv6l") && said.contains("needs ARMv7"), "{said}");
    for machine in ["armv7l", "armv8l", "aarch64", "x86_64"] {
        assert_eq!(install(machine), (Some(0), String::new()), "{machine}");
    }
}

#[test]
fn without_a_port_the_image_asks_for_one() {
    let folder = scratch("no-port");
    let (code, said) = run(&mut support::bms2mqtt(&folder), &folder);
    if Path::new("/etc/bms2mqtt/config.yaml").exists() || Path::new("/etc/BMS/bms.conf").exists() {
        eprintln!("skipped: this machine has a configuration");
        return;
    }
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("no configuration") && said.contains("BMS2MQTT_PORT"), "{said}");
}

/// An app that names an image is pulled, and one that names none is built from the Dockerfile beside it.
#[test]
fn the_app_can_be_built_from_a_folder() {
    let folder = scratch("local-app").join("app");
    let local_app = || run(Command::new("packaging/local-app").arg(&folder), Path::new("."));
    let (code, said) = local_app();
    assert_eq!(code, Some(0), "{said}");
    let read = |path: &str| fs::read_to_string(folder.join(path)).unwrap();
    let config = read("config.yaml");
    assert!(!config.contains("image:") && config.contains("slug: bms2mqtt\n"), "{config}");
    let dockerfile = read("Dockerfile");
    assert!(
        dockerfile.contains("\nARG RUN_AS=0:0\n") && !dockerfile.contains("RUN_AS=65532"),
        "{dockerfile}"
    );
    // All that the Dockerfile copies is there.
    for line in dockerfile.lines().filter_map(|line| line.strip_prefix("COPY ")) {
        let paths: Vec<&str> = line.split(' ').collect();
        for path in paths[..paths.len() - 1].iter().filter(|_| !line.starts_with("--from")) {
            assert!(folder.join(path).exists(), "{path}");
        }
    }
    // What is there already is nobody's to overwrite.
    assert_eq!(local_app().0, Some(1));
}

/// An action is what its commit is, and says which version that was.
#[test]
fn the_release_pins_its_actions() {
    let workflow = file(".github/workflows/release.yml");
    let actions = workflow.lines().filter_map(|line| line.split_once("uses: ")).map(|(_, action)| action);
    for action in actions {
        let (_, version) = action.split_once('@').unwrap();
        let (commit, tag) = version.split_once(" # v").unwrap_or_else(|| panic!("{action}"));
        assert!(commit.len() == 40 && commit.chars().all(|c| c.is_ascii_hexdigit()), "{action}");
        assert!(tag.starts_with(|c: char| c.is_ascii_digit()), "{action}");
    }
}
