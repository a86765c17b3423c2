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
    /// What connections to the registry's own host and port may reach.
    home: Reach,
    /// What connections to any other host or port (redirects, token services) may reach.
    elsewhere: Reach,
    /// Where the registry itself is on its host.
    own: Vec<Endpoint>,
    /// What else on the registry's host the operator has named.
    listed: Vec<Endpoint>,
}

/// A port that belongs to a registry's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Endpoint {
    port: u16,
    /// Whether it may be spoken to without TLS.
    is_plain: bool,
}

impl Endpoint {
    /// What a name stands for: its port, or without one the default ports of the schemes it may be spoken to in.
    fn of(name: &str, is_plain: bool) -> Vec<Self> {
        // Read from the text, because a URL forgets the port that is its scheme's default. A bracket ends an IPv6 address.
        let port = name
            .rsplit_once(':')
            .filter(|(_, port)| !port.contains(']'))
            .and_then(|(_, port)| port.parse().ok());
        match port {
            Some(port) => vec![Self { port, is_plain }],
            None if is_plain => vec![
                Self { port: 80, is_plain },
                Self {
                    port: 443,
                    is_plain: false,
                },
            ],
            None => vec![Self { port: 443, is_plain }],
        }
    }

    fn covers(self, url: &Url) -> bool {
        url.port_or_known_default() == Some(self.port) && (self.is_plain || url.scheme() == "https")
    }
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
        // Who has been given an authority or a client certificate speaks TLS, on loopback too.
        let is_plain_loopback = config.loopback == Loopback::PlainHttp && !config.tls.contains_key(registry);
        let is_plain = is_named_plain || (is_loopback && is_plain_loopback);
        let base = if is_plain {
            Url::parse(&format!("http://{host}/")).map_err(malformed)?
        } else {
            probe
        };
        // On the developer's own machine a registry and its token service are two ports of one address, or two names of it.
        // Anywhere else, what a named registry points to on another host or port has been named by nobody.
        let elsewhere = if is_loopback {
            Reach::Loopback
        } else {
            Reach::Public
        };
        let home = if is_named_plain || config.private_registries.contains(registry) {
            Reach::Private
        } else {
            elsewhere
        };
        let listed = if home == Reach::Public {
            Vec::new()
        } else {
            listed_beside(&base, config)
        };
        Ok(Self {
            registry: registry.to_owned(),
            namespace: None,
            base,
            is_plain,
            home,
            elsewhere,
            own: Endpoint::of(host, is_plain),
            listed,
        })
    }

    /// The way to a mirror of a registry, which the operator has named.
    pub(crate) fn to_mirror(
        mirror: &Mirror,
        registry: &str,
        config: &ClientConfig,
    ) -> Result<Self, FetchError> {
        let scheme = if mirror.is_plain { "http" } else { "https" };
        let host = if mirror.host == DOCKER_HUB {
            DOCKER_HUB_HOST
        } else {
            mirror.host.as_str()
        };
        let base = Url::parse(&format!("{scheme}://{host}/"))
            .map_err(|_| FetchError::invalid("registry mirror does not make a URL"))?;
        Ok(Self {
            registry: mirror.host.clone(),
            namespace: Some(registry.to_owned()),
            is_plain: mirror.is_plain,
            home: Reach::Private,
            elsewhere: Reach::Public,
            own: Endpoint::of(host, mirror.is_plain),
            listed: listed_beside(&base, config),
            base,
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

    /// Whether the URL is on the registry's own host and port.
    pub(crate) fn is_home(&self, url: &Url) -> bool {
        self.is_same_host(url) && self.own.iter().any(|endpoint| endpoint.covers(url))
    }

    /// Whether the URL is on the registry's own host, whatever the port.
    pub(crate) fn is_same_host(&self, url: &Url) -> bool {
        url.host() == self.base.host()
    }

    /// Whether the URL is on another port of the registry's own host that the operator has named, too.
    fn is_listed(&self, url: &Url) -> bool {
        self.is_same_host(url) && self.listed.iter().any(|endpoint| endpoint.covers(url))
    }

    /// Under which name the operator gives TLS material for the URL; none for another host, whatever it is called.
    pub(crate) fn tls_name(&self, url: &Url) -> Option<String> {
        if self.is_home(url) {
            return Some(self.registry.clone());
        }
        match (url.host_str(), url.port()) {
            (Some(host), Some(port)) if self.is_same_host(url) => Some(format!("{host}:{port}")),
            (Some(host), None) if self.is_same_host(url) => Some(host.to_owned()),
            _ => None,
        }
    }

    /// Whether the URL is on a port of an address inside that is not known to be the registry's: anybody's service there
    /// has the same host in its URL.
    pub(crate) fn is_foreign_port_inside(&self, url: &Url) -> bool {
        let is_inside = is_loopback_name(url)
            || match url.host() {
                Some(Host::Ipv4(address)) => !Reach::Public.permits(IpAddr::V4(address)),
                Some(Host::Ipv6(address)) => !Reach::Public.permits(IpAddr::V6(address)),
                _ => false,
            };
        is_inside && !self.is_home(url) && !self.is_listed(url)
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
        } else if self.is_listed(url) {
            Reach::Private
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

/// The ports of this host that the operator has named as a registry's or a mirror's.
fn listed_beside(base: &Url, config: &ClientConfig) -> Vec<Endpoint> {
    let plain = config.plain_http.iter().map(|name| (name, true));
    let private = config.private_registries.iter().map(|name| (name, false));
    let mirrors = config
        .mirrors
        .values()
        .flat_map(|mirrors| &mirrors.hosts)
        .map(|mirror| (&mirror.host, mirror.is_plain));
    plain
        .chain(private)
        .chain(mirrors)
        .filter(|(name, _)| {
            Url::parse(&format!("https://{name}/")).is_ok_and(|named| named.host() == base.host())
        })
        .flat_map(|(name, is_plain)| Endpoint::of(name, is_plain))
        .collect()
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
        assert!(!admits(&config, "10.0.0.7:5000", "https://10.0.0.7:5001/token"));
        assert!(!admits(&config, "10.0.0.7:5000", "https://10.0.0.7/token"));
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
    fn a_name_stands_for_its_port_or_for_the_default_ports() {
        let config = ClientConfig::new("unused")
            .with_plain_http("10.0.0.1")
            .and_then(|config| config.with_private_registry("10.0.0.2"))
            .and_then(|config| config.with_plain_http("10.0.0.3:80"))
            .and_then(|config| config.with_private_registry("[fd00::1]"))
            .and_then(|config| config.with_plain_http("127.0.0.1:5000"))
            .and_then(|config| config.with_private_registry("127.0.0.1:5001"))
            .and_then(|config| config.with_mirror("docker.io", "http://127.0.0.1:5002"))
            .unwrap();
        for (registry, url, expected) in [
            ("10.0.0.1", "http://10.0.0.1/", true),
            ("10.0.0.1", "https://10.0.0.1/", true),
            ("10.0.0.1", "http://10.0.0.1:8080/", false),
            ("10.0.0.1", "http://10.0.0.1:443/", false),
            ("10.0.0.2", "https://10.0.0.2/", true),
            ("10.0.0.2", "https://10.0.0.2:80/", false),
            ("10.0.0.3:80", "http://10.0.0.3/", true),
            ("10.0.0.3:80", "https://10.0.0.3/", false),
            ("[fd00::1]", "https://[fd00::1]/", true),
            ("[fd00::1]", "https://[fd00::1]:1/", false),
            ("127.0.0.1:5000", "https://127.0.0.1:5000/", true),
            ("127.0.0.1:5000", "https://127.0.0.1:5001/", true),
            ("127.0.0.1:5000", "http://127.0.0.1:5001/", false),
            ("127.0.0.1:5000", "http://127.0.0.1:5002/", true),
            ("127.0.0.1:5000", "http://127.0.0.1:5003/", false),
            ("127.0.0.1:5000", "http://127.0.0.1/", false),
        ] {
            assert_eq!(admits(&config, registry, url), expected, "{registry} {url}");
        }
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
        let with_authority = plain
            .clone()
            .with_certificate_authorities("127.0.0.1:5000", "PEM")
            .unwrap();
        let route = Route::new("127.0.0.1:5000", &with_authority).unwrap();
        assert_eq!(route.base.as_str(), "https://127.0.0.1:5000/");
        assert!(!admits(
            &with_authority,
            "127.0.0.1:5000",
            "http://127.0.0.1:5000/"
        ));
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
