//! What a fold noticed and counted.

use std::fmt;

use super::FoldLimits;

/// Most bytes of all paths of the notes of one sort: without this bound, a layer could ask for 100,000 paths of 4,096
/// bytes. It allows for 100,000 paths of 671 bytes.
const MAX_PATH_BYTES_OF_NOTES: usize = 64 << 20;

/// What was noticed while folding, and what each layer did.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Entries for which the modes differ or with which a layer breaks the specification, in the order in which they
    /// were met. Those for which the modes differ have room of their own
    /// ([`FoldLimits::max_difference_notes`](super::FoldLimits::max_difference_notes)), so that no number of harmless
    /// ones ([`FoldLimits::max_notes`](super::FoldLimits::max_notes)) crowds them out.
    pub notes: Vec<Note>,
    /// How many notes were left out for want of room, of both sorts.
    pub notes_omitted: u64,
    /// How many of the notes that were left out are about a difference between the modes. Zero means that
    /// [`notes`](Self::notes) names every such entry.
    pub differences_omitted: u64,
    /// What each layer did, the bottom one first.
    pub layers: Vec<LayerChanges>,
    differences: Room,
    others: Room,
}

/// How many more notes of one sort are kept, and how many more bytes of their paths.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Room {
    notes: usize,
    path_bytes: usize,
}

/// Something to know about one entry of a layer.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Note {
    /// Which layer, counted from 1 at the bottom.
    pub layer: usize,
    /// The path of the entry as the layer has it, not necessarily UTF-8.
    pub path: Vec<u8>,
    /// What it is about.
    pub kind: NoteKind,
}

/// What a [`Note`] is about. Its `Display` is a sentence for a log.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum NoteKind {
    /// The layer has more than one entry for this path; the last one counts.
    Duplicate,
    /// A parent is a symbolic link of a lower layer. The modes differ.
    ParentIsSymlink {
        /// Whether the entry was written through the link ([`Mode::Oci`](super::Mode::Oci)); otherwise the link was
        /// replaced by a directory.
        followed: bool,
    },
    /// A parent was there as something that is no directory, and was replaced by one.
    ParentReplaced,
    /// A directory of this layer took the place of a symbolic link of a lower layer, and hides what the link led to.
    SymlinkReplaced,
    /// A whiteout below a symbolic link of a lower layer. The modes differ.
    WhiteoutThroughSymlink,
    /// A whiteout that is no empty regular file.
    WhiteoutType,
    /// A whiteout name in the middle of the path; the entry was skipped.
    InWhiteout,
    /// An entry for the root that says something else than the lower layers. The modes differ.
    Root {
        /// Whether it was applied ([`Mode::Oci`](super::Mode::Oci)); otherwise it was ignored.
        applied: bool,
    },
    /// A hard link's own header differs from its target. The modes differ.
    LinkMetadata {
        /// Whether the link's header was applied ([`Mode::Docker`](super::Mode::Docker)); otherwise it was ignored.
        applied: bool,
    },
    /// A hard link that stands before its target.
    LinkBeforeTarget,
    /// A hard link to a lower layer.
    LinkToLowerLayer,
    /// A hard link to a file of a lower layer whose name this layer removes or replaces.
    LinkToRemoved,
    /// The path has a `..`, which was taken lexically.
    ParentReference,
    /// Something that AUFS left; it was skipped.
    AufsRemains,
    /// A character device 0:0.
    WhiteoutDevice,
    /// An extended attribute was dropped.
    XattrDropped {
        /// Its name.
        name: Vec<u8>,
    },
}

/// What one layer did to the tree.
///
/// Bytes are sizes of regular files, holes included; a file with several names counts once. Over all layers,
/// `bytes_added - bytes_replaced - bytes_removed` is what the finished tree holds, and `entries_added -
/// entries_removed` is how many names it has. What a layer brings twice counts twice.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct LayerChanges {
    /// Names that were not there, implied directories included.
    pub entries_added: u64,
    /// Names that were there and are something else now, or have other attributes.
    pub entries_replaced: u64,
    /// Names that are gone: by whiteouts, and below directories that were replaced.
    pub entries_removed: u64,
    /// Bytes that this layer brought, or gave a new name.
    pub bytes_added: u64,
    /// Bytes that lost their last name because an entry took their place or that of a directory above them.
    pub bytes_replaced: u64,
    /// Bytes that lost their last name by a whiteout.
    pub bytes_removed: u64,
}

