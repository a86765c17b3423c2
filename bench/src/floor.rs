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
use flate2::{Decompress, FlushDecompress, Status};
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

/// How often the image is written for the floor.
const WRITES: usize = 3;

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
    /// zlib-rs, in pieces, with crc32fast's CRC. Layers in zstd by zstd.
    pub(crate) inflate_streaming: f64,
    /// SHA-256 of the layers as they came.
    pub(crate) hash_blobs: f64,
    /// SHA-256 of the layers unpacked.
    pub(crate) hash_tars: f64,
    /// SHA-256 of the image, holes included; reading it is not counted.
    pub(crate) hash_image: f64,
    /// Seconds on the wall of the same, reading included.
    pub(crate) hash_image_wall: f64,
    /// Writing all of the image that is not a hole: the least of [`WRITES`], because whatever else the machine does with its
    /// memory meanwhile only adds to it.
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
    let mut writes = Vec::new();
    for _ in 0..WRITES {
        writes.push(write(&image, &arguments.scratch)?);
        fs::remove_file(&arguments.scratch)?;
    }
    let least = |figures: &mut dyn Iterator<Item = f64>| figures.fold(f64::INFINITY, f64::min);
    floor.write = least(&mut writes.iter().map(|taken| taken.cpu));
    floor.write_wall = least(&mut writes.iter().map(|taken| taken.wall));
    println!("{}", serde_json::to_string(&floor)?);
    Ok(())
}

/// Inflates as a build does while the bytes arrive, with the fastest CRC there is: zlib-rs and crc32fast. Gives the length.
fn stream(blob: &[u8]) -> anyhow::Result<usize> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut length = 0;
    let mut rest = blob;
    while !rest.is_empty() {
        let mut inflate = Decompress::new(false);
        let mut crc = crc32fast::Hasher::new();
        rest = &rest[header_bytes(rest)?..];
        loop {
            let (read, written) = (inflate.total_in(), inflate.total_out());
            let status = inflate.decompress(rest, &mut buffer, FlushDecompress::None)?;
            let read = usize::try_from(inflate.total_in() - read)?;
            let written = usize::try_from(inflate.total_out() - written)?;
            ensure!(
                read + written > 0 || status == Status::StreamEnd,
                "a layer that is cut off"
            );
            rest = &rest[read..];
            crc.update(&buffer[..written]);
            length += written;
            if status == Status::StreamEnd {
                break;
            }
        }
        // RFC 1952: CRC-32 and length, little endian.
        let trailer: [u8; 8] = rest.first_chunk().copied().context("a layer that is cut off")?;
        let [c0, c1, c2, c3, ..] = trailer;
        ensure!(
            u32::from_le_bytes([c0, c1, c2, c3]) == crc.finalize(),
            "a layer with a wrong CRC"
        );
        rest = &rest[trailer.len()..];
    }
    Ok(length)
}

/// Bytes of the header of a gzip member. RFC 1952 section 2.3.
fn header_bytes(member: &[u8]) -> anyhow::Result<usize> {
    const CHECKSUM: u8 = 1 << 1;
    const EXTRA: u8 = 1 << 2;
    const NAME: u8 = 1 << 3;
    const COMMENT: u8 = 1 << 4;
    let header: [u8; 10] = member.first_chunk().copied().context("a layer that is cut off")?;
    ensure!(header[..3] == [0x1f, 0x8b, 8], "a layer that is not gzip");
    let flags = header[3];
    let mut end = header.len();
    if flags & EXTRA != 0 {
        let length = member.get(end..end + 2).context("a layer that is cut off")?;
        end += 2 + usize::from(u16::from_le_bytes([length[0], length[1]]));
    }
    for text in [NAME, COMMENT] {
        if flags & text != 0 {
            let rest = member.get(end..).context("a layer that is cut off")?;
            let zero = rest.iter().position(|byte| *byte == 0);
            end += zero.context("a layer that is cut off")? + 1;
        }
    }
    if flags & CHECKSUM != 0 {
        end += 2;
    }
    ensure!(end <= member.len(), "a layer that is cut off");
    Ok(end)
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

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use flate2::{Compression, GzBuilder};

    use super::*;

    #[test]
    fn members_with_every_kind_of_header_are_inflated_to_their_end() {
        let member = |builder: GzBuilder, text: &[u8]| {
            let mut encoder = builder.write(Vec::new(), Compression::fast());
            encoder.write_all(text).unwrap();
            encoder.finish().unwrap()
        };
        let plain = member(GzBuilder::new(), &vec![7; 3 * BUFFER_BYTES + 1]);
        let named = member(
            GzBuilder::new()
                .filename("name")
                .comment("comment")
                .extra(vec![1; 300]),
            b"second",
        );
        assert_eq!(
            stream(&[plain.clone(), named].concat()).unwrap(),
            3 * BUFFER_BYTES + 7
        );
        let mut damaged = plain.clone();
        let crc = damaged.len() - 8;
        damaged[crc] ^= 1;
        stream(&damaged).unwrap_err();
        stream(&plain[..plain.len() / 2]).unwrap_err();
    }
}
