//! Taking out of programs and libraries what only a debugger reads.
//!
//! What is taken out are the sections of `strip --strip-debug`: DWARF (`.debug_*`), stabs, and the index of gdb, with
//! their relocations; the symbol table stays, as backtraces and tracers read it. The rules that keep the result
//! running:
//!
//! - Every byte up to the end of the last segment, program header and loaded section stays where it is, so what the
//!   kernel and the dynamic loader see does not change at all. Only what lies behind is moved together.
//! - A removed section leaves an empty header (`SHT_NULL`) in the table: no index changes, so neither do the links
//!   between sections nor the symbols that name them.
//! - A file with something behind its sections, or between them, that no header describes is left as it is: programs
//!   carry archives, scripts and signatures there, and find them by their distance from the end.
//!
//! The input is hostile: every offset is checked, nothing is sized by a number of the file without a limit, and an odd
//! file is left as it is. Layout: System V ABI, chapters 4 and 5 (`elf(5)`).

use std::io;

/// Section headers of one file that are looked at: far above what compilers make of a program.
const MAX_SECTIONS: u64 = 16 << 10;

/// Larger files are left as they are.
const MAX_FILE_BYTES: u64 = 4 << 30;

/// Bytes of section names that are read.
const MAX_NAMES_BYTES: u64 = 4 << 20;

/// A gap between sections longer than this is not what alignment leaves.
const MAX_GAP_BYTES: u64 = 64 << 10;

/// Alignments above this are not kept when a section is moved; the file is left as it is.
const MAX_ALIGNMENT: u64 = 64 << 10;

/// A file, read at any offset.
pub(super) trait ReadAt {
    /// Its size in bytes.
    fn size(&self) -> u64;

    /// Fills `buffer` from `offset` on.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

/// How to make a smaller file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    /// Size of the result in bytes.
    pub(super) size: u64,
    /// What is copied from the old file, in ascending order of `to`; between two pieces there are zeros.
    pub(super) pieces: Vec<Piece>,
    /// What is written over that, in ascending order.
    pub(super) patches: Vec<Patch>,
}

/// A run of bytes of the old file and its place in the new one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) from: u64,
    pub(super) to: u64,
    pub(super) length: u64,
}

/// New bytes and their place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Patch {
    pub(super) at: u64,
    pub(super) bytes: Vec<u8>,
}

/// Why a file stays as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Left {
    /// It is no ELF file at all.
    NotElf,
    /// It is neither a program nor a shared library: object files and kernel modules need their sections to be loaded.
    OtherKind,
    /// There is nothing to take out.
    NothingToRemove,
    /// Its headers contradict each other or the file.
    Malformed,
    /// There are bytes behind or between its sections that belong to none.
    Payload,
    /// Its sections lie in a way that is valid but that the rules above do not cover.
    UnusualLayout,
}

impl Left {
    /// In words, behind "left as it is: ".
    pub(super) const fn reason(self) -> &'static str {
        match self {
            Self::NotElf => "not an ELF file",
            Self::OtherKind => "neither a program nor a shared library",
            Self::NothingToRemove => "nothing to remove",
            Self::Malformed => "its headers contradict each other",
            Self::Payload => "it carries data behind or between its sections",
            Self::UnusualLayout => "its sections lie in an unusual way",
        }
    }
}

/// Why there is no plan.
#[derive(Debug)]
pub(super) enum NoPlan {
    /// The file stays as it is.
    Left(Left),
    /// It could not be read.
    Io(io::Error),
}

impl From<io::Error> for NoPlan {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl From<Left> for NoPlan {
    fn from(left: Left) -> Self {
        Self::Left(left)
    }
}

const PROGBITS: u32 = 1;
const RELA: u32 = 4;
const NOBITS: u32 = 8;
const REL: u32 = 9;
/// `SHT_MIPS_DWARF`.
const MIPS_DWARF: u32 = 0x7000_001e;
/// `SHF_ALLOC`: part of the program in memory.
const ALLOC: u64 = 2;

/// Word size and byte order of a file.
#[derive(Clone, Copy)]
struct Form {
    is_64: bool,
    is_little: bool,
}

impl Form {
    /// An unsigned number of `width` bytes; 0 beyond the end, which the callers' sizes exclude.
    fn number(self, bytes: &[u8], at: usize, width: usize) -> u64 {
        let field = bytes.get(at..at + width).unwrap_or_default();
        let add = |sum: u64, byte: &u8| (sum << 8) | u64::from(*byte);
        if self.is_little {
            field.iter().rev().fold(0, add)
        } else {
            field.iter().fold(0, add)
        }
    }

