//! The way to one registry: its URL, and which addresses and schemes its requests may touch.

use std::net::IpAddr;

use url::{Host, Url};

use crate::config::{ClientConfig, Loopback, Mirror};
use crate::error::FetchError;
use crate::net::address::Reach;
use crate::reference::DOCKER_HUB;

/// Where Docker Hub's API really is.
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

#[derive(Debug)]
pub(crate) struct Route {
    /// The registry's name as in references; of a mirror, the mirror's own.
    pub(crate) registry: String,
    /// Whose images a mirror is asked for.
    namespace: Option<String>,
    /// `https://host[:port]/`
    pub(crate) base: Url,
    /// Whether this registry is used without TLS.
    pub(crate) is_plain: bool,
    /// What connections to the registry's own host may reach.
    home: Reach,
    /// What connections to any other host (redirects, token services) may reach.
    elsewhere: Reach,
}

impl Route {
    pub(crate) fn new(registry: &str, config: &ClientConfig) -> Result<Self, FetchError> {
        let host = if registry == DOCKER_HUB {
            DOCKER_HUB_HOST
        } else {
            registry
        };
        let is_named_plain = config.plain_http.contains(registry);
        let malformed = |_| FetchError::invalid("registry name does not make a URL");
        let probe = Url::parse(&format!("https://{host}/")).map_err(malformed)?;
        let is_loopback = config.loopback != Loopback::Denied && is_loopback_name(&probe);
        let is_plain = is_named_plain || (is_loopback && config.loopback == Loopback::PlainHttp);
        let base = if is_plain {
            Url::parse(&format!("http://{host}/")).map_err(malformed)?
        } else {
            probe
        };
        let (home, elsewhere) = if is_named_plain || config.private_registries.contains(registry) {
            // What a named registry points to on another host has been named by nobody.
            (Reach::Private, Reach::Public)
        } else if is_loopback {
            // On the developer's own machine a registry and its token service are two ports of one address, or two names
            // of it.
            (Reach::Loopback, Reach::Loopback)
        } else {
            (Reach::Public, Reach::Public)
        };
        Ok(Self {
            registry: registry.to_owned(),
            namespace: None,
            base,
            is_plain,
            home,
            elsewhere,
        })
    }

    /// The way to a mirror of a registry, which the operator has named.
    pub(crate) fn to_mirror(mirror: &Mirror, registry: &str) -> Result<Self, FetchError> {
        let scheme = if mirror.is_plain { "http" } else { "https" };
        let host = if mirror.host == DOCKER_HUB {
            DOCKER_HUB_HOST
        } else {
            mirror.host.as_str()
        };
        Ok(Self {
            registry: mirror.host.clone(),
            namespace: Some(registry.to_owned()),
            base: Url::parse(&format!("{scheme}://{host}/"))
                .map_err(|_| FetchError::invalid("registry mirror does not make a URL"))?,
            is_plain: mirror.is_plain,
            home: Reach::Private,
            elsewhere: Reach::Public,
        })
    }

    pub(crate) fn is_mirror(&self) -> bool {
        self.namespace.is_some()
    }

    /// The URL of a path below `/v2/`; the parts come from validated types and need no escaping.
    pub(crate) fn url(&self, path: &str) -> Result<Url, FetchError> {
        let mut url = self
            .base
            .join(&format!("v2/{path}"))
            .map_err(|_| FetchError::invalid("registry path does not make a URL"))?;
        if let Some(namespace) = &self.namespace {
            url.query_pairs_mut().append_pair("ns", namespace);
        }
        Ok(url)
    }

    /// Whether the URL is on the registry's own host, whatever the port.
    pub(crate) fn is_home(&self, url: &Url) -> bool {
        url.host() == self.base.host()
    }

    /// What a request to this URL may reach, after the checks that need no name resolution.
    ///
    /// URLs with an address as host must be checked here: the HTTP client asks no resolver about them. The URL parser has
    /// already turned decimal, octal and hexadecimal forms into plain addresses.
    pub(crate) fn admit(&self, url: &Url) -> Result<Reach, FetchError> {
        match url.scheme() {
            "https" => {}
            "http" if self.is_plain => {}
            "http" => {
                return Err(FetchError::policy(format!(
                    "registry {} points to a URL without TLS",
                    self.registry
                )));
            }
            _ => {
                return Err(FetchError::policy(format!(
                    "registry {} points to a URL that is not HTTP",
                    self.registry
                )));
            }
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(FetchError::policy(format!(
                "registry {} points to a URL with credentials in it",
                self.registry
            )));
        }
        let reach = if self.is_home(url) {
            self.home
        } else {
            self.elsewhere
        };
        let permitted = match url.host() {
            Some(Host::Ipv4(address)) => reach.permits(IpAddr::V4(address)),
            Some(Host::Ipv6(address)) => reach.permits(IpAddr::V6(address)),
            Some(Host::Domain(_)) => true,
            None => false,
        };
        if permitted { Ok(reach) } else { Err(self.denied()) }
    }

