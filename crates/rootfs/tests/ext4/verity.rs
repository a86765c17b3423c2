//! Hash trees: the same bytes however they are made, and a kernel and a `veritysetup` that agree.

use std::{os::unix::fs::FileExt as _, process::Command, sync::Arc};

use rootfs::{
    ext4::{Native, plan},
    image::{ImageBackend as _, ImageError},
    pack::{Pack, PackId, Packs},
    verity::{self, LeafHashes},
};

use crate::{
    basics::everything,
    files::sparse_file,
    support::{Fixture, Image, check_verity, read_only, read_write, run, skip, with_verity},
};

/// Writes an image with a hash tree, from these packs.
fn write(fixture: &Fixture, packs: &Packs) -> (Image, verity::Verity) {
    let image = Image::create();
    let summary = Native
        .write(&fixture.tree, packs, &with_verity(), &image.file)
        .unwrap();
    (image, summary.verity.unwrap())
}

/// Trees with all there is: contents in packs and in memory, holes, several packs, several groups.
fn fixtures() -> Vec<(&'static str, Fixture)> {
    let mut holes = Fixture::new();
    sparse_file(&mut holes, "holes", 500_000 * 4096, &[0, 3, 4, 700, 100_000]);
    let mut layers = Fixture::new();
    for pack in 0..4 {
        for nth in 0..40usize {
            let bytes: Vec<u8> = (0..nth * 7001 % 100_000)
                .map(|at| (at * (pack + 3)) as u8)
                .collect();
            layers.file(format!("{pack}-{nth}").as_bytes(), pack, &bytes);
        }
    }
    for gone in 0..30 {
        layers.tree.remove(format!("1-{gone}").as_bytes()).unwrap();
    }
    vec![
        ("empty", Fixture::new()),
        ("everything", everything()),
        ("holes", holes),
        ("layers", layers),
    ]
}

#[test]
fn kept_hashes_packs_and_the_file_alone_give_the_same_tree() {
    for (name, fixture) in fixtures() {
        let (image, expected) = write(&fixture, &fixture.hashed_packs());
        check_verity(&image.path(), &expected);
        let bytes = image.sha256();
        for (way, packs) in [("memory", fixture.packs()), ("files", fixture.pack_files())] {
            let (image, verity) = write(&fixture, &packs);
            assert_eq!(
                (verity, image.sha256()),
                (expected, bytes.clone()),
                "{name}: {way}"
            );
        }
        let plain = Image::create();
        let summary = Native
            .write(&fixture.tree, &fixture.packs(), &read_only(), &plain.file)
            .unwrap();
        let appended = verity::append(&plain.file, summary.size_bytes).unwrap();
        assert_eq!((appended, plain.sha256()), (expected, bytes), "{name}: appended");
        plain.check();
    }
}

/// What makes the second image on a base cheap: with kept hashes no pack is read for the tree.
#[test]
fn with_kept_hashes_no_pack_is_read() {
    let fixture = everything();
    let mut packs = Packs::new();
    for nth in 0..2 {
        let hashed = fixture.hashed_packs();
        let Some(hashes) = hashed.leaf_hashes(PackId(nth)) else {
            continue;
        };
        // Zeros of the same length, in place of the contents.
        let zeros = vec![0; usize::try_from(hashes.blocks() * 4096).unwrap()];
        let id = packs.push(Pack::Memory(zeros.into()));
        packs.set_leaf_hashes(id, Arc::new(hashes.clone()));
    }
    assert_eq!(write(&fixture, &packs).1, write(&fixture, &fixture.packs()).1);
}

#[test]
fn a_changed_byte_anywhere_is_found() {
    if run(Command::new("veritysetup").arg("--version")).is_none() {
        return;
    }
    let (image, verity) = write(&everything(), &everything().packs());
    let verifies = || {
        let root = hex::encode(verity.root_hash);
        let offset = format!("--hash-offset={}", verity.hash_offset);
        let mut command = Command::new("veritysetup");
        let command = command.arg("verify").args([image.path(), image.path()]);
        run(command.args([root, offset])).unwrap().status.success()
    };
    assert!(verifies());
    for offset in [1030, verity.hash_offset - 1, verity.hash_offset + 8000] {
        let mut byte = [0];
        image.file.read_exact_at(&mut byte, offset).unwrap();
        image.file.write_all_at(&[byte[0] ^ 1], offset).unwrap();
        assert!(!verifies(), "byte {offset}");
        image.file.write_all_at(&byte, offset).unwrap();
    }
    assert!(verifies());
}