    fn bytes(self, value: u64, width: usize) -> Vec<u8> {
        let mut bytes = value.to_le_bytes()[..width].to_vec();
        if !self.is_little {
            bytes.reverse();
        }
        bytes
    }

    /// Width of an address or offset.
    const fn word(self) -> usize {
        if self.is_64 { 8 } else { 4 }
    }

    const fn pick(self, in_32: usize, in_64: usize) -> usize {
        if self.is_64 { in_64 } else { in_32 }
    }
}

struct Header {
    form: Form,
    program_headers: Table,
    section_headers: Table,
    /// Index of the section that holds the names.
    names: u64,
}

/// A table of equal entries.
#[derive(Clone, Copy)]
struct Table {
    offset: u64,
    entries: u64,
    entry_bytes: usize,
}

impl Table {
    const fn length(self) -> u64 {
        self.entries * self.entry_bytes as u64
    }
}

struct Section {
    name: u64,
    kind: u32,
    flags: u64,
    offset: u64,
    length: u64,
    alignment: u64,
}

impl Section {
    /// Bytes that it has in the file.
    const fn bytes_in_file(&self) -> u64 {
        match self.kind {
            0 | NOBITS => 0,
            _ => self.length,
        }
    }

    const fn end(&self) -> u64 {
        self.offset + self.bytes_in_file()
    }
}

/// What becomes of a section.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Fate {
    Stays,
    Removed,
    MovedTo(u64),
}

/// Finds out how a file gets smaller.
pub(super) fn plan(file: &impl ReadAt) -> Result<Plan, NoPlan> {
    let header = header(file)?;
    let table = read(
        file,
        header.section_headers.offset,
        header.section_headers.length(),
    )?;
    let sections = sections(&header, &table, file.size())?;
    let is_debug = debug_sections(file, &header, &sections)?;
    let fixed_end = fixed_end(file, &header, &sections)?;

    let mut fates = vec![Fate::Stays; sections.len()];
    for (index, section) in sections.iter().enumerate() {
        let holds_names = index as u64 == header.names;
        if is_debug[index] && !holds_names && section.offset >= fixed_end && section.bytes_in_file() > 0 {
            fates[index] = Fate::Removed;
        }
    }
    if !fates.contains(&Fate::Removed) {
        return Err(Left::NothingToRemove.into());
    }
    if header.section_headers.offset < fixed_end {
        return Err(Left::UnusualLayout.into());
    }
    check_layout(file, &header, &sections, fixed_end)?;
    arrange(file, &header, &table, &sections, fates, fixed_end)
}

fn read(file: &impl ReadAt, offset: u64, length: u64) -> Result<Vec<u8>, NoPlan> {
    let end = offset.checked_add(length).ok_or(Left::Malformed)?;
    if end > file.size() {
        return Err(Left::Malformed.into());
    }
    let length = usize::try_from(length).map_err(|_| Left::Malformed)?;
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset)?;
    Ok(bytes)
}

