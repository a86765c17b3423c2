//! Trees made from code, images made from them, and the programs that judge the images.

use std::{
    fs::File,
    path::{Path, PathBuf},
    process::Command,
    sync::Arc,
};

use rootfs::{
    InodeId, Metadata, Timestamp, Tree,
    chunks::ChunkList,
    ext4::{Native, Plan, plan},
    image::{ImageBackend, ImageOptions, Profile},
    layer::BodyExtent,
    pack::{Pack, PackId, Packs},
    tree::{Content, FileContent},
    verity::{LeafHashes, Verity},
};

pub(crate) const BLOCK: u64 = 4096;

/// A tree and the packs that its files refer to, which are collected in memory.
#[derive(Default)]
pub(crate) struct Fixture {
    pub(crate) tree: Tree,
    packs: Vec<Vec<u8>>,
}

impl Fixture {
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Makes a directory and those above it.
    pub(crate) fn directory(&mut self, path: &str, mode: u16) -> InodeId {
        self.tree
            .create_directories(path.as_bytes(), &Metadata::root(mode))
            .unwrap()
    }

    /// A file whose content lies in pack `pack`.
    pub(crate) fn file(&mut self, path: &[u8], pack: usize, bytes: &[u8]) -> InodeId {
        let content = self.store(pack, bytes);
        self.tree.put_file(path, Metadata::root(0o644), content).unwrap()
    }

    /// A file whose content is part of the tree.
    pub(crate) fn inline(&mut self, path: &[u8], bytes: &[u8]) -> InodeId {
        self.tree
            .put_file(path, Metadata::root(0o644), FileContent::inline(bytes))
            .unwrap()
    }

    /// Appends content to a pack, block-aligned and without its zero blocks.
    pub(crate) fn store(&mut self, pack: usize, bytes: &[u8]) -> FileContent {
        let blocks = bytes
            .chunks(4096)
            .zip(0..)
            .filter(|(block, _)| block.iter().any(|byte| *byte != 0));
        self.store_sparse(pack, bytes.len() as u64, blocks.map(|(block, nth)| (nth, block)))
    }

    /// The same for content given as single blocks, ascending.
    pub(crate) fn store_sparse<'a>(
        &mut self,
        pack: usize,
        size_bytes: u64,
        blocks: impl Iterator<Item = (u64, &'a [u8])>,
    ) -> FileContent {
        if self.packs.len() <= pack {
            self.packs.resize(pack + 1, Vec::new());
        }
        let body = &mut self.packs[pack];
        let mut extents: Vec<BodyExtent> = Vec::new();
        for (nth, block) in blocks {
            let pack_offset = body.len() as u64;
            body.extend_from_slice(block);
            body.resize(body.len().next_multiple_of(4096), 0);
            match extents.last_mut() {
                Some(last) if last.logical_offset + last.length == nth * BLOCK => {
                    last.length += block.len() as u64
                }
                _ => extents.push(BodyExtent {
                    logical_offset: nth * BLOCK,
                    pack_offset,
                    length: block.len() as u64,
                }),
            }
        }
        let pack = PackId(u32::try_from(pack).unwrap());
        FileContent {
            size_bytes,
            content: Content::Packed {
                pack,
                extents: extents.into(),
            },
        }
    }

    /// The packs in memory.
    pub(crate) fn packs(&self) -> Packs {
        let mut packs = Packs::new();
        for bytes in &self.packs {
            packs.push(Pack::Memory(bytes.clone().into()));
        }
        packs
    }

    /// The packs as files, which the kernel can copy from.
    pub(crate) fn pack_files(&self) -> Packs {
        self.pack_files_in(&std::env::temp_dir())
    }

    /// The same, in a directory whose file system matters.
    pub(crate) fn pack_files_in(&self, directory: &Path) -> Packs {
        let mut packs = Packs::new();
        for bytes in &self.packs {
            let mut file = tempfile::tempfile_in(directory).unwrap();
            std::io::Write::write_all(&mut file, bytes).unwrap();
            packs.push(Pack::File(Arc::new(file)));
        }
        packs
    }

    pub(crate) fn plan(&self, options: &ImageOptions) -> Plan<'_> {
        plan(&self.tree, options).unwrap()
    }

    /// The packs in memory, with their leaf hashes.
    pub(crate) fn hashed_packs(&self) -> Packs {
        let mut packs = Packs::new();
        for bytes in &self.packs {
            let pack = Pack::Memory(bytes.clone().into());
            let hashes = LeafHashes::of_pack(&pack, bytes.len() as u64).unwrap();
            let id = packs.push(pack);
            packs.set_leaf_hashes(id, Arc::new(hashes));
        }
        packs
    }

    /// Writes the image, checks it with e2fsck and `veritysetup`, and compares it with its plan and what was found out
    /// about it with the file.
    pub(crate) fn image(&self, options: &ImageOptions) -> Image {
        let plan = self.plan(options);
        let image = Image::create();
        let mut asked = options.clone();
        // Reading terabytes of holes proves nothing.
        let is_readable = plan.size_bytes() < 1 << 28;
        asked.findings.sha256 = is_readable;
        asked.findings.chunks = is_readable;
        let summary = Native
            .write(&self.tree, &self.packs(), &asked, &image.file)
            .unwrap();
        assert_eq!(summary.size_bytes, plan.size_bytes());
        assert_eq!(image.file.metadata().unwrap().len(), plan.size_bytes());
        if is_readable {
            assert_eq!(hex::encode(summary.sha256.unwrap()), image.sha256());
            assert_eq!(summary.chunks.unwrap(), ChunkList::of_file(&image.file).unwrap());
        }
        assert_eq!(summary.verity.is_some(), options.verity);
        if let Some(verity) = summary.verity {
            check_verity(&image.path(), &verity);
        }
        image.check();
        assert_eq!(
            image.superblock_u32(0x10),
            u32::try_from(plan.free_inodes()).unwrap()
        );
        if plan.size_bytes() < 1 << 44 {
            assert_eq!(u64::from(image.superblock_u32(0x0c)), plan.free_blocks());
        }
        image
    }
}

