//! What is added to an image, and what it says of itself: pure functions from the image's configuration and the
//! request.

mod custom;
mod firecracker;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use oci_fetch::{Image, ImageConfig};
use rootfs::verity;
use serde::Serialize;
use sha2::{Digest as _, Sha256};

use crate::{
    build::ImageMetadata,
    error::{BuildError, BuildErrorKind},
    optimize::Settings,
    request::{BuildRequest, InitStrategy, LayerMode, Profile, RootfsTarget, RuntimeOverrides},
    worker::HashTree,
};

use custom::Candidate;
pub(crate) use firecracker::machine;

/// Where the guest's kernel finds the init.
const INIT_PATH: &str = "/usr/bin/metald-init";

/// What the init runs: a JSON array.
const COMMAND_PATH: &str = "/container.cmd";

/// What the init runs it with: a JSON object.
const ENVIRONMENT_PATH: &str = "/container.env";

/// The init reads these files into memory, and no longer ones.
const MAX_GUEST_FILE_BYTES: usize = 1 << 20;

/// What a command finds when the image sets no PATH. Docker's own default.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What the guest's kernel calls its only disk.
const DISK: &str = "/dev/vda";

/// `COMMAND_LINE_SIZE` of the kernel for x86-64 and aarch64, with the zero at the end.
const LONGEST_COMMAND_LINE: usize = 2048;

/// The longest string that a process can be given: 32 pages (`include/uapi/linux/binfmts.h`).
const MAX_ARG_STRLEN: usize = 32 * 4096;

/// What starts when neither the image nor the request says.
const DEFAULT_COMMAND: &str = "/bin/sh";

/// What an init mounts over, with modes. A root that is read-only cannot be given them later.
const DIRECTORIES: [(&str, u16); 5] = [
    ("/dev", 0o755),
    ("/proc", 0o555),
    ("/run", 0o755),
    ("/sys", 0o555),
    ("/tmp", 0o1777),
];

/// Files that the guest's init writes when they are empty; Docker's containers have them as well.
const MOUNT_POINTS: [&str; 2] = ["/etc/hosts", "/etc/resolv.conf"];

/// The init that [`InitStrategy::Tini`] and [`InitStrategy::Direct`] add.
#[derive(Clone, Copy, Debug)]
pub(crate) struct GuestInit<'a> {
    pub(crate) binary: &'a Arc<[u8]>,
    pub(crate) architecture: &'a str,
}

/// What is done to the tree after the last layer, and the metadata that goes beside the image.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Made unless they are there, with these modes, before the files.
    pub(crate) directories: &'static [(&'static str, u16)],
    /// The command's, when the guest could not make it because its root is read-only.
    pub(crate) working_directory: Option<String>,
    /// Empty files that the init of a read-only root mounts its own over.
    pub(crate) mount_points: &'static [&'static str],
    pub(crate) files: Vec<AddedFile>,
    /// What is left out or made smaller before that.
    pub(crate) optimization: Settings,
    /// With [`InitStrategy::Custom`], the kernel's arguments lack the init until [`Shape::found_init`] knows it.
    pub(crate) metadata: ImageMetadata,
    /// What the image's own init may be; empty for the other strategies.
    candidates: Vec<Candidate>,
    overrides: RuntimeOverrides,
}

impl Shape {
    /// Paths of which the first that is a program becomes the init; empty when it is known already.
    pub(crate) fn init_candidates(&self) -> Vec<String> {
        self.candidates
            .iter()
            .map(|candidate| candidate.path.clone())
            .collect()
    }

    /// Takes over which candidate was found in the tree, and gives the names of variables that cannot be handed to it.
    pub(crate) fn found_init(&mut self, path: Option<&str>) -> Result<Vec<String>, BuildError> {
        let init = self
            .candidates
            .iter()
            .find(|candidate| Some(candidate.path.as_str()) == path)
            .ok_or_else(|| custom::not_found(&self.candidates))?;
        let base = &self.metadata.kernel_args;
        let (line, left_out) = custom::command_line_of(base, init, &self.metadata.env, &self.overrides)?;
        self.metadata.kernel_args = line;
        Ok(left_out)
    }

    /// Takes over the hash tree that the image got; the kernel's arguments are complete by then.
    pub(crate) fn made_tree(&mut self, tree: &HashTree) {
        let metadata = &mut self.metadata;
        metadata.verity_root_hash = hex::encode(tree.root_hash);
        metadata.verity_salt = hex::encode(verity::SALT);
        metadata.verity_hash_offset = tree.hash_offset;
        let table = verity::table(DISK, tree.hash_offset, &tree.root_hash, &verity::SALT);
        let line =
            metadata
                .kernel_args
                .replacen(&format!("root={DISK} ro"), &verity::kernel_argument(&table), 1);
        if line.len() < LONGEST_COMMAND_LINE {
            metadata.verity_kernel_args = line;
        }
    }
}

