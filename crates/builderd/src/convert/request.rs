//! Requests of the wire into domain values.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use builder_core::{
    build::{BuildId, BuildState},
    optimize::{MAX_PATTERNS, check_patterns},
    request::{
        BuildRequest, DockerImageSource, ExtractOptions, InitStrategy, LayerMode, Optimization, Profile,
        RegistryCredentials, RequestedLimits, RootfsTarget, RuntimeOverrides, Secret, TenantContext,
    },
};
use oci_fetch::{ImageSource, Platform};
use prost::Message as _;
use rootfs::image::{DEFAULT_FREE_INODES, DEFAULT_FREE_SPACE_BYTES};
use tenant::{TenantId, Tier};

use super::field::{FieldError, FieldPath, quoted};
use crate::proto;

/// Free text that is only recorded.
const MAX_TEXT_BYTES: usize = 1024;

/// One argument, variable or credential.
const MAX_ARGUMENT_BYTES: usize = 128 * 1024;

/// A request without its credentials. It is stored with its build and part of every answer about it.
const MAX_CONFIG_BYTES: usize = 256 * 1024;

/// Entries of a list or map.
const MAX_ENTRIES: usize = 1024;

/// Free space and inodes that can be asked for: what fits into the largest image (16 TiB) and into ext4's 32-bit
/// inode numbers. The tenant's disk limit is checked by the build itself.
const MAX_FREE_SPACE_BYTES: u64 = 16 << 40;
const MAX_FREE_INODES: u64 = 1 << 31;

impl TryFrom<proto::CreateBuildRequest> for BuildRequest {
    type Error = FieldError;

    fn try_from(request: proto::CreateBuildRequest) -> Result<Self, FieldError> {
        let path = FieldPath::root("config");
        let config = request.config.ok_or_else(|| path.required("what to build"))?;
        bounded_as_a_whole(&config, &path)?;

        let tenant = tenant_context(config.tenant, &path.field("tenant"))?;
        let source = source(config.source, &path.field("source"))?;
        let target = target(config.target, &path.field("target"))?;
        let (extract, flatten_filesystem) = strategy(config.strategy, &path.field("strategy"))?;
        let limits = limits(config.limits.unwrap_or_default(), &path.field("limits"))?;
        Ok(Self {
            tenant,
            source,
            target,
            flatten_filesystem,
            extract,
            limits,
            build_name: path.field("build_name").text(config.build_name, MAX_TEXT_BYTES)?,
            labels: text_map(config.labels, &path.field("labels"))?,
            suggested_asset_id: path
                .field("suggested_asset_id")
                .text(config.suggested_asset_id, MAX_TEXT_BYTES)?,
        })
    }
}

/// Refuses a request of which every answer about its build would be too large. Credentials do not count: they are never
/// answered.
fn bounded_as_a_whole(config: &proto::BuildConfig, path: &FieldPath<'_>) -> Result<(), FieldError> {
    use proto::{build_source::SourceType, build_target::TargetType};

    let source = config
        .source
        .as_ref()
        .and_then(|source| source.source_type.as_ref());
    let credentials = match source {
        Some(SourceType::DockerImage(image)) => image.auth.as_ref().map_or(0, prost::Message::encoded_len),
        _ => 0,
    };
    let bytes = config.encoded_len().saturating_sub(credentials);
    if bytes <= MAX_CONFIG_BYTES {
        return Ok(());
    }
    // Fields with many entries or long ones; the largest is the one to be named.
    let map_bytes = |map: &HashMap<String, String>| -> usize {
        map.iter().map(|(name, value)| name.len() + value.len()).sum()
    };
    let list_bytes = |list: &[String]| -> usize { list.iter().map(String::len).sum() };
    let mut sizes = vec![("labels", map_bytes(&config.labels))];
    if let Some(tenant) = &config.tenant {
        sizes.push(("tenant.metadata", map_bytes(&tenant.metadata)));
        sizes.push(("tenant.permissions", list_bytes(&tenant.permissions)));
    }
    if let Some(SourceType::DockerImage(image)) = source {
        sizes.push(("source.docker_image.pull_tags", list_bytes(&image.pull_tags)));
    }
    let target = config
        .target
        .as_ref()
        .and_then(|target| target.target_type.as_ref());
    if let Some(TargetType::MicrovmRootfs(rootfs)) = target
        && let Some(runtime) = &rootfs.runtime_config
    {
        for (name, bytes) in [
            (
                "target.microvm_rootfs.runtime_config.environment",
                map_bytes(&runtime.environment),
            ),
            (
                "target.microvm_rootfs.runtime_config.command",
                list_bytes(&runtime.command),
            ),
            (
                "target.microvm_rootfs.runtime_config.entrypoint",
                list_bytes(&runtime.entrypoint),
            ),
        ] {
            sizes.push((name, bytes));
        }
    }
    let (name, largest) = sizes
        .into_iter()
        .max_by_key(|(_, bytes)| *bytes)
        .unwrap_or_default();
    Err(path.field(name).invalid(
        format_args!("at most {MAX_CONFIG_BYTES} bytes in all of config"),
        format_args!("{bytes}, {largest} of them here"),
    ))
}

