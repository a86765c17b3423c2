//! One header block.
//!
//! ```text
//! offset length  field              offset length  field
//!      0    100  name                  265     32  user name (unused)
//!    100      8  mode                  297     32  group name (unused)
//!    108      8  uid                   329      8  device major
//!    116      8  gid                   337      8  device minor
//!    124     12  size                  345    155  prefix (ustar)
//!    136     12  mtime                 345     12  atime (GNU), 357 12 ctime
//!    148      8  checksum              386     96  sparse map (GNU), 4 × 24
//!    156      1  type flag             482      1  sparse map goes on (GNU)
//!    157    100  link name             483     12  real size (GNU)
//!    257      8  magic and version     508      4  "tar\0" (star)
//! ```

use crate::{
    DeviceNumber, Timestamp,
    layer::error::TarProblem,
    layer::tar::{BLOCK_BYTES, Block, number},
};

/// Linux keeps 12 bits of major and 20 bits of minor number.
const MAX_MAJOR: u32 = 4095;
const MAX_MINOR: u32 = 1_048_575;

/// Which fields a header has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// Before POSIX: no prefix, no device numbers.
    V7,
    /// POSIX 1003.1-1988, and PAX.
    Ustar,
    /// Schily's star: a shorter prefix.
    Star,
    /// GNU tar's own: times and the sparse map stand where ustar has the prefix.
    Gnu,
}

/// A header whose checksum is right. Fields are read when asked for, because a PAX record may replace one that is not
/// valid.
#[derive(Clone, Copy, Debug)]
pub(super) struct Header<'b> {
    block: &'b Block,
    pub(super) dialect: Dialect,
}

impl<'b> Header<'b> {
    /// # Errors
    /// [`TarProblem::Checksum`].
    pub(super) fn parse(block: &'b Block) -> Result<Self, TarProblem> {
        let stated = number::octal(&block[148..156]).ok_or(TarProblem::Checksum)?;
        // The checksum field itself counts as spaces. Old tars summed signed bytes.
        let (mut unsigned, mut signed) = (8 * i64::from(b' '), 8 * i64::from(b' '));
        for &byte in block[..148].iter().chain(&block[156..]) {
            unsigned += i64::from(byte);
            signed += i64::from(i8::from_be_bytes([byte]));
        }
        if stated != unsigned && stated != signed {
            return Err(TarProblem::Checksum);
        }
        let dialect = match (&block[257..263], &block[263..265]) {
            (b"ustar\0", _) if &block[508..] == b"tar\0" => Dialect::Star,
            (b"ustar\0", _) => Dialect::Ustar,
            (b"ustar ", b" \0") => Dialect::Gnu,
            _ => Dialect::V7,
        };
        Ok(Self { block, dialect })
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.block[156]
    }

    /// The path, prefix included.
    pub(super) fn path(&self) -> Vec<u8> {
        let prefix = match self.dialect {
            Dialect::V7 => &[],
            Dialect::Ustar => text(&self.block[345..500]),
            Dialect::Star => text(&self.block[345..476]),
            // Go before 1.8, and so old Docker, wrote a prefix into GNU headers, where the times should be.
            // Go's reader takes it for a prefix when the times are no numbers and it is ASCII, and so do we.
            Dialect::Gnu => {
                let times_are_numbers = number::field(&self.block[345..357]).is_some()
                    && number::field(&self.block[357..369]).is_some();
                let prefix = text(&self.block[345..500]);
                if times_are_numbers || !prefix.is_ascii() {
                    &[]
                } else {
                    prefix
                }
            }
        };
        let name = text(&self.block[..100]);
        if prefix.is_empty() {
            name.to_vec()
        } else {
            [prefix, b"/", name].concat()
        }
    }

    pub(super) fn link_path(&self) -> &'b [u8] {
        text(&self.block[157..257])
    }

    /// Permission bits; type bits, which some tools leave in, are dropped.
    pub(super) fn mode(&self) -> Result<u16, TarProblem> {
        let mode = self.number(100..108, "mode")? & 0o7777;
        Ok(u16::try_from(mode).expect("twelve bits"))
    }

    pub(super) fn uid(&self) -> Result<u32, TarProblem> {
        self.owner(108..116, "uid")
    }

    pub(super) fn gid(&self) -> Result<u32, TarProblem> {
        self.owner(116..124, "gid")
    }

    /// Bytes that follow the header, not counting what fills the last block.
    pub(super) fn size(&self) -> Result<u64, TarProblem> {
        u64::try_from(self.number(124..136, "size")?).map_err(|_| TarProblem::Number { field: "size" })
    }

    pub(super) fn mtime(&self) -> Result<Timestamp, TarProblem> {
        self.number(136..148, "mtime").map(Timestamp::from_seconds)
    }

    pub(super) fn device(&self) -> Result<DeviceNumber, TarProblem> {
        if self.dialect == Dialect::V7 {
            return Ok(DeviceNumber { major: 0, minor: 0 });
        }
        let part = |range, field| {
            u64::try_from(self.number(range, field)?).map_err(|_| TarProblem::Number { field })
        };
        let (major, minor) = (part(329..337, "device major")?, part(337..345, "device minor")?);
        checked_device(major, minor).ok_or(TarProblem::DeviceNumber { major, minor })
    }

    /// The sparse map's part in this header, if the dialect has one: bytes, whether it goes on, the file's real size.
    pub(super) fn sparse(&self) -> Result<(&'b [u8], bool, u64), TarProblem> {
        if self.dialect != Dialect::Gnu {
            return Err(TarProblem::SparseMap {
                reason: "the header is not a GNU one",
            });
        }
        let real_size = self.number(483..495, "real size")?;
        let real_size = u64::try_from(real_size).map_err(|_| TarProblem::Number { field: "real size" })?;
        Ok((&self.block[386..482], self.block[482] != 0, real_size))
    }

    fn number(&self, range: std::ops::Range<usize>, field: &'static str) -> Result<i64, TarProblem> {
        number::field(&self.block[range]).ok_or(TarProblem::Number { field })
    }

    fn owner(&self, range: std::ops::Range<usize>, field: &'static str) -> Result<u32, TarProblem> {
        u32::try_from(self.number(range, field)?).map_err(|_| TarProblem::Number { field })
    }
}

/// The device number, if Linux can keep it.
pub(in crate::layer) fn checked_device(major: u64, minor: u64) -> Option<DeviceNumber> {
    let major = u32::try_from(major).ok().filter(|major| *major <= MAX_MAJOR)?;
    let minor = u32::try_from(minor).ok().filter(|minor| *minor <= MAX_MINOR)?;
    Some(DeviceNumber { major, minor })
}

/// Whether the bytes begin with a header.
pub(in crate::layer) fn is_header(start: &[u8]) -> bool {
    start
        .first_chunk::<BLOCK_BYTES>()
        .is_some_and(|block| Header::parse(block).is_ok())
}

/// A text field: up to the first NUL, or all of it.
pub(super) fn text(field: &[u8]) -> &[u8] {
    field.split(|&byte| byte == 0).next().unwrap_or_default()
}
