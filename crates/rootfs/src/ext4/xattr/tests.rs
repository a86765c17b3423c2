use super::*;

fn xattrs(entries: &[(&str, usize)]) -> Xattrs {
    entries
        .iter()
        .map(|(name, length)| (name.as_bytes().to_vec(), vec![b'v'; *length]))
        .collect()
}

/// Names in the order in which they stand in an area whose entries start at `first`.
fn names(area: &[u8], first: usize) -> Vec<(u8, Vec<u8>, Vec<u8>)> {
    let mut entries = Vec::new();
    let mut at = first;
    while area[at..at + 4] != [0; 4] {
        let length = usize::from(area[at]);
        let offset = usize::from(u16::from_le_bytes([area[at + 2], area[at + 3]]));
        let size = usize::from(u16::from_le_bytes([area[at + 8], area[at + 9]]));
        entries.push((
            area[at + 1],
            area[at + 16..at + 16 + length].to_vec(),
            area[offset..offset + size].to_vec(),
        ));
        at += 16 + length.next_multiple_of(4);
    }
    entries
}

#[test]
fn small_sets_stay_in_the_inode() {
    let encoded = encode(&xattrs(&[("security.capability", 20), ("user.a", 3)])).unwrap();
    assert!(encoded.block.is_none());
    assert_eq!(
        names(&encoded.inode[4..], 0),
        [
            (1, b"a".to_vec(), b"vvv".to_vec()),
            (6, b"capability".to_vec(), vec![b'v'; 20])
        ]
    );
}

#[test]
fn a_block_is_sorted_by_prefix_then_length_then_name() {
    let encoded = encode(&xattrs(&[
        ("security.z", 10),
        ("trusted.aa", 10),
        ("user.b", 40),
        ("user.aaa", 40),
        ("user.c", 0),
    ]))
    .unwrap();
    let block = encoded.block.unwrap();
    let order: Vec<_> = names(&block[..], 32)
        .into_iter()
        .map(|(prefix, name, _)| (prefix, name))
        .collect();
    let expected: [(u8, &[u8]); 5] = [(1, b"b"), (1, b"c"), (1, b"aaa"), (4, b"aa"), (6, b"z")];
    assert_eq!(order, expected.map(|(prefix, name)| (prefix, name.to_vec())));
}

#[test]
fn the_inode_takes_the_subset_that_makes_the_rest_fit() {
    // Together 4,148 bytes, exactly the capacity of both: 4,060 and 88.
    let exact = [("user.big", 4020), ("user.b", 24), ("user.c", 24), ("user.d", 0)];
    let total: usize = attributes_of(&xattrs(&exact))
        .unwrap()
        .iter()
        .map(Attribute::size)
        .sum();
    assert_eq!(total, 4040 + 44 + 44 + 20);
    let encoded = encode(&xattrs(&exact)).unwrap();
    assert_eq!(names(&encoded.inode[4..], 0).len(), 2);
    assert_eq!(names(&encoded.block.unwrap()[..], 32).len(), 2);
    let one_more = [("user.big", 4020), ("user.b", 24), ("user.c", 24), ("user.d", 1)];
    let error = encode(&xattrs(&one_more)).unwrap_err();
    assert!(error.reason.contains("user.big"), "{error:?}");
}

#[test]
fn names_without_a_place_are_refused() {
    let long = format!("user.{}", "n".repeat(256));
    for name in [
        "system.richacl",
        "system.nfs4_acl",
        "os2.x",
        "user.",
        "",
        "user",
        "user.a\0b",
        &long,
    ] {
        let error = encode(&xattrs(&[(name, 1)])).unwrap_err();
        assert!(
            error.reason.contains(&name.as_bytes().escape_ascii().to_string()),
            "{name}: {error:?}"
        );
    }
    let error = encode(&xattrs(&[("user.large", 4061)])).unwrap_err();
    assert!(error.reason.contains("user.large"), "{error:?}");
}
