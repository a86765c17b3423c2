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
    let is_disk_full = has_io_cause(error, std::io::ErrorKind::StorageFull);
    let kind = kind_of(error.kind(), is_disk_full);
    BuildError::new(kind, error.to_string()).with_cause(error.clone())
}

fn kind_of(kind: &FetchErrorKind, is_disk_full: bool) -> BuildErrorKind {
    match kind {
        FetchErrorKind::NotFound => BuildErrorKind::ImageNotFound,
        FetchErrorKind::Unauthorized | FetchErrorKind::Denied => BuildErrorKind::Unauthorized,
        FetchErrorKind::RateLimited { .. } => BuildErrorKind::RateLimited,
        FetchErrorKind::Limit => BuildErrorKind::LimitExceeded,
        FetchErrorKind::DigestMismatch => BuildErrorKind::DigestMismatch,
        FetchErrorKind::Policy | FetchErrorKind::InvalidInput => BuildErrorKind::InvalidArgument {
            field: "docker_image.image_uri",
        },
        FetchErrorKind::Transient => BuildErrorKind::RegistryUnreachable,
        FetchErrorKind::TimedOut => BuildErrorKind::TimedOut,
        FetchErrorKind::Protocol | FetchErrorKind::Unsupported => BuildErrorKind::UnsupportedImage,
        FetchErrorKind::Io if is_disk_full => BuildErrorKind::DiskFull,
        _ => BuildErrorKind::Internal,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::BuildErrorKind as Build;

    #[test]
    fn each_kind_of_the_registry_client_has_one_of_ours() {
        let image = Build::InvalidArgument {
            field: "docker_image.image_uri",
        };
        for (kind, expected) in [
            (FetchErrorKind::NotFound, Build::ImageNotFound),
            (FetchErrorKind::Unauthorized, Build::Unauthorized),
            (FetchErrorKind::Denied, Build::Unauthorized),
            (FetchErrorKind::RateLimited { until: None }, Build::RateLimited),
            (FetchErrorKind::Limit, Build::LimitExceeded),
            (FetchErrorKind::DigestMismatch, Build::DigestMismatch),
            (FetchErrorKind::Policy, image.clone()),
            (FetchErrorKind::InvalidInput, image),
            (FetchErrorKind::Transient, Build::RegistryUnreachable),
            (FetchErrorKind::TimedOut, Build::TimedOut),
            (FetchErrorKind::Protocol, Build::UnsupportedImage),
            (FetchErrorKind::Unsupported, Build::UnsupportedImage),
            (FetchErrorKind::Io, Build::Internal),
        ] {
            assert_eq!(kind_of(&kind, false), expected, "{kind:?}");
        }
        assert_eq!(kind_of(&FetchErrorKind::Io, true), Build::DiskFull);
    }
}
