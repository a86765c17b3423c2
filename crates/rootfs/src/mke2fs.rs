//! The reference backend: e2fsprogs as a subprocess over a staged tree.
//!
//! It exists to be compared with. The kernel and `mke2fs -d` decide here what an ext4 image of a tree is, and the
//! native writer has to agree with them. It needs root (owners, devices, `trusted.` and `security.` attributes) and
//! e2fsprogs 1.43 or later, and it is slow: every body is written twice.
//!
//! # How
//!
//! 1. The size is planned (see `mke2fs/plan.rs` for the formula). e2fsprogs cannot say beforehand what it will need,
//!    so the plan is an upper bound, and what is left over is free space in the image.
//! 2. The tree is made as real files below a fresh directory, mode 0700, in the staging directory. Names are only ever
//!    given to system calls that take one name relative to an open directory and follow no symbolic link
//!    (`mkdirat`, `openat` with `O_NOFOLLOW | O_EXCL`, `linkat`, ...), so no path of a layer is ever looked up.
//! 3. `mke2fs -d` copies it into the image. The image is its standard input, named `/proc/self/fd/0`, the staged tree is
//!    its working directory: nothing that a layer says is in a command line.
//! 4. The program ignores the root's own mode, owner and time, so `debugfs` sets them: five numbers.
//! 5. The staged tree is removed, whatever happened. A staged tree that a killed process left behind is removed by the
//!    next run in the same staging directory: each holds a lock that ends with its process.
//!
//! # Process
//!
//! `mke2fs` stays in the caller's process group, so ending the group ends it. Where `setpriv` (util-linux) is there, it
//! is started through `setpriv --pdeathsig KILL` and the kernel kills it when the thread that called
//! [`Mke2fs::write`](crate::image::ImageBackend::write) dies for any other reason. Its environment is empty but for
//! what makes its output constant; the host's `mke2fs.conf` is not read.
//!
//! # What is lost
//!
//! - Modification times keep their whole seconds only, and only those of 1901 to 2038.
//! - Change times are those of the staged files, so two images of one tree are not equal byte for byte.
//! - A symbolic link with several names becomes several symbolic links.
//! - There is always a `lost+found`, and one in the tree's root is merged into it.
//! - Directories have no hash index before the guest or `e2fsck -D` makes one.
//! - [`Profile::ReadOnly`] has no journal, but some free space.

mod plan;
mod program;
mod stage;
mod staging;

