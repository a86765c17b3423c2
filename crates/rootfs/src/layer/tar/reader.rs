//! From a stream of bytes to the members of an archive.

use crate::{
    DeviceNumber, Metadata,
    layer::{
        LayerError, LayerLimits,
        error::{Fault, TarProblem, cut},
        limits::Limit,
        tar::{BLOCK_BYTES, Block, header::Header, pax, sparse},
    },
};

pub(in crate::layer) use pax::check_xattrs;

/// Where an archive's bytes come from, in pieces of whatever length the source has at hand.
pub(in crate::layer) trait ByteSource {
    /// The next bytes; empty at the end.
    fn chunk(&mut self) -> Result<&[u8], LayerError>;
    /// Marks bytes of the current chunk as used.
    fn consume(&mut self, count: usize);
    /// How many bytes were used since the start.
    fn offset(&self) -> u64;
}

/// One entry, its body still to be read.
#[derive(Debug)]
pub(in crate::layer) struct Member {
    pub(in crate::layer) path: Vec<u8>,
    pub(in crate::layer) kind: MemberKind,
    pub(in crate::layer) metadata: Metadata,
}

#[derive(Debug, PartialEq, Eq)]
pub(in crate::layer) enum MemberKind {
    Directory,
    File {
        size_bytes: u64,
        /// What parts of the file the body holds; `None` for all of it.
        segments: Option<Vec<sparse::Segment>>,
    },
    Symlink(Vec<u8>),
    HardLink(Vec<u8>),
    CharacterDevice(DeviceNumber),
    BlockDevice(DeviceNumber),
    Fifo,
}

/// Reads members one after the other.
pub(in crate::layer) struct TarReader<'l, S> {
    source: S,
    limits: &'l LayerLimits,
    /// Bytes of the current body that were not read yet.
    body_bytes: u64,
    /// Bytes that fill the body's last block.
    padding_bytes: u64,
    /// Header offset and path of the current member, for errors.
    current: (u64, Vec<u8>),
    ended: bool,
}

/// Extensions that wait for the entry that they belong to.
#[derive(Default)]
struct Pending {
    pax: Option<pax::Extended>,
    long_path: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.pax.is_none() && self.long_path.is_none() && self.long_link.is_none()
    }
}

impl<'l, S: ByteSource> TarReader<'l, S> {
    pub(in crate::layer) fn new(source: S, limits: &'l LayerLimits) -> Self {
        Self {
            source,
            limits,
            body_bytes: 0,
            padding_bytes: 0,
            current: (0, Vec::new()),
            ended: false,
        }
    }

    /// The next member. `None` at the archive's end: two zero blocks, or the end of the stream between two members.
    pub(in crate::layer) fn next_member(&mut self) -> Result<Option<Member>, LayerError> {
        self.skip_body()?;
        let mut pending = Pending::default();
        // Ends because every round uses up a block of the source.
        while !self.ended {
            let offset = self.source.offset();
            self.current = (offset, Vec::new());
            let Some(block) = self.block()? else {
                if !pending.is_empty() {
                    return Err(self.truncated());
                }
                self.ended = true;
                break;
            };
            if is_zero(&block) {
                // One zero block and then the end of the stream is an end, too.
                if self.block()?.is_some_and(|second| !is_zero(&second)) {
                    return Err(self.fault(TarProblem::LoneZeroBlock));
                }
                self.ended = true;
                break;
            }
            let header = Header::parse(&block).map_err(|problem| self.fault(problem))?;
            // Of an extended header, this is a name that often hints at the entry's.
            self.current.1 = header.path();
            match header.type_flag() {
                b'x' => {
                    if pending.pax.is_some() {
                        return Err(self.fault(TarProblem::RepeatedExtension { what: "PAX headers" }));
                    }
                    let body = self.extension_body(&header)?;
                    match pax::Extended::parse(&body, self.limits) {
                        Ok(extended) => pending.pax = Some(extended),
                        Err(fault) => return Err(self.fault_before_entry(fault, &body)),
                    }
                }
                b'g' => {
                    if !pending.is_empty() {
                        return Err(self.fault(TarProblem::DanglingExtension));
                    }
                    let body = self.extension_body(&header)?;
                    pax::check_global(&body).map_err(|fault| self.fault(fault))?;
                }
                flag @ (b'L' | b'K') => {
                    let (slot, what) = if flag == b'L' {
                        (&mut pending.long_path, "GNU long names")
                    } else {
                        (&mut pending.long_link, "GNU long link targets")
                    };
                    if slot.is_some() {
                        return Err(self.fault(TarProblem::RepeatedExtension { what }));
                    }
                    let body = self.extension_body(&header)?;
                    *slot = Some(super::header::text(&body).to_vec());
                }
                _ => return self.member(&header, pending).map(Some),
            }
        }
        if pending.is_empty() {
            Ok(None)
        } else {
            Err(self.fault(TarProblem::DanglingExtension))
        }
    }

