//! gzip, all members of it (RFC 1952).
//!
//! The members' frames are read here and only the deflate data by `flate2`: its multi-member reader calls zero padding
//! after the last member an error, and sets up a new inflater for each member, of which lazily loaded images have tens
//! of thousands.
//!
//! The CRC is `crc32fast`'s: flate2's own takes four times as long, a sixth of the time that inflating takes.

use std::io::Read;

use flate2::{Decompress, FlushDecompress, Status};

use super::{Compression, Source};
use crate::layer::LayerError;

/// Header flags, RFC 1952 section 2.3.1. Bit 0 (text) says nothing of use.
const FLAG_HEADER_CRC: u8 = 1 << 1;
const FLAG_EXTRA: u8 = 1 << 2;
const FLAG_NAME: u8 = 1 << 3;
const FLAG_COMMENT: u8 = 1 << 4;
const FLAGS_RESERVED: u8 = 0xe0;

const METHOD_DEFLATE: u8 = 8;

/// What comes next in the stream.
#[derive(Clone, Copy)]
enum Expect {
    /// The first member's header.
    FirstMember,
    /// Deflate data of the current member.
    Data,
    /// A further member, zero padding, or the end.
    MemberOrEnd,
    /// Nothing.
    End,
}

/// The state of decoding between two reads.
pub(super) struct Gzip {
    inflate: Decompress,
    crc: crc32fast::Hasher,
    /// Bytes of the member so far, modulo 2^32: what its trailer says.
    length: u32,
    expect: Expect,
}

impl Gzip {
    pub(super) fn new() -> Self {
        Self {
            inflate: Decompress::new(false),
            crc: crc32fast::Hasher::new(),
            length: 0,
            expect: Expect::FirstMember,
        }
    }

    pub(super) fn read<R: Read>(
        &mut self,
        source: &mut Source<R>,
        output: &mut [u8],
    ) -> Result<usize, LayerError> {
        loop {
            match self.expect {
                Expect::FirstMember => {
                    self.start_member(source)?;
                }
                Expect::Data => {
                    let produced = self.inflate(source, output)?;
                    if produced > 0 {
                        return Ok(produced);
                    }
                }
                Expect::MemberOrEnd => match source.fill()?.first() {
                    None => self.expect = Expect::End,
                    Some(0) => {
                        skip_zeros(source)?;
                        self.expect = Expect::End;
                    }
                    Some(_) => self.start_member(source)?,
                },
                Expect::End => return Ok(0),
            }
        }
    }

    /// Inflates until there is output or the member ends; 0 for the latter.
    fn inflate<R: Read>(&mut self, source: &mut Source<R>, output: &mut [u8]) -> Result<usize, LayerError> {
        loop {
            // First without reading: the inflater may still hold output, and a read may block.
            let (read_before, written_before) = (self.inflate.total_in(), self.inflate.total_out());
            let status = self
                .inflate
                .decompress(source.available(), output, FlushDecompress::None)
                .map_err(|error| corrupt(source, error.message().unwrap_or("invalid deflate data")))?;
            let (read, written) = (
                self.inflate.total_in() - read_before,
                self.inflate.total_out() - written_before,
            );
            source.consume(as_length(read));
            let written = as_length(written);
            self.crc.update(&output[..written]);
            self.length = self.length.wrapping_add(low_u32(written));
            if status == Status::StreamEnd {
                self.finish_member(source)?;
                return Ok(written);
            }
            if written > 0 {
                return Ok(written);
            }
            if source.fill()?.is_empty() {
                return Err(truncated(source));
            }
        }
    }

    fn start_member<R: Read>(&mut self, source: &mut Source<R>) -> Result<(), LayerError> {
        read_header(source)?;
        self.inflate.reset(false);
        self.crc.reset();
        self.length = 0;
        self.expect = Expect::Data;
        Ok(())
    }

    fn finish_member<R: Read>(&mut self, source: &mut Source<R>) -> Result<(), LayerError> {
        let mut trailer = [0; 8];
        for byte in &mut trailer {
            *byte = source.byte()?.ok_or_else(|| truncated(source))?;
        }
        let [c0, c1, c2, c3, s0, s1, s2, s3] = trailer;
        if u32::from_le_bytes([c0, c1, c2, c3]) != self.crc.clone().finalize() {
            return Err(corrupt(source, "the CRC-32 of a member is wrong"));
        }
        if u32::from_le_bytes([s0, s1, s2, s3]) != self.length {
            return Err(corrupt(source, "the length of a member is wrong"));
        }
        self.expect = Expect::MemberOrEnd;
        Ok(())
    }
}

/// Reads a member's header and checks its CRC where it has one.
fn read_header<R: Read>(source: &mut Source<R>) -> Result<(), LayerError> {
    let mut crc = crc32fast::Hasher::new();
    let mut next = |source: &mut Source<R>| -> Result<u8, LayerError> {
        let byte = source.byte()?.ok_or_else(|| truncated(source))?;
        crc.update(&[byte]);
        Ok(byte)
    };
    if (next(source)?, next(source)?) != (0x1f, 0x8b) {
        return Err(corrupt(
            source,
            "what follows a member is neither a member nor zero padding",
        ));
    }
    if next(source)? != METHOD_DEFLATE {
        return Err(corrupt(source, "the compression method is unknown"));
    }
    let flags = next(source)?;
    if flags & FLAGS_RESERVED != 0 {
        return Err(corrupt(source, "a member's header has reserved flags"));
    }
    // Time, extra flags, operating system.
    for _ in 0..6 {
        next(source)?;
    }
    if flags & FLAG_EXTRA != 0 {
        let length = u16::from_le_bytes([next(source)?, next(source)?]);
        for _ in 0..length {
            next(source)?;
        }
    }
    for flag in [FLAG_NAME, FLAG_COMMENT] {
        if flags & flag != 0 {
            while next(source)? != 0 {}
        }
    }
    if flags & FLAG_HEADER_CRC != 0 {
        // The lower half of the CRC-32 over the header so far.
        let [low, high, ..] = crc.finalize().to_le_bytes();
        for expected in [low, high] {
            if source.byte()?.ok_or_else(|| truncated(source))? != expected {
                return Err(corrupt(source, "the CRC of a member's header is wrong"));
            }
        }
    }
    Ok(())
}

/// Blobs that went through block devices or tapes are padded; gzip itself accepts zeros and nothing else silently.
fn skip_zeros<R: Read>(source: &mut Source<R>) -> Result<(), LayerError> {
    loop {
        let padding = source.fill()?;
        if padding.is_empty() {
            return Ok(());
        }
        if padding.iter().any(|&byte| byte != 0) {
            return Err(corrupt(
                source,
                "what follows the last member is not only zero padding",
            ));
        }
        let count = padding.len();
        source.consume(count);
    }
}

fn corrupt<R: Read>(source: &Source<R>, reason: &str) -> LayerError {
    LayerError::CorruptCompression {
        compression: Compression::Gzip,
        offset: source.consumed_bytes(),
        reason: reason.to_owned(),
    }
}

fn truncated<R: Read>(source: &Source<R>) -> LayerError {
    LayerError::TruncatedCompression {
        compression: Compression::Gzip,
        offset: source.consumed_bytes(),
    }
}

/// The lower half of a count.
fn low_u32(count: usize) -> u32 {
    u32::try_from(count as u64 & 0xffff_ffff).expect("masked to 32 bits")
}

fn as_length(count: u64) -> usize {
    usize::try_from(count).expect("one call handles no more than a slice")
}
