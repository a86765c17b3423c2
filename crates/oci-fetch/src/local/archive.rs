//! A tar file as a map from names to byte ranges.

use std::collections::HashMap;
use std::error::Error;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use tar::EntryType;

use crate::error::FetchError;
use crate::local::{LocalBlob, open_error, open_regular};

/// More entries than any image archive has: 128 layers of three files each, times the images in one file.
const MAX_ENTRIES: usize = 65_536;

/// Longer names than any file system takes.
const MAX_NAME_BYTES: u64 = 8192;

/// PAX headers hold names and times; real ones have some hundred bytes.
const MAX_PAX_BYTES: u64 = 64 * 1024;

/// How many links one name may lead through.
const MAX_LINKS: usize = 8;

pub(super) struct Archive {
    file: Arc<File>,
    entries: HashMap<Vec<u8>, Entry>,
}

enum Entry {
    File {
        offset: u64,
        size_bytes: u64,
    },
    /// The name of another entry, already relative to the archive's root.
    Link(Vec<u8>),
}

impl Archive {
    /// Indexes the file in one pass over its headers.
    pub(super) fn open(path: &Path) -> Result<Self, FetchError> {
        let (file, length) = open_regular(path).map_err(|error| open_error(path, error))?;
        let mut magic = [0; 4];
        if file.read_at(&mut magic, 0).is_ok_and(|read| read == 4) && is_compressed(&magic) {
            return Err(FetchError::unsupported(
                "image archive is compressed as a whole; decompress it first (its layers may stay compressed)",
            ));
        }
        let file = Arc::new(file);
        let entries = index(&file, length)?;
        Ok(Self { file, entries })
    }

    /// The file of this name, links followed inside the archive.
    pub(super) fn blob(&self, name: &str) -> Option<LocalBlob> {
        let mut name = normalise(name.as_bytes())?;
        for _ in 0..MAX_LINKS {
            match self.entries.get(&name)? {
                Entry::File { offset, size_bytes } => {
                    return Some(LocalBlob {
                        file: Arc::clone(&self.file),
                        offset: *offset,
                        size_bytes: *size_bytes,
                    });
                }
                Entry::Link(target) => name.clone_from(target),
            }
        }
        None
    }
}

/// Whether these are the first bytes of a gzip, zstd, xz or bzip2 stream.
pub(super) fn is_compressed(magic: &[u8]) -> bool {
    magic.starts_with(&[0x1f, 0x8b])
        || magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])
        || magic.starts_with(&[0xfd, b'7', b'z', b'X'])
        || magic.starts_with(b"BZh")
}

