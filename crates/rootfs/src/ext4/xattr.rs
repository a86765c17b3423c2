//! Extended attributes: in the inode, and what does not fit there in one block.
//!
//! Layout (`fs/ext4/xattr.h`, `struct ext4_xattr_entry`), the same in both places: entries grow from the front and end
//! with a zero word, values grow from the back; everything is padded to 4 bytes.
//!
//! | offset | field | here |
//! |---|---|---|
//! | 0 | `e_name_len` u8 | of the name without its prefix |
//! | 1 | `e_name_index` u8 | which prefix |
//! | 2 | `e_value_offs` u16 | in the inode from the first entry, in a block from the block's start; 0 for an empty value |
//! | 4 | `e_value_inum` u32 | 0: values in inodes of their own (`ea_inode`) are not used |
//! | 8 | `e_value_size` u32 | unpadded |
//! | 12 | `e_hash` u32 | in a block the hash of name and value; in the inode 0, as the kernel has it |
//! | 16 | name | |
//!
//! In the inode a magic number precedes the entries. A block starts with 32 bytes (`struct ext4_xattr_header`): magic,
//! reference count, number of blocks (1), hash over the entries' hashes, checksum (over the block's number and the
//! block with a zero checksum), 12 reserved bytes. Entries of a block are sorted by prefix, length and name, in this
//! order, because the kernel searches them so (`xattr_find_entry`).
//!
//! A block may belong to several inodes. Inodes with equal attributes share one, up to the kernel's limit of 1,024
//! (`EXT4_XATTR_REFCOUNT_MAX`), in the order of inode numbers.

use super::{
    acl,
    checksum::Checksum,
    format::{BLOCK, BlockBytes, EXTRA_INODE_BYTES, INODE_BYTES, position, put_u16, put_u32},
};
use crate::Xattrs;

/// Most inodes that share one block.
pub(super) const MAX_SHARES: u32 = 1024;

/// Bytes of an inode after its fields.
const INODE_ROOM: usize = INODE_BYTES - 128 - EXTRA_INODE_BYTES as usize;

/// What fills those bytes: all zero, or the magic number and attributes.
pub(super) type InodeArea = [u8; INODE_ROOM];

/// `EXT4_XATTR_MAGIC`.
const MAGIC: u32 = 0xEA02_0000;
/// Bytes before the first entry of a block.
const BLOCK_HEADER: usize = 32;
/// Bytes for entries and values in the inode: less the magic number and the zero word.
const INODE_CAPACITY: usize = INODE_ROOM - 8;
/// The same in a block: less the header and the zero word.
const BLOCK_CAPACITY: usize = BLOCK - BLOCK_HEADER - 4;

/// Prefixes and their numbers (`EXT4_XATTR_INDEX_*`). What is not listed has no handler in the kernel's ext4, could
/// not be read in the guest, and is refused: `system.richacl` and `system.nfs4_acl` among others.
const PREFIXES: [(&[u8], u8); 3] = [(b"user.", 1), (b"trusted.", 4), (b"security.", 6)];
/// The two names that are numbers of their own, with an empty rest.
const ACLS: [(&[u8], u8); 2] = [(b"system.posix_acl_access", 2), (b"system.posix_acl_default", 3)];

/// An attribute that cannot be stored.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct XattrError {
    pub(super) reason: String,
}

/// The attributes of one inode, divided between inode and block.
#[derive(Debug)]
pub(super) struct Encoded {
    /// For the inode.
    pub(super) inode: InodeArea,
    /// For the block, if one is needed, with a reference count and a checksum of zero.
    pub(super) block: Option<Box<BlockBytes>>,
}

/// One attribute as it will be stored. The field order is the sort order.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Attribute<'a> {
    prefix: u8,
    name_length: u8,
    name: &'a [u8],
    value: Vec<u8>,
}

