//! What the path of an entry says before any tree is looked at.

use super::{FoldErrorKind, FoldLimits};
use crate::tree::MAX_NAME_BYTES;

const WHITEOUT_PREFIX: &[u8] = b".wh.";
const AUFS_PREFIX: &[u8] = b".wh..wh.";
const OPAQUE_MARKER: &[u8] = b".wh..wh..opq";
pub(super) const AUFS_LINKS: &[u8] = b".wh..wh.plnk";

/// What an entry is there for, by its path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role<'a> {
    /// An entry for the root itself.
    Root,
    /// An ordinary entry.
    Ordinary,
    /// Removes that name from the directory that the other components lead to.
    Whiteout(&'a [u8]),
    /// Removes everything from the directory that the other components lead to.
    Opaque,
    /// Something that AUFS left at the root.
    AufsRemains,
    /// A whiteout name in the middle of the path.
    InWhiteout,
}

/// Splits a path into components and takes `..` lexically, stopping at the root. Says whether there was a `..`.
///
/// `components` is cleared first.
pub(super) fn normalise<'a>(
    path: &'a [u8],
    limits: &FoldLimits,
    components: &mut Vec<&'a [u8]>,
) -> Result<bool, FoldErrorKind> {
    components.clear();
    if path.contains(&0) {
        return Err(FoldErrorKind::NulByte);
    }
    if path.len() > limits.max_path_bytes {
        return Err(FoldErrorKind::PathTooLong {
            length: path.len(),
            limit: limits.max_path_bytes,
        });
    }
    let mut climbs = false;
    for component in path.split(|&byte| byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                climbs = true;
                components.pop();
            }
            _ => components.push(component),
        }
    }
    if components.len() > limits.max_depth {
        return Err(FoldErrorKind::TooDeep {
            limit: limits.max_depth,
        });
    }
    for component in &*components {
        // The name that a whiteout stands for counts: 255 bytes can be whited out.
        let name = component.strip_prefix(WHITEOUT_PREFIX).unwrap_or(component);
        if name.len() > MAX_NAME_BYTES {
            return Err(FoldErrorKind::NameTooLong { length: name.len() });
        }
    }
    Ok(climbs)
}

/// What an entry with these components is there for.
pub(super) fn role<'a>(components: &[&'a [u8]]) -> Result<Role<'a>, FoldErrorKind> {
    let Some((&last, parents)) = components.split_last() else {
        return Ok(Role::Root);
    };
    if components[0].starts_with(AUFS_PREFIX) && components != [OPAQUE_MARKER] {
        return Ok(Role::AufsRemains);
    }
    if parents.iter().any(|parent| parent.starts_with(WHITEOUT_PREFIX)) {
        return Ok(Role::InWhiteout);
    }
    if last == OPAQUE_MARKER {
        return Ok(Role::Opaque);
    }
    match last.strip_prefix(WHITEOUT_PREFIX) {
        Some(b"" | b"." | b"..") => Err(FoldErrorKind::EmptyWhiteout),
        Some(name) => Ok(Role::Whiteout(name)),
        None => Ok(Role::Ordinary),
    }
}

/// Whether a directory entry of that name cannot exist in a layer.
pub(super) fn is_whiteout_name(name: &[u8]) -> bool {
    name.starts_with(WHITEOUT_PREFIX)
}