/// The tenant that a request is for.
///
/// # Errors
/// [`FieldError::Invalid`] when it is missing or has a form that is not allowed.
pub fn tenant_id(value: &str, path: &FieldPath<'_>) -> Result<TenantId, FieldError> {
    const EXPECTED: &str = "a tenant's name, 1 to 63 of A-Z a-z 0-9 . _ -, the first a letter or digit";
    if value.is_empty() {
        return Err(path.required(EXPECTED));
    }
    value.parse().map_err(|_| path.invalid(EXPECTED, quoted(value)))
}

/// The build that a request is for.
///
/// # Errors
/// [`FieldError::Invalid`] when it is missing or is none.
pub fn build_id(value: &str) -> Result<BuildId, FieldError> {
    const EXPECTED: &str = "a build's name, build- and 32 hexadecimal digits";
    let path = FieldPath::root("build_id");
    if value.is_empty() {
        return Err(path.required(EXPECTED));
    }
    value.parse().map_err(|_| path.invalid(EXPECTED, quoted(value)))
}

/// The states that a listing is limited to; empty for all.
///
/// # Errors
/// [`FieldError::Invalid`] for a number that is no state.
pub fn states(filter: &[i32]) -> Result<Vec<BuildState>, FieldError> {
    let path = FieldPath::root("state_filter");
    filter
        .iter()
        .map(|number| {
            let invalid = || path.invalid("a BuildState other than BUILD_STATE_UNSPECIFIED", number);
            let state = proto::BuildState::try_from(*number).map_err(|_| invalid())?;
            match state {
                proto::BuildState::Unspecified => Err(invalid()),
                proto::BuildState::Pending => Ok(BuildState::Pending),
                proto::BuildState::Pulling => Ok(BuildState::Pulling),
                proto::BuildState::Extracting => Ok(BuildState::Extracting),
                proto::BuildState::Building => Ok(BuildState::Building),
                proto::BuildState::Optimizing => Ok(BuildState::Optimizing),
                proto::BuildState::Completed => Ok(BuildState::Completed),
                proto::BuildState::Failed => Ok(BuildState::Failed),
                proto::BuildState::Cancelled => Ok(BuildState::Cancelled),
                proto::BuildState::Cleaning => {
                    Err(path.unimplemented("no build is ever in BUILD_STATE_CLEANING in this version"))
                }
            }
        })
        // Each once: a filter of a million numbers is no longer than one of all states.
        .collect::<Result<BTreeSet<_>, _>>()
        .map(|states| states.into_iter().collect())
}

/// How many builds a page may have; zero for the default.
///
/// # Errors
/// [`FieldError::Invalid`] for a negative number.
pub fn page_size(value: i32) -> Result<u32, FieldError> {
    Ok(FieldPath::root("page_size").positive(value)?.unwrap_or(0))
}

/// The first log line to send.
///
/// # Errors
/// [`FieldError::Invalid`] for a negative number.
pub fn log_start(value: i64) -> Result<u64, FieldError> {
    Ok(FieldPath::root("from_sequence").positive(value)?.unwrap_or(1))
}

