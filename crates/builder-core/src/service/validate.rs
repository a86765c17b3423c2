//! What is checked before a build is accepted.

use std::time::Duration;

use oci_fetch::Reference;
use tenant::{AllowedHosts, Cut, InvalidHostPattern, Limits, RequestedLimits, SandboxLevel};

use crate::{
    error::ServiceError,
    event::{Component, Level},
    request::{BuildRequest, InitStrategy},
    store::NewLine,
    worker::Launcher,
};

const IMAGE_FIELD: &str = "config.source.docker_image.image_uri";
const PLATFORM_FIELD: &str = "config.source.docker_image.platform";
const DIRECTORY_FIELD: &str = "config.target.microvm_rootfs.runtime_config.working_dir";
const REGISTRIES_FIELD: &str = "config.limits.allowed_registries";
const MEMORY_FIELD: &str = "config.limits.max_memory_bytes";

/// Memory that no worker does without, its program and its box included.
const LEAST_MEMORY_BYTES: u64 = 16 << 20;

/// A request that can be, and what of it the tenant's limits are compared with.
#[derive(Debug)]
pub(super) struct Checked {
    registry: String,
    requested: RequestedLimits,
}

/// Checks a request as far as that is possible without the network and the tenant's record.
pub(super) fn request(request: &BuildRequest, guest_architecture: &str) -> Result<Checked, ServiceError> {
    // As a registry reference, never as a path: a request from the network reads no files of this machine.
    let reference: Reference = request
        .source
        .image_uri
        .parse()
        .map_err(|error: oci_fetch::FetchError| invalid(IMAGE_FIELD, error.to_string()))?;
    if let Some(platform) = &request.source.platform {
        let platform: oci_fetch::Platform = platform
            .parse()
            .map_err(|error: oci_fetch::FetchError| invalid(PLATFORM_FIELD, error.to_string()))?;
        if matches!(request.target.init, InitStrategy::Tini | InitStrategy::Direct)
            && platform.architecture != guest_architecture
        {
            let message = format!(
                "{platform} is another architecture than {guest_architecture}, for which the init is that goes into \
                 the image: choose a platform of that one, or the init strategy CUSTOM"
            );
            return Err(invalid(PLATFORM_FIELD, message));
        }
    }
    if let Some(directory) = &request.target.runtime.working_dir
        && !directory.starts_with('/')
    {
        let message = format!("{directory:?} is not an absolute path");
        return Err(invalid(DIRECTORY_FIELD, message));
    }
    if let Some(bytes) = request.limits.max_memory_bytes
        && bytes < LEAST_MEMORY_BYTES
    {
        let message =
            format!("{bytes} is too little for any build: expected at least {LEAST_MEMORY_BYTES} (16 MiB)");
        return Err(invalid(MEMORY_FIELD, message));
    }
    if let Some(level) = request.limits.sandbox_level
        && !matches!(SandboxLevel::from_number(level.into()), Ok(Some(_)))
    {
        return Err(refused_level("expected 1, 2 or 3"));
    }
    let requested =
        requested_limits(request).map_err(|error| invalid(REGISTRIES_FIELD, error.to_string()))?;
    Ok(Checked {
        registry: reference.registry().to_owned(),
        requested,
    })
}

/// A level of isolation that this service does not offer.
fn refused_level(reason: &str) -> ServiceError {
    invalid("config.limits.sandbox_level", reason.to_owned())
}

/// What a request may lower, in the words of the tenant crate.
pub(super) fn requested_limits(request: &BuildRequest) -> Result<RequestedLimits, InvalidHostPattern> {
    let limits = &request.limits;
    let registries = match limits.allowed_registries.as_slice() {
        [] => None,
        names => {
            let patterns: Result<Vec<_>, _> = names.iter().map(|name| name.parse()).collect();
            Some(AllowedHosts::only(patterns?))
        }
    };
    Ok(RequestedLimits {
        memory_bytes: limits.max_memory_bytes,
        cpu_cores: limits.max_cpu_cores,
        disk_bytes: limits.max_disk_bytes,
        timeout: limits
            .timeout_seconds
            .map(|seconds| Duration::from_secs(seconds.into())),
        concurrent_builds: limits.max_concurrent_builds,
        daily_builds: limits.max_daily_builds,
        storage_bytes: limits.max_storage_bytes,
        sandbox_level: limits
            .sandbox_level
            .and_then(|level| SandboxLevel::from_number(level.into()).ok().flatten()),
        registries,
        ..RequestedLimits::default()
    })
}

impl Checked {
    /// What the request lowers.
    pub(super) const fn requested(&self) -> &RequestedLimits {
        &self.requested
    }

    /// Compares the request with what its tenant may use; gives the lines that tell what was cut. `launcher` says which
    /// levels of isolation there are.
    pub(super) fn admit(
        &self,
        tenant: &Limits,
        launcher: &dyn Launcher,
    ) -> Result<Vec<NewLine>, ServiceError> {
        let lowered = tenant.lowered_by(&self.requested);
        allows(&lowered.limits, &self.registry).map_err(|message| invalid(IMAGE_FIELD, message))?;
        // The level that every tenant has is checked when the service starts.
        let level = lowered.limits.sandbox_level;
        if self.requested.sandbox_level.is_some() || level > SandboxLevel::Strict {
            launcher.offers(level.number()).map_err(refused_level)?;
        }
        let tell = |cut: &Cut| {
            NewLine::new(
                Level::Warn,
                Component::Builder,
                format!("A limit of the request is cut: {cut}"),
            )
        };
        Ok(lowered.cuts.iter().map(tell).collect())
    }
}

/// Whether a build with these limits may pull from `registry`; otherwise why not.
pub(super) fn allows(limits: &Limits, registry: &str) -> Result<(), String> {
    if limits.registries.allows(registry) {
        return Ok(());
    }
    let allowed = match limits.registries.describe().as_slice() {
        [] => "none".to_owned(),
        names => names.join(", "),
    };
    Err(format!(
        "registry {registry} is not among those that this build may pull from: {allowed}"
    ))
}

fn invalid(field: &str, message: impl Into<String>) -> ServiceError {
    ServiceError::InvalidArgument {
        field: field.to_owned(),
        message: message.into(),
    }
}

/// The token of the page that begins before the build with this ordinal.
pub(super) fn encode_page_token(before: u64) -> String {
    format!("b{before:x}")
}

pub(super) fn page_token(token: &str) -> Result<u64, ServiceError> {
    token
        .strip_prefix('b')
        .filter(|digits| digits.len() <= 16 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
        .and_then(|digits| u64::from_str_radix(digits, 16).ok())
        .ok_or_else(|| {
            invalid(
                "page_token",
                "not a token of this service: expected next_page_token of a page before",
            )
        })
}