    /// The next bytes of the current member's body, for [`consume_body`](Self::consume_body); empty at its end.
    pub(in crate::layer) fn body(&mut self) -> Result<&[u8], LayerError> {
        if self.body_bytes == 0 {
            return Ok(&[]);
        }
        // Asked for twice because of the borrow checker; the second call is free.
        if self.source.chunk()?.is_empty() {
            return Err(self.truncated());
        }
        let chunk = self.source.chunk()?;
        let length = usize::try_from(self.body_bytes).map_or(chunk.len(), |length| length.min(chunk.len()));
        Ok(&chunk[..length])
    }

    /// Marks bytes of the body as used: at most as many as [`body`](Self::body) gave.
    pub(in crate::layer) fn consume_body(&mut self, count: usize) {
        self.source.consume(count);
        self.body_bytes -= count as u64;
    }

    /// The stream, behind the last byte that was used.
    pub(in crate::layer) fn into_source(self) -> S {
        self.source
    }

    /// An error about the current member.
    pub(in crate::layer) fn fault(&self, fault: impl Into<Fault>) -> LayerError {
        fault.into().at(self.current.0, &self.current.1)
    }

    /// An error in an extended header, with the path of the entry that it belongs to, if that can be had: from the
    /// header itself, or from the entry's own header, which comes next.
    fn fault_before_entry(&mut self, fault: Fault, body: &[u8]) -> LayerError {
        let path = pax::path(body).or_else(|| {
            let block = self.block().ok()??;
            Some(Header::parse(&block).ok()?.path())
        });
        if let Some(path) = path {
            self.current.1 = path;
        }
        self.fault(fault)
    }

    fn truncated(&self) -> LayerError {
        LayerError::TruncatedArchive {
            offset: self.source.offset(),
            path: cut(&self.current.1),
        }
    }

    /// Skips what is left of the body, and the padding. Padding that is cut off is no loss.
    fn skip_body(&mut self) -> Result<(), LayerError> {
        while self.body_bytes > 0 {
            let count = self.body()?.len();
            self.consume_body(count);
        }
        while self.padding_bytes > 0 {
            let available = self.source.chunk()?.len() as u64;
            let count = self.padding_bytes.min(available);
            if count == 0 {
                self.padding_bytes = 0;
            } else {
                self.source
                    .consume(usize::try_from(count).expect("less than one block"));
                self.padding_bytes -= count;
            }
        }
        Ok(())
    }

