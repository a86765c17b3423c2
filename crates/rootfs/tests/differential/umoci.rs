//! umoci, which follows the specification.

use std::{path::Path, process::Command};

use rootfs::listing::Listing;

use crate::Oracle;

pub(crate) struct Umoci;

impl Umoci {
    pub(crate) fn new() -> Result<Self, String> {
        if !rustix::process::geteuid().is_root() {
            return Err("umoci needs root to give files their owners".to_owned());
        }
        match Command::new("umoci").arg("--version").output() {
            Ok(_) => Ok(Self),
            Err(error) => Err(format!("umoci cannot be run ({error}); install umoci")),
        }
    }
}

impl Oracle for Umoci {
    fn unpack(&self, layout: &Path, _case: &str) -> Result<Listing, String> {
        let bundle = tempfile::tempdir_in(layout.parent().unwrap()).unwrap();
        let mut image = layout.as_os_str().to_owned();
        image.push(":test");
        let path = bundle.path().join("bundle");
        let output = Command::new("umoci")
            .args(["unpack", "--image"])
            .arg(image)
            .arg(&path)
            .output()
            .unwrap();
        if !output.status.success() {
            return Err(String::from_utf8_lossy(&output.stderr).into_owned());
        }
        Ok(Listing::of_directory(&path.join("rootfs")).unwrap())
    }
}