/// A file that replaces what the layers have at its path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AddedFile {
    pub(crate) path: &'static str,
    pub(crate) mode: u16,
    pub(crate) content: AddedContent,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum AddedContent {
    Text(String),
    Binary(Arc<[u8]>),
}

impl AddedContent {
    fn bytes(&self) -> &[u8] {
        match self {
            Self::Text(text) => text.as_bytes(),
            Self::Binary(bytes) => bytes,
        }
    }
}

/// `/container.env`. Fields in the order in which they are written; maps are sorted.
#[derive(Serialize)]
struct Environment<'a> {
    working_dir: &'a str,
    env: &'a BTreeMap<String, String>,
    user: &'a str,
    exposed_ports: &'a [String],
    /// Ours, beyond what the existing metald knows: what asks the command to stop.
    #[serde(skip_serializing_if = "str::is_empty")]
    stop_signal: &'a str,
    /// Ours: `direct` when the init is to become the command instead of supervising it.
    #[serde(skip_serializing_if = "str::is_empty")]
    init_strategy: &'a str,
}

/// No argument and no variable of a process can hold a NUL (execve(2)), so an image that asks for one can never run.
fn refuse_nul(metadata: &ImageMetadata) -> Result<(), BuildError> {
    let variables = metadata.env.iter().flat_map(|(name, value)| [name, value]);
    let found = [
        (
            "entrypoint",
            metadata.entrypoint.iter().any(|text| text.contains('\0')),
        ),
        ("command", metadata.command.iter().any(|text| text.contains('\0'))),
        (
            "environment",
            variables.into_iter().any(|text| text.contains('\0')),
        ),
        ("working directory", metadata.working_dir.contains('\0')),
        ("user", metadata.user.contains('\0')),
    ];
    match found.into_iter().find(|(_, has_nul)| *has_nul) {
        Some((what, _)) => Err(BuildError::new(
            BuildErrorKind::UnsupportedImage,
            format!("the {what} of the image holds a NUL byte, with which nothing can be started"),
        )),
        None => Ok(()),
    }
}

/// What the guest's kernel would not start, whatever the guest does: better said now than on its console.
fn refuse_unstartable(metadata: &ImageMetadata) -> Result<(), BuildError> {
    let mut words = metadata.entrypoint.iter().chain(&metadata.command);
    if words.next().is_some_and(String::is_empty) {
        return Err(BuildError::new(
            BuildErrorKind::UnsupportedImage,
            "the command of image and request begins with an empty word, which names no program",
        ));
    }
    // With the zero at the end; a variable also with its name and the sign between them.
    let too_long = |text: &String| text.len() >= MAX_ARG_STRLEN;
    let argument = metadata.entrypoint.iter().chain(&metadata.command).any(too_long);
    let variable = metadata
        .env
        .iter()
        .find(|(name, value)| name.len() + 1 + value.len() >= MAX_ARG_STRLEN)
        .map(|(name, _)| format!("the variable {:?}", name.chars().take(64).collect::<String>()));
    match argument.then(|| "an argument".to_owned()).or(variable) {
        Some(what) => Err(BuildError::new(
            BuildErrorKind::UnsupportedImage,
            format!(
                "{what} of image and request is too long to start anything with: at most {MAX_ARG_STRLEN} bytes, with its name and a zero"
            ),
        )),
        None => Ok(()),
    }
}

