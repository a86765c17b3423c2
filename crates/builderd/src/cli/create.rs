//! `builderd-cli create-build`.

use std::{
    collections::HashMap,
    io::{self, Read as _},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::{Args, ValueEnum, ValueHint};
use prost::Message as _;
use prost_reflect::{DescriptorPool, DynamicMessage};
use serde_json::json;

use super::{
    commands::{Reconnect, build_record},
    connection::{Connection, read},
    follow::{Follower, Show},
    options::{Options, duration},
    output::{json as to_json, moment, note, print, print_json, print_json_line, record, state},
};
use crate::{
    exit::{Exit, Failure},
    proto::{
        self, BuildConfig, BuildSource, BuildState, BuildStrategy, BuildTarget, CreateBuildRequest,
        DockerAuth, DockerExtractStrategy, DockerImageSource, InitStrategy, MicroVmRootfs,
        OptimizationSettings, RuntimeConfig, TenantContext, TenantResourceLimits, build_source::SourceType,
        build_strategy::StrategyType, build_target::TargetType,
    },
    size::parse_size,
};

/// Requests beyond this are refused by the service as well.
const MAX_REQUEST_BYTES: u64 = 4 << 20;

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The image, as nginx:1.21-alpine or ghcr.io/org/app@sha256:…
    #[arg(value_name = "IMAGE", required_unless_present = "request")]
    image: Option<String>,

    /// A whole CreateBuildRequest as JSON instead, - for standard input
    #[arg(
        long,
        value_name = "FILE",
        value_hint = ValueHint::FilePath,
        conflicts_with_all = [
            "image", "platform", "name", "label", "profile", "layer_mode", "free_space", "free_inodes", "init",
            "strip_debug_symbols", "remove_docs", "remove_cache", "exclude", "preserve", "env",
            "workdir", "entrypoint", "port", "command", "build_timeout", "memory", "disk", "asset_id",
            "registry_username", "registry_password_file", "registry_token_file",
        ]
    )]
    request: Option<PathBuf>,

    /// Show the log and how far the build is until it has ended
    #[arg(long, short)]
    follow: bool,

    #[command(flatten)]
    reconnect: Reconnect,

    /// Names this request: sent again with the same key it starts no second build
    #[arg(long, value_name = "KEY")]
    idempotency_key: Option<String>,

    /// Which image of an index, as linux/arm64/v8 [default: the service's machine's]
    #[arg(long, value_name = "OS/ARCH[/VARIANT]")]
    platform: Option<String>,

    /// A name for people
    #[arg(long, value_name = "NAME")]
    name: Option<String>,

    /// A label for people; may be given many times
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    label: Vec<(String, String)>,

    /// Written to by the guest, or never
    #[arg(long, value_name = "PROFILE")]
    profile: Option<ProfileName>,

    /// How layers are understood where the specification and Docker differ
    #[arg(long, value_name = "MODE")]
    layer_mode: Option<LayerModeName>,

    /// Free bytes for the guest, as 512MiB or 2GiB
    #[arg(long, value_name = "SIZE", value_parser = size)]
    free_space: Option<i64>,

    /// Free inodes for the guest
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(i64).range(1..))]
    free_inodes: Option<i64>,

    /// What becomes process 1
    #[arg(long, value_name = "STRATEGY")]
    init: Option<InitName>,

    /// Remove what only debuggers read from programs and libraries
    #[arg(long)]
    strip_debug_symbols: bool,

    /// Remove documentation, but not the texts of licences
    #[arg(long)]
    remove_docs: bool,

    /// Remove what package managers can fetch again
    #[arg(long)]
    remove_cache: bool,

    /// Leave out what this pattern of .gitignore names; may be given many times
    #[arg(long, value_name = "PATTERN")]
    exclude: Vec<String>,

    /// Leave alone what this pattern names, whatever else is asked for; may be given many times
    #[arg(long, value_name = "PATTERN")]
    preserve: Vec<String>,

    /// A variable for the guest's command; may be given many times
    #[arg(long, value_name = "NAME=VALUE", value_parser = pair)]
    env: Vec<(String, String)>,

    /// Working directory of the guest's command
    #[arg(long, value_name = "DIR")]
    workdir: Option<String>,

    /// Replaces the image's entrypoint; may be given many times, once for every argument
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    entrypoint: Vec<String>,

    /// A port that the guest's command serves, as 80 or 53/udp; may be given many times
    #[arg(long, value_name = "PORT")]
    port: Vec<String>,

    /// Replaces the image's command
    #[arg(last = true, value_name = "COMMAND")]
    command: Vec<String>,

    /// The longest that the build may take, below the tenant's own limit
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    build_timeout: Option<Duration>,

    /// Memory of the build, below the tenant's own limit
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory: Option<i64>,

    /// Disk of the build, below the tenant's own limit
    #[arg(long, value_name = "SIZE", value_parser = size)]
    disk: Option<i64>,

    /// Under which id the image is to be registered
    #[arg(long, value_name = "ID")]
    asset_id: Option<String>,

    /// User name for the registry
    #[arg(long, value_name = "NAME", requires = "registry_password_file")]
    registry_username: Option<String>,

    /// File with the password, - for standard input
    #[arg(long, value_name = "FILE", requires = "registry_username", value_hint = ValueHint::FilePath)]
    registry_password_file: Option<PathBuf>,

    /// File with an identity token for the registry, - for standard input
    #[arg(long, value_name = "FILE", conflicts_with = "registry_username", value_hint = ValueHint::FilePath)]
    registry_token_file: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum InitName {
    /// The service's init supervises the image's command
    Tini,
    /// The service's init becomes the image's command
    Direct,
    /// The image's own, as systemd
    Custom,
}