fn tenant_context(
    context: Option<proto::TenantContext>,
    path: &FieldPath<'_>,
) -> Result<TenantContext, FieldError> {
    let context = context.ok_or_else(|| path.required("who asks, with tenant_id"))?;
    let tier = path.field("tier");
    let claimed_tier = match proto::TenantTier::try_from(context.tier) {
        Ok(proto::TenantTier::Unspecified) => None,
        Ok(proto::TenantTier::Free) => Some(Tier::Free),
        Ok(proto::TenantTier::Pro) => Some(Tier::Pro),
        Ok(proto::TenantTier::Enterprise) => Some(Tier::Enterprise),
        Ok(proto::TenantTier::Dedicated) => Some(Tier::Dedicated),
        Err(_) => return Err(tier.invalid("a TenantTier, 0 to 4", context.tier)),
    };
    Ok(TenantContext {
        tenant_id: tenant_id(&context.tenant_id, &path.field("tenant_id"))?,
        customer_id: path
            .field("customer_id")
            .text(context.customer_id, MAX_TEXT_BYTES)?,
        organization_id: path
            .field("organization_id")
            .text(context.organization_id, MAX_TEXT_BYTES)?,
        claimed_tier,
        permissions: text_list(context.permissions, &path.field("permissions"))?,
        metadata: text_map(context.metadata, &path.field("metadata"))?,
    })
}

fn source(source: Option<proto::BuildSource>, path: &FieldPath<'_>) -> Result<DockerImageSource, FieldError> {
    use proto::build_source::SourceType;

    match source.and_then(|source| source.source_type) {
        None => Err(path.required("docker_image")),
        Some(SourceType::DockerImage(image)) => docker_image(image, &path.field("docker_image")),
        Some(SourceType::GitRepository(_)) => Err(path
            .field("git_repository")
            .unimplemented("building from a git repository is not implemented yet")),
        Some(SourceType::Archive(_)) => Err(path
            .field("archive")
            .unimplemented("building from an archive is not implemented yet")),
    }
}

fn docker_image(
    image: proto::DockerImageSource,
    path: &FieldPath<'_>,
) -> Result<DockerImageSource, FieldError> {
    let platform = path.field("platform");
    if !image.platform.is_empty() && image.platform.parse::<Platform>().is_err() {
        return Err(platform.invalid(
            "os/architecture[/variant], as linux/amd64",
            quoted(&image.platform),
        ));
    }
    Ok(DockerImageSource {
        image_uri: image_uri(image.image_uri, &path.field("image_uri"))?,
        platform: Some(image.platform).filter(|platform| !platform.is_empty()),
        pull_tags: text_list(image.pull_tags, &path.field("pull_tags"))?,
        credentials: credentials(image.auth.unwrap_or_default(), &path.field("auth"))?,
    })
}

/// Over the wire an image is always in a registry: the forms that name files of this host (`oci:…`) belong to the
/// command line, where the caller has the rights of the process.
fn image_uri(value: String, path: &FieldPath<'_>) -> Result<String, FieldError> {
    const EXPECTED: &str = "an image in a registry, as nginx:1.21-alpine or ghcr.io/org/app@sha256:…";
    if value.is_empty() {
        return Err(path.required(EXPECTED));
    }
    // What stands before an `@` may be a password.
    let shown = quoted(&oci_fetch::redact_user_information(&value));
    match value.parse::<ImageSource>() {
        Ok(ImageSource::Registry(_)) => Ok(value),
        Ok(_) => Err(path.invalid(EXPECTED, shown)),
        Err(error) => Err(path.invalid(EXPECTED, format_args!("{shown} ({error})"))),
    }
}

fn credentials(
    auth: proto::DockerAuth,
    path: &FieldPath<'_>,
) -> Result<Option<RegistryCredentials>, FieldError> {
    let proto::DockerAuth {
        username,
        password,
        token,
        registry,
    } = auth;
    // No value of these fields is ever shown in an error.
    for (name, value) in [
        ("username", &username),
        ("password", &password),
        ("token", &token),
    ] {
        if value.len() > MAX_ARGUMENT_BYTES || value.chars().any(char::is_control) {
            return Err(path.field(name).invalid(
                "at most 128 KiB of text without control characters",
                "another value",
            ));
        }
    }
    match (!username.is_empty(), !password.is_empty(), !token.is_empty()) {
        (false, false, false) if registry.is_empty() => return Ok(None),
        (false, false, false) => return Err(path.required("username and password, or token")),
        (true, false, false) => return Err(path.field("password").required("a password for the user name")),
        (false, true, false) => return Err(path.field("username").required("a user name for the password")),
        (true, true, false) | (false, false, true) => {}
        (_, _, true) => {
            return Err(path
                .field("token")
                .invalid("either username and password, or token", "both"));
        }
    }
    Ok(Some(RegistryCredentials {
        registry: path.field("registry").text(registry, MAX_TEXT_BYTES)?,
        username,
        password: Secret::new(password),
        token: Secret::new(token),
    }))
}

