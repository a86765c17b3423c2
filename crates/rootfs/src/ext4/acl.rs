//! POSIX ACLs: from the form that `getxattr` and tar carry to the form that ext4 stores.
//!
//! Outside (`include/uapi/linux/posix_acl_xattr.h`): a 32-bit version 2, then 8 bytes per entry: 16-bit tag, 16-bit
//! permissions, 32-bit id. On disk (`fs/ext4/acl.h`): a 32-bit version 1, then per entry a tag and permissions, and an
//! id only where the tag has one. A raw copy makes the kernel answer `EINVAL` to every access of the file, so whoever
//! copies attributes byte for byte makes images with broken files.

/// Version of the outer form (`POSIX_ACL_XATTR_VERSION`).
const OUTER_VERSION: u32 = 2;
/// Version of the form on disk (`EXT4_ACL_VERSION`).
const DISK_VERSION: u32 = 1;

/// The tags of `include/uapi/linux/posix_acl.h`.
mod tag {
    pub(super) const OWNER: u16 = 0x01;
    pub(super) const USER: u16 = 0x02;
    pub(super) const OWNING_GROUP: u16 = 0x04;
    pub(super) const GROUP: u16 = 0x08;
    pub(super) const MASK: u16 = 0x10;
    pub(super) const OTHER: u16 = 0x20;
}

/// Converts a list. `None` stands for the empty list, which the kernel treats as no ACL at all.
///
/// The list must be one that `setxattr` would accept (`posix_acl_valid` in `fs/posix_acl.c`): owner, named users,
/// owning group, named groups, mask, others, in this order; a mask if anyone is named.
pub(super) fn to_disk(outer: &[u8]) -> Result<Option<Vec<u8>>, &'static str> {
    let (version, entries) = outer
        .split_first_chunk::<4>()
        .ok_or("it is shorter than its header")?;
    if u32::from_le_bytes(*version) != OUTER_VERSION {
        return Err("its version is not 2");
    }
    let (entries, rest) = entries.as_chunks::<8>();
    if !rest.is_empty() {
        return Err("it ends within an entry");
    }
    if entries.is_empty() {
        return Ok(None);
    }
    let mut disk = DISK_VERSION.to_le_bytes().to_vec();
    let mut previous = 0;
    let mut has_named = false;
    for entry in entries {
        let [tag_low, tag_high, mode_low, mode_high, id @ ..] = *entry;
        let tag = u16::from_le_bytes([tag_low, tag_high]);
        let in_order = match tag {
            tag::OWNER => previous == 0,
            tag::USER => matches!(previous, tag::OWNER | tag::USER),
            tag::OWNING_GROUP => matches!(previous, tag::OWNER | tag::USER),
            tag::GROUP => matches!(previous, tag::OWNING_GROUP | tag::GROUP),
            tag::MASK => matches!(previous, tag::OWNING_GROUP | tag::GROUP),
            tag::OTHER => previous == tag::MASK || (previous == tag::OWNING_GROUP && !has_named),
            _ => return Err("it has an entry of unknown kind"),
        };
        if !in_order {
            return Err("its entries are not in order");
        }
        if u16::from_le_bytes([mode_low, mode_high]) > 0o7 {
            return Err("it has permissions beyond read, write and execute");
        }
        disk.extend_from_slice(&[tag_low, tag_high, mode_low, mode_high]);
        if matches!(tag, tag::USER | tag::GROUP) {
            has_named = true;
            disk.extend_from_slice(&id);
        }
        previous = tag;
    }
    if previous == tag::OTHER {
        Ok(Some(disk))
    } else {
        Err("it does not end with an entry for others")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outer(entries: &[(u16, u16, u32)]) -> Vec<u8> {
        let mut bytes = 2u32.to_le_bytes().to_vec();
        for (tag, permissions, id) in entries {
            bytes.extend_from_slice(&tag.to_le_bytes());
            bytes.extend_from_slice(&permissions.to_le_bytes());
            bytes.extend_from_slice(&id.to_le_bytes());
        }
        bytes
    }

    const NOBODY: u32 = u32::MAX;

    #[test]
    fn ids_are_stored_for_named_entries_only() {
        let list = outer(&[
            (1, 6, NOBODY),
            (2, 7, 1000),
            (4, 4, NOBODY),
            (16, 7, NOBODY),
            (32, 4, NOBODY),
        ]);
        let disk = to_disk(&list).unwrap().unwrap();
        assert_eq!(
            disk,
            [
                1, 0, 0, 0, 1, 0, 6, 0, 2, 0, 7, 0, 0xe8, 3, 0, 0, 4, 0, 4, 0, 16, 0, 7, 0, 32, 0, 4, 0
            ]
        );
    }

    #[test]
    fn what_the_kernel_would_refuse_is_refused() {
        let cases = [
            ("empty attribute", vec![]),
            ("version 1", 1u32.to_le_bytes().to_vec()),
            ("half an entry", [outer(&[]), vec![0; 4]].concat()),
            ("no entry for others", outer(&[(1, 6, NOBODY), (4, 4, NOBODY)])),
            (
                "user after group",
                outer(&[(1, 6, 0), (4, 4, 0), (2, 7, 1), (16, 7, 0), (32, 4, 0)]),
            ),
            (
                "named user without mask",
                outer(&[(1, 6, 0), (2, 7, 1), (4, 4, 0), (32, 4, 0)]),
            ),
            ("unknown kind", outer(&[(1, 6, 0), (64, 4, 0)])),
            ("permission bits", outer(&[(1, 8, 0), (4, 4, 0), (32, 4, 0)])),
            (
                "twice the owner",
                outer(&[(1, 6, 0), (1, 6, 0), (4, 4, 0), (32, 4, 0)]),
            ),
        ];
        for (name, list) in cases {
            assert!(to_disk(&list).is_err(), "{name}");
        }
        assert_eq!(to_disk(&outer(&[])), Ok(None));
    }
}
