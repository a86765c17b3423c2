//! PAX extended headers (POSIX.1-2001, `pax`, "pax Interchange Format").

use base64::{
    Engine as _, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};

use crate::{
    Timestamp, Xattrs,
    layer::{
        LayerLimits,
        error::{Fault, TarProblem},
        limits::Limit,
        tar::{number, sparse},
    },
};

/// libarchive writes its values without padding; with it they mean the same.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// The kernel's `XATTR_NAME_MAX`.
const MAX_XATTR_NAME_BYTES: u64 = 255;

/// Keywords that may not stand in a global header, because they change what or where every later entry is.
const NOT_GLOBAL: [&str; 3] = ["path", "linkpath", "size"];

/// What one extended header says of the next entry. An absent value means what the entry's own header says.
#[derive(Debug, Default)]
pub(super) struct Extended {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<u32>,
    pub(super) gid: Option<u32>,
    pub(super) mtime: Option<Timestamp>,
    pub(super) xattrs: Xattrs,
    pub(super) sparse: sparse::Records,
}

impl Extended {
    /// Parses the body of an `x` header. Of a keyword that stands there twice, the later value counts, as POSIX says;
    /// an empty value takes an earlier one back.
    pub(super) fn parse(body: &[u8], limits: &LayerLimits) -> Result<Self, Fault> {
        let mut extended = Self::default();
        let mut libarchive_xattrs = Xattrs::new();
        for record in records(body) {
            let (keyword, value) = record?;
            match keyword {
                b"path" => extended.path = name("path", value)?,
                b"linkpath" => extended.link_path = name("linkpath", value)?,
                b"size" => extended.size = optional("size", value, number::decimal)?,
                b"uid" => extended.uid = optional("uid", value, owner)?,
                b"gid" => extended.gid = optional("gid", value, owner)?,
                b"mtime" => extended.mtime = optional("mtime", value, number::time)?,
                _ => {
                    if let Some(name) = keyword.strip_prefix(b"SCHILY.xattr.") {
                        insert_xattr(&mut extended.xattrs, name.to_vec(), value.to_vec(), limits)?;
                    } else if let Some(name) = keyword.strip_prefix(b"LIBARCHIVE.xattr.") {
                        let name = percent_decoded(name).ok_or(TarProblem::Xattr)?;
                        let value = BASE64.decode(value).map_err(|_| TarProblem::Xattr)?;
                        insert_xattr(&mut libarchive_xattrs, name, value, limits)?;
                    } else if let Some(keyword) = keyword.strip_prefix(b"GNU.sparse.") {
                        extended.sparse_record(keyword, value, limits)?;
                    }
                    // Everything else is of no use here: user names (numbers win), other times (images have none of
                    // their own), ACLs as text (other tools ignore them; binary ones come as `system.posix_acl_*`).
                }
            }
        }
        // bsdtar writes both forms of the same attribute; the raw one needs no decoding.
        for (name, value) in libarchive_xattrs {
            extended.xattrs.entry(name).or_insert(value);
        }
        check_xattrs(&extended.xattrs, limits)?;
        Ok(extended)
    }

    fn sparse_record(&mut self, keyword: &[u8], value: &[u8], limits: &LayerLimits) -> Result<(), Fault> {
        let number = || number::decimal(value).ok_or(TarProblem::Number { field: "GNU.sparse" });
        let sparse = &mut self.sparse;
        match keyword {
            b"major" => sparse.major = value.to_vec(),
            b"minor" => sparse.minor = value.to_vec(),
            b"name" => sparse.name = name("GNU.sparse.name", value)?,
            b"size" => sparse.size = Some(number()?),
            b"realsize" => sparse.real_size = Some(number()?),
            b"numblocks" => sparse.segment_count = Some(number()?),
            b"map" => sparse.map = Some(value.to_vec()),
            // The only keywords that repeat: pairs of them, in order, are the map.
            b"offset" | b"numbytes" => {
                let awaited: &[u8] = if sparse.pairs.len().is_multiple_of(2) {
                    b"offset"
                } else {
                    b"numbytes"
                };
                if keyword != awaited {
                    return Err(TarProblem::SparseMap {
                        reason: "offsets and lengths do not alternate",
                    }
                    .into());
                }
                let segments = sparse.pairs.len() / 2 + 1;
                Fault::check(Limit::SparseSegments, segments, limits.max_sparse_segments)?;
                sparse.pairs.push(number()?);
            }
            _ => {}
        }
        Ok(())
    }
}

