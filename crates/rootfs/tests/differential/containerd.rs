//! containerd with its overlay snapshotter: what its users see when they mount an image.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rootfs::listing::Listing;
use tempfile::TempDir;

use crate::Oracle;

/// A daemon of its own, with all state in a temporary directory; ended when dropped.
pub(crate) struct Containerd {
    directory: TempDir,
    daemon: Child,
}

impl Containerd {
    pub(crate) fn start() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("containerd needs root".to_owned());
        }
        let version = Command::new("containerd").arg("--version").output();
        version.map_err(|error| format!("containerd cannot be run ({error})"))?;
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().to_owned();
        let path = |name: &str| base.join(name).display().to_string();
        let configuration = format!(
            "version = 2\nroot = {:?}\nstate = {:?}\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\", \
             \"io.containerd.internal.v1.opt\"]\n[grpc]\naddress = {:?}\n",
            path("root"),
            path("state"),
            path("socket")
        );
        fs::write(path("config.toml"), configuration).unwrap();
        let log = fs::File::create(path("log")).unwrap();
        let daemon = Command::new("containerd")
            .args(["--config", &path("config.toml")])
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .map_err(|error| format!("containerd cannot be run ({error})"))?;
        let containerd = Self { directory, daemon };
        let deadline = Instant::now() + Duration::from_secs(60);
        // Each question waits for an answer, so nothing spins here.
        while !containerd
            .ctr(&["--timeout", "5s", "version"])
            .is_ok_and(|output| output.contains("Server:"))
        {
            if Instant::now() > deadline {
                return Err(format!(
                    "containerd does not answer: {}",
                    fs::read_to_string(path("log")).unwrap()
                ));
            }
        }
        Ok(containerd)
    }

    fn ctr(&self, arguments: &[&str]) -> Result<String, String> {
        let socket = self.directory.path().join("socket");
        let output = Command::new("ctr")
            .arg("--address")
            .arg(socket)
            .args(arguments)
            .output()
            .map_err(|e| e.to_string())?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        } else {
            Err(String::from_utf8_lossy(&output.stderr).into_owned())
        }
    }
}

impl Oracle for Containerd {
    fn unpack(&self, layout: &Path, case: &str) -> Result<Listing, String> {
        let parent = layout.parent().unwrap();
        let archive: PathBuf = parent.join("image.tar");
        let packed = Command::new("tar")
            .arg("-C")
            .arg(layout)
            .arg("-cf")
            .arg(&archive)
            .arg(".")
            .status()
            .unwrap();
        assert!(packed.success());
        let name = format!("example.invalid/{}", case.replace(' ', "-"));
        let target = parent.join("mounted");
        fs::create_dir(&target).unwrap();
        let (archive, target) = (archive.display().to_string(), target.display().to_string());
        self.ctr(&[
            "images",
            "import",
            "--snapshotter",
            "overlayfs",
            "--base-name",
            &name,
            &archive,
        ])?;
        let reference = format!("{name}:test");
        self.ctr(&[
            "images",
            "mount",
            "--snapshotter",
            "overlayfs",
            &reference,
            &target,
        ])?;
        let listing = Listing::of_directory(Path::new(&target));
        self.ctr(&["images", "unmount", "--rm", &target]).unwrap();
        Ok(listing.unwrap())
    }
}

impl Drop for Containerd {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}
