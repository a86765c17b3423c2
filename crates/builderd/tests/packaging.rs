//! What is installed: files in their places, a unit that systemd takes, an environment file that the daemon takes.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::{
    collections::BTreeSet,
    ffi::OsString,
    fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use builderd::config::{Config, Values};
use test_support::lab;

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn deployed(name: &str) -> String {
    fs::read_to_string(root().join("deploy").join(name)).unwrap()
}

fn make(target: &str, place: &Path, binaries: &Path) {
    let output = Command::new("make")
        .current_dir(root())
        .arg(target)
        .arg(format!("DESTDIR={}", place.display()))
        .arg(format!("BINARIES={}", binaries.display()))
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn files_below(directory: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let mut open = vec![directory.to_owned()];
    while let Some(next) = open.pop() {
        for entry in fs::read_dir(next).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                open.push(path);
            } else {
                let name = path.strip_prefix(directory).unwrap();
                found.insert(name.to_str().unwrap().to_owned());
            }
        }
    }
    found
}

/// Binaries as `make build` leaves them, by the names that they are installed under.
fn binaries() -> tempfile::TempDir {
    let binaries = tempfile::tempdir().unwrap();
    for (name, built) in [
        ("builderd", env!("CARGO_BIN_EXE_builderd")),
        ("builderd-cli", env!("CARGO_BIN_EXE_builderd-cli")),
    ] {
        std::os::unix::fs::symlink(built, binaries.path().join(name)).unwrap();
    }
    binaries
}

/// What `cargo deb` is told to place: path in the root, source below the workspace, mode.
fn assets() -> Vec<(String, PathBuf, u32)> {
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--no-deps", "--offline", "--format-version", "1"])
        .current_dir(root())
        .output()
        .unwrap();
    assert!(output.status.success(), "{output:?}");
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    let package = packages.iter().find(|package| package["name"] == "builderd");
    let assets = package.unwrap()["metadata"]["deb"]["assets"].as_array().unwrap();
    let mut found = Vec::new();
    for asset in assets {
        let [source, place, mode] = [0, 1, 2].map(|index| asset[index].as_str().unwrap());
        let mode = u32::from_str_radix(mode, 8).unwrap();
        // Relative to the package, except for what is below the target directory.
        let source = source.strip_prefix("../../").unwrap_or(source);
        for source in matching(source) {
            let place = match place.strip_suffix('/') {
                Some(directory) => format!("{directory}/{}", source.file_name().unwrap().to_str().unwrap()),
                None => place.to_owned(),
            };
            found.push((place, source, mode));
        }
    }
    found
}

/// The files of a path below the workspace, whose name may be `*.ENDING`.
fn matching(path: &str) -> Vec<PathBuf> {
    let Some((directory, ending)) = path.split_once("/*.") else {
        return vec![path.into()];
    };
    let found: Vec<PathBuf> = fs::read_dir(root().join(directory))
        .unwrap()
        .map(|entry| Path::new(directory).join(entry.unwrap().file_name()))
        .filter(|path| path.extension().is_some_and(|there| there == ending))
        .collect();
    assert!(!found.is_empty(), "{path}");
    found
}

#[test]
fn the_debian_package_has_what_make_places_in_the_same_places_with_the_same_modes() {
    if let Err(missing) = lab::program("make", "make") {
        return lab::skip(missing);
    }
    let place = tempfile::tempdir().unwrap();
    make("install", place.path(), binaries().path());
    let mut left = files_below(place.path());
    for (path, source, mode) in assets() {
        assert!(left.remove(&path), "{path} is not placed by make install");
        let installed = place.path().join(&path);
        assert_eq!(
            installed.metadata().unwrap().permissions().mode() & 0o777,
            mode,
            "{path}"
        );
        match source.strip_prefix("target/release") {
            Ok(name) => assert_eq!(Path::new("usr/bin").join(name), Path::new(&path)),
            Err(_) => assert_eq!(
                fs::read(root().join(&source)).unwrap(),
                fs::read(&installed).unwrap(),
                "{path} is another file than {}",
                source.display()
            ),
        }
    }
    assert!(left.is_empty(), "not in the package: {left:?}");
}

