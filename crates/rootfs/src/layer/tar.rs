//! Our own tar reader.
//!
//! It knows what image layers are made of: V7, ustar and star headers, PAX extended headers, GNU long names, GNU sparse
//! files in all four forms. Headers are parsed by functions over single 512-byte blocks ([`header`], [`pax`],
//! [`sparse`]); [`reader`] puts them together over a stream.
//!
//! Where readers disagree on what an archive says, this one follows Go's `archive/tar`, on which Docker and containerd
//! stand, so that nobody sees another file system than the one that runs elsewhere. Where no tool writes the ambiguous
//! form anyway, it is an error. Names are bytes throughout.

mod header;
mod number;
mod pax;
mod reader;
mod sparse;

pub(super) use header::{checked_device, is_header};
pub(super) use reader::{ByteSource, Member, MemberKind, TarReader, check_path, check_xattrs};
pub(super) use sparse::Segment;

/// Everything in an archive comes in blocks of so many bytes.
pub(super) const BLOCK_BYTES: usize = 512;

/// One block.
type Block = [u8; BLOCK_BYTES];
