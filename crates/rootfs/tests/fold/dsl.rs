//! Layers as code, and trees as short text.
//!
//! A file's content is its size: two files of different sizes are different files, and that is enough for a fold.

use rootfs::{
    DeviceNumber, Inode, InodeId, InodeKind, Metadata, Timestamp, Tree,
    fold::{FoldError, FoldErrorKind, FoldLimits, Folded, Folder, Mode, NoteKind},
    layer::{Body, Entry, EntryKind, LayerIndex},
    pack::PackId,
};

/// What entries are dated unless a test says otherwise. Directories that nobody named are dated 0 and so stand out.
pub(crate) const MTIME: i64 = 1000;

pub(crate) const BOTH: [Mode; 2] = [Mode::Oci, Mode::Docker];

/// A layer being written down. The setters change the last entry.
#[derive(Clone, Debug, Default)]
pub(crate) struct Layer {
    pub(crate) entries: Vec<Entry>,
}

pub(crate) fn layer() -> Layer {
    Layer::default()
}

impl Layer {
    pub(crate) fn entry(mut self, path: impl AsRef<[u8]>, mode: u16, kind: EntryKind) -> Self {
        let metadata = Metadata {
            mtime: Timestamp::from_seconds(MTIME),
            ..Metadata::root(mode)
        };
        self.entries.push(Entry {
            path: path.as_ref().to_vec(),
            kind,
            metadata,
        });
        self
    }

    pub(crate) fn dir(self, path: impl AsRef<[u8]>) -> Self {
        self.entry(path, 0o755, EntryKind::Directory)
    }

    pub(crate) fn file(self, path: impl AsRef<[u8]>, size: u64) -> Self {
        self.entry(
            path,
            0o644,
            EntryKind::File(Body {
                size,
                extents: Vec::new(),
            }),
        )
    }

    pub(crate) fn symlink(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(path, 0o777, EntryKind::Symlink(target.as_ref().to_vec()))
    }

    pub(crate) fn link(self, path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        self.entry(path, 0o644, EntryKind::HardLink(target.as_ref().to_vec()))
    }

    pub(crate) fn char(self, path: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        self.entry(
            path,
            0o644,
            EntryKind::CharacterDevice(DeviceNumber { major, minor }),
        )
    }

    pub(crate) fn block(self, path: impl AsRef<[u8]>, major: u32, minor: u32) -> Self {
        self.entry(path, 0o644, EntryKind::BlockDevice(DeviceNumber { major, minor }))
    }

    pub(crate) fn fifo(self, path: impl AsRef<[u8]>) -> Self {
        self.entry(path, 0o644, EntryKind::Fifo)
    }

    /// An empty regular file: what a whiteout should be.
    pub(crate) fn whiteout(self, path: impl AsRef<[u8]>) -> Self {
        self.file(path, 0)
    }

    fn last(&mut self) -> &mut Metadata {
        &mut self
            .entries
            .last_mut()
            .expect("a setter follows an entry")
            .metadata
    }

    pub(crate) fn mode(mut self, mode: u16) -> Self {
        self.last().mode = mode;
        self
    }

    pub(crate) fn owner(mut self, uid: u32, gid: u32) -> Self {
        (self.last().uid, self.last().gid) = (uid, gid);
        self
    }

    pub(crate) fn mtime(mut self, seconds: i64, nanoseconds: u32) -> Self {
        self.last().mtime = Timestamp { seconds, nanoseconds };
        self
    }

    pub(crate) fn xattr(mut self, name: &str, value: impl AsRef<[u8]>) -> Self {
        self.last()
            .xattrs
            .insert(name.as_bytes().to_vec(), value.as_ref().to_vec());
        self
    }

    pub(crate) fn index(&self) -> LayerIndex {
        LayerIndex {
            diff_id: [0; 32],
            uncompressed_size_bytes: 0,
            pack_size_bytes: 0,
            entries: self.entries.clone(),
        }
    }
}

pub(crate) fn fold_with(mode: Mode, limits: FoldLimits, layers: &[Layer]) -> Result<Folded, FoldError> {
    let mut folder = Folder::new(mode, limits);
    for (position, layer) in layers.iter().enumerate() {
        folder.apply(&layer.index(), PackId(u32::try_from(position).unwrap()))?;
        folder.tree().check().unwrap();
    }
    let folded = folder.finish();
    verify_accounting(&folded);
    Ok(folded)
}