fn header(file: &impl ReadAt) -> Result<Header, NoPlan> {
    if file.size() < 52 {
        return Err(Left::NotElf.into());
    }
    let mut bytes = read(file, 0, 52)?;
    if !bytes.starts_with(b"\x7fELF") {
        return Err(Left::NotElf.into());
    }
    let form = Form {
        is_64: match bytes[4] {
            1 => false,
            2 => true,
            _ => return Err(Left::Malformed.into()),
        },
        is_little: match bytes[5] {
            1 => true,
            2 => false,
            _ => return Err(Left::Malformed.into()),
        },
    };
    if form.is_64 {
        bytes = read(file, 0, 64)?;
    }
    // ET_EXEC and ET_DYN.
    if !matches!(form.number(&bytes, 16, 2), 2 | 3) {
        return Err(Left::OtherKind.into());
    }
    let word = |in_32, in_64| form.number(&bytes, form.pick(in_32, in_64), form.word());
    let half = |in_32, in_64| form.number(&bytes, form.pick(in_32, in_64), 2);
    let program_headers = Table {
        offset: word(28, 32),
        entries: half(44, 56),
        entry_bytes: form.pick(32, 56),
    };
    let section_headers = Table {
        offset: word(32, 40),
        entries: half(48, 60),
        entry_bytes: form.pick(40, 64),
    };
    if section_headers.offset == 0 {
        return Err(Left::NothingToRemove.into());
    }
    if file.size() > MAX_FILE_BYTES {
        return Err(Left::UnusualLayout.into());
    }
    let sizes_are_usual = half(42, 54) == program_headers.entry_bytes as u64
        && half(46, 58) == section_headers.entry_bytes as u64
        && half(40, 52) == form.pick(52, 64) as u64;
    // No entries means that their number stands elsewhere, as does an index of names that is too large to stand here.
    if !sizes_are_usual
        || program_headers.entries == 0xffff
        || !(2..=MAX_SECTIONS).contains(&section_headers.entries)
    {
        return Err(Left::UnusualLayout.into());
    }
    let names = half(50, 62);
    if names >= section_headers.entries {
        return Err(Left::Malformed.into());
    }
    Ok(Header {
        form,
        program_headers,
        section_headers,
        names,
    })
}

fn sections(header: &Header, table: &[u8], size: u64) -> Result<Vec<Section>, NoPlan> {
    let form = header.form;
    let mut sections = Vec::new();
    for entry in table.chunks_exact(header.section_headers.entry_bytes) {
        let word = |in_32, in_64| form.number(entry, form.pick(in_32, in_64), form.word());
        let section = Section {
            name: form.number(entry, 0, 4),
            kind: u32::try_from(form.number(entry, 4, 4)).unwrap_or(u32::MAX),
            flags: word(8, 8),
            offset: word(16, 24),
            length: word(20, 32),
            alignment: word(32, 48).max(1),
        };
        let end = section.offset.checked_add(section.bytes_in_file());
        if section.bytes_in_file() > 0 && end.is_none_or(|end| end > size) {
            return Err(Left::Malformed.into());
        }
        sections.push(section);
    }
    Ok(sections)
}

/// For each section, whether only debuggers read it.
fn debug_sections(file: &impl ReadAt, header: &Header, sections: &[Section]) -> Result<Vec<bool>, NoPlan> {
    let names = usize::try_from(header.names)
        .ok()
        .and_then(|index| sections.get(index))
        .ok_or(Left::Malformed)?;
    if names.bytes_in_file() > MAX_NAMES_BYTES {
        return Err(Left::UnusualLayout.into());
    }
    let names = read(file, names.offset, names.bytes_in_file())?;
    let name_of = |section: &Section| {
        let start = usize::try_from(section.name).unwrap_or(usize::MAX);
        let rest = names.get(start..).unwrap_or_default();
        rest.split(|&byte| byte == 0).next().unwrap_or_default()
    };
    let is_debug = |section: &Section| {
        let name = name_of(section);
        let name = match section.kind {
            PROGBITS | MIPS_DWARF => name,
            RELA => name.strip_prefix(b".rela").unwrap_or_default(),
            REL => name.strip_prefix(b".rel").unwrap_or_default(),
            // The strings of stabs.
            _ if name == b".stabstr" => name,
            _ => return false,
        };
        section.flags & ALLOC == 0
            && (name.starts_with(b".debug_")
                || name.starts_with(b".zdebug_")
                || matches!(
                    name,
                    b".debug" | b".line" | b".stab" | b".stabstr" | b".gdb_index"
                ))
    };
    Ok(sections.iter().map(is_debug).collect())
}