/// Decides what is added to `image`.
pub(crate) fn shape(image: &Image, request: &BuildRequest, init: GuestInit<'_>) -> Result<Shape, BuildError> {
    let mut metadata = metadata(&image.config, &request.target)?;
    refuse_nul(&metadata)?;
    if request.target.init != InitStrategy::Raw {
        refuse_unstartable(&metadata)?;
    }
    metadata.original_image.clone_from(&request.source.image_uri);
    metadata.image_digest = image.manifest_digest.to_string();
    metadata.layers = image
        .layers
        .iter()
        .map(|layer| layer.digest.to_string())
        .collect();
    metadata.platform = image.platform.to_string();
    let strategy = request.target.init;
    if matches!(strategy, InitStrategy::Tini | InitStrategy::Direct)
        && image.platform.architecture != init.architecture
    {
        return Err(BuildError::new(
            BuildErrorKind::InvalidArgument {
                field: "docker_image.platform",
            },
            format!(
                "docker_image.platform: the image is for {}, the init that goes into it for {}: choose a platform of \
                 that architecture, or the init strategy CUSTOM, with which the image's own init runs",
                image.platform.architecture, init.architecture
            ),
        ));
    }
    let files = match strategy {
        InitStrategy::Raw => Vec::new(),
        InitStrategy::Tini | InitStrategy::Direct => added_files(&metadata, strategy, Some(init.binary)),
        InitStrategy::Custom => added_files(&metadata, strategy, None),
    };
    for file in &files {
        if let AddedContent::Text(text) = &file.content
            && text.len() > MAX_GUEST_FILE_BYTES
        {
            return Err(BuildError::new(
                BuildErrorKind::LimitExceeded,
                format!(
                    "the image's command and environment make {} {} bytes long, the init reads {}",
                    file.path,
                    text.len(),
                    MAX_GUEST_FILE_BYTES
                ),
            ));
        }
    }
    let is_read_only_and_ours = request.target.profile == Profile::ReadOnly
        && matches!(strategy, InitStrategy::Tini | InitStrategy::Direct);
    Ok(Shape {
        directories: match strategy {
            InitStrategy::Raw => &[],
            _ => &DIRECTORIES,
        },
        working_directory: is_read_only_and_ours
            .then(|| normalized(&metadata.working_dir))
            .filter(|directory| directory != "/"),
        mount_points: if is_read_only_and_ours { &MOUNT_POINTS } else { &[] },
        files,
        optimization: Settings::of(request),
        metadata,
        candidates: match strategy {
            InitStrategy::Custom => custom::candidates(&image.config, &request.target.runtime),
            _ => Vec::new(),
        },
        overrides: request.target.runtime.clone(),
    })
}

/// What the image says after the request's overrides; what concerns the reference is still empty.
fn metadata(config: &ImageConfig, target: &RootfsTarget) -> Result<ImageMetadata, BuildError> {
    let overrides = &target.runtime;
    if let Some(directory) = &overrides.working_dir
        && !directory.starts_with('/')
    {
        return Err(BuildError::new(
            BuildErrorKind::InvalidArgument {
                field: "runtime_config.working_dir",
            },
            format!("runtime_config.working_dir: {directory:?} is not an absolute path"),
        ));
    }
    let (entrypoint, command) = command_line(config, overrides);
    let healthcheck = config.healthcheck.as_ref();
    Ok(ImageMetadata {
        labels: config.labels.clone(),
        command,
        entrypoint,
        working_dir: overrides
            .working_dir
            .clone()
            .unwrap_or_else(|| config.working_dir.clone()),
        env: environment(config, overrides),
        exposed_ports: config
            .exposed_ports
            .iter()
            .chain(&overrides.exposed_ports)
            .cloned()
            .collect::<BTreeSet<_>>()
            .into_iter()
            .collect(),
        user: config.user.clone(),
        volumes: config.volumes.clone(),
        stop_signal: config.stop_signal.clone().unwrap_or_default(),
        healthcheck_json: healthcheck.map(ToString::to_string).unwrap_or_default(),
        profile: match target.profile {
            Profile::ReadWrite => "rw".to_owned(),
            Profile::ReadOnly => "ro".to_owned(),
        },
        kernel_args: kernel_arguments(target),
        ..ImageMetadata::default()
    })
}

/// Entrypoint and command by Docker's rules: a new entrypoint drops the image's command, a new command replaces it. An
/// entrypoint of one empty word is none, and as an override the way to have none (`docker run --entrypoint ""`).
fn command_line(config: &ImageConfig, overrides: &RuntimeOverrides) -> (Vec<String>, Vec<String>) {
    let (entrypoint, inherited) = if overrides.entrypoint.is_empty() {
        (config.entrypoint.as_slice(), config.cmd.as_slice())
    } else {
        (overrides.entrypoint.as_slice(), [].as_slice())
    };
    let entrypoint = match entrypoint {
        [word] if word.is_empty() => &[],
        words => words,
    };
    let command = if overrides.command.is_empty() {
        inherited
    } else {
        &overrides.command
    };
    (entrypoint.to_vec(), command.to_vec())
}

/// The image's variables, the later of two with one name counting, then the request's. A variable without `=`, which
/// Docker takes for an order to unset it, is no variable.
fn environment(config: &ImageConfig, overrides: &RuntimeOverrides) -> BTreeMap<String, String> {
    let own = config.env.iter().filter_map(|entry| entry.split_once('='));
    let own = own.map(|(name, value)| (name.to_owned(), value.to_owned()));
    let added = overrides
        .environment
        .iter()
        .map(|(name, value)| (name.clone(), value.clone()));
    own.chain(added).filter(|(name, _)| !name.is_empty()).collect()
}

