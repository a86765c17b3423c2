//! A file system whose writers no signal reaches.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;

/// A small ext4 that is frozen (`fsfreeze(8)`): whoever writes to it sleeps uninterruptibly until it is thawed, as with a
/// disk that does not answer. It is thawed and unmounted with this.
#[derive(Debug)]
pub struct Frozen {
    mounted_at: PathBuf,
    _directory: TempDir,
}

impl Frozen {
    /// With an empty file in it, open for writing.
    ///
    /// # Errors
    /// Why this machine cannot have one: it takes root, a loop device and e2fsprogs.
    pub fn new() -> Result<(Self, File), String> {
        let error = |error: std::io::Error| error.to_string();
        let directory = tempfile::tempdir().map_err(error)?;
        let image = directory.path().join("disk");
        let mounted_at = directory.path().join("mount");
        let disk = File::create(&image).map_err(error)?;
        disk.set_len(16 << 20).map_err(error)?;
        std::fs::create_dir(&mounted_at).map_err(error)?;
        run("mkfs.ext4", &["-q".as_ref(), "-F".as_ref(), &image])?;
        run("mount", &["-o".as_ref(), "loop".as_ref(), &image, &mounted_at])?;
        let frozen = Self {
            mounted_at,
            _directory: directory,
        };
        let file = File::create(frozen.mounted_at.join("file")).map_err(error)?;
        run("fsfreeze", &["--freeze".as_ref(), &frozen.mounted_at])?;
        Ok((frozen, file))
    }

    /// Wakes everybody who sleeps in it.
    pub fn thaw(&self) {
        let _ = run("fsfreeze", &["--unfreeze".as_ref(), &self.mounted_at]);
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        self.thaw();
        let _ = run("umount", &["--lazy".as_ref(), &self.mounted_at]);
    }
}

fn run(program: &str, arguments: &[&Path]) -> Result<(), String> {
    let search = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program)
        .args(arguments)
        .env("PATH", search)
        .output()
        .map_err(|error| format!("{program}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    Err(format!("{program}: {}", String::from_utf8_lossy(&output.stderr)))
}
