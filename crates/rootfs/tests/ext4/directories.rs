//! Directories of every size, and look-ups in them.

use rootfs::{Metadata, tree::FileContent};

use crate::{
    expect::{compare, path_of},
    reader::Reader,
    support::{Fixture, Image, all_kinds, read_only},
};

/// `count` files in one directory.
pub(crate) fn flat(count: u32, name: impl Fn(u32) -> Vec<u8>) -> Fixture {
    let mut fixture = Fixture::new();
    fixture.directory("flat", 0o755);
    for nth in 0..count {
        let path = [b"flat/", &name(nth)[..]].concat();
        fixture
            .tree
            .put_file(&path, Metadata::root(0o644), FileContent::inline(*b""))
            .unwrap();
    }
    fixture
}

fn has_index(image: &Image, path: &str) -> bool {
    image
        .debugfs(&format!("stat {path}"))
        .is_some_and(|text| text.contains("Flags: 0x81000"))
}

fn short_name(nth: u32) -> Vec<u8> {
    format!("file-{nth}").into_bytes()
}

/// Names of 255 bytes.
fn long_name(nth: u32) -> Vec<u8> {
    let mut name = format!("{nth:08}").into_bytes();
    name.resize(255, b'x');
    name
}

/// Half of them not ASCII, to tell signed from unsigned hashing. (ext4-view 1.0.0 always hashes signed and does not
/// find these; the kernel does, see `kernel.rs`.)
fn high_name(nth: u32) -> Vec<u8> {
    let mut name = format!("{nth:08}").into_bytes();
    name.resize(255, if nth.is_multiple_of(2) { b'x' } else { 0xe9 });
    name
}

#[test]
fn every_name_is_found_by_its_hash() {
    // From a single leaf's border over several leaves to inner nodes, which start at 508 leaves.
    type Name = fn(u32) -> Vec<u8>;
    let cases: [(&str, u32, Name); 5] = [
        ("one block", 200, short_name),
        ("two leaves", 260, short_name),
        ("many leaves", 20_000, short_name),
        ("one level", 507 * 15, long_name),
        ("two levels", 12_000, long_name),
    ];
    for (case, count, name) in cases {
        let fixture = flat(count, name);
        let image = fixture.image(&read_only());
        let view = image.open();
        for nth in 0..count {
            let path = [b"/flat/", &name(nth)[..]].concat();
            assert!(
                view.exists(path_of(&path)).unwrap(),
                "{case}: {}",
                path.escape_ascii()
            );
        }
        assert!(!view.exists("/flat/absent").unwrap());
        assert_eq!(
            Reader::new(&image.file).list().len(),
            count as usize + 3,
            "{case}"
        );
        println!("{case}: indexed {}", has_index(&image, "/flat"));
    }
}

#[test]
fn a_hundred_thousand_names_in_one_directory() {
    for (name, options) in all_kinds() {
        let fixture = flat(100_000, short_name);
        let image = fixture.image(&options);
        let view = image.open();
        for nth in (0..100_000).step_by(7) {
            let path = [b"/flat/", &short_name(nth)[..]].concat();
            assert!(view.exists(path_of(&path)).unwrap(), "{name}: {nth}");
        }
    }
}

#[test]
fn debugfs_computes_the_same_hashes() {
    // `htree_dump` hashes every name anew and complains where the stored order says otherwise; e2fsck does so too.
    let image = flat(2000, high_name).image(&read_only());
    let Some(dump) = image.debugfs("htree_dump /flat") else {
        return;
    };
    assert!(
        dump.contains("Hash Version: 1") && dump.contains("Indirect levels: 0"),
        "{}",
        &dump[..500]
    );
    assert!(
        !dump.contains("HASH NOT OK") && !dump.contains("BAD"),
        "a hash differs"
    );
}

#[test]
fn links_to_directories_are_counted_up_to_65_000() {
    let mut fixture = Fixture::new();
    fixture.directory("many", 0o755);
    for nth in 0..64_998 {
        fixture.directory(&format!("many/{nth}"), 0o755);
    }
    let image = fixture.image(&read_only());
    assert_eq!(Reader::new(&image.file).list()[&b"/many"[..]].links, 65_000);
    fixture.directory("many/one more", 0o755);
    let image = fixture.image(&read_only());
    assert_eq!(
        Reader::new(&image.file).list()[&b"/many"[..]].links,
        1,
        "feature dir_nlink"
    );
}

#[test]
fn names_of_one_inode_are_counted_up_to_65_000() {
    let mut fixture = Fixture::new();
    fixture.directory("links", 0o755);
    let id = fixture.inline(b"file", b"content");
    for nth in 1..65_000 {
        fixture
            .tree
            .put_link(format!("links/{nth}").as_bytes(), id)
            .unwrap();
    }
    let image = fixture.image(&read_only());
    assert_eq!(Reader::new(&image.file).list()[&b"/file"[..]].links, 65_000);
}

#[test]
fn a_deep_tree_needs_no_stack() {
    let mut fixture = Fixture::new();
    fixture.directory(&"d/".repeat(2000), 0o755);
    let image = fixture.image(&read_only());
    compare(&fixture, &image);
}
