//! Archives made by hand, byte for byte, apart from the reader that they test.

use super::{Entry, EntryKind, LayerError, LayerIndex, LayerLimits, index_layer};

/// Bytes of a header that is a plain file, 0644, owned by 1:2, dated 1000, until something is set.
#[derive(Clone, Copy)]
pub(super) struct Header(pub(super) [u8; 512]);

impl Header {
    pub(super) fn ustar(type_flag: u8, name: &[u8]) -> Self {
        Self::v7(type_flag, name)
            .bytes(257, b"ustar\x0000")
            .text(329, 8, b"0000000")
            .text(337, 8, b"0000000")
    }

    pub(super) fn gnu(type_flag: u8, name: &[u8]) -> Self {
        Self::v7(type_flag, name).bytes(257, b"ustar  \0")
    }

    pub(super) fn v7(type_flag: u8, name: &[u8]) -> Self {
        Self([0; 512])
            .text(0, 100, name)
            .octal(100, 8, 0o644)
            .octal(108, 8, 1)
            .octal(116, 8, 2)
            .octal(124, 12, 0)
            .octal(136, 12, 1000)
            .bytes(156, &[type_flag])
    }

    pub(super) fn bytes(mut self, offset: usize, bytes: &[u8]) -> Self {
        self.0[offset..offset + bytes.len()].copy_from_slice(bytes);
        self
    }

    /// A text field, filled with NULs.
    pub(super) fn text(mut self, offset: usize, length: usize, text: &[u8]) -> Self {
        self.0[offset..offset + length].fill(0);
        self.bytes(offset, text)
    }

    pub(super) fn octal(self, offset: usize, length: usize, value: u64) -> Self {
        let digits = format!("{value:0width$o}", width = length - 1);
        assert!(digits.len() < length, "{value} does not fit {length} bytes");
        self.text(offset, length, digits.as_bytes())
    }

    /// Two's complement with the first bit set.
    pub(super) fn base_256(self, offset: usize, length: usize, value: i64) -> Self {
        let mut bytes = vec![if value < 0 { 0xff } else { 0 }; length];
        bytes[length - 8..].copy_from_slice(&value.to_be_bytes());
        bytes[0] |= 0x80;
        self.bytes(offset, &bytes)
    }

    pub(super) fn mode(self, mode: u64) -> Self {
        self.octal(100, 8, mode)
    }

    pub(super) fn size(self, size: u64) -> Self {
        self.octal(124, 12, size)
    }

    pub(super) fn link(self, target: &[u8]) -> Self {
        self.text(157, 100, target)
    }

    pub(super) fn device(self, major: u64, minor: u64) -> Self {
        self.octal(329, 8, major).octal(337, 8, minor)
    }

    /// The block with its checksum.
    pub(super) fn build(mut self) -> [u8; 512] {
        self.0[148..156].fill(b' ');
        let sum: u64 = self.0.iter().map(|byte| u64::from(*byte)).sum();
        self.octal(148, 7, sum).bytes(155, b" ").0
    }
}

/// An archive under construction.
#[derive(Clone, Default)]
pub(super) struct Archive(pub(super) Vec<u8>);

impl Archive {
    pub(super) fn new() -> Self {
        Self::default()
    }

    pub(super) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }

    /// A header alone.
    pub(super) fn header(self, header: Header) -> Self {
        self.raw(&header.build())
    }

    /// A header, and a body filled up to a whole block. The header's size is not touched.
    pub(super) fn with_body(self, header: Header, body: &[u8]) -> Self {
        let mut archive = self.header(header).raw(body);
        archive.0.resize(archive.0.len().next_multiple_of(512), 0);
        archive
    }

    pub(super) fn file(self, name: &[u8], body: &[u8]) -> Self {
        self.with_body(Header::ustar(b'0', name).size(body.len() as u64), body)
    }

    pub(super) fn pax(self, records: &[(&str, &[u8])]) -> Self {
        self.extension(b'x', &pax_records(records))
    }

    /// A header of type `x`, `g`, `L` or `K` and its body.
    pub(super) fn extension(self, type_flag: u8, body: &[u8]) -> Self {
        self.with_body(
            Header::ustar(type_flag, b"extension").size(body.len() as u64),
            body,
        )
    }

    /// The archive with its end.
    pub(super) fn end(self) -> Vec<u8> {
        self.raw(&[0; 1024]).0
    }
}

/// `LENGTH KEYWORD=VALUE\n` for each.
pub(super) fn pax_records(records: &[(&str, &[u8])]) -> Vec<u8> {
    records
        .iter()
        .flat_map(|(keyword, value)| pax_record(keyword.as_bytes(), value))
        .collect()
}

pub(super) fn pax_record(keyword: &[u8], value: &[u8]) -> Vec<u8> {
    let content = [b" ", keyword, b"=", value, b"\n"].concat();
    // The length counts its own digits.
    let mut length = content.len() + 1;
    while length != content.len() + length.to_string().len() {
        length = content.len() + length.to_string().len();
    }
    [length.to_string().as_bytes(), &content].concat()
}

/// An index and its pack.
#[derive(Debug)]
pub(super) struct Indexed {
    pub(super) index: LayerIndex,
    pub(super) pack: Vec<u8>,
}

impl Indexed {
    pub(super) fn content(&self, entry: &Entry) -> Vec<u8> {
        let EntryKind::File(body) = &entry.kind else {
            panic!("not a file")
        };
        let mut content = vec![0; usize::try_from(body.size).unwrap()];
        for extent in &body.extents {
            let at = |offset: u64| usize::try_from(offset).unwrap();
            content[at(extent.logical_offset)..at(extent.logical_offset + extent.length)]
                .copy_from_slice(&self.pack[at(extent.pack_offset)..at(extent.pack_offset + extent.length)]);
        }
        content
    }

    /// One entry a line: kind, path, and what is most often looked at. Content longer than 40 bytes stands as its
    /// length.
    pub(super) fn lines(&self) -> Vec<String> {
        self.index
            .entries
            .iter()
            .map(|entry| {
                let path = entry.path.escape_ascii();
                match &entry.kind {
                    EntryKind::Directory => format!("dir {path}"),
                    EntryKind::File(body) if body.size > 40 => format!("file {path} {} bytes", body.size),
                    EntryKind::File(_) => format!("file {path} {}", self.content(entry).escape_ascii()),
                    EntryKind::Symlink(target) => format!("symlink {path} {}", target.escape_ascii()),
                    EntryKind::HardLink(target) => format!("link {path} {}", target.escape_ascii()),
                    EntryKind::CharacterDevice(number) => {
                        format!("char {path} {}:{}", number.major, number.minor)
                    }
                    EntryKind::BlockDevice(number) => {
                        format!("block {path} {}:{}", number.major, number.minor)
                    }
                    EntryKind::Fifo => format!("fifo {path}"),
                }
            })
            .collect()
    }
}

pub(super) fn index(layer: &[u8]) -> Result<Indexed, LayerError> {
    index_with(layer, &LayerLimits::default())
}

pub(super) fn index_with(layer: &[u8], limits: &LayerLimits) -> Result<Indexed, LayerError> {
    let mut pack = Vec::new();
    let index = index_layer(layer, &mut pack, limits)?;
    assert_eq!(index.pack_size_bytes, pack.len() as u64);
    Ok(Indexed { index, pack })
}

/// Message and causes in one line, which is what a person would see.
pub(super) fn message(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        message.push_str(": ");
        message.push_str(&cause.to_string());
        source = cause.source();
    }
    message
}