/// The reference for the reference: `veritysetup format` with this salt and UUID writes the same bytes.
#[test]
fn veritysetup_writes_the_same_bytes() {
    let fixture = everything();
    let (image, verity) = write(&fixture, &fixture.packs());
    let other = Image::create();
    Native
        .write(&fixture.tree, &fixture.packs(), &read_only(), &other.file)
        .unwrap();
    let uuid = hex::encode(verity.uuid);
    let uuid = [
        &uuid[..8],
        &uuid[8..12],
        &uuid[12..16],
        &uuid[16..20],
        &uuid[20..],
    ]
    .join("-");
    let mut command = Command::new("veritysetup");
    let command = command.arg("format").args([other.path(), other.path()]).args([
        format!("--hash-offset={}", verity.hash_offset),
        format!("--data-blocks={}", verity.data_blocks),
        format!("--salt={}", hex::encode(verity.salt)),
        format!("--uuid={uuid}"),
    ]);
    let Some(output) = run(command) else { return };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    assert!(text.contains(&hex::encode(verity.root_hash)), "{text}");
    assert_eq!(other.sha256(), image.sha256());
}

/// The table that the kernel's command line carries is one that the kernel takes, and what it opens is the image.
#[test]
fn privileged_the_kernel_takes_the_table() {
    if !rustix::process::geteuid().is_root() {
        return skip("device mapper needs root");
    }
    let (image, verity) = write(&everything(), &everything().packs());
    let mut losetup = Command::new("losetup");
    let Some(output) = run(losetup
        .args(["--read-only", "--find", "--show"])
        .arg(image.path()))
    else {
        return;
    };
    if !output.status.success() {
        return skip("there are no loop devices");
    }
    let device = String::from_utf8(output.stdout).unwrap().trim().to_owned();
    let name = format!("rootfs-test-{}", std::process::id());
    let mut create = Command::new("dmsetup");
    let created = run(create.args(["create", "--readonly", &name, "--table", &verity.table(&device)]));
    let sum = created
        .as_ref()
        .filter(|output| output.status.success())
        .map(|_| {
            let path = format!("/dev/mapper/{name}");
            let bytes = std::fs::read(&path);
            let removed = run(Command::new("dmsetup").args(["remove", "--retry", &name])).unwrap();
            assert!(removed.status.success(), "{removed:?}");
            bytes
        });
    let detached = run(Command::new("losetup").args(["--detach", &device])).unwrap();
    assert!(detached.status.success(), "{detached:?}");
    match (created, sum) {
        (None, _) => {}
        (Some(output), None) => {
            let text = String::from_utf8_lossy(&output.stderr);
            let is_missing = [
                "/dev/mapper/control",
                "unknown target type",
                "Incompatible libdevmapper",
            ]
            .iter()
            .any(|word| text.contains(word));
            assert!(is_missing, "dmsetup create: {text}");
            // Not a part of the test bed that could be installed, so this is allowed everywhere.
            let _ = std::io::Write::write_fmt(
                &mut std::io::stderr(),
                format_args!("skipped: the kernel has no dm-verity\n"),
            );
        }
        (Some(_), Some(bytes)) => {
            let mut expected = vec![0; usize::try_from(verity.hash_offset).unwrap()];
            image.file.read_exact_at(&mut expected, 0).unwrap();
            assert!(
                bytes.unwrap() == expected,
                "what the kernel verified is the file system"
            );
        }
    }
}

#[test]
fn a_hash_tree_is_for_read_only_images_and_counts_against_the_limit() {
    let fixture = everything();
    let mut options = read_write(1 << 20, 10);
    options.verity = true;
    let error = plan(&fixture.tree, &options).unwrap_err();
    assert!(matches!(error, ImageError::Options { .. }), "{error}");

    let size = fixture.plan(&with_verity()).size_bytes();
    assert!(size > fixture.plan(&read_only()).size_bytes());
    let limited = |limit: u64| {
        let mut options = with_verity();
        options.max_image_bytes = Some(limit);
        options
    };
    assert!(plan(&fixture.tree, &limited(size)).is_ok());
    let error = plan(&fixture.tree, &limited(size - 1)).unwrap_err();
    assert!(
        matches!(error, ImageError::TooLarge { needed_bytes, .. } if needed_bytes == size),
        "{error}"
    );
}

#[test]
fn kept_hashes_of_another_pack_are_an_error_and_no_panic() {
    let fixture = everything();
    let mut packs = fixture.packs();
    let hashes = LeafHashes::of_pack(&Pack::Memory(vec![1; 4096].into()), 4096).unwrap();
    packs.set_leaf_hashes(PackId(0), Arc::new(hashes));
    let image = Image::create();
    let error = Native
        .write(&fixture.tree, &packs, &with_verity(), &image.file)
        .unwrap_err();
    assert!(
        matches!(&error, ImageError::Io { source, .. } if source.to_string().contains("leaf hashes of pack 0")),
        "{error:?}"
    );
}