fn target(target: Option<proto::BuildTarget>, path: &FieldPath<'_>) -> Result<RootfsTarget, FieldError> {
    use proto::build_target::TargetType;

    match target.and_then(|target| target.target_type) {
        None => Err(path.required("microvm_rootfs")),
        Some(TargetType::MicrovmRootfs(rootfs)) => microvm_rootfs(rootfs, &path.field("microvm_rootfs")),
        Some(TargetType::ContainerImage(_)) => Err(path
            .field("container_image")
            .unimplemented("building a container image is not implemented yet")),
    }
}

fn microvm_rootfs(rootfs: proto::MicroVmRootfs, path: &FieldPath<'_>) -> Result<RootfsTarget, FieldError> {
    let strategy = path.field("init_strategy");
    let init = match proto::InitStrategy::try_from(rootfs.init_strategy) {
        Ok(proto::InitStrategy::Unspecified | proto::InitStrategy::Tini) => InitStrategy::Tini,
        Ok(proto::InitStrategy::Direct) => InitStrategy::Direct,
        Ok(proto::InitStrategy::Custom) => InitStrategy::Custom,
        Err(_) => return Err(strategy.invalid("an InitStrategy, 0 to 3", rootfs.init_strategy)),
    };
    let optimization = optimization(
        rootfs.optimization.unwrap_or_default(),
        &path.field("optimization"),
    )?;
    let preserve_paths = patterns(rootfs.preserve_paths, &path.field("preserve_paths"))?;

    let profile = match rootfs.profile.as_str() {
        "" | "rw" => Profile::ReadWrite,
        "ro" => Profile::ReadOnly,
        other => return Err(path.field("profile").invalid("rw or ro", quoted(other))),
    };
    let layer_mode = match rootfs.layer_mode.as_str() {
        "" | "oci" => LayerMode::Oci,
        "docker" => LayerMode::Docker,
        other => return Err(path.field("layer_mode").invalid("oci or docker", quoted(other))),
    };
    let free_space = bounded(
        rootfs.free_space_bytes,
        MAX_FREE_SPACE_BYTES,
        &path.field("free_space_bytes"),
    )?;
    let free_inodes = bounded(rootfs.free_inodes, MAX_FREE_INODES, &path.field("free_inodes"))?;
    if profile == Profile::ReadOnly {
        for (name, value) in [("free_space_bytes", free_space), ("free_inodes", free_inodes)] {
            if let Some(value) = value {
                return Err(path
                    .field(name)
                    .invalid("nothing with profile ro: the guest never writes to it", value));
            }
        }
    }
    Ok(RootfsTarget {
        init,
        runtime: runtime(
            rootfs.runtime_config.unwrap_or_default(),
            &path.field("runtime_config"),
        )?,
        profile,
        free_space_bytes: free_space.unwrap_or(DEFAULT_FREE_SPACE_BYTES),
        free_inodes: free_inodes.unwrap_or(DEFAULT_FREE_INODES),
        layer_mode,
        optimization,
        preserve_paths,
        // Every image that is never written to has a hash tree; who does not want it does not use it.
        verity: true,
    })
}

fn bounded(value: i64, max: u64, path: &FieldPath<'_>) -> Result<Option<u64>, FieldError> {
    match path.positive::<i64, u64>(value)? {
        Some(value) if value > max => Err(path.invalid(format_args!("at most {max}"), value)),
        value => Ok(value),
    }
}

