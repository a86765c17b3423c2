//! From the request's words to a resolved image.

use oci_fetch::{Credentials, FetchError, FetchErrorKind, Image, ImageSource, Platform, PullContext};

use super::PipelineConfig;
use crate::{
    error::{BuildError, BuildErrorKind},
    pack_cache::Grant,
    request::{BuildRequest, RegistryCredentials},
};

/// A resolved image, and by what right its layers are used.
pub(super) struct Resolved {
    pub(super) image: Image,
    pub(super) grant: Grant,
}

pub(super) async fn resolve(config: &PipelineConfig, request: &BuildRequest) -> Result<Resolved, BuildError> {
    let source: ImageSource = request
        .source
        .image_uri
        .parse()
        .map_err(|error| explain(&error))?;
    let platform = match &request.source.platform {
        Some(platform) => platform.parse().map_err(|error: FetchError| {
            BuildError::new(
                BuildErrorKind::InvalidArgument {
                    field: "docker_image.platform",
                },
                format!("docker_image.platform: {error}"),
            )
        })?,
        None => Platform::host(),
    };
    let isolation_key = request.tenant.tenant_id.as_str().to_owned();
    let (credentials, repository) = match &source {
        ImageSource::Registry(reference) => {
            let credentials = credentials(request.source.credentials.as_ref(), reference.registry())?;
            (
                credentials,
                format!("{}/{}", reference.registry(), reference.repository()),
            )
        }
        _ if !config.local_images => {
            return Err(BuildError::new(
                BuildErrorKind::InvalidArgument {
                    field: "docker_image.image_uri",
                },
                "docker_image.image_uri: expected an image of a registry, local images are for the command line",
            ));
        }
        _ => (None, "local".to_owned()),
    };
    let is_local = !matches!(source, ImageSource::Registry(_));
    let grant = Grant::new(&isolation_key, &repository);
    let context = PullContext {
        isolation_key,
        credentials,
    };
    let image = config
        .fetch
        .resolve(&source, &platform, &context)
        .await
        .map_err(|error| {
            let explained = explain(&error);
            // A local image that the caller may not read is no fault of ours.
            let kind = if is_local && has_io_cause(&error, std::io::ErrorKind::PermissionDenied) {
                BuildErrorKind::Unauthorized
            } else {
                explained.kind().clone()
            };
            BuildError::new(kind, format!("{source}: {explained}")).with_cause(error)
        })?;
    Ok(Resolved { image, grant })
}

/// The request's credentials, if they are for this registry.
fn credentials(
    given: Option<&RegistryCredentials>,
    registry: &str,
) -> Result<Option<Credentials>, BuildError> {
    let Some(given) = given else { return Ok(None) };
    if !given.registry.is_empty() {
        let named = oci_fetch::normalise_registry(&given.registry).map_err(|error| explain(&error))?;
        if named != registry {
            return Err(BuildError::new(
                BuildErrorKind::InvalidArgument {
                    field: "docker_image.auth.registry",
                },
                format!(
                    "docker_image.auth.registry: the credentials are for {named}, the image is in {registry}"
                ),
            ));
        }
    }
    Ok(if !given.token.is_empty() {
        Some(Credentials::token(given.token.reveal()))
    } else if !given.username.is_empty() || !given.password.is_empty() {
        Some(Credentials::basic(&given.username, given.password.reveal()))
    } else {
        None
    })
}

/// Whether an error of the operating system of that kind lies behind.
fn has_io_cause(error: &FetchError, kind: std::io::ErrorKind) -> bool {
    std::iter::successors(std::error::Error::source(error), |error| error.source())
        .filter_map(|error| error.downcast_ref::<std::io::Error>())
        .any(|error| error.kind() == kind)
}

/// What an error of the registry client means for the tenant. Its messages hold no secret and no text of a server.
pub(super) fn explain(error: &FetchError) -> BuildError {
    let is_disk_full = *error.kind() == FetchErrorKind::Io
        && [std::io::ErrorKind::StorageFull, std::io::ErrorKind::QuotaExceeded]
            .into_iter()
            .any(|kind| has_io_cause(error, kind));
    let kind = match is_disk_full {
        true => BuildErrorKind::DiskFull,
        false => BuildErrorKind::from(error.kind()),
    };
    BuildError::new(kind, error.to_string()).with_cause(error.clone())
}

/// A disk that is full, too, is [`FetchErrorKind::Io`], which alone is the service's own fault.
impl From<&FetchErrorKind> for BuildErrorKind {
    fn from(kind: &FetchErrorKind) -> Self {
        match kind {
            FetchErrorKind::NotFound => Self::ImageNotFound,
            FetchErrorKind::Unauthorized | FetchErrorKind::Denied => Self::Unauthorized,
            FetchErrorKind::RateLimited { .. } => Self::RateLimited,
            FetchErrorKind::Limit => Self::LimitExceeded,
            FetchErrorKind::DigestMismatch => Self::DigestMismatch,
            FetchErrorKind::Policy | FetchErrorKind::InvalidInput => Self::InvalidArgument {
                field: "docker_image.image_uri",
            },
            FetchErrorKind::Transient => Self::RegistryUnreachable,
            FetchErrorKind::TimedOut => Self::TimedOut,
            FetchErrorKind::Protocol | FetchErrorKind::Unsupported => Self::UnsupportedImage,
            // Local disks, and whatever a later kind may be.
            _ => Self::Internal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_local_failure_is_the_services_own_fault() {
        for kind in FetchErrorKind::ALL {
            let is_own = BuildErrorKind::from(&kind) == BuildErrorKind::Internal;
            assert_eq!(is_own, kind == FetchErrorKind::Io, "{kind:?}");
        }
    }
}
