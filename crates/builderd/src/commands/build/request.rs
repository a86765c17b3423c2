//! What the command line asks for.

use std::{
    collections::BTreeMap,
    io::{self, Read as _},
    path::PathBuf,
};

use builder_core::{
    optimize::check_patterns,
    request::{
        Backend, BuildRequest, DockerImageSource, ExtractOptions, InitStrategy, LayerMode, Optimization,
        Profile, RegistryCredentials, RequestedLimits, RootfsTarget, RuntimeOverrides, Secret, TenantContext,
    },
};
use clap::{Args, ValueEnum, ValueHint};
use oci_fetch::Platform;
use rootfs::image::{DEFAULT_FREE_INODES, DEFAULT_FREE_SPACE_BYTES};
use tenant::TenantId;

use crate::{
    exit::{Exit, Failure},
    size::parse_size,
};

/// Longer passwords are a file given by mistake.
const MAX_PASSWORD_BYTES: u64 = 64 * 1024;

/// What a file system with extents and blocks of 4 KiB can have at most; see `rootfs::ext4`.
const MAX_EXT4_BYTES: u64 = 128 << 40;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The image, see above
    #[arg(value_name = "IMAGE")]
    pub(super) image: String,

    /// Where the image file goes
    #[arg(short, long, value_name = "FILE", value_hint = ValueHint::FilePath)]
    pub(super) output: PathBuf,

    /// Replace files that are there already
    #[arg(short, long)]
    pub(super) force: bool,

    /// Make the image anew, even where the same one was made before and could be copied
    #[arg(long)]
    pub(super) no_reuse: bool,

    /// Exactly what the layers say: no init, no file of ours
    #[arg(long)]
    raw: bool,

    /// What becomes process 1
    #[arg(long, value_name = "STRATEGY", default_value = "tini", conflicts_with = "raw")]
    init: InitName,

    /// Replace the image's ENTRYPOINT and clear its CMD; once for each word
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    entrypoint: Vec<String>,

    /// Replace the image's CMD; once for each word
    #[arg(long = "cmd", value_name = "WORD", allow_hyphen_values = true)]
    command: Vec<String>,

    /// Set a variable of the command's environment
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = variable)]
    env: Vec<(String, String)>,

    /// Start the command in this directory
    #[arg(short, long, value_name = "DIR")]
    workdir: Option<String>,

    /// Say that the image serves this port, as 80 or 53/udp
    #[arg(long, value_name = "PORT")]
    expose: Vec<String>,

    /// Remove what only debuggers read from programs and libraries
    #[arg(long)]
    strip_debug_symbols: bool,

    /// Remove manual pages and other documentation, but not the texts of licences
    #[arg(long)]
    remove_docs: bool,

    /// Remove what package managers can fetch again
    #[arg(long)]
    remove_cache: bool,

    /// Leave out what this pattern of .gitignore names
    #[arg(long, value_name = "PATTERN", value_parser = pattern)]
    exclude: Vec<String>,

    /// Leave alone what this pattern names, whatever else is asked for
    #[arg(long, value_name = "PATTERN", value_parser = pattern)]
    preserve: Vec<String>,

    /// Which image of an index, as linux/arm64/v8 [default: this machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]", value_parser = platform)]
    platform: Option<String>,

    /// How layers are understood where the specification and Docker differ
    #[arg(long, value_name = "MODE", default_value = "oci")]
    mode: Mode,

    /// Which writer makes the image; mke2fs needs root and e2fsprogs
    #[arg(long, value_name = "BACKEND", default_value = "native")]
    backend: BackendName,

    /// Written to by the guest, or never
    #[arg(long, value_name = "PROFILE", default_value = "rw")]
    profile: ProfileName,

    /// Leave out the dm-verity hash tree behind the file system of an image with --profile ro
    #[arg(long)]
    no_verity: bool,

    /// Free bytes for the guest, as 512MiB or 2GiB; sparse [default: 256MiB]
    #[arg(long, value_name = "SIZE", value_parser = free_space)]
    free_space: Option<u64>,

    /// Free inodes for the guest [default: 16384]
    #[arg(long, value_name = "N")]
    free_inodes: Option<u64>,

    /// Speak HTTP without TLS to the registry
    #[arg(long)]
    pub(super) plain_http: bool,

    /// Ask this registry before the image's own, as https://HOST:PORT; once for each, in that order
    #[arg(long, value_name = "URL")]
    pub(super) mirror: Vec<String>,

    /// Never ask the image's own registry, only the mirrors
    #[arg(long, requires = "mirror")]
    pub(super) no_mirror_fallback: bool,

    /// Authorities and client certificates: DIR/HOST[:PORT]/ with *.crt, *.cert and *.key, as Docker's certs.d
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) certs_dir: Option<PathBuf>,

    /// User name for the registry [default: what `docker login` has stored, if anything]
    #[arg(long, value_name = "NAME", requires = "password_stdin")]
    username: Option<String>,

    /// Read the registry's password from standard input; without --username, a token
    #[arg(long)]
    password_stdin: bool,

    /// Where layers are kept between builds [default: $XDG_CACHE_HOME/builderd, else ~/.cache/builderd]
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    pub(super) cache_dir: Option<PathBuf>,

    /// Print one JSON object a line for everything that happens, the result last
    #[arg(long)]
    pub(super) json: bool,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    /// The image specification to the letter
    Oci,
    /// What containerd and Docker users see
    Docker,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum InitName {
    /// Our init supervises the image's command
    Tini,
    /// Our init becomes the image's command
    Direct,
    /// The image's own, as systemd
    Custom,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum BackendName {
    /// Our own
    Native,
    /// e2fsprogs
    Mke2fs,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ProfileName {
    /// Journal and free space
    Rw,
    /// Nothing to spare
    Ro,
}

impl Arguments {
    pub(super) const fn backend(&self) -> Backend {
        match self.backend {
            BackendName::Native => Backend::Native,
            BackendName::Mke2fs => Backend::Mke2fs,
        }
    }

    /// The request of one's own machine's only tenant.
    pub(super) fn request(&self) -> Result<BuildRequest, Failure> {
        let usage = |message: &str| Failure::new(Exit::Usage, message);
        let profile = match self.profile {
            ProfileName::Rw => Profile::ReadWrite,
            ProfileName::Ro => Profile::ReadOnly,
        };
        if profile == Profile::ReadOnly && (self.free_space.is_some() || self.free_inodes.is_some()) {
            return Err(usage(
                "--free-space, --free-inodes: nothing is free in an image with --profile ro",
            ));
        }
        if profile == Profile::ReadWrite && self.no_verity {
            return Err(usage(
                "--no-verity: only an image with --profile ro has a hash tree to be left out",
            ));
        }
        let tenant_id: TenantId = "local"
            .parse()
            .map_err(|error| Failure::new(Exit::Internal, format!("{error}")))?;
        Ok(BuildRequest {
            tenant: TenantContext {
                tenant_id,
                customer_id: String::new(),
                organization_id: String::new(),
                claimed_tier: None,
                permissions: Vec::new(),
                metadata: BTreeMap::new(),
            },
            source: DockerImageSource {
                image_uri: self.image.clone(),
                platform: self.platform.clone(),
                pull_tags: Vec::new(),
                credentials: self.credentials()?,
            },
            target: RootfsTarget {
                init: match self.init {
                    _ if self.raw => InitStrategy::Raw,
                    InitName::Tini => InitStrategy::Tini,
                    InitName::Direct => InitStrategy::Direct,
                    InitName::Custom => InitStrategy::Custom,
                },
                runtime: RuntimeOverrides {
                    command: self.command.clone(),
                    entrypoint: self.entrypoint.clone(),
                    working_dir: self.workdir.clone(),
                    environment: self.env.iter().cloned().collect(),
                    exposed_ports: self.expose.clone(),
                },
                profile,
                free_space_bytes: self.free_space.unwrap_or(DEFAULT_FREE_SPACE_BYTES),
                free_inodes: self.free_inodes.unwrap_or(DEFAULT_FREE_INODES),
                layer_mode: match self.mode {
                    Mode::Oci => LayerMode::Oci,
                    Mode::Docker => LayerMode::Docker,
                },
                optimization: Optimization {
                    strip_debug_symbols: self.strip_debug_symbols,
                    remove_docs: self.remove_docs,
                    remove_cache: self.remove_cache,
                    exclude_patterns: self.exclude.clone(),
                    preserve_paths: Vec::new(),
                },
                preserve_paths: self.preserve.clone(),
                verity: !self.no_verity,
            },
            flatten_filesystem: false,
            extract: ExtractOptions::default(),
            limits: RequestedLimits::default(),
            build_name: String::new(),
            labels: BTreeMap::new(),
            suggested_asset_id: String::new(),
        })
    }

    /// What was given on the command line.
    fn credentials(&self) -> Result<Option<RegistryCredentials>, Failure> {
        if !self.password_stdin {
            return Ok(None);
        }
        let mut password = String::new();
        io::stdin()
            .take(MAX_PASSWORD_BYTES + 1)
            .read_to_string(&mut password)
            .map_err(|error| {
                Failure::new(Exit::Usage, format!("--password-stdin: reading failed: {error}"))
            })?;
        if password.len() as u64 > MAX_PASSWORD_BYTES {
            return Err(Failure::new(
                Exit::Usage,
                "--password-stdin: expected at most 64 KiB",
            ));
        }
        // What `echo` adds is not part of it.
        let password = password.strip_suffix('\n').unwrap_or(&password);
        let password = password.strip_suffix('\r').unwrap_or(password);
        if password.is_empty() {
            return Err(Failure::new(
                Exit::Usage,
                "--password-stdin: expected a password, got nothing",
            ));
        }
        let secret = Secret::new(password.to_owned());
        Ok(Some(match &self.username {
            Some(username) => RegistryCredentials {
                username: username.clone(),
                password: secret,
                ..RegistryCredentials::default()
            },
            None => RegistryCredentials {
                token: secret,
                ..RegistryCredentials::default()
            },
        }))
    }
}

fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

fn pattern(text: &str) -> Result<String, String> {
    match check_patterns(&[text.to_owned()]) {
        Ok(()) => Ok(text.to_owned()),
        Err(error) => Err(format!("expected a pattern of .gitignore: {}", error.message)),
    }
}

fn platform(text: &str) -> Result<String, String> {
    match text.parse::<Platform>() {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err("expected os/architecture[/variant], as linux/amd64".to_owned()),
    }
}

/// The size of an image with nothing but free space is bounded, too.
fn free_space(text: &str) -> Result<u64, String> {
    match parse_size(text)? {
        size if size < MAX_EXT4_BYTES => Ok(size),
        _ => Err("expected less than 128TiB, which is as large as an ext4 image gets".to_owned()),
    }
}
