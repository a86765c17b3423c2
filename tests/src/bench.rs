//! A daemon and a registry with one small image, as most tests of clients need them.

use std::{fmt, path::PathBuf};

use tempfile::TempDir;
use test_support::{
    image::{Image, Layer},
    lab::Missing,
    registry::Registry,
};

use crate::{daemon::Daemon, parts};

/// A daemon, a registry with one small image, and where the descriptors are.
pub struct Bench {
    /// The daemon.
    pub daemon: Daemon,
    /// The image.
    pub reference: String,
    /// The digest of its only layer.
    pub layer: String,
    /// Where the image is.
    pub registry: Registry,
    directory: TempDir,
}

impl fmt::Debug for Bench {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Bench")
            .field("daemon", &self.daemon)
            .finish_non_exhaustive()
    }
}

impl Bench {
    /// Starts both. `settings` are variables without `UNKEY_BUILDERD_`.
    ///
    /// # Errors
    /// When something it needs is not there.
    ///
    /// # Panics
    /// When something that is there does not work.
    pub fn start(settings: &[(&str, &str)]) -> Result<Self, Missing> {
        parts::root()?;
        let builderd = parts::builderd()?;
        let registry = Registry::start().expect("a port on loopback");
        let image = Image::new()
            .layer(&Layer::new().file("bin/sh", b"#!"))
            .cmd(&["/bin/sh"])
            .build();
        let reference = registry.publish("team/app", "1", &image);
        let directory = tempfile::tempdir().expect("a directory for temporary files");
        std::fs::write(
            directory.path().join("descriptors"),
            builderd::proto::FILE_DESCRIPTOR_SET,
        )
        .expect("room for a small file");
        let daemon = match Daemon::start(&builderd, &directory.path().join("state"), settings) {
            Ok(daemon) => daemon,
            Err(error) => panic!("{error:#}"),
        };
        Ok(Self {
            daemon,
            reference,
            layer: image.layers[0].digest.clone(),
            registry,
            directory,
        })
    }

    /// The methods and messages, for clients that are given them.
    #[must_use]
    pub fn descriptors(&self) -> PathBuf {
        self.directory.path().join("descriptors")
    }

    /// A directory that is gone with the bench.
    #[must_use]
    pub fn scratch(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// Ends the daemon as a power cut does, and starts it again with the same state and address.
    ///
    /// # Panics
    /// When it does not start again.
    pub fn crash_and_restart(&mut self) {
        if let Err(error) = self.daemon.crash_and_restart() {
            panic!("{error:#}");
        }
    }
}