fn runtime(config: proto::RuntimeConfig, path: &FieldPath<'_>) -> Result<RuntimeOverrides, FieldError> {
    let working_dir = path.field("working_dir");
    if !config.working_dir.is_empty() && !config.working_dir.starts_with('/') {
        return Err(working_dir.invalid("an absolute path", quoted(&config.working_dir)));
    }
    let environment = path.field("environment");
    for name in config.environment.keys() {
        if name.is_empty() || name.contains('=') {
            return Err(environment.invalid("names that are not empty and hold no =", quoted(name)));
        }
    }
    let exposed_ports = path.field("exposed_ports");
    for port in &config.exposed_ports {
        if !is_port(port) {
            return Err(
                exposed_ports.invalid("1-65535, with /tcp, /udp or /sctp behind it or not", quoted(port))
            );
        }
    }
    Ok(RuntimeOverrides {
        command: arguments(config.command, &path.field("command"))?,
        entrypoint: arguments(config.entrypoint, &path.field("entrypoint"))?,
        working_dir: Some(working_dir.argument(config.working_dir)?).filter(|path| !path.is_empty()),
        environment: counted(config.environment, &environment)?
            .into_iter()
            .map(|(name, value)| Ok((environment.argument(name)?, environment.argument(value)?)))
            .collect::<Result<_, FieldError>>()?,
        exposed_ports: text_list(config.exposed_ports, &exposed_ports)?,
    })
}

fn is_port(value: &str) -> bool {
    let (number, protocol) = value.split_once('/').unwrap_or((value, "tcp"));
    let number_is_plain = number.bytes().all(|byte| byte.is_ascii_digit());
    number_is_plain
        && number.parse::<u16>().is_ok_and(|port| port != 0)
        && matches!(protocol, "tcp" | "udp" | "sctp")
}

fn optimization(
    settings: proto::OptimizationSettings,
    path: &FieldPath<'_>,
) -> Result<Optimization, FieldError> {
    if settings.compress_binaries {
        return Err(path.field("compress_binaries").unimplemented(
            "a compressed executable unpacks itself into memory of each process at every start, loses its file \
             capabilities, and finds another program at /proc/self/exe; ext4 itself compresses nothing",
        ));
    }
    Ok(Optimization {
        strip_debug_symbols: settings.strip_debug_symbols,
        remove_docs: settings.remove_docs,
        remove_cache: settings.remove_cache,
        exclude_patterns: patterns(settings.exclude_patterns, &path.field("exclude_patterns"))?,
        preserve_paths: patterns(settings.preserve_paths, &path.field("preserve_paths"))?,
    })
}

/// Patterns as `.gitignore` has them.
fn patterns(values: Vec<String>, path: &FieldPath<'_>) -> Result<Vec<String>, FieldError> {
    if values.len() > MAX_PATTERNS {
        return Err(path.invalid(format_args!("at most {MAX_PATTERNS} patterns"), values.len()));
    }
    let values = text_list(values, path)?;
    check_patterns(&values).map_err(|error| {
        path.invalid(
            "patterns as .gitignore has them",
            format_args!("{} ({})", quoted(&error.pattern), error.message),
        )
    })?;
    Ok(values)
}

/// What the extraction is asked for, and whether a flat file system is, which is what there is anyway.
fn strategy(
    strategy: Option<proto::BuildStrategy>,
    path: &FieldPath<'_>,
) -> Result<(ExtractOptions, bool), FieldError> {
    use proto::build_strategy::StrategyType;

    let refused = |name| {
        Err(path
            .field(name)
            .unimplemented("this strategy is not implemented yet"))
    };
    match strategy.and_then(|strategy| strategy.strategy_type) {
        None => Ok((ExtractOptions::default(), false)),
        // `flatten_filesystem` and `preserve_layers` ask for what happens anyway.
        Some(StrategyType::DockerExtract(extract)) => {
            let path = path.field("docker_extract");
            let options = ExtractOptions {
                preserve_layers: extract.preserve_layers,
                exclude_patterns: patterns(extract.exclude_patterns, &path.field("exclude_patterns"))?,
            };
            Ok((options, extract.flatten_filesystem))
        }
        Some(StrategyType::GoApi(_)) => refused("go_api"),
        Some(StrategyType::Sinatra(_)) => refused("sinatra"),
        Some(StrategyType::Nodejs(_)) => refused("nodejs"),
    }
}

