//! Strips the programs and libraries of a tree.

use std::{
    collections::{BTreeMap, HashSet},
    fs::File,
    io,
    os::unix::fs::FileExt as _,
    sync::Arc,
};

use rootfs::{
    InodeId, InodeKind, Tree,
    layer::BodyExtent,
    pack::{Pack, PackId, Packs},
    tree::{Content, FileContent},
};

use super::elf::{self, Left, NoPlan, Plan, ReadAt};

const BLOCK_BYTES: usize = 4096;

/// Bytes that are copied at once; a multiple of the block.
const COPY_BYTES: usize = 1 << 20;

/// What was done to the programs of a tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Stripped {
    pub(super) files: u64,
    pub(super) bytes: u64,
    pub(super) notes: Vec<String>,
}

/// Why a program was left as it is although it might have become smaller.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kept {
    Preserved,
    Signed,
    SelfChecked,
    Form(Left),
}

impl Kept {
    const fn reason(self) -> &'static str {
        match self {
            Self::Preserved => "preserve_paths names it",
            Self::Signed => "an attribute of it holds a signature or hash of its content",
            Self::SelfChecked => "a file beside it holds a hash of its content",
            Self::Form(left) => left.reason(),
        }
    }
}

/// Makes every program and library smaller that can be, in a pack that lies in `scratch`.
pub(super) fn strip(
    tree: &mut Tree,
    packs: &mut Packs,
    scratch: File,
    preserved: &HashSet<InodeId>,
) -> io::Result<Stripped> {
    let mut result = Stripped::default();
    let mut kept: BTreeMap<Kept, (u64, String)> = BTreeMap::new();
    let mut seen: HashSet<InodeId> = HashSet::new();
    let mut writer = Writer { scratch, position: 0 };
    // The tree cannot change while it is walked.
    let mut replaced: Vec<(InodeId, u64, Vec<BodyExtent>)> = Vec::new();
    for (path, id) in tree.walk() {
        let InodeKind::File(content) = &tree.inode(id).kind else {
            continue;
        };
        if !seen.insert(id) {
            continue;
        }
        let body = Body { content, packs };
        let plan = match elf::plan(&body) {
            Ok(plan) => plan,
            Err(NoPlan::Io(error)) => return Err(error),
            Err(NoPlan::Left(Left::NotElf | Left::OtherKind | Left::NothingToRemove)) => continue,
            Err(NoPlan::Left(left)) => {
                note(&mut kept, Kept::Form(left), &path);
                continue;
            }
        };
        let attributes = &tree.inode(id).metadata.xattrs;
        if preserved.contains(&id) {
            note(&mut kept, Kept::Preserved, &path);
        } else if attributes.contains_key(b"security.ima".as_slice())
            || attributes.contains_key(b"security.evm".as_slice())
        {
            note(&mut kept, Kept::Signed, &path);
        } else if is_self_checked(tree, &path) {
            note(&mut kept, Kept::SelfChecked, &path);
        } else {
            let extents = writer.write(&body, &plan)?;
            result.files += 1;
            result.bytes += content.size_bytes - plan.size;
            replaced.push((id, plan.size, extents));
        }
    }
    let pack = packs.push(Pack::File(Arc::new(writer.scratch)));
    for (id, size_bytes, extents) in replaced {
        tree.set_content(id, content_in(pack, size_bytes, extents));
    }
    for (why, (count, example)) in kept {
        result.notes.push(format!(
            "strip_debug_symbols leaves {count} as they are, {example} for one: {}",
            why.reason()
        ));
    }
    Ok(result)
}

fn content_in(pack: PackId, size_bytes: u64, extents: Vec<BodyExtent>) -> FileContent {
    FileContent {
        size_bytes,
        content: Content::Packed {
            pack,
            extents: extents.into(),
        },
    }
}

fn note(kept: &mut BTreeMap<Kept, (u64, String)>, why: Kept, path: &[u8]) {
    let entry = kept
        .entry(why)
        .or_insert_with(|| (0, format!("/{}", String::from_utf8_lossy(path))));
    entry.0 += 1;
}

/// Whether a library has its hash beside it, which its own start compares: `.libcrypto.so.hmac` of OpenSSL in FIPS mode,
/// `libsoftokn3.chk` of NSS.
fn is_self_checked(tree: &Tree, path: &[u8]) -> bool {
    let (directory, name) = match path.iter().rposition(|&byte| byte == b'/') {
        Some(slash) => path.split_at(slash + 1),
        None => (&path[..0], path),
    };
    let stem = name.strip_suffix(b".so").unwrap_or(name);
    [
        [directory, b".", name, b".hmac"].concat(),
        [directory, b"fipscheck/", name, b".hmac"].concat(),
        [directory, stem, b".chk"].concat(),
    ]
    .iter()
    .any(|beside| tree.lookup(beside).is_some())
}