impl Attribute<'_> {
    /// Bytes of entry and value. Always a multiple of 4.
    fn size(&self) -> usize {
        16 + self.name.len().next_multiple_of(4) + self.value.len().next_multiple_of(4)
    }

    /// `ext4_xattr_hash_entry`. Bytes of the name count as unsigned, as in Linux since 6.2 and on ARM ever since.
    fn hash(&self) -> u32 {
        let name = self
            .name
            .iter()
            .fold(0u32, |hash, byte| hash.rotate_left(5) ^ u32::from(*byte));
        self.value.chunks(4).fold(name, |hash, bytes| {
            let mut word = [0; 4];
            word[..bytes.len()].copy_from_slice(bytes);
            hash.rotate_left(16) ^ u32::from_le_bytes(word)
        })
    }
}

/// Divides and encodes the attributes of one inode.
///
/// All go into the inode if they fit. Otherwise all go into a block if they fit; equal sets then share it. Otherwise
/// the inode takes the subset that fills it best. What fits in neither way fits in no way.
pub(super) fn encode(xattrs: &Xattrs) -> Result<Encoded, XattrError> {
    let attributes = attributes_of(xattrs)?;
    let total: usize = attributes.iter().map(Attribute::size).sum();
    let in_inode: Vec<bool> = if total <= INODE_CAPACITY {
        vec![true; attributes.len()]
    } else if total <= BLOCK_CAPACITY {
        vec![false; attributes.len()]
    } else {
        best_subset(&attributes)
    };
    let (inside, outside): (Vec<_>, Vec<_>) = attributes
        .iter()
        .zip(in_inode)
        .partition(|(_, is_inside)| *is_inside);
    let inside: Vec<&Attribute<'_>> = inside.into_iter().map(|(attribute, _)| attribute).collect();
    let outside: Vec<&Attribute<'_>> = outside.into_iter().map(|(attribute, _)| attribute).collect();

    let needed: usize = outside.iter().map(|attribute| attribute.size()).sum();
    if needed > BLOCK_CAPACITY {
        let largest = outside
            .iter()
            .max_by_key(|attribute| attribute.size())
            .map_or_else(String::new, |largest| {
                format!(
                    "; the largest is {} with {} bytes",
                    full_name(largest),
                    largest.value.len()
                )
            });
        return Err(XattrError {
            reason: format!(
                "its extended attributes take {total} bytes, the inode holds {INODE_CAPACITY} and one block \
                 {BLOCK_CAPACITY}{largest}"
            ),
        });
    }
    Ok(Encoded {
        inode: encode_inode(&inside),
        block: (!outside.is_empty()).then(|| encode_block(&outside)),
    })
}

/// Adds what depends on where a block lies: the reference count and the checksum.
pub(super) fn finish_block(block: &mut BlockBytes, number: u64, references: u32, file_system: Checksum) {
    put_u32(block, 4, references);
    put_u32(block, 16, 0);
    let sum = file_system.over(&number.to_le_bytes()).over(&block[..]);
    put_u32(block, 16, sum.value());
}

/// Splits names into prefix and rest, converts ACLs, sorts.
fn attributes_of(xattrs: &Xattrs) -> Result<Vec<Attribute<'_>>, XattrError> {
    let mut attributes = Vec::with_capacity(xattrs.len());
    for (full, value) in xattrs {
        let refuse = |reason: &str| XattrError {
            reason: format!(
                "its extended attribute {} cannot be stored: {reason}",
                full.escape_ascii()
            ),
        };
        if let Some((_, prefix)) = ACLS.iter().find(|(name, _)| name == full) {
            if let Some(value) = acl::to_disk(value).map_err(refuse)? {
                attributes.push(Attribute {
                    prefix: *prefix,
                    name_length: 0,
                    name: b"",
                    value,
                });
            }
            continue;
        }
        let (name, prefix) = PREFIXES
            .iter()
            .find_map(|(prefix, number)| Some((full.strip_prefix(*prefix)?, *number)))
            .ok_or_else(|| refuse("ext4 has no place for names of this kind"))?;
        let name_length = match u8::try_from(name.len()) {
            Ok(0) | Err(_) => return Err(refuse("the name needs 1 to 255 bytes after its prefix")),
            Ok(length) => length,
        };
        if name.contains(&0) {
            return Err(refuse("the name contains a NUL"));
        }
        if value.len() > BLOCK_CAPACITY {
            return Err(refuse(&format!(
                "its value has {} bytes, a block holds {BLOCK_CAPACITY}",
                value.len()
            )));
        }
        attributes.push(Attribute {
            prefix,
            name_length,
            name,
            value: value.clone(),
        });
    }
    attributes.sort_unstable();
    Ok(attributes)
}