/// Checks the body of a `g` header. Nothing in it is used: comments (as `git archive` writes them) and defaults for
/// owners or times are ignored by Docker too. One that would redirect entries is refused rather than ignored.
pub(super) fn check_global(body: &[u8]) -> Result<(), Fault> {
    for record in records(body) {
        let (keyword, _) = record?;
        if let Some(field) = NOT_GLOBAL.into_iter().find(|field| field.as_bytes() == keyword) {
            return Err(TarProblem::GlobalOverride { field }.into());
        }
        if keyword.starts_with(b"GNU.sparse.") {
            return Err(TarProblem::GlobalOverride { field: "GNU.sparse" }.into());
        }
    }
    Ok(())
}

/// The path that an extended header gives, as far as that can be told from one that is not valid.
pub(super) fn path(body: &[u8]) -> Option<Vec<u8>> {
    let records = records(body).map_while(Result::ok);
    records
        .filter(|(keyword, _)| keyword == b"path")
        .last()
        .map(|(_, path)| path.to_vec())
}

/// The records of an extended header: `LENGTH KEYWORD=VALUE\n`, where the length counts the whole record.
fn records(mut rest: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), TarProblem>> {
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let record = split_record(rest);
        // After an error there is nothing more to be had.
        rest = record.map_or(&[], |(_, _, rest)| rest);
        Some(
            record
                .map(|(keyword, value, _)| (keyword, value))
                .ok_or(TarProblem::PaxRecord)
                .and_then(|(keyword, value)| {
                    if keyword.contains(&0) {
                        return Err(TarProblem::Nul {
                            field: "a PAX keyword",
                        });
                    }
                    Ok((keyword, value))
                }),
        )
    })
}

/// Keyword, value and what follows the record. The first `=` ends the keyword; the value may hold anything.
fn split_record(bytes: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let digits = bytes.iter().take(20).position(|&byte| byte == b' ')?;
    let length = usize::try_from(number::decimal(&bytes[..digits])?).ok()?;
    let record = bytes.get(digits + 1..length)?;
    let record = record.strip_suffix(b"\n")?;
    let equals = record
        .iter()
        .position(|&byte| byte == b'=')
        .filter(|position| *position > 0)?;
    Some((&record[..equals], &record[equals + 1..], &bytes[length..]))
}

fn name(field: &'static str, value: &[u8]) -> Result<Option<Vec<u8>>, TarProblem> {
    if value.contains(&0) {
        return Err(TarProblem::Nul { field });
    }
    Ok((!value.is_empty()).then(|| value.to_vec()))
}

fn optional<T>(
    field: &'static str,
    value: &[u8],
    parse: impl Fn(&[u8]) -> Option<T>,
) -> Result<Option<T>, TarProblem> {
    if value.is_empty() {
        return Ok(None);
    }
    parse(value).map(Some).ok_or(TarProblem::Number { field })
}

fn owner(value: &[u8]) -> Option<u32> {
    number::decimal(value).and_then(|value| u32::try_from(value).ok())
}

/// Checks before it inserts, so that what is refused is named and not kept.
fn insert_xattr(
    xattrs: &mut Xattrs,
    name: Vec<u8>,
    value: Vec<u8>,
    limits: &LayerLimits,
) -> Result<(), Fault> {
    check_xattr(&name, &value, limits)?;
    xattrs.insert(name, value);
    Ok(())
}

fn check_xattr(name: &[u8], value: &[u8], limits: &LayerLimits) -> Result<(), Fault> {
    if name.is_empty() || name.contains(&0) {
        return Err(TarProblem::Xattr.into());
    }
    for (limit, length, allowed) in [
        (Limit::XattrNameBytes, name.len(), MAX_XATTR_NAME_BYTES),
        (Limit::XattrValueBytes, value.len(), limits.max_xattr_value_bytes),
    ] {
        if length as u64 > allowed {
            let attribute = Some(name.to_vec());
            return Err(Fault::Limit {
                limit,
                value: length as u64,
                allowed,
                attribute,
            });
        }
    }
    Ok(())
}

/// Whether one entry may have these extended attributes.
pub(in crate::layer) fn check_xattrs(xattrs: &Xattrs, limits: &LayerLimits) -> Result<(), Fault> {
    let mut total = 0;
    for (name, value) in xattrs {
        check_xattr(name, value, limits)?;
        total += name.len() + value.len();
        if total as u64 > limits.max_xattrs_bytes {
            return Err(Fault::Limit {
                limit: Limit::XattrsBytes,
                value: total as u64,
                allowed: limits.max_xattrs_bytes,
                attribute: Some(name.clone()),
            });
        }
    }
    Ok(())
}

/// `%XX` as the byte that it names.
fn percent_decoded(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.iter();
    while let Some(&byte) = rest.next() {
        if byte == b'%' {
            let digits = [*rest.next()?, *rest.next()?];
            bytes.extend(hex::decode(digits).ok()?);
        } else {
            bytes.push(byte);
        }
    }
    Some(bytes)
}
