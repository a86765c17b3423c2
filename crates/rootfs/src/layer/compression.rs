//! What a blob is compressed with, told by its first bytes, and the streaming decoders.
//!
//! Media types lie (gzip bytes typed as plain tar are common), so only the content counts. All gzip members and all
//! zstd frames are decoded: parallel compressors and lazily loaded images are made of many.

mod gzip;
mod source;
mod zstd;

use std::{fmt, io::Read};

use super::{LayerError, tar};
use source::Source;

/// How a layer is compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Compression {
    /// Not at all: a plain tar archive.
    None,
    /// One or more gzip members (RFC 1952), then possibly zero bytes.
    Gzip,
    /// One or more zstd frames (RFC 8878), skippable ones among them.
    Zstd,
}

impl fmt::Display for Compression {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::None => "uncompressed",
            Self::Gzip => "gzip",
            Self::Zstd => "zstd",
        })
    }
}

/// How many bytes [`detect`] wants to see, if there are so many: one tar header.
const DETECTION_BYTES: usize = tar::BLOCK_BYTES;

/// Compressions that layers do not have, by their first bytes.
const REFUSED: [(&[u8], &str); 8] = [
    (b"BZh", "bzip2"),
    (b"\xfd7zXZ\0", "xz"),
    (b"\x04\x22\x4d\x18", "lz4"),
    (b"LZIP", "lzip"),
    (b"\x5d\0\0", "lzma"),
    (b"\x1f\x9d", "compress"),
    (b"PK\x03\x04", "zip"),
    (b"7z\xbc\xaf\x27\x1c", "7z"),
];

/// Tells the compression from a blob's first bytes.
///
/// What is no known compression is taken for a tar archive, and the tar reader says what is wrong with it. A tar archive
/// whose first name happens to begin like a refused format is still a tar archive: its checksum tells.
fn detect(start: &[u8]) -> Result<Compression, LayerError> {
    // Containerd and Docker look at the method byte too; a tar name may well begin with 1f 8b.
    if start.starts_with(&[0x1f, 0x8b, 0x08]) {
        return Ok(Compression::Gzip);
    }
    if start.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || is_skippable_zstd_frame(start) {
        return Ok(Compression::Zstd);
    }
    if let Some((_, name)) = REFUSED.iter().find(|(magic, _)| start.starts_with(magic))
        && !tar::is_header(start)
    {
        return Err(LayerError::UnsupportedCompression { name });
    }
    Ok(Compression::None)
}

/// A zstd blob may begin with a skippable frame: the magics are 0x184D2A50 to 0x184D2A5F, little endian.
fn is_skippable_zstd_frame(start: &[u8]) -> bool {
    matches!(start, [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..])
}

/// Decompresses a blob.
pub(super) struct Decoder<R> {
    source: Source<R>,
    codec: Codec,
}

enum Codec {
    Plain,
    Gzip(gzip::Gzip),
    Zstd(Box<zstd::Zstd>),
}

impl<R: Read> Decoder<R> {
    /// Reads the first bytes of `input` and chooses the codec.
    pub(super) fn open(input: R) -> Result<Self, LayerError> {
        let mut source = Source::new(input);
        let codec = match detect(source.peek(DETECTION_BYTES)?)? {
            Compression::None => Codec::Plain,
            Compression::Gzip => Codec::Gzip(gzip::Gzip::new()),
            Compression::Zstd => Codec::Zstd(Box::new(zstd::Zstd::new()?)),
        };
        Ok(Self { source, codec })
    }

    /// Fills `output` as far as is possible without waiting for more than one read of the input; 0 is the end.
    /// `output` is not empty.
    pub(super) fn read(&mut self, output: &mut [u8]) -> Result<usize, LayerError> {
        match &mut self.codec {
            Codec::Plain => self.source.read(output),
            Codec::Gzip(gzip) => gzip.read(&mut self.source, output),
            Codec::Zstd(zstd) => zstd.read(&mut self.source, output),
        }
    }

    /// Compressed bytes used so far.
    pub(super) fn compressed_bytes(&self) -> u64 {
        self.source.consumed_bytes()
    }
}