/// Which attributes fill the inode best: the subset-sum problem over its few 4-byte units.
fn best_subset(attributes: &[Attribute<'_>]) -> Vec<bool> {
    const UNITS: usize = INODE_CAPACITY / 4;
    // Per reachable sum the attribute that reached it first and the sum before. Attributes are tried in order, so the
    // way back passes each at most once.
    let mut reached: [Option<(usize, usize)>; UNITS + 1] = [None; UNITS + 1];
    let is_reached =
        |reached: &[Option<(usize, usize)>; UNITS + 1], sum: usize| sum == 0 || reached[sum].is_some();
    for (attribute_index, attribute) in attributes.iter().enumerate() {
        let units = attribute.size() / 4;
        for sum in (units..=UNITS).rev() {
            if !is_reached(&reached, sum) && is_reached(&reached, sum - units) {
                reached[sum] = Some((attribute_index, sum - units));
            }
        }
    }
    let mut chosen = vec![false; attributes.len()];
    let mut sum = (0..=UNITS)
        .rev()
        .find(|sum| is_reached(&reached, *sum))
        .unwrap_or(0);
    while let Some((attribute_index, before)) = reached[sum] {
        chosen[attribute_index] = true;
        sum = before;
    }
    chosen
}

fn encode_inode(attributes: &[&Attribute<'_>]) -> InodeArea {
    let mut area = [0; INODE_ROOM];
    if !attributes.is_empty() {
        put_u32(&mut area, 0, MAGIC);
        write_entries(&mut area[4..], 0, attributes, false);
    }
    area
}

fn encode_block(attributes: &[&Attribute<'_>]) -> Box<BlockBytes> {
    let mut block = Box::new([0; BLOCK]);
    put_u32(&mut block[..], 0, MAGIC);
    put_u32(&mut block[..], 8, 1);
    // A block whose hash is 0 is never shared, and an entry whose hash is 0 makes the block's 0
    // (`ext4_xattr_rehash`).
    let hash = attributes
        .iter()
        .map(|attribute| attribute.hash())
        .try_fold(0u32, |hash, entry| {
            (entry != 0).then(|| hash.rotate_left(16) ^ entry)
        });
    put_u32(&mut block[..], 12, hash.unwrap_or(0));
    write_entries(&mut block[..], BLOCK_HEADER, attributes, true);
    block
}

/// Writes entries from `first` on and values from the back. Offsets count from the start of `area`.
fn write_entries(area: &mut [u8], first: usize, attributes: &[&Attribute<'_>], is_hashed: bool) {
    let mut entry = first;
    let mut values = area.len();
    for attribute in attributes {
        let length = attribute.value.len();
        if length > 0 {
            values -= length.next_multiple_of(4);
            area[values..values + length].copy_from_slice(&attribute.value);
            put_u16(
                area,
                entry + 2,
                u16::try_from(values).expect("an offset within a block fits 16 bits"),
            );
        }
        area[entry] = attribute.name_length;
        area[entry + 1] = attribute.prefix;
        put_u32(area, entry + 8, position(length));
        put_u32(area, entry + 12, if is_hashed { attribute.hash() } else { 0 });
        area[entry + 16..entry + 16 + attribute.name.len()].copy_from_slice(attribute.name);
        entry += 16 + attribute.name.len().next_multiple_of(4);
    }
    debug_assert!(entry + 4 <= values, "the capacity was checked");
}

/// The name with its prefix, for messages.
fn full_name(attribute: &Attribute<'_>) -> String {
    let prefix = PREFIXES
        .iter()
        .chain(&ACLS)
        .find_map(|(prefix, number)| (*number == attribute.prefix).then_some(*prefix))
        .unwrap_or_default();
    format!("{}{}", prefix.escape_ascii(), attribute.name.escape_ascii())
}

#[cfg(test)]
mod tests;