/// What boots the image in Firecracker and QEMU: a panic and a reboot both end the machine. The path of the image's own
/// init is not known yet.
fn kernel_arguments(target: &RootfsTarget) -> String {
    let access = match target.profile {
        Profile::ReadWrite => "rw",
        Profile::ReadOnly => "ro",
    };
    let base = format!("console=ttyS0 reboot=k panic=-1 root={DISK} {access}");
    match target.init {
        InitStrategy::Tini | InitStrategy::Direct => format!("{base} init={INIT_PATH}"),
        InitStrategy::Custom | InitStrategy::Raw => base,
    }
}

/// The init, when it is ours, and the two files that say what the image is to run: an init of the image's own may read
/// them as well.
fn added_files(metadata: &ImageMetadata, strategy: InitStrategy, init: Option<&Arc<[u8]>>) -> Vec<AddedFile> {
    let mut command: Vec<&str> = metadata
        .entrypoint
        .iter()
        .chain(&metadata.command)
        .map(String::as_str)
        .collect();
    if command.is_empty() {
        command.push(DEFAULT_COMMAND);
    }
    let mut env = metadata.env.clone();
    env.entry("PATH".to_owned())
        .or_insert_with(|| DEFAULT_PATH.to_owned());
    let working_dir = normalized(&metadata.working_dir);
    let environment = Environment {
        working_dir: &working_dir,
        env: &env,
        user: &metadata.user,
        exposed_ports: &metadata.exposed_ports,
        stop_signal: &metadata.stop_signal,
        init_strategy: match strategy {
            InitStrategy::Direct => "direct",
            _ => "",
        },
    };
    let json = |value: Result<String, _>| AddedContent::Text(value.expect("strings encode as JSON"));
    let binary = init.map(|init| AddedFile {
        path: INIT_PATH,
        mode: 0o755,
        content: AddedContent::Binary(Arc::clone(init)),
    });
    let texts = [
        AddedFile {
            path: COMMAND_PATH,
            mode: 0o644,
            content: json(serde_json::to_string(&command)),
        },
        AddedFile {
            path: ENVIRONMENT_PATH,
            mode: 0o644,
            content: json(serde_json::to_string(&environment)),
        },
    ];
    binary.into_iter().chain(texts).collect()
}

/// A working directory as Docker understands it: relative to the root, `.` and `..` taken by their letters, and never
/// above the root.
fn normalized(directory: &str) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in directory.split('/') {
        match name {
            "" | "." => {}
            ".." => {
                names.pop();
            }
            name => names.push(name),
        }
    }
    format!("/{}", names.join("/"))
}

/// What the image's UUID and hash seed are derived from: a SHA-256 over everything that decides its content.
///
/// Hashed in this order, every string and list preceded by its length (64 bit, little-endian): the text
/// `builderd image identity 2`; the layer mode (`oci`, `docker`); the 32 bytes of each layer's diff_id, bottom first; for
/// each added file its path, mode (16 bit) and the SHA-256 of its content; the profile (`rw`, `ro`), free bytes and free
/// inodes (64 bit each); then, only when something is left out or made smaller, the text `optimization`, three texts `0`
/// or `1` for documentation, caches and debug symbols, and the two lists of patterns, excluded and preserved, each a
/// number (64 bit) and the patterns. The image's name, its tenant, and how its layers were compressed are no part of it: equal
/// content gives an equal image. Number 2: a read-only image has the files and directories that its init mounts over or needs.
pub(crate) fn identity(
    diff_ids: &[[u8; 32]],
    files: &[AddedFile],
    optimization: &Settings,
    target: &RootfsTarget,
) -> [u8; 32] {
    let mut hasher = Sha256::new();
    let mut text = |bytes: &[u8]| {
        hasher.update((bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    text(b"builderd image identity 2");
    text(match target.layer_mode {
        LayerMode::Oci => b"oci",
        LayerMode::Docker => b"docker",
    });
    text(diff_ids.as_flattened());
    text(&(files.len() as u64).to_le_bytes());
    for file in files {
        text(file.path.as_bytes());
        text(&file.mode.to_le_bytes());
        text(&Sha256::digest(file.content.bytes()));
    }
    text(match target.profile {
        Profile::ReadWrite => b"rw",
        Profile::ReadOnly => b"ro",
    });
    text(&target.free_space_bytes.to_le_bytes());
    text(&target.free_inodes.to_le_bytes());
    if !optimization.is_nothing() {
        text(b"optimization");
        for asked in [
            optimization.remove_docs,
            optimization.remove_cache,
            optimization.strip_debug_symbols,
        ] {
            text(if asked { b"1" } else { b"0" });
        }
        for patterns in [&optimization.exclude, &optimization.preserve] {
            text(&(patterns.len() as u64).to_le_bytes());
            patterns.iter().for_each(|pattern| text(pattern.as_bytes()));
        }
    }
    hasher.finalize().into()
}

#[cfg(test)]
mod tests;
