//! Packs and image on an XFS that can share blocks: contents are shared, and the bytes are those of a copied image,
//! which all other tests judge. Needs root; skipped otherwise.

use std::{fs::File, path::Path, process::Command};

use rootfs::{ext4::Native, image::ImageBackend as _};

use crate::{
    basics::everything,
    kernel::Mount,
    sharing::base,
    support::{Fixture, Image, all_kinds, check_verity, run},
};

/// A mounted XFS and the file that it is in.
struct Xfs {
    mount: Mount,
    _directory: tempfile::TempDir,
}

impl Xfs {
    /// `None`, and a note, where there can be none.
    fn make() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("xfs");
        // Sparse. Newer versions of the program refuse less than 300 MiB.
        File::create(&path).unwrap().set_len(1 << 30).unwrap();
        let made = run(Command::new("mkfs.xfs")
            .args(["-q", "-m", "reflink=1"])
            .arg(&path))?;
        assert!(made.status.success(), "mkfs.xfs: {made:?}");
        let mount = Mount::of_type("xfs", &path, "loop")?;
        Some(Self {
            mount,
            _directory: directory,
        })
    }
}

/// Bytes of a file whose blocks other files have, too, by the file system's own account (`FIEMAP_EXTENT_SHARED`).
fn shared_bytes(path: &Path) -> Option<u64> {
    let output = run(Command::new("filefrag").args(["-v", "-b4096"]).arg(path))?;
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    // "   2:      512..    1023:      9000..      9511:    512:       8192: last,shared,eof"
    let blocks = text.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(':').map(str::trim).collect();
        let (length, flags) = (fields.get(3)?, fields.last()?);
        flags
            .split(',')
            .any(|flag| flag == "shared")
            .then(|| length.parse::<u64>().unwrap())
    });
    Some(blocks.sum::<u64>() * 4096)
}

#[test]
fn privileged_contents_are_shared_and_the_bytes_are_the_same() {
    let Some(xfs) = Xfs::make() else { return };
    let mut layers = Fixture::new();
    base(&mut layers);
    layers.file(b"top", 1, &[1; 70_000]);
    layers.tree.remove(b"base-0005").unwrap();
    for (fixture_name, fixture) in [("layers", layers), ("everything", everything())] {
        let packs = fixture.pack_files_in(&xfs.mount.path(b""));
        for (name, options) in all_kinds() {
            let copied = fixture.image(&options);
            let image = Image::create_in(&xfs.mount.path(b""));
            let summary = Native
                .write(&fixture.tree, &packs, &options, &image.file)
                .unwrap();
            assert_eq!(image.sha256(), copied.sha256(), "{fixture_name}, {name}");
            image.check();
            if let Some(verity) = summary.verity {
                check_verity(&image.path(), &verity);
            }
            let Some(shared) = shared_bytes(&image.path()) else {
                return;
            };
            let expected: u64 = fixture
                .plan(&options)
                .copies()
                .iter()
                .map(|copy| copy.length)
                .sum();
            assert_eq!(
                shared, expected,
                "{fixture_name}, {name}: all contents are shared"
            );
        }
    }
}
