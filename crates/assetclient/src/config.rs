//! Where assetmanagerd is, and under which name.

use std::{fmt, str::FromStr, sync::Arc, time::Duration};

use http::Uri;

/// Where and how assetmanagerd is called.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// `http://HOST:PORT` or `https://HOST:PORT`.
    pub endpoint: String,
    /// What an encrypted connection shows and trusts; needed with `https://`, of no use without.
    pub tls: Option<Tls>,
    /// The name of the service there.
    pub service: ServiceName,
    /// How [`AssetClient`](crate::AssetClient)'s user makes images known.
    pub delivery: Delivery,
    /// For one call, connecting included; it is told to the server too.
    pub timeout: Duration,
    /// For connecting alone.
    pub connect_timeout: Duration,
}

/// What encrypted connections show and trust. It is asked for every connection that is opened, so that renewed
/// certificates are taken up.
#[derive(Clone)]
pub struct Tls(Arc<dyn Fn() -> Arc<rustls::ClientConfig> + Send + Sync>);

impl Tls {
    /// `current` gives the present state. It brings no ALPN protocols; those are the client's.
    #[must_use]
    pub fn new(current: impl Fn() -> Arc<rustls::ClientConfig> + Send + Sync + 'static) -> Self {
        Self(Arc::new(current))
    }

    pub(crate) fn current(&self) -> Arc<rustls::ClientConfig> {
        (self.0)()
    }
}

impl PartialEq for Tls {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Tls {}

impl fmt::Debug for Tls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Tls")
    }
}

/// How an image gets to assetmanagerd. The client has a method for either; this is what its user was told to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Delivery {
    /// `RegisterAsset`: it is told where the image is.
    #[default]
    Register,
    /// `UploadAsset`: it is sent the bytes, and keeps them itself.
    Upload,
}

/// The names under which the one service is found in the field.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum ServiceName {
    /// `asset.v1.AssetManagerService`.
    #[default]
    AssetV1,
    /// `deploy.assetmanagerd.v1.AssetManagerService`.
    DeployAssetmanagerdV1,
}

/// Not a name of the service.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a name of assetmanagerd: expected asset.v1 or deploy.assetmanagerd.v1")]
pub struct UnknownServiceName {
    /// What was given, shortened to 80 characters.
    pub value: String,
}

/// The endpoint cannot be called.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidConfig {
    /// It asks for TLS, and there is nothing to do it with. To talk in the clear instead would be worse than not to
    /// talk.
    #[error("endpoint {endpoint:?} asks for TLS, and no certificates are given")]
    NoTls {
        /// The endpoint.
        endpoint: String,
    },
    /// It is of another form.
    #[error("endpoint {endpoint:?} is not valid: expected http://HOST:PORT or https://HOST:PORT")]
    Endpoint {
        /// The endpoint; blank when it holds a user name or password.
        endpoint: String,
    },
}

impl Config {
    /// The first name of the service, registering, ten seconds for a call, three of them for connecting.
    #[must_use]
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            tls: None,
            service: ServiceName::default(),
            delivery: Delivery::default(),
            timeout: Duration::from_secs(10),
            connect_timeout: Duration::from_secs(3),
        }
    }

    /// Checks the endpoint without calling it, so that a start can fail early.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`].
    pub fn validate(&self) -> Result<(), InvalidConfig> {
        self.uri().map(drop)
    }

    /// Whether the endpoint is `https://`, and [`Self::tls`] is needed.
    #[must_use]
    pub fn is_encrypted(&self) -> bool {
        let scheme = self.endpoint.get(..8);
        scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("https://"))
    }

    pub(crate) fn uri(&self) -> Result<Uri, InvalidConfig> {
        // What stands before an @ may be a password.
        let shown = if self.endpoint.contains('@') {
            ""
        } else {
            &self.endpoint
        };
        let invalid = || InvalidConfig::Endpoint {
            endpoint: shown.to_owned(),
        };
        let uri: Uri = self.endpoint.parse().map_err(|_| invalid())?;
        let authority = uri.authority().ok_or_else(invalid)?;
        if authority.as_str().contains('@') || authority.host().is_empty() {
            return Err(invalid());
        }
        if !matches!(uri.scheme_str(), Some("http" | "https")) {
            return Err(invalid());
        }
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(invalid());
        }
        Ok(uri)
    }
}

impl ServiceName {
    /// Package and service, as in the path of a call.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::AssetV1 => "asset.v1.AssetManagerService",
            Self::DeployAssetmanagerdV1 => "deploy.assetmanagerd.v1.AssetManagerService",
        }
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl FromStr for ServiceName {
    type Err = UnknownServiceName;

    /// Reads a package, with or without the service after it.
    fn from_str(value: &str) -> Result<Self, Self::Err> {
        match value.strip_suffix(".AssetManagerService").unwrap_or(value) {
            "asset.v1" => Ok(Self::AssetV1),
            "deploy.assetmanagerd.v1" => Ok(Self::DeployAssetmanagerdV1),
            _ => Err(UnknownServiceName {
                value: value.chars().take(80).collect(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_an_origin() {
        for endpoint in [
            "http://127.0.0.1:8083",
            "https://localhost:8083",
            "http://assets.internal",
            "http://[::1]:8083/",
        ] {
            assert_eq!(Config::new(endpoint).validate(), Ok(()), "{endpoint}");
        }
        for (endpoint, encrypted) in [
            ("https://a", true),
            ("HTTPS://a", true),
            ("http://a", false),
            ("http://https://", false),
        ] {
            assert_eq!(Config::new(endpoint).is_encrypted(), encrypted, "{endpoint}");
        }
        for endpoint in [
            "",
            "localhost:8083",
            "/socket",
            "unix:///run/x",
            "http://",
            "http://a/b",
            "http://a?b",
            "http://a b",
        ] {
            let expected = Err(InvalidConfig::Endpoint {
                endpoint: endpoint.to_owned(),
            });
            assert_eq!(Config::new(endpoint).validate(), expected, "{endpoint}");
        }
    }

    #[test]
    fn a_password_in_an_endpoint_is_refused_and_not_shown() {
        for endpoint in [
            "http://user:hunter2@a",
            "https://user:hunter2@a",
            "user:hunter2@a b",
        ] {
            let error = Config::new(endpoint).validate().unwrap_err();
            assert!(!error.to_string().contains("hunter2"), "{error}");
        }
    }

    #[test]
    fn names_are_read_with_and_without_the_service() {
        for name in [ServiceName::AssetV1, ServiceName::DeployAssetmanagerdV1] {
            assert_eq!(name.to_string().parse(), Ok(name));
        }
        assert_eq!(
            "deploy.assetmanagerd.v1".parse(),
            Ok(ServiceName::DeployAssetmanagerdV1)
        );
        assert!("asset.v2".parse::<ServiceName>().is_err());
    }
}