/// A file of the tree, read at any offset.
pub(super) struct Body<'a> {
    pub(super) content: &'a FileContent,
    pub(super) packs: &'a Packs,
}

impl ReadAt for Body<'_> {
    fn size(&self) -> u64 {
        self.content.size_bytes
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let length = buffer.len() as u64;
        let end = offset
            .checked_add(length)
            .filter(|&end| end <= self.size())
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        match &self.content.content {
            Content::Inline(bytes) => {
                let start = usize::try_from(offset).map_err(|_| io::ErrorKind::UnexpectedEof)?;
                let from = bytes
                    .get(start..start + buffer.len())
                    .ok_or(io::ErrorKind::UnexpectedEof)?;
                buffer.copy_from_slice(from);
            }
            Content::Packed { pack, extents } => {
                buffer.fill(0);
                let pack = self.packs.get(*pack).ok_or(io::ErrorKind::NotFound)?;
                let first = extents.partition_point(|extent| extent.logical_offset + extent.length <= offset);
                for extent in &extents[first..] {
                    if extent.logical_offset >= end {
                        break;
                    }
                    let from = extent.logical_offset.max(offset);
                    let to = (extent.logical_offset + extent.length).min(end);
                    let place = |position: u64| usize::try_from(position - offset).unwrap_or(usize::MAX);
                    let part = &mut buffer[place(from)..place(to)];
                    pack.read_exact_at(part, extent.pack_offset + (from - extent.logical_offset))?;
                }
            }
        }
        Ok(())
    }
}

/// Appends bodies to a pack: whole blocks, those of zeros left out.
struct Writer {
    scratch: File,
    position: u64,
}

impl Writer {
    /// Writes the file that `plan` makes of `body`; gives its extents.
    fn write(&mut self, body: &Body<'_>, plan: &Plan) -> io::Result<Vec<BodyExtent>> {
        let mut extents: Vec<BodyExtent> = Vec::new();
        let mut buffer = vec![0; COPY_BYTES];
        let mut offset = 0;
        while offset < plan.size {
            let length = usize::try_from(plan.size - offset)
                .unwrap_or(usize::MAX)
                .min(COPY_BYTES);
            let chunk = &mut buffer[..length];
            compose(body, plan, offset, chunk)?;
            for (block, at) in chunk.chunks(BLOCK_BYTES).zip((offset..).step_by(BLOCK_BYTES)) {
                if block.iter().all(|&byte| byte == 0) {
                    continue;
                }
                self.scratch.write_all_at(block, self.position)?;
                match extents.last_mut() {
                    Some(last)
                        if last.logical_offset + last.length == at
                            && last.pack_offset + last.length == self.position =>
                    {
                        last.length += block.len() as u64;
                    }
                    _ => extents.push(BodyExtent {
                        logical_offset: at,
                        pack_offset: self.position,
                        length: block.len() as u64,
                    }),
                }
                self.position += BLOCK_BYTES as u64;
            }
            offset += length as u64;
        }
        // The last block of a body is padded with zeros.
        self.scratch.set_len(self.position)?;
        Ok(extents)
    }
}

/// Fills `chunk` with what the new file has from `offset` on.
fn compose(body: &Body<'_>, plan: &Plan, offset: u64, chunk: &mut [u8]) -> io::Result<()> {
    chunk.fill(0);
    let end = offset + chunk.len() as u64;
    for piece in &plan.pieces {
        let from = piece.to.max(offset);
        let to = (piece.to + piece.length).min(end);
        if from >= to {
            continue;
        }
        let place = |position: u64| usize::try_from(position - offset).unwrap_or(usize::MAX);
        let part = &mut chunk[place(from)..place(to)];
        body.read_exact_at(part, piece.from + (from - piece.to))?;
    }
    for patch in &plan.patches {
        let from = patch.at.max(offset);
        let to = (patch.at + patch.bytes.len() as u64).min(end);
        if from >= to {
            continue;
        }
        let place = |position: u64, start: u64| usize::try_from(position - start).unwrap_or(usize::MAX);
        let bytes = &patch.bytes[place(from, patch.at)..place(to, patch.at)];
        chunk[place(from, offset)..place(to, offset)].copy_from_slice(bytes);
    }
    Ok(())
}