    /// The next block; `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<Block>, LayerError> {
        let mut block = [0; BLOCK_BYTES];
        let mut filled = 0;
        while filled < BLOCK_BYTES {
            let chunk = self.source.chunk()?;
            if chunk.is_empty() {
                return if filled == 0 {
                    Ok(None)
                } else {
                    Err(self.truncated())
                };
            }
            let count = chunk.len().min(BLOCK_BYTES - filled);
            block[filled..filled + count].copy_from_slice(&chunk[..count]);
            self.source.consume(count);
            filled += count;
        }
        Ok(Some(block))
    }

    /// Sets the size of the body that follows.
    fn expect_body(&mut self, size: u64) {
        self.body_bytes = size;
        self.padding_bytes = size.next_multiple_of(BLOCK_BYTES as u64) - size;
    }

    /// The whole body of an extended header.
    fn extension_body(&mut self, header: &Header<'_>) -> Result<Vec<u8>, LayerError> {
        let size = header.size().map_err(|problem| self.fault(problem))?;
        let allowed = self.limits.max_extended_header_bytes;
        if size > allowed {
            let limit = Limit::ExtendedHeaderBytes;
            return Err(self.fault(Fault::Limit {
                limit,
                value: size,
                allowed,
                attribute: None,
            }));
        }
        self.expect_body(size);
        let mut body = Vec::new();
        loop {
            let piece = self.body()?;
            if piece.is_empty() {
                break;
            }
            body.extend_from_slice(piece);
            let count = piece.len();
            self.consume_body(count);
        }
        self.skip_body()?;
        Ok(body)
    }

    /// The member that `header` begins.
    fn member(&mut self, header: &Header<'_>, pending: Pending) -> Result<Member, LayerError> {
        let Pending {
            pax,
            long_path,
            long_link,
        } = pending;
        let mut pax = pax.unwrap_or_default();
        let path = settle("path", pax.path.take(), long_path).map_err(|fault| self.fault(fault))?;
        // Sparse files in PAX form have a made-up name in their header and the right one here.
        if let Some(path) = pax.sparse.name.take().or(path) {
            self.current.1 = path;
        }
        check_path(&self.current.1, self.limits).map_err(|fault| self.fault(fault))?;
        let link =
            settle("link target", pax.link_path.take(), long_link).map_err(|fault| self.fault(fault))?;
        let sparse_version = pax.sparse.version().map_err(|fault| self.fault(fault))?;
        let metadata = metadata(header, &mut pax).map_err(|problem| self.fault(problem))?;
        let kind = match self.bodiless(header, link).map_err(|fault| self.fault(fault))? {
            Some(_) if sparse_version.is_some() => {
                return Err(self.fault(TarProblem::SparseMap {
                    reason: "the entry is not a file",
                }));
            }
            Some(kind) => kind,
            None => {
                let stored = pax.size.map_or_else(|| header.size(), Ok);
                let stored = stored.map_err(|problem| self.fault(problem))?;
                self.file(header, stored, sparse_version, &pax.sparse)?
            }
        };
        Ok(Member {
            path: self.current.1.clone(),
            kind,
            metadata,
        })
    }

    /// What an entry without a body is; `None` for a file.
    ///
    /// No body follows these, whatever their size says: so do Go, GNU tar and POSIX, and a reader that skips one loses
    /// step.
    fn bodiless(&self, header: &Header<'_>, link: Option<Vec<u8>>) -> Result<Option<MemberKind>, Fault> {
        let target = || {
            let target = link.unwrap_or_else(|| header.link_path().to_vec());
            if target.is_empty() {
                return Err(Fault::from(TarProblem::EmptyLink));
            }
            Fault::check(Limit::PathBytes, target.len(), self.limits.max_path_bytes)?;
            Ok(target)
        };
        Ok(Some(match header.type_flag() {
            // Before POSIX there was no type for directories: a trailing slash made one.
            0 if self.current.1.ends_with(b"/") => MemberKind::Directory,
            // 7 is a file that should lie in one piece on its disk, which means nothing here.
            0 | b'0' | b'7' | b'S' => return Ok(None),
            b'1' => MemberKind::HardLink(target()?),
            b'2' => MemberKind::Symlink(target()?),
            b'3' => MemberKind::CharacterDevice(header.device()?),
            b'4' => MemberKind::BlockDevice(header.device()?),
            b'5' => MemberKind::Directory,
            b'6' => MemberKind::Fifo,
            type_flag => return Err(TarProblem::UnsupportedType { type_flag }.into()),
        }))
    }

    /// A file with a body of `stored` bytes; reads the sparse map where it stands in the archive's body.
    fn file(
        &mut self,
        header: &Header<'_>,
        stored: u64,
        version: Option<sparse::Version>,
        records: &sparse::Records,
    ) -> Result<MemberKind, LayerError> {
        // Known before the body is read, so that a bomb costs nothing.
        let total = self.source.offset().saturating_add(stored);
        self.within(Limit::OutputBytes, total, self.limits.max_output_bytes)?;
        let max_segments = self.limits.max_sparse_segments;
        let (map, size_bytes) = match (header.type_flag(), version) {
            (b'S', Some(_)) => {
                return Err(self.fault(TarProblem::SparseMap {
                    reason: "it is given in two forms",
                }));
            }
            (b'S', None) => {
                let (map, size) = self.gnu_map(header)?;
                self.expect_body(stored);
                (map, size)
            }
            (_, Some(version)) => {
                let size = records.file_size().map_err(|fault| self.fault(fault))?;
                self.expect_body(stored);
                let map = match version {
                    sparse::Version::InHeader => records.header_map(max_segments),
                    sparse::Version::InBody => Ok(self.body_map()?),
                };
                (map.map_err(|fault| self.fault(fault))?, size)
            }
            (_, None) => {
                self.within(Limit::FileSizeBytes, stored, self.limits.max_file_size_bytes)?;
                self.expect_body(stored);
                return Ok(MemberKind::File {
                    size_bytes: stored,
                    segments: None,
                });
            }
        };
        self.within(Limit::FileSizeBytes, size_bytes, self.limits.max_file_size_bytes)?;
        let segments = map
            .finish(size_bytes, self.body_bytes)
            .map_err(|fault| self.fault(fault))?;
        Ok(MemberKind::File {
            size_bytes,
            segments: Some(segments),
        })
    }

    /// The map of a file of type `S`: four entries in the header, 21 in each block that follows while a flag says so.
    fn gnu_map(&mut self, header: &Header<'_>) -> Result<(sparse::Map, u64), LayerError> {
        let (piece, mut goes_on, size) = header.sparse().map_err(|problem| self.fault(problem))?;
        let mut map = sparse::Map::new(self.limits.max_sparse_segments);
        let mut ended = map.push_gnu(piece).map_err(|fault| self.fault(fault))?;
        // Ends because each block that does not end the map adds 21 segments to it, and these are limited.
        while goes_on {
            if ended {
                return Err(self.fault(TarProblem::SparseMap {
                    reason: "it goes on after its end",
                }));
            }
            let block = self.block()?.ok_or_else(|| self.truncated())?;
            ended = map.push_gnu(&block[..504]).map_err(|fault| self.fault(fault))?;
            goes_on = block[504] != 0;
        }
        Ok((map, size))
    }

    /// The map at the start of the body; what it takes is then no longer part of the body.
    fn body_map(&mut self) -> Result<sparse::Map, LayerError> {
        let mut map = sparse::BodyMap::new(self.limits.max_sparse_segments);
        loop {
            let Some(rest) = self.body_bytes.checked_sub(BLOCK_BYTES as u64) else {
                return Err(self.fault(TarProblem::SparseMap {
                    reason: "it is longer than the body",
                }));
            };
            let block = self.block()?.ok_or_else(|| self.truncated())?;
            self.body_bytes = rest;
            if map.push(&block).map_err(|fault| self.fault(fault))? {
                return Ok(map.finish());
            }
        }
    }

    fn within(&self, limit: Limit, value: u64, allowed: u64) -> Result<(), LayerError> {
        if value <= allowed {
            return Ok(());
        }
        Err(self.fault(Fault::Limit {
            limit,
            value,
            allowed,
            attribute: None,
        }))
    }
}