fn limits(limits: proto::TenantResourceLimits, path: &FieldPath<'_>) -> Result<RequestedLimits, FieldError> {
    let containment = [
        ("allowed_git_hosts", !limits.allowed_git_hosts.is_empty()),
        ("allow_external_network", limits.allow_external_network),
        ("allow_privileged_builds", limits.allow_privileged_builds),
        ("blocked_commands", !limits.blocked_commands.is_empty()),
    ];
    refuse_set(&containment, path, "no command runs inside a build yet")?;
    let sandbox_level = path.field("sandbox_level");
    let sandbox_level = match limits.sandbox_level {
        0 => None,
        1 => Some(1),
        2 => Some(2),
        3 => Some(3),
        other => return Err(sandbox_level.invalid("0 (not given) to 3", other)),
    };

    let seconds = path
        .field("timeout_seconds")
        .positive::<i32, u32>(limits.timeout_seconds)?;
    let minutes = path
        .field("max_build_time_minutes")
        .positive::<i32, u32>(limits.max_build_time_minutes)?
        .map(|minutes| minutes.saturating_mul(60));
    Ok(RequestedLimits {
        max_memory_bytes: path.field("max_memory_bytes").positive(limits.max_memory_bytes)?,
        max_cpu_cores: path.field("max_cpu_cores").positive(limits.max_cpu_cores)?,
        max_concurrent_builds: path
            .field("max_concurrent_builds")
            .positive(limits.max_concurrent_builds)?,
        max_daily_builds: path.field("max_daily_builds").positive(limits.max_daily_builds)?,
        max_storage_bytes: path
            .field("max_storage_bytes")
            .positive(limits.max_storage_bytes)?,
        max_disk_bytes: path.field("max_disk_bytes").positive(limits.max_disk_bytes)?,
        sandbox_level,
        timeout_seconds: seconds.into_iter().chain(minutes).min(),
        allowed_registries: text_list(limits.allowed_registries, &path.field("allowed_registries"))?,
    })
}

fn refuse_set(fields: &[(&str, bool)], path: &FieldPath<'_>, reason: &str) -> Result<(), FieldError> {
    match fields.iter().find(|(_, set)| *set) {
        Some((name, _)) => Err(path.field(name).unimplemented(reason)),
        None => Ok(()),
    }
}

/// Refuses a list or map with more entries than anyone needs.
fn counted<C>(collection: C, path: &FieldPath<'_>) -> Result<C, FieldError>
where
    for<'a> &'a C: IntoIterator,
{
    let count = (&collection).into_iter().count();
    if count > MAX_ENTRIES {
        return Err(path.invalid(format_args!("at most {MAX_ENTRIES} entries"), count));
    }
    Ok(collection)
}

fn text_list(values: Vec<String>, path: &FieldPath<'_>) -> Result<Vec<String>, FieldError> {
    counted(values, path)?
        .into_iter()
        .map(|value| path.text(value, MAX_TEXT_BYTES))
        .collect()
}

fn text_map(
    values: HashMap<String, String>,
    path: &FieldPath<'_>,
) -> Result<BTreeMap<String, String>, FieldError> {
    counted(values, path)?
        .into_iter()
        .map(|(name, value)| {
            Ok((
                path.text(name, MAX_TEXT_BYTES)?,
                path.text(value, MAX_TEXT_BYTES)?,
            ))
        })
        .collect()
}

fn arguments(values: Vec<String>, path: &FieldPath<'_>) -> Result<Vec<String>, FieldError> {
    counted(values, path)?
        .into_iter()
        .map(|value| {
            if value.len() > MAX_ARGUMENT_BYTES {
                return Err(path.invalid(
                    "arguments of at most 128 KiB",
                    format_args!("{} bytes", value.len()),
                ));
            }
            path.argument(value)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_names_each_state_once_however_often_it_was_given() {
        let failed = proto::BuildState::Failed as i32;
        assert_eq!(states(&[failed; 40_000]).unwrap(), [BuildState::Failed]);
        assert!(states(&[failed, 0]).is_err());
    }

    #[test]
    fn a_password_in_an_image_reference_is_not_said_back() {
        let root = FieldPath::root("config");
        for reference in [
            "bob:hunter2@registry.example/app:1",
            "bob:hunter2@registry.example/app:1!",
        ] {
            let error = image_uri(reference.to_owned(), &root).unwrap_err();
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
        }
    }
}