/// An image in a temporary file.
pub(crate) struct Image {
    directory: tempfile::TempDir,
    pub(crate) file: File,
}

impl Image {
    pub(crate) fn create() -> Self {
        Self::create_in(&std::env::temp_dir())
    }

    /// In a fresh directory below that one.
    pub(crate) fn create_in(parent: &Path) -> Self {
        let directory = tempfile::tempdir_in(parent).unwrap();
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(directory.path().join("image.ext4"))
            .unwrap();
        Self { directory, file }
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.directory.path().join("image.ext4")
    }

    /// Runs `e2fsck -fn`: nothing to repair, nothing to improve, nothing to say.
    pub(crate) fn check(&self) {
        check_with_e2fsck(&self.path());
    }

    pub(crate) fn superblock_u32(&self, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        std::os::unix::fs::FileExt::read_exact_at(&self.file, &mut bytes, 1024 + offset).unwrap();
        u32::from_le_bytes(bytes)
    }

    pub(crate) fn sha256(&self) -> String {
        sha256_of(&self.path())
    }

    pub(crate) fn open(&self) -> ext4_view::Ext4 {
        ext4_view::Ext4::load_from_path(self.path()).unwrap()
    }

    /// The answer of `debugfs -R REQUEST`, or `None` without e2fsprogs.
    pub(crate) fn debugfs(&self, request: &str) -> Option<String> {
        let output = run(Command::new("debugfs").arg("-R").arg(request).arg(self.path()))?;
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}

pub(crate) fn sha256_of(path: &Path) -> String {
    use sha2::Digest as _;
    let mut hasher = sha2::Sha256::new();
    let mut file = File::open(path).unwrap();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = std::io::Read::read(&mut file, &mut buffer).unwrap();
        if count == 0 {
            return hex::encode(hasher.finalize());
        }
        hasher.update(&buffer[..count]);
    }
}

/// Runs `veritysetup verify`: superblock, tree and every block belong to the root hash.
pub(crate) fn check_verity(path: &Path, verity: &Verity) {
    let Some(output) = run(Command::new("veritysetup")
        .arg("verify")
        .args([path, path])
        .arg(hex::encode(verity.root_hash))
        .arg(format!("--hash-offset={}", verity.hash_offset)))
    else {
        return;
    };
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "veritysetup verify: {text}");
}

pub(crate) fn check_with_e2fsck(path: &Path) {
    let Some(output) = run(Command::new("e2fsck").arg("-fn").arg(path)) else {
        return;
    };
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    for word in ["could be", "IGNORED", "Fix", "Clear", "warning", "Optimize"] {
        assert!(!text.contains(word), "e2fsck has something to say: {text}");
    }
}

/// Runs a program of e2fsprogs or the like; `None`, and a note, when it is not installed.
pub(crate) fn run(command: &mut Command) -> Option<std::process::Output> {
    command.env("LC_ALL", "C").env(
        "PATH",
        "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    );
    match command.output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            skip(&format!(
                "{} is not installed",
                command.get_program().to_string_lossy()
            ));
            None
        }
        Err(error) => panic!("{command:?}: {error}"),
    }
}

/// Says why a case cannot run here.
pub(crate) fn skip(reason: &str) {
    assert!(
        std::env::var_os("BUILDERD_REQUIRE_LAB").is_none_or(|value| value != "1"),
        "cannot skip: {reason}"
    );
    let _ = std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("skipped: {reason}\n"));
}

/// Read-only, with nothing free.
pub(crate) fn read_only() -> ImageOptions {
    let mut options = ImageOptions::new([7; 32]);
    options.profile = Profile::ReadOnly;
    options
}

/// Read-write, with so many free bytes.
pub(crate) fn read_write(free_space_bytes: u64, free_inodes: u64) -> ImageOptions {
    let mut options = ImageOptions::new([7; 32]);
    options.free_space_bytes = free_space_bytes;
    options.free_inodes = free_inodes;
    options
}

/// Read-only, with a hash tree.
pub(crate) fn with_verity() -> ImageOptions {
    let mut options = read_only();
    options.verity = true;
    options
}

/// Every kind of image.
pub(crate) fn all_kinds() -> [(&'static str, ImageOptions); 3] {
    [
        ("ro", read_only()),
        ("rw", read_write(20 << 20, 100)),
        ("ro-verity", with_verity()),
    ]
}

/// Metadata with everything that is not a default.
pub(crate) fn metadata(mode: u16, uid: u32, gid: u32, seconds: i64, nanoseconds: u32) -> Metadata {
    Metadata {
        mode,
        uid,
        gid,
        mtime: Timestamp { seconds, nanoseconds },
        ..Metadata::root(0)
    }
}
