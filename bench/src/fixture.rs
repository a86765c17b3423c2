//! The images that are measured: OCI layouts below the bench's directory, each with the tags 1 and 2. Image 2 is image 1
//! with a small layer on top.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context as _, bail};
use test_support::image::{Compression, Image, Layer};

use crate::{layout, process};

/// Changes with what the code below makes.
const VERSION: &str = "3";

/// Files of `many` and of `flat`.
const SMALL_FILES: u64 = 120_000;

/// Bytes of the one file of `blob`; it does not compress, so the layer has as many and a few more.
const BLOB_BYTES: usize = 235_000_000;

/// An image to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Fixture {
    /// A server on Debian in nine layers: built by buildah from Debian packages
    Nginx,
    /// Compilers and interpreters on Debian in ten layers: built by buildah from Debian packages
    Big,
    /// 120,000 files of 0 to 8 KiB in 1,200 directories
    Many,
    /// The same files in one directory
    Flat,
    /// Eight files of 128 MiB
    Large,
    /// One layer of 235 MB that does not compress
    Blob,
}

impl Fixture {
    pub(crate) const ALL: [Self; 6] = [
        Self::Nginx,
        Self::Big,
        Self::Many,
        Self::Flat,
        Self::Large,
        Self::Blob,
    ];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Nginx => "nginx",
            Self::Big => "big",
            Self::Many => "many",
            Self::Flat => "flat",
            Self::Large => "large",
            Self::Blob => "blob",
        }
    }

    /// Whether it was built from packages, not made by code.
    const fn is_built(self) -> bool {
        matches!(self, Self::Nginx | Self::Big)
    }
}

impl fmt::Display for Fixture {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())
    }
}

/// What `builderd-bench make` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Which image
    fixture: Fixture,
    /// Where the layout goes
    directory: PathBuf,
}

/// `builderd-bench make`.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let (layer, compression) = match arguments.fixture {
        Fixture::Many => (
            small_files(|nth| format!("data/{:04}/file-{nth:06}", nth / 100)),
            Compression::Gzip,
        ),
        Fixture::Flat => (
            small_files(|nth| format!("data/file-{nth:06}")),
            Compression::Gzip,
        ),
        Fixture::Large => (
            (0..8).fold(Layer::new().directory("data", 0o755), |layer, nth| {
                layer.file(format!("data/file-{nth}"), noise(nth + 1, 128 << 20))
            }),
            Compression::None,
        ),
        Fixture::Blob => (
            Layer::new().file("noise", noise(1, BLOB_BYTES)),
            Compression::Gzip,
        ),
        Fixture::Nginx | Fixture::Big => bail!("`cargo xtask lab` makes images of packages"),
    };
    Image::new()
        .layer_as(&layer, compression)
        .cmd(&["/bin/true"])
        .build()
        .write_oci_layout(&arguments.directory, "1")?;
    Ok(())
}

fn small_files(path: impl Fn(u64) -> String) -> Layer {
    let mut layer = Layer::new().directory("data", 0o755);
    let mut directory = String::new();
    for nth in 0..SMALL_FILES {
        let path = path(nth);
        if let Some((parent, _)) = path.rsplit_once('/')
            && parent != directory
            && parent != "data"
        {
            parent.clone_into(&mut directory);
            layer = layer.directory(parent, 0o755);
        }
        let length = usize::try_from(nth * 7919 % 8192).unwrap_or(0);
        // Half of the bits: it compresses as text does.
        let content: Vec<u8> = noise(nth, length).iter().map(|byte| b'a' + (byte & 15)).collect();
        layer = layer.file(path, content);
    }
    layer
}

/// Bytes without a pattern, the same for the same seed (xorshift64*, Vigna 2016).
fn noise(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(length + 8);
    while bytes.len() < length {
        state ^= state >> 12;
        state ^= state << 25;
        state ^= state >> 27;
        bytes.extend(state.wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes());
    }
    bytes.truncate(length);
    bytes
}

/// Makes a fixture unless it is there, and says where. `images` is where `cargo xtask lab` keeps its layouts.
pub(crate) fn prepare(fixture: Fixture, directory: &Path, images: &Path) -> anyhow::Result<PathBuf> {
    let to = directory.join("fixtures").join(fixture.name());
    let from = images.join(fixture.name());
    let recipe = if fixture.is_built() {
        let index = from.join("index.json");
        let index = fs::read(&index).with_context(|| format!("failed to read {}", index.display()))?;
        format!("{VERSION} {}", layout::digest(&index))
    } else {
        VERSION.to_owned()
    };
    let stamp = to.join("recipe");
    if fs::read_to_string(&stamp).is_ok_and(|made_by| made_by == recipe) {
        return Ok(to);
    }
    println!("making the image {fixture}");
    if to.exists() {
        fs::remove_dir_all(&to)?;
    }
    fs::create_dir_all(to.join("blobs/sha256"))?;
    let limit = Duration::from_secs(600);
    if fixture.is_built() {
        // Hard links: blobs are never written to.
        let mut copy = Command::new("cp");
        copy.args(["-al", "--"])
            .arg(from.join("blobs"))
            .arg(from.join("oci-layout"))
            .arg(&to);
        process::output(&mut copy, limit)?;
        fs::copy(from.join("index.json"), to.join("index.json"))?;
    } else {
        // In a process of its own: the layer is in memory more than once.
        let mut make = Command::new(std::env::current_exe()?);
        process::output(make.arg("make").arg(fixture.name()).arg(&to), limit)?;
    }
    let top = Layer::new()
        .directory("srv", 0o755)
        .directory("srv/top", 0o755)
        .file("srv/top/index.html", "<h1>second</h1>\n")
        .file("srv/top/program", noise(7, 200_000))
        .file("etc/motd", "a second image\n");
    layout::stack(&to, "1", &top, "2")?;
    fs::write(&stamp, recipe)?;
    Ok(to)
}

/// Reads all blobs of a layout once, so that they are in the page cache.
pub(crate) fn warm(layout: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(layout.join("blobs/sha256"))? {
        std::io::copy(&mut fs::File::open(entry?.path())?, &mut std::io::sink())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn noise_is_as_long_as_asked_for_and_always_the_same() {
        for length in [0, 1, 7, 8, 9, 1000] {
            assert_eq!(noise(3, length).len(), length);
        }
        assert_eq!(noise(3, 100), noise(3, 100));
        assert_ne!(noise(3, 100), noise(4, 100));
    }
}
