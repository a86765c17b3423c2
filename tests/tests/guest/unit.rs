//! The installed service on a machine where systemd is process 1: deploy's unit as it is, started, and a build in the box
//! under its settings. The commands of docs/operations are typed there.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use builderd_e2e::{docker_registry::DockerRegistry, pages, parts};
use serde_json::Value;
use test_support::lab::{self, Missing};

use crate::{assert_says, build_layout, rig};

/// Blocks of the page that are typed in the guest, in this order.
const TYPED: [&str; 7] = [
    "install-start",
    "first-build",
    "doctor",
    "backup",
    "restore",
    "tokens",
    "upgrade",
];

fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn page() -> String {
    fs::read_to_string(workspace().join("docs/operations/README.md")).unwrap()
}

/// Runs a program to its end.
#[track_caller]
fn run(command: &mut Command) {
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
}

/// The programs that make the guest, as they were found.
struct Programs {
    builderd: PathBuf,
    builderd_cli: PathBuf,
    make: PathBuf,
    registry: PathBuf,
    umoci: PathBuf,
    systemd: PathBuf,
    tiny: PathBuf,
}

impl Programs {
    fn find() -> Result<Self, Missing> {
        parts::root()?;
        lab::program("skopeo", "skopeo")?;
        Ok(Self {
            builderd: parts::builderd()?,
            builderd_cli: parts::builderd_cli()?,
            make: lab::program("make", "make")?,
            registry: lab::program("docker-registry", "docker-registry")?,
            umoci: lab::program("umoci", "umoci")?,
            systemd: parts::lab_image("systemd")?,
            tiny: parts::lab_image("tiny")?,
        })
    }

    /// What `make install` places, and nothing else of builderd's.
    fn install(&self, scratch: &Path, root: &Path) {
        let typed = pages::commands(&page(), "install").unwrap();
        assert_eq!(typed, ["make build", "sudo make install"]);
        let binaries = scratch.join("binaries");
        fs::create_dir(&binaries).unwrap();
        for (name, built) in [("builderd", &self.builderd), ("builderd-cli", &self.builderd_cli)] {
            std::os::unix::fs::symlink(built, binaries.join(name)).unwrap();
        }
        run(Command::new(&self.make)
            .current_dir(workspace())
            .arg("install")
            .arg(format!("DESTDIR={}", root.display()))
            .arg(format!("BINARIES={}", binaries.display())));
    }

    /// The image `docker.io/library/alpine:3`, as far as this machine knows it: a busybox with a file.
    fn stock(&self, place: &Path) {
        let registry = DockerRegistry::start().unwrap();
        registry.push_as(&self.tiny, "library/alpine:3", "oci").unwrap();
        run(Command::new("cp")
            .arg("-r")
            .arg(registry.storage())
            .arg(place.join("registry")));
    }

    /// An OCI layout of a Debian with systemd, with builderd installed and an operator who starts after everything else.
    fn layout(&self, scratch: &Path) -> PathBuf {
        let root = scratch.join("root");
        let unit = workspace().join("tests/tests/guest/unit");
        for directory in [
            "srv/page",
            "usr/bin",
            "etc/systemd/system/multi-user.target.wants",
        ] {
            fs::create_dir_all(root.join(directory)).unwrap();
        }
        self.install(scratch, &root);
        self.stock(&root.join("srv"));
        fs::copy(&self.registry, root.join("usr/bin/docker-registry")).unwrap();
        for (name, place) in [
            ("operator.sh", "srv"),
            ("registry.yml", "srv"),
            ("operator.service", "etc/systemd/system"),
        ] {
            fs::copy(unit.join(name), root.join(place).join(name)).unwrap();
        }
        let wanted = root.join("etc/systemd/system/multi-user.target.wants/operator.service");
        std::os::unix::fs::symlink("../operator.service", wanted).unwrap();
        for name in TYPED {
            let commands = pages::commands(&page(), name).unwrap();
            for (number, command) in commands.iter().enumerate() {
                let file = root.join(format!("srv/page/{name}.{number:02}"));
                fs::write(file, format!("{command}\n")).unwrap();
            }
        }
        let layout = scratch.join("layout");
        run(Command::new("cp").arg("-r").arg(&self.systemd).arg(&layout));
        run(Command::new(&self.umoci)
            .arg("insert")
            .arg("--image")
            .arg(format!("{}:1", layout.display()))
            .arg(&root)
            .arg("/"));
        layout
    }
}