/// What the layers say they did must add up to what is there.
fn verify_accounting(folded: &Folded) {
    let usage = folded.tree.usage();
    let (mut names, mut bytes) = (0, 0);
    for changes in &folded.report.layers {
        names = names + changes.entries_added - changes.entries_removed;
        bytes = bytes + changes.bytes_added - changes.bytes_replaced - changes.bytes_removed;
    }
    assert_eq!(
        (names, bytes),
        (usage.names, usage.file_bytes),
        "{:?}",
        folded.report.layers
    );
}

pub(crate) fn fold(mode: Mode, layers: &[Layer]) -> Folded {
    fold_with(mode, FoldLimits::default(), layers).unwrap_or_else(|error| panic!("{mode:?}: {error}"))
}

/// The tree as short lines: `dir/`, `file SIZE`, `link -> target`, and whatever is not as usual.
pub(crate) fn show(tree: &Tree) -> Vec<String> {
    let mut lines = Vec::new();
    let mut first: std::collections::HashMap<InodeId, String> = std::collections::HashMap::new();
    for (path, id) in tree.walk() {
        let path = path.escape_ascii().to_string();
        let inode = tree.inode(id);
        let Inode {
            metadata,
            kind,
            names,
        } = inode;
        let (mut line, usual_mode) = match kind {
            InodeKind::Directory(_) => (format!("{path}/"), 0o755),
            InodeKind::File(content) => (format!("{path} {}", content.size_bytes), 0o644),
            InodeKind::Symlink(target) => (format!("{path} -> {}", target.escape_ascii()), 0o777),
            InodeKind::CharacterDevice(device) => {
                (format!("{path} char {}:{}", device.major, device.minor), 0o644)
            }
            InodeKind::BlockDevice(device) => {
                (format!("{path} block {}:{}", device.major, device.minor), 0o644)
            }
            InodeKind::Fifo => (format!("{path} fifo"), 0o644),
        };
        if *metadata == Metadata::root(0o755) && kind.is_directory() {
            line.push_str(" implied");
        } else {
            if metadata.mode != usual_mode {
                line.push_str(&format!(" {:o}", metadata.mode));
            }
            if (metadata.uid, metadata.gid) != (0, 0) {
                line.push_str(&format!(" {}:{}", metadata.uid, metadata.gid));
            }
            if metadata.mtime != Timestamp::from_seconds(MTIME) {
                line.push_str(&format!(
                    " @{}.{:09}",
                    metadata.mtime.seconds, metadata.mtime.nanoseconds
                ));
            }
        }
        for (name, value) in &metadata.xattrs {
            line.push_str(&format!(" {}={}", name.escape_ascii(), value.escape_ascii()));
        }
        if *names > 1 {
            let first = first.entry(id).or_insert_with(|| path.clone());
            line.push_str(&format!(" [{names} of {first}]"));
        }
        lines.push(line);
    }
    if lines[0] == "/ implied" {
        lines.remove(0);
    }
    lines
}

#[track_caller]
pub(crate) fn expect(mode: Mode, layers: &[Layer], expected: &[&str]) {
    assert_eq!(show(&fold(mode, layers).tree), expected, "mode {mode:?}");
}

#[track_caller]
pub(crate) fn expect_both(layers: &[Layer], expected: &[&str]) {
    for mode in BOTH {
        expect(mode, layers, expected);
    }
}

/// Both modes refuse the last layer at that entry.
#[track_caller]
pub(crate) fn refuse(mode: Mode, layers: &[Layer], path: impl AsRef<[u8]>, kind: FoldErrorKind) {
    let error = fold_with(mode, FoldLimits::default(), layers).expect_err("the layers are refused");
    assert_eq!(
        error,
        FoldError {
            layer: layers.len(),
            path: path.as_ref().to_vec(),
            kind
        },
        "mode {mode:?}"
    );
}

#[track_caller]
pub(crate) fn refuse_both(layers: &[Layer], path: impl AsRef<[u8]>, kind: FoldErrorKind) {
    for mode in BOTH {
        refuse(mode, layers, path.as_ref(), kind.clone());
    }
}

/// The kinds of notes that the report has, with their paths.
pub(crate) fn notes(mode: Mode, layers: &[Layer]) -> Vec<(String, NoteKind)> {
    let report = fold(mode, layers).report;
    report
        .notes
        .into_iter()
        .map(|note| (note.path.escape_ascii().to_string(), note.kind))
        .collect()
}

pub(crate) fn note(path: &str, kind: NoteKind) -> (String, NoteKind) {
    (path.to_owned(), kind)
}