#[test]
fn an_installation_in_a_clean_root_is_whole_and_goes_without_a_trace() {
    if let Err(missing) = lab::program("make", "make") {
        return lab::skip(missing);
    }
    let place = tempfile::tempdir().unwrap();
    let binaries = binaries();
    make("install", place.path(), binaries.path());
    let files = files_below(place.path());
    let expected = [
        "etc/builderd/builderd.env",
        "usr/bin/builderd",
        "usr/bin/builderd-cli",
        "usr/lib/systemd/system/builderd.service",
        "usr/lib/sysusers.d/builderd.conf",
        "usr/lib/tmpfiles.d/builderd.conf",
        "usr/share/builderd/grafana/builderd-tenants.json",
        "usr/share/builderd/grafana/builderd.json",
        "usr/share/builderd/prometheus/builderd.rules.yml",
        "usr/share/builderd/prometheus/prometheus.yml",
        "usr/share/doc/builderd/README.md",
        "usr/share/doc/builderd/builderd.env.example",
    ];
    assert_eq!(files, expected.map(str::to_owned).into());
    let installed = place.path().join("usr/bin/builderd");
    assert_eq!(installed.metadata().unwrap().permissions().mode() & 0o777, 0o755);
    let version = Command::new(&installed).arg("--version").output().unwrap();
    assert!(version.status.success(), "{version:?}");

    // A configuration is the operator's: a second installation leaves it, and so does the removal.
    let settings = place.path().join("etc/builderd/builderd.env");
    assert_eq!(settings.metadata().unwrap().permissions().mode() & 0o777, 0o640);
    fs::write(&settings, "UNKEY_BUILDERD_PORT=1\n").unwrap();
    make("install", place.path(), binaries.path());
    assert_eq!(fs::read_to_string(&settings).unwrap(), "UNKEY_BUILDERD_PORT=1\n");
    make("uninstall", place.path(), binaries.path());
    let left: Vec<_> = files_below(place.path()).into_iter().collect();
    assert_eq!(left, ["etc/builderd/builderd.env"]);
}

#[test]
fn the_example_of_settings_is_one_that_the_daemon_takes() {
    let text = deployed("builderd.env.example");
    let variables: Vec<(OsString, OsString)> = text
        .lines()
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (name, value) = line.split_once('=').unwrap_or_else(|| panic!("{line}"));
            (name.into(), value.into())
        })
        .collect();
    assert!(variables.len() > 5);
    let values = Values::collect(variables, |_| None, None).unwrap();
    Config::from_values(&values, false).unwrap();
}

#[test]
fn systemd_takes_the_unit() {
    let analyze = match lab::program("systemd-analyze", "systemd") {
        Ok(analyze) => analyze,
        Err(missing) => return lab::skip(missing),
    };
    let place = tempfile::tempdir().unwrap();
    let unit = place.path().join("builderd.service");
    // The program is not installed here: one that is there stands for it.
    let text = deployed("systemd/builderd.service").replace("/usr/bin/builderd", "/bin/true");
    fs::write(&unit, text).unwrap();
    let verified = Command::new(&analyze)
        .args(["verify", "--man=no"])
        .arg(&unit)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&verified.stderr).into_owned();
    assert!(
        verified.status.success() && !said.contains("builderd.service:"),
        "{said}"
    );
    // At most 4.0 of 10, in tenths; docs/operations says what it is and why it is not less.
    let security = Command::new(&analyze)
        .args(["security", "--offline=yes", "--threshold=40"])
        .arg(&unit)
        .output()
        .unwrap();
    assert!(
        security.status.success(),
        "{}{}",
        String::from_utf8_lossy(&security.stdout),
        String::from_utf8_lossy(&security.stderr)
    );
}

/// Settings that would take away what a box is made of.
#[test]
fn the_unit_leaves_what_the_sandbox_needs() {
    let unit = deployed("systemd/builderd.service");
    let lines: Vec<&str> = unit.lines().filter(|line| !line.starts_with('#')).collect();
    for setting in [
        "RestrictNamespaces",
        "ProtectControlGroups",
        "ProtectHostname",
        "ProtectKernelTunables",
        "ProtectKernelLogs",
        "ProtectProc",
        "ProcSubset",
        "PrivateUsers",
        "MemoryDenyWriteExecute",
    ] {
        assert!(!lines.iter().any(|line| line.starts_with(setting)), "{setting}");
    }
    assert!(lines.contains(&"Delegate=yes"));
}
