//! What two builds have in common: equal chunks in the images, and shared blocks where the file system can.

use std::{
    fs::File,
    path::Path,
    process::{Command, Output},
};

use builder_core::{ImageCache, event::Level, request::Profile};
use rootfs::chunks::ChunkList;
use test_support::{
    image::{Image, Layer},
    lab,
};

use crate::{
    common::{Site, host_architecture, noise, request, sample},
    verity::assert_tree,
};

#[tokio::test]
async fn an_image_with_another_layer_on_top_has_the_chunks_of_its_base() {
    // Files of many sizes, so that contents begin and end in the middle of chunks.
    let base = (1..=40).fold(Layer::new().directory("usr", 0o755), |layer, nth| {
        let length = usize::try_from(nth * nth * 2000).unwrap();
        layer.file(format!("usr/{nth}"), noise(length, nth))
    });
    let middle = Layer::new()
        .file("usr/7", noise(900_000, 99))
        .file("usr/more", noise(1_200_000, 98));
    let below = Image::new()
        .layer(&base)
        .layer(&middle)
        .platform("linux", &host_architecture(), "");
    let above = below
        .clone()
        .layer(&Layer::new().file("srv/page", "<h1>on top</h1>\n"));
    let site = Site::new();
    let layouts = [(&below, "below"), (&above, "above")].map(|(image, name)| {
        let layout = site.directory.path().join(name);
        image.build().write_oci_layout(&layout, "1").unwrap();
        layout
    });
    for (profile, name) in [(Profile::ReadWrite, "rw"), (Profile::ReadOnly, "ro")] {
        let mut chunks = Vec::new();
        for layout in &layouts {
            let mut request = request(&format!("oci:{}:1", layout.display()));
            request.target.profile = profile;
            let ended = site
                .build(&request, &format!("{name}-{}.ext4", chunks.len()))
                .await;
            let file = File::open(&ended.outcome().image_path).unwrap();
            chunks.push(ChunkList::of_file(&file).unwrap());
        }
        let percent = chunks[0].compare(&chunks[1]).percent_of_second();
        assert!(percent >= 95.0, "{name}: {percent} %");
    }
}

/// A mounted XFS that can share blocks. Dropping it unmounts it.
struct Xfs {
    directory: tempfile::TempDir,
    _file: tempfile::TempDir,
}

impl Xfs {
    fn mount() -> Result<Self, lab::Missing> {
        if !rustix::process::geteuid().is_root() {
            return Err(lab::Missing::new("mounting needs root"));
        }
        let mkfs = lab::program("mkfs.xfs", "xfsprogs")?;
        let file = tempfile::tempdir().unwrap();
        let path = file.path().join("xfs");
        // Sparse.
        File::create(&path).unwrap().set_len(1 << 30).unwrap();
        let made = said(Command::new(mkfs).args(["-q", "-m", "reflink=1"]).arg(&path));
        assert!(made.status.success(), "{made:?}");
        let directory = tempfile::tempdir().unwrap();
        let mounted = said(
            Command::new("mount")
                .args(["-t", "xfs", "-o", "loop"])
                .arg(&path)
                .arg(directory.path()),
        );
        let words = String::from_utf8_lossy(&mounted.stderr).into_owned();
        if words.contains("loop device") || words.contains("unknown filesystem") {
            return Err(lab::Missing::new("no XFS on a loop device can be mounted"));
        }
        assert!(mounted.status.success(), "{words}");
        Ok(Self {
            directory,
            _file: file,
        })
    }
}

impl Drop for Xfs {
    fn drop(&mut self) {
        // Nothing may stay behind after a failed test either.
        for lazy in [&[][..], &["--lazy"]] {
            let ended = Command::new("umount")
                .args(lazy)
                .arg(self.directory.path())
                .status();
            if ended.is_ok_and(|status| status.success()) {
                return;
            }
        }
    }
}

fn said(command: &mut Command) -> Output {
    command.output().unwrap()
}

fn check_file_system(image: &Path, case: &str) {
    let e2fsck = match lab::program("e2fsck", "e2fsprogs") {
        Ok(program) => program,
        Err(missing) => return lab::skip(missing),
    };
    let found = said(Command::new(e2fsck).args(["-f", "-n"]).arg(image));
    assert!(found.status.success(), "{case}: {found:?}");
}

#[tokio::test]
async fn privileged_builds_on_xfs_share_blocks_and_make_the_same_images() {
    let xfs = match Xfs::mount() {
        Ok(xfs) => xfs,
        Err(missing) => return lab::skip(missing),
    };
    let elsewhere = Site::new();
    let mut site = Site::new_in(xfs.directory.path());
    let layout = elsewhere.directory.path().join("layout");
    sample().build().write_oci_layout(&layout, "1").unwrap();
    for (case, profile, verity) in [
        ("rw", Profile::ReadWrite, true),
        ("ro", Profile::ReadOnly, true),
        ("ro without a tree", Profile::ReadOnly, false),
    ] {
        let mut request = request(&format!("oci:{}:1", layout.display()));
        request.target.profile = profile;
        request.target.verity = verity;
        let copied = elsewhere.build(&request, "copied.ext4").await;
        let checksum = &copied.outcome().checksum;

        site.config.images = None;
        let made = site.build(&request, "made.ext4").await;
        assert_eq!(
            &made.outcome().checksum,
            checksum,
            "{case}: from new packs, or kept ones"
        );
        let workspace = site.directory.path().join("workspace");
        site.config.images = Some(ImageCache::open(&workspace).unwrap());
        let noted = site.build(&request, "noted.ext4").await;
        assert_eq!(&noted.outcome().checksum, checksum, "{case}: from packs");
        let reused = site.build(&request, "reused.ext4").await;
        assert_eq!(&reused.outcome().checksum, checksum, "{case}: reused");
        let lines = reused.lines(Level::Info);
        assert!(
            lines.iter().any(|line| line.contains("its blocks are shared")),
            "{case}: {lines:?}"
        );
        for ended in [&made, &noted, &reused] {
            let outcome = ended.outcome();
            check_file_system(&outcome.image_path, case);
            if verity && profile == Profile::ReadOnly {
                assert_tree(outcome, case);
            }
        }
        // Each has its own bytes: what a guest writes to one shows in no other.
        let bytes = std::fs::read(&noted.outcome().image_path).unwrap();
        let reused = File::options()
            .write(true)
            .open(&reused.outcome().image_path)
            .unwrap();
        std::os::unix::fs::FileExt::write_all_at(&reused, &[1; 8192], 70_000).unwrap();
        assert!(
            std::fs::read(&noted.outcome().image_path).unwrap() == bytes,
            "{case}"
        );
    }
}
