//! What is looked at in a finished image: `e2fsck`, a mount, the checksum.

use std::{
    fs::File,
    io,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, bail};
use sha2::{Digest as _, Sha256};
use tempfile::TempDir;
use test_support::lab;

/// Has `e2fsck -fn` look at everything.
///
/// # Errors
/// When it finds anything at all; the error has what it said.
pub fn e2fsck(image: &Path) -> anyhow::Result<()> {
    let program = lab::program("e2fsck", "e2fsprogs")?;
    let output = Command::new(program).args(["-f", "-n"]).arg(image).output()?;
    if !output.status.success() {
        bail!("e2fsck found fault: {}", String::from_utf8_lossy(&output.stdout));
    }
    Ok(())
}

/// The SHA-256 of a file in hexadecimal.
///
/// # Errors
/// When it cannot be read.
pub fn sha256(path: &Path) -> anyhow::Result<String> {
    let mut hasher = Sha256::new();
    let mut file = File::open(path).with_context(|| path.display().to_string())?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(hex::encode(hasher.finalize())),
            length => hasher.update(&buffer[..length]),
        }
    }
}

/// Something mounted on a directory of its own. Dropping it unmounts.
#[derive(Debug)]
pub struct Mounted {
    directory: TempDir,
}

impl Mounted {
    /// An image, read-only, without replaying its journal.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn image(image: &Path) -> anyhow::Result<Self> {
        Self::mount(&["-t", "ext4", "-o", "ro,loop,noload"], image)
    }

    /// Memory of so many bytes.
    ///
    /// # Errors
    /// When it cannot be mounted.
    pub fn memory(bytes: u64) -> anyhow::Result<Self> {
        Self::mount(
            &["-t", "tmpfs", "-o", &format!("size={bytes},mode=0755")],
            Path::new("none"),
        )
    }

    fn mount(options: &[&str], source: &Path) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("mounted-").tempdir()?;
        run(Command::new("mount")
            .args(options)
            .arg(source)
            .arg(directory.path()))?;
        Ok(Self { directory })
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Nothing can be written any more.
    ///
    /// # Errors
    /// When somebody still writes.
    pub fn make_read_only(&self) -> anyhow::Result<()> {
        run(Command::new("mount").args(["-o", "remount,ro"]).arg(self.path()))
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily, so that a test that failed with an open file leaves no mount behind.
        let _ = Command::new("umount")
            .arg("--lazy")
            .arg(self.directory.path())
            .status();
    }
}

/// Every path below a directory, the directory itself left out, in byte order.
///
/// # Errors
/// When a directory cannot be read.
pub fn paths_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut directories = vec![directory.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory)? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                directories.push(entry.path());
            }
            found.push(entry.path());
        }
    }
    found.sort();
    Ok(found)
}

/// Runs a program that must succeed.
///
/// # Errors
/// With what it said, when it does not.
pub fn run(command: &mut Command) -> anyhow::Result<()> {
    let output = command
        .output()
        .with_context(|| format!("cannot run {command:?}"))?;
    if !output.status.success() {
        bail!("{command:?} failed: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
