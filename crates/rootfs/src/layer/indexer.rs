//! From a layer's bytes to its index and its pack, in one pass.

use std::{
    io::{Read, Write},
    thread,
};

use super::{
    Body, Entry, EntryKind, LayerError, LayerIndex, LayerLimits,
    budget::Budget,
    error::Fault,
    limits::Limit,
    pack_writer::{PackWriter, WriteFault},
    stream::Stream,
    tar::{ByteSource, Member, MemberKind, Segment, TarReader},
};

/// Reads a layer and writes the bodies of its files to `pack`.
///
/// `input` is gzip, zstd or plain tar, told by its first bytes; it may block while the layer downloads. It is read to
/// its end, behind the end of the archive, because the `diff_id` covers every decompressed byte. Nothing is trusted and
/// nothing compared: the caller checks [`LayerIndex::diff_id`] against the image's configuration, and the blob's
/// digest, before it uses index or pack.
///
/// `pack` is written in ascending order, in pieces of 128 KiB and more where files are that large; it is flushed but not
/// synchronised. After an error its content means nothing.
///
/// Memory grows with the entries of the layer, not with its bytes, up to
/// [`max_index_bytes`](LayerLimits::max_index_bytes) plus a few MiB, or what the window of a zstd frame takes (at most
/// 128 MiB). SHA-256 runs in a thread of its own where one can be had.
///
/// An entry for a hard link keeps the metadata of its own header; paths are as they stand in the archive.
///
/// # Errors
/// See [`LayerError`]; [`LayerError::kind`] tells faults of the layer from those of `input` and `pack`.
pub fn index_layer(
    input: impl Read,
    pack: &mut impl Write,
    limits: &LayerLimits,
) -> Result<LayerIndex, LayerError> {
    thread::scope(|scope| {
        let mut reader = TarReader::new(Stream::open(input, limits, scope)?, limits);
        let mut indexer = Indexer {
            pack: PackWriter::new(pack, limits),
            budget: Budget::new(limits),
            entries: Vec::new(),
        };
        while let Some(member) = reader.next_member()? {
            indexer.add(&mut reader, member, limits)?;
        }
        let (diff_id, uncompressed_size_bytes) = reader.into_source().finish()?;
        let pack_size_bytes = indexer.pack.finish()?;
        Ok(LayerIndex {
            diff_id,
            uncompressed_size_bytes,
            pack_size_bytes,
            entries: indexer.entries,
        })
    })
}

struct Indexer<'w, W> {
    pack: PackWriter<'w, W>,
    budget: Budget,
    entries: Vec<Entry>,
}

impl<W: Write> Indexer<'_, W> {
    fn add<S: ByteSource>(
        &mut self,
        reader: &mut TarReader<'_, S>,
        member: Member,
        limits: &LayerLimits,
    ) -> Result<(), LayerError> {
        Fault::check(Limit::Entries, self.entries.len() + 1, limits.max_entries)
            .map_err(|fault| reader.fault(fault))?;
        let Member { path, kind, metadata } = member;
        let (kind, file) = match kind {
            MemberKind::File { size_bytes, segments } => (
                EntryKind::File(Body {
                    size: size_bytes,
                    extents: Vec::new(),
                }),
                Some(segments),
            ),
            MemberKind::Directory => (EntryKind::Directory, None),
            MemberKind::Symlink(target) => (EntryKind::Symlink(target), None),
            MemberKind::HardLink(target) => (EntryKind::HardLink(target), None),
            MemberKind::CharacterDevice(number) => (EntryKind::CharacterDevice(number), None),
            MemberKind::BlockDevice(number) => (EntryKind::BlockDevice(number), None),
            MemberKind::Fifo => (EntryKind::Fifo, None),
        };
        let mut entry = Entry { path, kind, metadata };
        self.budget
            .charge_entry(&entry)
            .map_err(|fault| reader.fault(fault))?;
        if let (EntryKind::File(body), Some(segments)) = (&mut entry.kind, file) {
            self.copy_body(reader, body, segments)?;
        }
        self.entries.push(entry);
        Ok(())
    }

    /// Copies the current member's body to the pack.
    fn copy_body<S: ByteSource>(
        &mut self,
        reader: &mut TarReader<'_, S>,
        body: &mut Body,
        segments: Option<Vec<Segment>>,
    ) -> Result<(), LayerError> {
        let segments = segments.unwrap_or_else(|| {
            vec![Segment {
                offset: 0,
                length: body.size,
            }]
        });
        let mut writer = self.pack.body(body.size, &mut self.budget);
        for Segment {
            mut offset,
            mut length,
        } in segments
        {
            // Ends because each round uses up bytes of the body, and the reader reports a body that ends too early.
            while length > 0 {
                let piece = reader.body()?;
                let count = usize::try_from(length).map_or(piece.len(), |length| length.min(piece.len()));
                if let Err(fault) = writer.write(offset, &piece[..count]) {
                    return Err(located(reader, fault));
                }
                reader.consume_body(count);
                offset += count as u64;
                length -= count as u64;
            }
        }
        body.extents = writer.finish().map_err(|fault| located(reader, fault))?;
        Ok(())
    }
}

fn located<S: ByteSource>(reader: &TarReader<'_, S>, fault: WriteFault) -> LayerError {
    match fault {
        WriteFault::Entry(fault) => reader.fault(fault),
        WriteFault::Pack(error) => error,
    }
}