/// The end of everything that must not move.
fn fixed_end(file: &impl ReadAt, header: &Header, sections: &[Section]) -> Result<u64, NoPlan> {
    let form = header.form;
    let programs = header.program_headers;
    let mut end = form.pick(52, 64) as u64;
    if programs.entries > 0 {
        let table = read(file, programs.offset, programs.length())?;
        // The read has checked the sum.
        end = end.max(programs.offset + programs.length());
        for entry in table.chunks_exact(programs.entry_bytes) {
            let offset = form.number(entry, form.pick(4, 8), form.word());
            let length = form.number(entry, form.pick(16, 32), form.word());
            if length == 0 {
                continue;
            }
            let segment_end = offset.checked_add(length).filter(|&end| end <= file.size());
            end = end.max(segment_end.ok_or(Left::Malformed)?);
        }
    }
    let loaded = sections
        .iter()
        .filter(|section| section.flags & ALLOC != 0 && section.bytes_in_file() > 0);
    Ok(loaded.map(Section::end).fold(end, u64::max))
}

/// Whether everything behind `fixed_end` is a section, the table of sections, or the zeros of alignment.
fn check_layout(
    file: &impl ReadAt,
    header: &Header,
    sections: &[Section],
    fixed_end: u64,
) -> Result<(), NoPlan> {
    let table = header.section_headers;
    let mut runs: Vec<(u64, u64)> = sections
        .iter()
        .filter(|section| section.bytes_in_file() > 0 && section.end() > fixed_end)
        .map(|section| (section.offset, section.end()))
        .collect();
    runs.push((table.offset, table.offset + table.length()));
    runs.sort_unstable();
    let mut position = fixed_end;
    for (start, end) in runs {
        if start < position {
            return Err(Left::UnusualLayout.into());
        }
        check_gap(file, position, start)?;
        position = end;
    }
    check_gap(file, position, file.size())
}

fn check_gap(file: &impl ReadAt, start: u64, end: u64) -> Result<(), NoPlan> {
    if end - start > MAX_GAP_BYTES {
        return Err(Left::Payload.into());
    }
    let gap = read(file, start, end - start)?;
    if gap.iter().any(|&byte| byte != 0) {
        return Err(Left::Payload.into());
    }
    Ok(())
}

/// Moves what stays together and writes the new headers.
fn arrange(
    file: &impl ReadAt,
    header: &Header,
    table: &[u8],
    sections: &[Section],
    mut fates: Vec<Fate>,
    fixed_end: u64,
) -> Result<Plan, NoPlan> {
    let form = header.form;
    let mut pieces = vec![Piece {
        from: 0,
        to: 0,
        length: fixed_end,
    }];
    let mut moved: Vec<usize> = (0..sections.len())
        .filter(|&index| {
            let section = &sections[index];
            fates[index] == Fate::Stays && section.offset >= fixed_end && section.bytes_in_file() > 0
        })
        .collect();
    moved.sort_unstable_by_key(|&index| sections[index].offset);
    let mut end = fixed_end;
    for index in moved {
        let section = &sections[index];
        if !section.alignment.is_power_of_two() || section.alignment > MAX_ALIGNMENT {
            return Err(Left::UnusualLayout.into());
        }
        let to = end.next_multiple_of(section.alignment);
        pieces.push(Piece {
            from: section.offset,
            to,
            length: section.bytes_in_file(),
        });
        fates[index] = Fate::MovedTo(to);
        end = to + section.bytes_in_file();
    }
    let new_table = end.next_multiple_of(form.word() as u64);
    let size = new_table + header.section_headers.length();
    if size >= file.size() {
        return Err(Left::NothingToRemove.into());
    }

    let entry_bytes = header.section_headers.entry_bytes;
    let mut new_entries = table.to_vec();
    for (index, entry) in new_entries.chunks_exact_mut(entry_bytes).enumerate() {
        match fates[index] {
            Fate::Stays => {}
            Fate::Removed => entry.fill(0),
            Fate::MovedTo(to) => {
                let at = form.pick(16, 24);
                entry[at..at + form.word()].copy_from_slice(&form.bytes(to, form.word()));
            }
        }
    }
    let table_offset = Patch {
        at: form.pick(32, 40) as u64,
        bytes: form.bytes(new_table, form.word()),
    };
    let entries = Patch {
        at: new_table,
        bytes: new_entries,
    };
    Ok(Plan {
        size,
        pieces,
        patches: vec![table_offset, entries],
    })
}

#[cfg(test)]
#[path = "elf_tests.rs"]
mod tests;
