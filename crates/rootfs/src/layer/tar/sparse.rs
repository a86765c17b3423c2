//! Sparse files: GNU's old form, and its PAX forms 0.0, 0.1 and 1.0.
//!
//! All four say which ranges of the file the archive holds; the ranges' bytes stand one after the other in the entry's
//! body. See "Storing Sparse Files" in GNU tar's manual.

use crate::layer::{
    error::{Fault, TarProblem},
    limits::Limit,
    tar::{Block, number},
};

/// A range of a sparse file that the archive holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::layer) struct Segment {
    /// Where it starts in the file.
    pub(in crate::layer) offset: u64,
    /// Bytes.
    pub(in crate::layer) length: u64,
}

const fn malformed(reason: &'static str) -> Fault {
    Fault::Malformed(TarProblem::SparseMap { reason })
}

/// A map under construction, with its bound.
#[derive(Debug)]
pub(super) struct Map {
    segments: Vec<Segment>,
    max_segments: u64,
}

impl Map {
    pub(super) fn new(max_segments: u64) -> Self {
        Self {
            segments: Vec::new(),
            max_segments,
        }
    }

    pub(super) fn push(&mut self, offset: u64, length: u64) -> Result<(), Fault> {
        Fault::check(Limit::SparseSegments, self.segments.len() + 1, self.max_segments)?;
        self.segments.push(Segment { offset, length });
        Ok(())
    }

    /// Adds the entries of a piece of an old GNU map: offset and length in 12 bytes each. The first that is empty ends
    /// the map; says whether it was seen.
    pub(super) fn push_gnu(&mut self, piece: &[u8]) -> Result<bool, Fault> {
        let entry_number = |bytes| {
            number::field(bytes)
                .and_then(|value| u64::try_from(value).ok())
                .ok_or(malformed("a number in it is not valid"))
        };
        for entry in piece.chunks_exact(24) {
            if entry[0] == 0 {
                return Ok(true);
            }
            self.push(entry_number(&entry[..12])?, entry_number(&entry[12..])?)?;
        }
        Ok(false)
    }

    /// The map, if it fits a file of `size` bytes of which the archive holds `stored`: in ascending order, without
    /// overlap, and accounting for every stored byte. Empty segments are left out.
    pub(super) fn finish(mut self, size: u64, stored: u64) -> Result<Vec<Segment>, Fault> {
        let mut end = 0;
        let mut total: u64 = 0;
        for segment in &self.segments {
            if segment.offset < end {
                return Err(malformed("segments overlap or are not in order"));
            }
            end = segment
                .offset
                .checked_add(segment.length)
                .filter(|end| *end <= size)
                .ok_or(malformed("a segment reaches beyond the end of the file"))?;
            total += segment.length;
        }
        if total != stored {
            return Err(malformed("it does not account for the stored bytes"));
        }
        self.segments.retain(|segment| segment.length > 0);
        Ok(self.segments)
    }
}

/// What PAX records say of a sparse file. All of it is collected before any is used: the records come in any order.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) major: Vec<u8>,
    pub(super) minor: Vec<u8>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) real_size: Option<u64>,
    pub(super) segment_count: Option<u64>,
    /// Version 0.0: pairs of repeated records; the second number of the last pair may be missing so far.
    pub(super) pairs: Vec<u64>,
    /// Version 0.1: all numbers in one record.
    pub(super) map: Option<Vec<u8>>,
}

/// The PAX forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// 0.0 and 0.1: the map stands in the PAX header.
    InHeader,
    /// 1.0: the map stands at the start of the body.
    InBody,
}

impl Records {
    /// The form in use, if the file is sparse at all. Old writers did not name it.
    pub(super) fn version(&self) -> Result<Option<Version>, Fault> {
        match (self.major.as_slice(), self.minor.as_slice()) {
            (b"0", b"0" | b"1") => Ok(Some(Version::InHeader)),
            (b"1", b"0") => Ok(Some(Version::InBody)),
            (b"", b"") if self.map.is_some() || !self.pairs.is_empty() => Ok(Some(Version::InHeader)),
            (b"", b"") if self.segment_count.is_some() && self.size.is_some() => Ok(Some(Version::InHeader)),
            (b"", b"") => Ok(None),
            _ => Err(malformed("its version is unknown")),
        }
    }

    /// The file's size, holes included.
    pub(super) fn file_size(&self) -> Result<u64, Fault> {
        self.size
            .or(self.real_size)
            .ok_or(malformed("the file's size is missing"))
    }

    /// The map of the forms 0.0 and 0.1.
    pub(super) fn header_map(&self, max_segments: u64) -> Result<Map, Fault> {
        let mut map = Map::new(max_segments);
        let numbers = match &self.map {
            Some(text) if !text.is_empty() => {
                if !self.pairs.is_empty() {
                    return Err(malformed("it is given twice"));
                }
                // The PAX header's own limit bounds this list; the number of segments is checked as it grows.
                text.split(|&byte| byte == b',')
                    .map(|text| number::decimal(text).ok_or(malformed("a number in it is not valid")))
                    .collect::<Result<_, _>>()?
            }
            _ => self.pairs.clone(),
        };
        let (pairs, rest) = numbers.as_chunks::<2>();
        if !rest.is_empty() {
            return Err(malformed("an offset has no length"));
        }
        for [offset, length] in pairs {
            map.push(*offset, *length)?;
        }
        if self
            .segment_count
            .is_some_and(|count| count != pairs.len() as u64)
        {
            return Err(malformed("the number of segments is wrong"));
        }
        Ok(map)
    }
}

/// Parses the map of form 1.0, block after block: decimal numbers, one a line, the first of them the number of segments.
#[derive(Debug)]
pub(super) struct BodyMap {
    map: Map,
    digits: Vec<u8>,
    segment_count: Option<u64>,
    offset: Option<u64>,
}

impl BodyMap {
    pub(super) fn new(max_segments: u64) -> Self {
        Self {
            map: Map::new(max_segments),
            digits: Vec::new(),
            segment_count: None,
            offset: None,
        }
    }

    /// Whether no further block belongs to the map.
    fn is_complete(&self) -> bool {
        self.segment_count
            .is_some_and(|count| count == self.map.segments.len() as u64)
    }

    /// Takes the next block; says whether the map is complete. The rest of its last block means nothing.
    pub(super) fn push(&mut self, block: &Block) -> Result<bool, Fault> {
        for &byte in block {
            if byte != b'\n' {
                // 20 digits are enough for 64 bits.
                if self.digits.len() == 20 {
                    return Err(malformed("a number in it is not valid"));
                }
                self.digits.push(byte);
                continue;
            }
            let value = number::decimal(&self.digits).ok_or(malformed("a number in it is not valid"))?;
            self.digits.clear();
            match (self.segment_count, self.offset.take()) {
                (None, _) => {
                    self.segment_count = Some(value);
                    if value > self.map.max_segments {
                        let allowed = self.map.max_segments;
                        let limit = Limit::SparseSegments;
                        return Err(Fault::Limit {
                            limit,
                            value,
                            allowed,
                            attribute: None,
                        });
                    }
                }
                (Some(_), None) => self.offset = Some(value),
                (Some(_), Some(offset)) => self.map.push(offset, value)?,
            }
            if self.is_complete() {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub(super) fn finish(self) -> Map {
        self.map
    }
}