/// Sorts an error of the tar reader. Its text is left out, because it quotes the file, which may be anything that the
/// caller has named; a failure of the disk is kept.
#[allow(clippy::needless_pass_by_value, reason = "as `map_err` calls it")]
fn malformed(error: io::Error) -> FetchError {
    let first = Some(&error as &(dyn Error + 'static));
    let code = std::iter::successors(first, |&error| error.source())
        .filter_map(|error| error.downcast_ref::<io::Error>())
        .find_map(io::Error::raw_os_error);
    match code {
        Some(code) => FetchError::io(
            "failed to read the image archive",
            io::Error::from_raw_os_error(code),
        ),
        None if error.kind() == io::ErrorKind::UnexpectedEof => {
            FetchError::protocol("image archive is truncated")
        }
        None => FetchError::protocol("image archive is not a well-formed tar file"),
    }
}

fn index(file: &Arc<File>, length: u64) -> Result<HashMap<Vec<u8>, Entry>, FetchError> {
    let mut archive = tar::Archive::new(BufReader::new(&**file));
    let mut entries = HashMap::new();
    // Raw entries: the long-name and PAX headers come as entries of their own, so that their sizes can be bounded before
    // they are read.
    let raw_entries = archive.entries_with_seek().map_err(malformed)?.raw(true);
    let mut overrides = Overrides::default();
    for (count, entry) in raw_entries.enumerate() {
        if count >= MAX_ENTRIES {
            return Err(FetchError::limit(format!(
                "image archive has more than {MAX_ENTRIES} entries"
            )));
        }
        let mut entry = entry.map_err(malformed)?;
        let offset = entry.raw_file_position();
        let size_bytes = entry.header().entry_size().map_err(malformed)?;
        // The last entry of a cut-off file may claim more bytes than there are.
        if offset.checked_add(size_bytes).is_none_or(|end| end > length) {
            return Err(FetchError::protocol("image archive is truncated"));
        }
        let kind = entry.header().entry_type();
        match kind {
            EntryType::GNULongName => {
                overrides.name = Some(read_name(&mut entry, size_bytes)?);
                continue;
            }
            EntryType::GNULongLink => {
                overrides.link = Some(read_name(&mut entry, size_bytes)?);
                continue;
            }
            EntryType::XHeader => {
                overrides.read_pax(&mut entry, size_bytes)?;
                continue;
            }
            EntryType::XGlobalHeader => continue,
            _ => {}
        }
        let Overrides { name, link } = std::mem::take(&mut overrides);
        let Some(name) = normalise(&name.unwrap_or_else(|| entry.header().path_bytes().into_owned())) else {
            continue;
        };
        let link = link
            .or_else(|| entry.header().link_name_bytes().map(|link| link.into_owned()))
            .unwrap_or_default();
        let found = match kind {
            EntryType::Regular | EntryType::Continuous => Some(Entry::File { offset, size_bytes }),
            EntryType::Link => normalise(&link).map(Entry::Link),
            EntryType::Symlink => {
                let parent = name
                    .iter()
                    .rposition(|byte| *byte == b'/')
                    .map_or(&b""[..], |slash| &name[..slash]);
                let target = if link.starts_with(b"/") {
                    link
                } else {
                    [parent, b"/", link.as_slice()].concat()
                };
                normalise(&target).map(Entry::Link)
            }
            _ => None,
        };
        // As when unpacking, the last entry of a name is the one that counts.
        if let Some(found) = found {
            entries.insert(name, found);
        }
    }
    Ok(entries)
}

/// What a long-name or PAX header says about the entry behind it.
#[derive(Default)]
struct Overrides {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
}

impl Overrides {
    fn read_pax(&mut self, entry: &mut impl Read, size_bytes: u64) -> Result<(), FetchError> {
        let bytes = read_bounded(entry, size_bytes, MAX_PAX_BYTES)?;
        for extension in tar::PaxExtensions::new(&bytes) {
            let extension = extension.map_err(malformed)?;
            match extension.key_bytes() {
                b"path" => self.name = Some(extension.value_bytes().to_vec()),
                b"linkpath" => self.link = Some(extension.value_bytes().to_vec()),
                // A size here would make the rest of the file mean something else than the headers say. It is only
                // needed for entries over 8 GiB, which tar also writes in binary.
                b"size" => {
                    return Err(FetchError::unsupported(
                        "image archive gives a file's size in a PAX header",
                    ));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

fn read_name(entry: &mut impl Read, size_bytes: u64) -> Result<Vec<u8>, FetchError> {
    let mut name = read_bounded(entry, size_bytes, MAX_NAME_BYTES)?;
    while name.last() == Some(&0) {
        name.pop();
    }
    Ok(name)
}

fn read_bounded(entry: &mut impl Read, size_bytes: u64, limit: u64) -> Result<Vec<u8>, FetchError> {
    if size_bytes > limit {
        return Err(FetchError::limit(
            "image archive has an oversized extension header",
        ));
    }
    let mut bytes = Vec::new();
    entry.take(limit).read_to_end(&mut bytes).map_err(malformed)?;
    Ok(bytes)
}

/// The name without empty and dot components, `..` taken back lexically; `None` when nothing is left of it.
fn normalise(name: &[u8]) -> Option<Vec<u8>> {
    let mut components: Vec<&[u8]> = Vec::new();
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                components.pop();
            }
            component => components.push(component),
        }
    }
    if components.is_empty() {
        None
    } else {
        Some(components.join(&b'/'))
    }
}
