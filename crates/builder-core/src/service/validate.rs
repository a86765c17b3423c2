//! What is checked before a build is accepted.

use oci_fetch::Reference;

use super::BuilderConfig;
use crate::{error::ServiceError, request::BuildRequest};

const IMAGE_FIELD: &str = "config.source.docker_image.image_uri";
const PLATFORM_FIELD: &str = "config.source.docker_image.platform";

/// Checks a request as far as that is possible without the network.
pub(super) fn request(config: &BuilderConfig, request: &BuildRequest) -> Result<(), ServiceError> {
    // As a registry reference, never as a path: a request from the network reads no files of this machine.
    let reference: Reference = request
        .source
        .image_uri
        .parse()
        .map_err(|error: oci_fetch::FetchError| invalid(IMAGE_FIELD, error.to_string()))?;
    if let Some(platform) = &request.source.platform {
        platform
            .parse::<oci_fetch::Platform>()
            .map_err(|error| invalid(PLATFORM_FIELD, error.to_string()))?;
    }
    if let Some(directory) = &request.target.runtime.working_dir
        && !directory.starts_with('/')
    {
        return Err(invalid(
            "config.target.microvm_rootfs.runtime_config.working_dir",
            format!("{directory:?} is not an absolute path"),
        ));
    }
    registry(config, request, reference.registry())
}

fn registry(_config: &BuilderConfig, request: &BuildRequest, registry: &str) -> Result<(), ServiceError> {
    let requested = &request.limits.allowed_registries;
    if requested.is_empty() {
        return Ok(());
    }
    let policy = oci_fetch::Policy::allowing(requested)
        .map_err(|error| invalid("config.limits.allowed_registries", error.to_string()))?;
    if policy.allows(registry) {
        Ok(())
    } else {
        Err(invalid(
            IMAGE_FIELD,
            format!("the request's own allowed_registries do not allow {registry}"),
        ))
    }
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