    /// The error for an address that may not be connected to. It names the registry only: what a name resolves to inside
    /// this network is nobody else's business.
    pub(crate) fn denied(&self) -> FetchError {
        FetchError::policy(format!(
            "registry {} leads to an address that may not be connected to",
            self.registry
        ))
    }
}

/// Whether two URLs have the same scheme, host and port.
pub(crate) fn same_origin(one: &Url, other: &Url) -> bool {
    one.scheme() == other.scheme()
        && one.host() == other.host()
        && one.port_or_known_default() == other.port_or_known_default()
}

fn is_loopback_name(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> ClientConfig {
        ClientConfig::new("unused")
            .with_plain_http("plain.internal:5000")
            .unwrap()
            .with_private_registry("10.0.0.7:5000")
            .unwrap()
    }

    fn admits(config: &ClientConfig, registry: &str, url: &str) -> bool {
        Route::new(registry, config)
            .unwrap()
            .admit(&Url::parse(url).unwrap())
            .is_ok()
    }

    #[test]
    fn literal_addresses_are_judged_in_every_spelling() {
        let config = config();
        for url in [
            "https://127.0.0.1/",
            "https://2130706433/",
            "https://0177.0.0.1/",
            "https://0x7f.1/",
            "https://127.1/",
            "https://[::1]/",
            "https://[::ffff:127.0.0.1]/",
            "https://[::ffff:7f00:1]/",
            "https://169.254.169.254/",
            "https://[64:ff9b::a9fe:a9fe]/",
            "https://0/",
            "https://10.0.0.7:5000/",
            "https://[fd00:ec2::254]/",
            "https://user@ghcr.io/",
            "https://user:secret@ghcr.io/",
            "http://ghcr.io/",
            "file:///etc/passwd",
            "ftp://ghcr.io/",
            "https://\u{ff11}\u{ff12}\u{ff17}.0.0.1/",
        ] {
            assert!(!admits(&config, "ghcr.io", url), "{url}");
        }
        assert!(admits(&config, "ghcr.io", "https://1.1.1.1/"));
        assert!(admits(&config, "ghcr.io", "https://cdn.example/"));
    }

    #[test]
    fn a_named_registry_reaches_private_addresses_on_its_own_host_only() {
        let config = config();
        assert!(admits(&config, "10.0.0.7:5000", "https://10.0.0.7:5000/v2/"));
        assert!(admits(&config, "10.0.0.7:5000", "https://10.0.0.7:5001/token"));
        assert!(!admits(&config, "10.0.0.7:5000", "http://10.0.0.7:5000/v2/"));
        assert!(!admits(&config, "10.0.0.7:5000", "https://10.0.0.8/"));
        assert!(!admits(&config, "10.0.0.7:5000", "https://127.0.0.1/"));
        assert!(!admits(&config, "10.0.0.7", "https://10.0.0.7/"));
        assert!(admits(
            &config,
            "plain.internal:5000",
            "http://plain.internal:5000/v2/"
        ));
        let route = Route::new("plain.internal:5000", &config).unwrap();
        assert_eq!(route.admit(&route.base).unwrap(), Reach::Private);
        assert_eq!(
            route
                .admit(&Url::parse("http://other.internal/").unwrap())
                .unwrap(),
            Reach::Public
        );
    }

    #[test]
    fn the_loopback_switch_opens_loopback_registries_only() {
        let denied = config();
        assert!(!admits(&denied, "127.0.0.1:5000", "https://127.0.0.1:5000/"));
        let plain = config().with_loopback(Loopback::PlainHttp);
        for registry in ["127.0.0.1:5000", "localhost:5000", "[::1]:5000"] {
            assert!(
                admits(&plain, registry, &format!("http://{registry}/v2/")),
                "{registry}"
            );
            assert!(
                admits(&plain, registry, "http://127.0.0.1:5001/token"),
                "{registry}"
            );
            assert!(!admits(&plain, registry, "http://10.0.0.1/"), "{registry}");
        }
        assert!(!admits(&plain, "ghcr.io", "https://127.0.0.1/"));
        assert!(!admits(&plain, "ghcr.io", "http://ghcr.io/"));
        let tls = config().with_loopback(Loopback::Tls);
        assert!(!admits(&tls, "127.0.0.1:5000", "http://127.0.0.1:5000/"));
        assert!(admits(&tls, "127.0.0.1:5000", "https://127.0.0.1:5000/"));
    }

    #[test]
    fn docker_hub_is_reached_at_its_api_host() {
        let route = Route::new("docker.io", &config()).unwrap();
        assert_eq!(
            route.url("library/nginx/manifests/1").unwrap().as_str(),
            "https://registry-1.docker.io/v2/library/nginx/manifests/1"
        );
    }
}