use std::{
    fs::File,
    io,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

use crate::{
    Metadata, Timestamp, Tree,
    image::{ImageBackend, ImageError, ImageOptions, ImageSummary, Profile},
    pack::{BLOCK_SIZE, Packs},
    verity,
};

const NAME: &str = "mke2fs";

/// Where trees are staged unless told otherwise: on most hosts a disk, and kept apart from what is in memory.
const DEFAULT_STAGING_DIRECTORY: &str = "/var/tmp";

/// The reference backend. See the [module documentation](self).
#[derive(Clone, Debug)]
pub struct Mke2fs {
    staging_directory: PathBuf,
    mke2fs: Option<PathBuf>,
}

impl Mke2fs {
    /// Stages trees below `staging_directory`, which must exist. Its file system must have room for all bodies and
    /// keep the extended attributes that trees have, POSIX ACLs among them.
    #[must_use]
    pub fn new(staging_directory: impl Into<PathBuf>) -> Self {
        Self {
            staging_directory: staging_directory.into(),
            mke2fs: None,
        }
    }

    /// Uses that program instead of the `mke2fs` found in the system's directories.
    #[must_use]
    pub fn with_program(mut self, program: impl Into<PathBuf>) -> Self {
        self.mke2fs = Some(program.into());
        self
    }

    /// Finds out whether this backend can run here, without doing anything.
    ///
    /// # Errors
    /// [`ImageError::Unavailable`] with what is missing and how to get it.
    pub fn check_available(&self) -> Result<(), ImageError> {
        self.find_programs().map(|_| ())
    }

    fn find_programs(&self) -> Result<Programs, ImageError> {
        if !rustix::process::geteuid().is_root() {
            return Err(unavailable(
                "it needs root to give staged files their owners; run as root or use the native backend"
                    .to_owned(),
            ));
        }
        let mke2fs = match &self.mke2fs {
            Some(program) => Some(program.clone()).filter(|program| program.is_file()),
            None => program::find("mke2fs"),
        };
        let missing = || {
            unavailable(
                "mke2fs or debugfs was not found; install e2fsprogs or use the native backend".to_owned(),
            )
        };
        Ok(Programs {
            mke2fs: mke2fs.ok_or_else(missing)?,
            debugfs: program::find("debugfs").ok_or_else(missing)?,
        })
    }
}

/// What is run.
struct Programs {
    mke2fs: PathBuf,
    debugfs: PathBuf,
}

impl Default for Mke2fs {
    /// Stages trees below `/var/tmp`.
    fn default() -> Self {
        Self::new(DEFAULT_STAGING_DIRECTORY)
    }
}

impl ImageBackend for Mke2fs {
    fn name(&self) -> &'static str {
        NAME
    }

    fn write(
        &self,
        tree: &Tree,
        packs: &Packs,
        options: &ImageOptions,
        output: &File,
    ) -> Result<ImageSummary, ImageError> {
        options.check()?;
        let programs = self.find_programs()?;
        let plan = plan::plan(tree, options);
        let size_bytes = plan.blocks * BLOCK_SIZE;
        let verity_bytes = match options.verity {
            true => verity::hash_area_bytes(size_bytes).unwrap_or(0),
            false => 0,
        };
        let needed_bytes = size_bytes + verity_bytes;
        if let Some(limit_bytes) = options.max_image_bytes.filter(|&limit| needed_bytes > limit) {
            return Err(ImageError::TooLarge {
                needed_bytes,
                limit_bytes,
            });
        }
        let staging = staging::Staging::create(&self.staging_directory).map_err(|source| ImageError::Io {
            action: "make a directory for staging",
            source,
        })?;
        stage::stage(tree, packs, staging.directory())?;
        output.set_len(size_bytes).map_err(|source| ImageError::Io {
            action: "size the image",
            source,
        })?;
        let uuid = derive_uuid("uuid", &options.identity);
        let arguments = arguments(
            options.profile,
            &plan,
            uuid,
            derive_uuid("hash seed", &options.identity),
        );
        program::run(
            NAME,
            &programs.mke2fs,
            &arguments,
            &staging.path().join(stage::ROOT),
            output,
        )?;
        set_root(&programs.debugfs, tree, staging.path(), output)?;
        let summary = summarise(output, uuid).map_err(|source| ImageError::Io {
            action: "read the image's superblock",
            source,
        })?;
        verify_free_space(&summary, options)?;
        let mut image = summary.image;
        if options.verity {
            let verity = verity::append(output, image.size_bytes).map_err(|source| ImageError::Io {
                action: "write the hash tree",
                source,
            })?;
            image.size_bytes += verity.hash_area_bytes;
            image.verity = Some(verity);
        }
        (image.sha256, image.chunks) = options
            .findings
            .of_file(output)
            .map_err(|source| ImageError::Io {
                action: "read the image for its checksum",
                source,
            })?;
        Ok(image)
    }
}

/// What the superblock of a finished image says.
struct Superblock {
    image: ImageSummary,
    free_bytes: u64,
    free_inodes: u64,
}

/// Everything on the command line comes from here: nothing in it depends on a name or a body of the tree.
fn arguments(profile: Profile, plan: &plan::Plan, uuid: [u8; 16], hash_seed: [u8; 16]) -> Vec<String> {
    // `none` switches off what the program would choose by itself.
    let mut features =
        "none,ext_attr,dir_index,filetype,extent,flex_bg,sparse_super,large_file,huge_file,dir_nlink,\
                        extra_isize,metadata_csum"
            .to_owned();
    if profile == Profile::ReadWrite {
        features.push_str(",has_journal,resize_inode");
    }
    // The guest should not have to zero inode tables in the background, so they are zeroed (that is: holes) now.
    let extended = format!(
        "hash_seed={},lazy_itable_init=0,lazy_journal_init=0",
        uuid_text(hash_seed)
    );
    let mut arguments: Vec<String> = ["-q", "-F", "-b", "4096", "-I", "256", "-m", "0", "-d", "."]
        .map(str::to_owned)
        .into();
    let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
    add("-O", features);
    add("-N", plan.inodes.to_string());
    add("-U", uuid_text(uuid));
    add("-E", extended);
    if profile == Profile::ReadWrite {
        add("-J", format!("size={}", (plan.journal_blocks * BLOCK_SIZE) >> 20));
    }
    arguments.extend([program::IMAGE.to_owned(), plan.blocks.to_string()]);
    arguments
}