/// The part of the console between a line `== NAME` and the next of that kind.
fn section<'a>(serial: &'a str, name: &str) -> &'a str {
    let heading = format!("== {name}\n");
    let (_, rest) = serial
        .split_once(&heading)
        .unwrap_or_else(|| panic!("{name:?} is missing:\n{serial}"));
    rest.split("\n== ").next().unwrap()
}

/// The JSON object in a section.
fn object(serial: &str, name: &str) -> Value {
    let section = section(serial, name);
    let line = section.lines().find(|line| line.starts_with('{'));
    let line = line.unwrap_or_else(|| panic!("{name}: no JSON in {section}"));
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{name}: {error}: {line}"))
}

#[test]
fn privileged_the_installed_unit_builds_in_its_box_and_the_commands_for_operators_work() {
    let (rig, programs) = match rig().and_then(|rig| Ok((rig, Programs::find()?))) {
        Ok(parts) => parts,
        Err(missing) => return lab::skip(missing),
    };
    let scratch = tempfile::Builder::new().prefix("unit-").tempdir().unwrap();
    let layout = programs.layout(scratch.path());
    let built = build_layout(&layout, &["--init", "custom"]);
    let mut options = built.boot_options();
    // Without udev nobody announces the console's device, for which its login would wait; the image's own report ends the machine.
    for word in [
        "systemd.mask=serial-getty@ttyS0.service",
        "systemd.mask=report.service",
        "systemd.show_status=0",
    ] {
        options.kernel_arguments.push(word.into());
    }
    options.memory_mib = 1024;
    options.limit = Duration::from_secs(900);
    let boot = rig.boot(&built.image, &options).unwrap();
    let serial = boot.serial.as_str();
    assert_says(&boot, &["== all done"]);
    for name in TYPED {
        section(serial, &format!("page {name}"));
    }

    let build = &object(serial, "build")["build"];
    assert_eq!(build["state"], "BUILD_STATE_COMPLETED", "{build}");
    let isolation = &build["isolation"];
    assert_eq!(isolation["sandboxLevel"], 2, "{build}");
    assert_eq!(isolation["networkNamespace"], "private", "{build}");
    for wall in ["no_new_privs", "no-capabilities", "seccomp", "landlock"] {
        let walls = isolation["securityContexts"].as_array().unwrap();
        assert!(walls.iter().any(|there| there == wall), "{wall}: {isolation}");
    }
    assert_eq!(
        build["imageMetadata"]["layers"].as_array().unwrap().len(),
        2,
        "{build}"
    );
    let path = build["rootfsPath"].as_str().unwrap();
    let files = section(serial, "files");
    assert!(files.contains(&format!("builderd 640 {path}")), "{files}");
    for line in [
        "builderd 700 /opt/builderd/data",
        "builderd 700 /opt/builderd/workspace",
        "builderd 750 /opt/builderd/rootfs",
        "root 750 /etc/builderd",
    ] {
        assert!(files.lines().any(|there| there == line), "{line}: {files}");
    }

    // The daemon itself has no right beyond those of its user.
    let process = section(serial, "process");
    for (field, value) in [
        ("CapPrm", "0000000000000000"),
        ("CapEff", "0000000000000000"),
        ("CapBnd", "0000000000000000"),
        ("NoNewPrivs", "1"),
        ("Seccomp", "2"),
    ] {
        assert!(
            process.contains(&format!("{field}:\t{value}")),
            "{field}: {process}"
        );
    }
    assert!(!process.contains("Uid:\t0"), "{process}");
    let journal = section(serial, "journal");
    assert!(!journal.contains("without a layer of their box"), "{journal}");
    assert_eq!(object(serial, "audit")["action"], "CreateBuild");

    let doctor = section(serial, "page doctor");
    assert!(doctor.contains("ok    control groups: works (v2)"), "{doctor}");
    assert!(!doctor.contains("BAD"), "{doctor}");
    assert_eq!(object(serial, "restored")["build"]["buildId"], build["buildId"]);

    let stop = section(serial, "stop");
    assert!(
        stop.contains("Result=success") && stop.contains("ActiveState=inactive"),
        "{stop}"
    );
    assert!(!stop.contains("/sys/fs/cgroup"), "{stop}");
    let tight = section(serial, "tight");
    assert!(tight.contains("ExecMainStatus=64"), "{tight}");
    assert!(tight.contains("this host does not offer"), "{tight}");
}

#[test]
fn every_block_of_the_page_that_is_to_be_run_is_run() {
    let page = page();
    let mut names = pages::names(&page);
    names.retain(|name| *name != "install");
    names.sort_unstable();
    let mut typed = TYPED;
    typed.sort_unstable();
    assert_eq!(names, typed);
}
