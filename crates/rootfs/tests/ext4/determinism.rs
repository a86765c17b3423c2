//! The same tree, options and writer give the same bytes.

use crate::{
    basics::everything,
    support::{Fixture, Image, all_kinds, read_only, read_write},
};
use rootfs::{
    Metadata,
    ext4::{ImageSink as _, Native},
    image::{ImageBackend as _, ImageOptions},
};

#[test]
fn two_runs_give_the_same_bytes() {
    for (name, options) in all_kinds() {
        let first = everything().image(&options).sha256();
        assert_eq!(first, everything().image(&options).sha256(), "{name}");
        // From pack files through the kernel's copy, onto a file that was not empty, in another thread.
        let fixture = everything();
        let packs = fixture.pack_files();
        let image = Image::create();
        std::io::Write::write_all(&mut &image.file, &[0xff; 300_000]).unwrap();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                Native
                    .write(&fixture.tree, &packs, &options, &image.file)
                    .unwrap()
            });
        });
        assert_eq!(first, image.sha256(), "{name}: from pack files");
        // The contents by somebody else, the last first.
        let image = Image::create();
        let (_, copies) = Native
            .write_without_contents(&fixture.tree, &packs, &options, &image.file)
            .unwrap();
        assert_ne!(first, image.sha256(), "{name}: without contents");
        for copy in copies.iter().rev() {
            let pack = packs.get(copy.pack).unwrap();
            image
                .file
                .copy_from_pack(pack, copy.pack_offset, copy.image_offset, copy.length)
                .unwrap();
        }
        assert_eq!(first, image.sha256(), "{name}: contents afterwards");
    }
}

#[test]
fn the_order_in_which_a_tree_was_made_does_not_matter() {
    let names = ["b", "a", "c/x", "c/y", "d"];
    let make = |order: &[usize]| {
        let mut fixture = Fixture::new();
        fixture.directory("c", 0o755);
        // The pack is the same, whichever file is added first.
        let contents: Vec<_> = names
            .iter()
            .map(|name| fixture.store(0, name.as_bytes()))
            .collect();
        for index in order {
            let path = names[*index].as_bytes();
            fixture
                .tree
                .put_file(path, Metadata::root(0o644), contents[*index].clone())
                .unwrap();
        }
        fixture
            .tree
            .put_file(b"gone", Metadata::root(0o644), contents[0].clone())
            .unwrap();
        fixture.tree.remove(b"gone").unwrap();
        fixture.image(&read_only()).sha256()
    };
    assert_eq!(make(&[0, 1, 2, 3, 4]), make(&[4, 2, 0, 3, 1]));
}

#[test]
fn what_differs_shows() {
    let sha256 = |change: &dyn Fn(&mut Fixture, &mut ImageOptions)| {
        let mut fixture = everything();
        let mut options = read_write(1 << 20, 10);
        change(&mut fixture, &mut options);
        fixture.image(&options).sha256()
    };
    let base = sha256(&|_, _| {});
    assert_ne!(
        base,
        sha256(&|_, options| options.identity[0] += 1),
        "the identity"
    );
    assert_ne!(
        base,
        sha256(&|fixture, _| {
            let id = fixture.tree.lookup(b"etc/passwd").unwrap();
            let mut metadata = Metadata::root(0o644);
            metadata.mtime.nanoseconds = 1;
            fixture.tree.set_metadata(id, metadata);
        }),
        "a nanosecond"
    );
}

/// The bytes of images of the tree [`everything`]. A change here is a change for every user who compares images: the
/// writer's version must count up, and the reason belongs into the changelog.
#[test]
fn images_have_not_changed_since_the_writers_version_did() {
    let golden = include_str!("../golden/ext4.txt");
    let mut actual = format!("writer version {}\n", rootfs::ext4::WRITER_VERSION);
    for (name, options) in all_kinds() {
        actual.push_str(&[name, " ", &everything().image(&options).sha256(), "\n"].concat());
    }
    let golden: String = golden
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| [line, "\n"].concat())
        .collect();
    assert_eq!(actual, golden);
}