impl From<InitName> for InitStrategy {
    fn from(name: InitName) -> Self {
        match name {
            InitName::Tini => Self::Tini,
            InitName::Direct => Self::Direct,
            InitName::Custom => Self::Custom,
        }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ProfileName {
    /// Journal and free space
    Rw,
    /// Nothing to spare
    Ro,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum LayerModeName {
    /// The image specification to the letter
    Oci,
    /// What containerd and Docker users see
    Docker,
}

fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

fn size(text: &str) -> Result<i64, String> {
    let bytes = parse_size(text)?;
    i64::try_from(bytes)
        .ok()
        .filter(|bytes| *bytes > 0)
        .ok_or_else(|| "expected 1 to 9223372036854775807 bytes".to_owned())
}

impl Arguments {
    /// What is asked for.
    pub(super) fn request(&self, options: &Options) -> Result<CreateBuildRequest, Failure> {
        let tenant_id = options.tenant()?;
        if let Some(file) = &self.request {
            return request_from(file, &tenant_id);
        }
        let image = DockerImageSource {
            image_uri: self.image.clone().unwrap_or_default(),
            auth: self.credentials()?,
            platform: self.platform.clone().unwrap_or_default(),
            ..Default::default()
        };
        let runtime = RuntimeConfig {
            command: self.command.clone(),
            entrypoint: self.entrypoint.clone(),
            working_dir: self.workdir.clone().unwrap_or_default(),
            environment: self.env.iter().cloned().collect(),
            exposed_ports: self.port.clone(),
        };
        let optimization = OptimizationSettings {
            strip_debug_symbols: self.strip_debug_symbols,
            remove_docs: self.remove_docs,
            remove_cache: self.remove_cache,
            exclude_patterns: self.exclude.clone(),
            ..Default::default()
        };
        let rootfs = MicroVmRootfs {
            init_strategy: self
                .init
                .map_or(InitStrategy::Unspecified, InitStrategy::from)
                .into(),
            optimization: (optimization != OptimizationSettings::default()).then_some(optimization),
            preserve_paths: self.preserve.clone(),
            runtime_config: (runtime != RuntimeConfig::default()).then_some(runtime),
            profile: word(self.profile),
            layer_mode: word(self.layer_mode),
            free_space_bytes: self.free_space.unwrap_or(0),
            free_inodes: self.free_inodes.unwrap_or(0),
        };
        let limits = TenantResourceLimits {
            max_memory_bytes: self.memory.unwrap_or(0),
            max_disk_bytes: self.disk.unwrap_or(0),
            timeout_seconds: self.build_timeout.map_or(0, |timeout| {
                i32::try_from(timeout.as_secs().max(1)).unwrap_or(i32::MAX)
            }),
            ..Default::default()
        };
        Ok(CreateBuildRequest {
            config: Some(BuildConfig {
                tenant: Some(TenantContext {
                    tenant_id,
                    ..Default::default()
                }),
                source: Some(BuildSource {
                    source_type: Some(SourceType::DockerImage(image)),
                }),
                target: Some(BuildTarget {
                    target_type: Some(TargetType::MicrovmRootfs(rootfs)),
                }),
                strategy: Some(BuildStrategy {
                    strategy_type: Some(StrategyType::DockerExtract(DockerExtractStrategy::default())),
                }),
                limits: (limits != TenantResourceLimits::default()).then_some(limits),
                build_name: self.name.clone().unwrap_or_default(),
                labels: self.label.iter().cloned().collect::<HashMap<_, _>>(),
                suggested_asset_id: self.asset_id.clone().unwrap_or_default(),
            }),
        })
    }

    fn credentials(&self) -> Result<Option<DockerAuth>, Failure> {
        if let (Some(username), Some(file)) = (&self.registry_username, &self.registry_password_file) {
            return Ok(Some(DockerAuth {
                username: username.clone(),
                password: secret("--registry-password-file", file)?,
                ..Default::default()
            }));
        }
        let Some(file) = &self.registry_token_file else {
            return Ok(None);
        };
        Ok(Some(DockerAuth {
            token: secret("--registry-token-file", file)?,
            ..Default::default()
        }))
    }
}

fn word<V: ValueEnum>(value: Option<V>) -> String {
    value
        .and_then(|value| Some(value.to_possible_value()?.get_name().to_owned()))
        .unwrap_or_default()
}

fn secret(flag: &str, file: &Path) -> Result<String, Failure> {
    let text = String::from_utf8(read_or_stdin(flag, file)?)
        .map_err(|_| Failure::new(Exit::Usage, format!("{flag}: expected text")))?;
    // What an editor or `echo` adds is not part of it.
    let text = text.strip_suffix('\n').unwrap_or(&text);
    let text = text.strip_suffix('\r').unwrap_or(text);
    if text.is_empty() {
        return Err(Failure::new(
            Exit::Usage,
            format!("{flag}: expected a secret, got nothing"),
        ));
    }
    Ok(text.to_owned())
}

fn read_or_stdin(flag: &str, file: &Path) -> Result<Vec<u8>, Failure> {
    if file != Path::new("-") {
        return read(flag, file);
    }
    let mut bytes = Vec::new();
    io::stdin()
        .take(MAX_REQUEST_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(|error| {
            Failure::new(
                Exit::Usage,
                format!("{flag}: standard input cannot be read: {error}"),
            )
        })?;
    Ok(bytes)
}

/// A request that somebody wrote as JSON. `--tenant` is the tenant of one that names none.
fn request_from(file: &Path, tenant_id: &str) -> Result<CreateBuildRequest, Failure> {
    let usage = |message: String| Failure::new(Exit::Usage, format!("--request: {message}"));
    let bytes = read_or_stdin("--request", file)?;
    let pool = DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET)
        .map_err(|error| Failure::new(Exit::Internal, error.to_string()))?;
    let descriptor = pool
        .get_message_by_name("builder.v1.CreateBuildRequest")
        .ok_or_else(|| Failure::new(Exit::Internal, "CreateBuildRequest is not described"))?;
    // Its place in the file is said, and no value: it may hold a password.
    let parsed: serde_json::Value = serde_json::from_slice(&bytes).map_err(|error| {
        usage(format!(
            "expected JSON; line {}, column {} is not",
            error.line(),
            error.column()
        ))
    })?;
    let message = DynamicMessage::deserialize(descriptor, parsed).map_err(|_| {
        usage("expected a builder.v1.CreateBuildRequest: a field is unknown or of another type".to_owned())
    })?;
    let mut request = CreateBuildRequest::decode(message.encode_to_vec().as_slice())
        .map_err(|error| usage(error.to_string()))?;
    let config = request.config.get_or_insert_default();
    let tenant = config.tenant.get_or_insert_default();
    if tenant.tenant_id.is_empty() {
        tenant_id.clone_into(&mut tenant.tenant_id);
    } else if tenant.tenant_id != tenant_id {
        return Err(usage(format!(
            "config.tenant.tenant_id is {:?}, and --tenant is {tenant_id:?}",
            tenant.tenant_id
        )));
    }
    Ok(request)
}

/// The image that a build is of.
pub(super) fn image_of(config: &Option<BuildConfig>) -> String {
    let source = config.as_ref().and_then(|config| config.source.as_ref());
    match source.and_then(|source| source.source_type.as_ref()) {
        Some(SourceType::DockerImage(image)) => image.image_uri.clone(),
        _ => String::new(),
    }
}

pub(super) async fn run(
    connection: &Connection,
    options: &Options,
    arguments: &Arguments,
    request: CreateBuildRequest,
) -> Result<(), Failure> {
    let mut request = connection.request(request);
    if let Some(key) = &arguments.idempotency_key {
        let value = key.parse().map_err(|_| {
            Failure::new(
                Exit::Usage,
                "--idempotency-key: expected visible ASCII characters",
            )
        })?;
        request.metadata_mut().insert("idempotency-key", value);
    }
    let created = connection.client().create_build(request).await;
    let created = created
        .map_err(|status| connection.failure(&status))?
        .into_inner();
    if !arguments.follow {
        if options.json {
            return print_json(&to_json("CreateBuildResponse", &created)?);
        }
        return print(&record(&[
            ("build", created.build_id.clone()),
            ("state", state(created.state)),
            ("created", moment(created.created_at)),
            ("rootfs", created.rootfs_path.clone()),
        ]));
    }
    if options.json {
        print_json_line(&json!({ "created": to_json("CreateBuildResponse", &created)? }))?;
    } else {
        note(&created.build_id);
    }
    let mut follower = Follower {
        connection,
        tenant_id: options.tenant()?,
        build_id: created.build_id,
        show: Show::beside(options.json),
        reconnect_for: arguments.reconnect.reconnect_for,
        next_sequence: 1,
    };
    let build = follower.run().await?;
    if options.json {
        print_json_line(&json!({ "build": to_json("BuildJob", &build)? }))?;
    } else {
        print(&build_record(&build))?;
    }
    match build.state() {
        BuildState::Completed => Ok(()),
        // The record says why.
        _ => Err(Failure::new(Exit::BuildEnded, "")),
    }
}