impl Report {
    pub(super) fn new(limits: &FoldLimits) -> Self {
        let room = |notes| Room {
            notes,
            path_bytes: MAX_PATH_BYTES_OF_NOTES,
        };
        Self {
            differences: room(limits.max_difference_notes),
            others: room(limits.max_notes),
            ..Self::default()
        }
    }

    pub(super) fn note(&mut self, layer: usize, path: &[u8], kind: NoteKind) {
        let is_difference = kind.modes_differ();
        let room = if is_difference {
            &mut self.differences
        } else {
            &mut self.others
        };
        if room.take(path) {
            self.notes.push(Note {
                layer,
                path: path.to_vec(),
                kind,
            });
        } else {
            self.notes_omitted += 1;
            self.differences_omitted += u64::from(is_difference);
        }
    }
}

impl Room {
    /// Takes the room of a note about `path`, if there is any left.
    fn take(&mut self, path: &[u8]) -> bool {
        let (Some(notes), Some(path_bytes)) =
            (self.notes.checked_sub(1), self.path_bytes.checked_sub(path.len()))
        else {
            return false;
        };
        *self = Self { notes, path_bytes };
        true
    }
}

impl NoteKind {
    /// Whether the two modes give different results for this entry.
    #[must_use]
    pub const fn modes_differ(&self) -> bool {
        matches!(
            self,
            Self::ParentIsSymlink { .. }
                | Self::WhiteoutThroughSymlink
                | Self::InWhiteout
                | Self::Root { .. }
                | Self::LinkMetadata { .. }
        )
    }
}

impl fmt::Display for Note {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "layer {}: {}: {}",
            self.layer,
            crate::text::printable(&self.path),
            self.kind
        )
    }
}

impl fmt::Display for NoteKind {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Duplicate => "the layer has several entries for this path; the last one counts",
            Self::ParentIsSymlink { followed: true } => {
                "a lower layer has a symbolic link in this path; the entry was written to where the link leads (Docker \
                 shows a directory in place of the link)"
            }
            Self::ParentIsSymlink { followed: false } => {
                "a lower layer has a symbolic link in this path; it was replaced by a directory (the OCI \
                 specification has the entry written to where the link leads)"
            }
            Self::ParentReplaced => "something in this path was no directory and was replaced by one",
            Self::SymlinkReplaced => {
                "this directory takes the place of a symbolic link of a lower layer; what the link led to is no longer \
                 found here"
            }
            Self::WhiteoutThroughSymlink => {
                "a whiteout below a symbolic link of a lower layer: by the OCI specification it removes what the link \
                 leads to, Docker shows a directory in place of the link"
            }
            Self::WhiteoutType => "a whiteout should be an empty regular file; it was taken as a whiteout all the same",
            Self::InWhiteout => "a directory cannot have a name that begins with \".wh.\"; the entry was skipped",
            Self::Root { applied: true } => {
                "the root's attributes were set by this entry (Docker ignores entries for the root)"
            }
            Self::Root { applied: false } => {
                "the entry for the root was ignored (by the OCI specification it sets the root's attributes)"
            }
            Self::LinkMetadata { applied: true } => {
                "the hard link's own owner, mode, time or attributes differ from its target and were given to the file \
                 (by the OCI specification they do not count)"
            }
            Self::LinkMetadata { applied: false } => {
                "the hard link's own owner, mode, time or attributes differ from its target and were ignored (Docker \
                 gives them to the file)"
            }
            Self::LinkBeforeTarget => "the hard link stands before its target; most tools refuse that",
            Self::LinkToLowerLayer => "the hard link's target is in a lower layer; some tools refuse that",
            Self::LinkToRemoved => {
                "the hard link's target is a file of a lower layer that this layer removes or replaces; the link keeps \
                 it"
            }
            Self::ParentReference => "the path has \"..\"; it was taken as text and cannot lead out of the image",
            Self::AufsRemains => "a file that AUFS keeps for itself was skipped",
            Self::WhiteoutDevice => {
                "a character device 0:0 was kept as a device; overlay file systems take it for a whiteout"
            }
            Self::XattrDropped { name } => {
                return write!(
                    formatter,
                    "the extended attribute {} was dropped: it has no meaning in an image",
                    crate::text::printable(name)
                );
            }
        })
    }
}