/// Gives the root its mode, owner and time, which `mke2fs -d` does not copy.
fn set_root(debugfs: &Path, tree: &Tree, directory: &Path, output: &File) -> Result<(), ImageError> {
    const SCRIPT: &str = "root.debugfs";
    let Metadata {
        mode,
        uid,
        gid,
        mtime,
        ..
    } = tree.inode(Tree::ROOT).metadata;
    let (low, extra) = ext4_time(mtime);
    // Octal 4 in front makes it a directory (`S_IFDIR`).
    let script = format!(
        "set_inode_field <2> mode 04{mode:04o}\nset_inode_field <2> uid {uid}\nset_inode_field <2> gid {gid}\n\
         set_inode_field <2> mtime_lo {low}\nset_inode_field <2> mtime_extra {extra}\n"
    );
    std::fs::write(directory.join(SCRIPT), script).map_err(|source| ImageError::Io {
        action: "write a script for debugfs",
        source,
    })?;
    let arguments = ["-w", "-f", SCRIPT, program::IMAGE].map(str::to_owned);
    let message = program::run("debugfs", debugfs, &arguments, directory, output)?;
    // It succeeds whatever becomes of its commands, and says something else than its version when one fails.
    if message.split("; ").all(|line| line.starts_with("debugfs 1.")) {
        return Ok(());
    }
    Err(ImageError::Program {
        program: "debugfs",
        status: "success".to_owned(),
        message,
    })
}

/// A time as ext4 keeps it: 32 bits of seconds, and 30 bits of nanoseconds above two more of seconds
/// (`fs/ext4/ext4.h`, "Extended fields will fit into an inode"). Clamped to what that can express.
fn ext4_time(time: Timestamp) -> (u32, u32) {
    const FIRST: i64 = -(1 << 31);
    const LAST: i64 = (1 << 34) - (1 << 31) - 1;
    let seconds = time.seconds.clamp(FIRST, LAST);
    // The low half counts as signed, and the epoch says how many times 2^32 seconds to add.
    let low = u32::try_from(seconds & 0xffff_ffff).expect("32 bits");
    let epoch = u32::try_from((seconds - FIRST) >> 32).expect("two bits after clamping");
    let nanoseconds = if seconds == time.seconds {
        time.nanoseconds
    } else {
        0
    };
    (low, nanoseconds << 2 | epoch)
}

/// A UUID (version 8, RFC 9562) from the build's identity, for one purpose.
fn derive_uuid(purpose: &str, identity: &[u8; 32]) -> [u8; 16] {
    let digest = Sha256::new()
        .chain_update(b"rootfs mke2fs 1 ")
        .chain_update(purpose)
        .chain_update(identity)
        .finalize();
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&digest[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

fn uuid_text(uuid: [u8; 16]) -> String {
    let text = hex::encode(uuid);
    [
        &text[..8],
        &text[8..12],
        &text[12..16],
        &text[16..20],
        &text[20..],
    ]
    .join("-")
}

/// Reads the counts that the program chose (`struct ext2_super_block`: little-endian, at byte 1024 of the image).
fn summarise(output: &File, uuid: [u8; 16]) -> io::Result<Superblock> {
    let mut superblock = [0; 32];
    output.read_exact_at(&mut superblock, 1024)?;
    let field = |offset: usize| {
        let bytes = superblock[offset..offset + 4].try_into().expect("four bytes");
        u64::from(u32::from_le_bytes(bytes))
    };
    let (inodes, blocks, free_blocks, free_inodes) = (field(0), field(4), field(12), field(16));
    let size_bytes = blocks * BLOCK_SIZE;
    // The program leaves out a last group that would be all metadata; the image ends where the file system does.
    output.set_len(size_bytes)?;
    let image = ImageSummary {
        size_bytes,
        uuid,
        inodes_used: inodes - free_inodes,
        verity: None,
        sha256: None,
        chunks: None,
    };
    Ok(Superblock {
        image,
        free_bytes: free_blocks * BLOCK_SIZE,
        free_inodes,
    })
}

/// The plan is an upper bound, and this is what it promises.
fn verify_free_space(superblock: &Superblock, options: &ImageOptions) -> Result<(), ImageError> {
    let (bytes, inodes) = match options.profile {
        Profile::ReadWrite => (options.free_space_bytes, options.free_inodes),
        Profile::ReadOnly => (0, 0),
    };
    if superblock.free_bytes >= bytes && superblock.free_inodes >= inodes {
        return Ok(());
    }
    let message = format!(
        "it left {} bytes and {} inodes free, {bytes} and {inodes} were asked for",
        superblock.free_bytes, superblock.free_inodes
    );
    Err(ImageError::Program {
        program: NAME,
        status: "success".to_owned(),
        message,
    })
}

fn unavailable(reason: String) -> ImageError {
    ImageError::Unavailable {
        backend: NAME,
        reason,
    }
}

#[cfg(test)]
mod tests;