/// The header's fields, except those that PAX records replace: these may be anything.
fn metadata(header: &Header<'_>, pax: &mut pax::Extended) -> Result<Metadata, TarProblem> {
    Ok(Metadata {
        mode: header.mode()?,
        uid: pax.uid.map_or_else(|| header.uid(), Ok)?,
        gid: pax.gid.map_or_else(|| header.gid(), Ok)?,
        mtime: pax.mtime.map_or_else(|| header.mtime(), Ok)?,
        xattrs: std::mem::take(&mut pax.xattrs),
    })
}

/// The name that counts: PAX' or GNU's, which must not differ. GNU tar prefers the one, Go the other, so an archive that
/// has both shows different files to different readers.
fn settle(what: &'static str, pax: Option<Vec<u8>>, gnu: Option<Vec<u8>>) -> Result<Option<Vec<u8>>, Fault> {
    match (pax, gnu) {
        (Some(pax), Some(gnu)) if pax != gnu => Err(TarProblem::ConflictingNames { what }.into()),
        (pax, gnu) => Ok(pax.or(gnu)),
    }
}

/// Whether an entry may have this path.
pub(in crate::layer) fn check_path(path: &[u8], limits: &LayerLimits) -> Result<(), Fault> {
    if path.contains(&0) {
        return Err(TarProblem::Nul { field: "path" }.into());
    }
    Fault::check(Limit::PathBytes, path.len(), limits.max_path_bytes)?;
    let mut depth = 0;
    for component in path.split(|&byte| byte == b'/') {
        Fault::check(Limit::NameBytes, component.len(), limits.max_name_bytes)?;
        if !component.is_empty() && component != b"." {
            depth += 1;
        }
    }
    Fault::check(Limit::Depth, depth, limits.max_depth)
}

fn is_zero(block: &Block) -> bool {
    block.iter().all(|&byte| byte == 0)
}
