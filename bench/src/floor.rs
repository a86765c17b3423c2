//! The floor: what no build can do without. CPU seconds of inflating all layers, of SHA-256 over blobs, archives and
//! image, and of writing the image once.

use std::{
    fs::{self, File},
    io::{Read as _, Seek as _, SeekFrom},
    os::unix::fs::FileExt as _,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context as _, bail, ensure};
use flate2::read::MultiGzDecoder;
use libdeflater::{DecompressionError, Decompressor};
use rustix::fs::{SeekFrom as Seek, fsync, seek};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{
    clock::{Taken, of_thread},
    layout::Image,
};

/// Bytes at a time wherever something is streamed.
const BUFFER_BYTES: usize = 256 << 10;

/// What `builderd-bench floor` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The OCI layout
    layout: PathBuf,
    /// The finished image of the layout's image 1
    image: PathBuf,
    /// A file to write the image to; it is removed
    scratch: PathBuf,
}

/// CPU seconds of each part, and of some the seconds on the wall.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Floor {
    /// libdeflate, a whole layer at a time, into memory that was touched before. Layers in zstd by zstd.
    pub(crate) inflate_whole: f64,
    /// zlib-rs, in pieces. Layers in zstd by zstd.
    pub(crate) inflate_streaming: f64,
    /// SHA-256 of the layers as they came.
    pub(crate) hash_blobs: f64,
    /// SHA-256 of the layers unpacked.
    pub(crate) hash_tars: f64,
    /// SHA-256 of the image, holes included; reading it is not counted.
    pub(crate) hash_image: f64,
    /// Seconds on the wall of the same, reading included.
    pub(crate) hash_image_wall: f64,
    /// Writing all of the image that is not a hole.
    pub(crate) write: f64,
    /// Seconds on the wall of the same, until it is on the disk.
    pub(crate) write_wall: f64,
}

impl Floor {
    /// CPU seconds when each layer is inflated as a whole.
    pub(crate) fn whole(&self) -> f64 {
        self.inflate_whole + self.rest()
    }

    /// CPU seconds when layers are inflated as they come.
    pub(crate) fn streaming(&self) -> f64 {
        self.inflate_streaming + self.rest()
    }

    fn rest(&self) -> f64 {
        self.hash_blobs + self.hash_tars + self.hash_image + self.write
    }
}

/// `builderd-bench floor`: prints a [`Floor`] as JSON.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let mut floor = Floor::default();
    let mut tar = Vec::new();
    for layer in Image::open(&arguments.layout, "1")?.layers()? {
        let blob = fs::read(&layer.path)?;
        floor.hash_blobs += of_thread(|| Sha256::digest(&blob)).1.cpu;
        if layer.media_type.ends_with("gzip") {
            let (streamed, taken) = of_thread(|| stream(&blob));
            let length = streamed?;
            floor.inflate_streaming += taken.cpu;
            tar.resize(tar.len().max(length), 0);
            floor.inflate_whole += whole(&blob, &mut tar[..length])?.cpu;
            tar.truncate(length);
        } else if layer.media_type.ends_with("zstd") {
            let (unpacked, taken) = of_thread(|| zstd::decode_all(&blob[..]));
            tar = unpacked?;
            floor.inflate_streaming += taken.cpu;
            floor.inflate_whole += taken.cpu;
        } else {
            tar = blob;
        }
        let (hash, taken) = of_thread(|| Sha256::digest(&tar));
        floor.hash_tars += taken.cpu;
        let diff_id = format!("sha256:{}", hex::encode(hash));
        ensure!(diff_id == layer.diff_id, "{} is {diff_id}", layer.path.display());
    }
    let image = File::open(&arguments.image)
        .with_context(|| format!("failed to open {}", arguments.image.display()))?;
    let taken = hash(&image)?;
    (floor.hash_image, floor.hash_image_wall) = (taken.cpu, taken.wall);
    let taken = write(&image, &arguments.scratch)?;
    fs::remove_file(&arguments.scratch)?;
    (floor.write, floor.write_wall) = (taken.cpu, taken.wall);
    println!("{}", serde_json::to_string(&floor)?);
    Ok(())
}

/// Inflates as a build does while the bytes arrive; the length.
fn stream(blob: &[u8]) -> anyhow::Result<usize> {
    let mut decoder = MultiGzDecoder::new(blob);
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut length = 0;
    loop {
        match decoder.read(&mut buffer)? {
            0 => return Ok(length),
            count => length += count,
        }
    }
}

/// Inflates one gzip member into memory of its exact length.
fn whole(blob: &[u8], tar: &mut [u8]) -> anyhow::Result<Taken> {
    let mut decompressor = Decompressor::new();
    let (inflated, taken) = of_thread(|| decompressor.gzip_decompress(blob, tar));
    match inflated {
        Ok(length) if length == tar.len() => Ok(taken),
        Ok(_) => bail!("a layer of several gzip members: libdeflate's figure would be too small"),
        Err(DecompressionError::BadData) => bail!("libdeflate finds a layer damaged"),
        Err(DecompressionError::InsufficientSpace) => bail!("libdeflate finds a layer longer than zlib-rs"),
    }
}

/// The hash of the image: CPU seconds of hashing alone, seconds on the wall with reading.
fn hash(mut image: &File) -> anyhow::Result<Taken> {
    image.seek(SeekFrom::Start(0))?;
    let start = Instant::now();
    let mut digest = Sha256::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut cpu = 0.0;
    loop {
        let count = image.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        cpu += of_thread(|| digest.update(&buffer[..count])).1.cpu;
    }
    std::hint::black_box(digest.finalize());
    Ok(Taken {
        wall: start.elapsed().as_secs_f64(),
        cpu,
    })
}

/// Writes what is not a hole to another file. Reading it is not counted.
fn write(image: &File, to: &Path) -> anyhow::Result<Taken> {
    let output = File::create(to).with_context(|| format!("failed to create {}", to.display()))?;
    let length = image.metadata()?.len();
    output.set_len(length)?;
    let mut buffer = vec![0; 1 << 20];
    let mut all = Taken::default();
    let mut offset = 0;
    // ENXIO: nothing but a hole is left.
    while let Ok(start) = seek(image, Seek::Data(offset)) {
        let end = seek(image, Seek::Hole(start))?;
        offset = start;
        while offset < end {
            let count = usize::try_from(end - offset).map_or(buffer.len(), |left| left.min(buffer.len()));
            image.read_exact_at(&mut buffer[..count], offset)?;
            let (written, taken) = of_thread(|| output.write_all_at(&buffer[..count], offset));
            written?;
            all += taken;
            offset += count as u64;
        }
    }
    let (synced, taken) = of_thread(|| fsync(&output));
    synced?;
    all += taken;
    Ok(all)
}
