//! What the tests need from Debian.

use std::process::Command;

use crate::context::{Result, has_program, is_root, run};

/// Programs that tests run or that make their images, and the packages that have them.
const PROGRAMS: [(&str, &str); 24] = [
    ("bsdtar", "libarchive-tools"),
    ("buildah", "buildah"),
    ("busybox", "busybox-static"),
    ("containerd", "containerd"),
    ("curl", "curl"),
    ("dmsetup", "dmsetup"),
    ("docker-registry", "docker-registry"),
    ("htpasswd", "apache2-utils"),
    ("make", "make"),
    ("mkfs.ext4", "e2fsprogs"),
    ("mkfs.xfs", "xfsprogs"),
    ("mmdebstrap", "mmdebstrap"),
    ("node", "nodejs"),
    ("npm", "npm"),
    ("openssl", "openssl"),
    ("prometheus", "prometheus"),
    ("ps", "procps"),
    ("python3", "python3"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("skopeo", "skopeo"),
    ("strace", "strace"),
    ("systemd-analyze", "systemd"),
    ("umoci", "umoci"),
    ("veritysetup", "cryptsetup-bin"),
];

/// Packages that are still missing.
fn missing() -> Vec<&'static str> {
    let mut packages: Vec<&str> = PROGRAMS
        .iter()
        .filter(|(program, _)| !has_program(program))
        .map(|(_, package)| *package)
        .collect();
    if !has_venv() {
        packages.push("python3-venv");
    }
    packages
}

/// Debian ships Python without what makes a virtual environment.
fn has_venv() -> bool {
    Command::new(python())
        .args(["-c", "import venv, ensurepip"])
        .output()
        .is_ok_and(|output| output.status.success())
}

/// Debian's own Python where it is there: one from elsewhere may have been built without what a module needs.
pub(crate) fn python() -> &'static str {
    if std::path::Path::new("/usr/bin/python3").exists() {
        "/usr/bin/python3"
    } else {
        "python3"
    }
}

/// Whether this program can have everything: it is root, and what is missing can be installed.
///
/// The error says what to do.
pub(crate) fn can_install() -> Result<()> {
    let packages = missing();
    let line = format!("apt-get install --no-install-recommends {}", packages.join(" "));
    match (is_root(), packages.is_empty() || has_program("apt-get")) {
        (true, true) => Ok(()),
        (true, false) => Err(format!(
            "there is no apt-get here; on Debian it would be `{line}`"
        )),
        (false, _) if packages.is_empty() => Err("nothing is missing, but the tests need root".into()),
        (false, _) => Err(format!("this needs root and `{line}`")),
    }
}

/// Installs what is missing.
pub(crate) fn install() -> Result<()> {
    let packages = missing();
    if packages.is_empty() {
        println!("nothing is missing");
        return Ok(());
    }
    let apt_get = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command
    };
    run(apt_get().args(["-q", "update"]))?;
    run(apt_get()
        .args(["-q", "-y", "install", "--no-install-recommends"])
        .args(&packages))?;
    match missing().as_slice() {
        [] => Ok(()),
        still => Err(format!(
            "still missing after the installation: {}",
            still.join(" ")
        )),
    }
}
