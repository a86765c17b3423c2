//! HTTP proxies on the way to registries.
//!
//! A proxy resolves names by itself and opens the connection, so the address filter ends at it: of a request that goes
//! through one, only what its URL says can be judged here. See [`Proxies`].

use std::fmt;
use std::net::IpAddr;

use reqwest::dns::{Name, Resolve, Resolving};
use std::sync::Arc;
use url::{Host, Url};

use crate::error::FetchError;
use crate::net::resolver::{AddressDenied, GuardedResolver};

/// The HTTP proxies that registries are reached through, and what is reached without one.
///
/// Only the operator may choose them; the environment is never read behind his back (see
/// [`from_variables`](Self::from_variables)). What goes through a proxy is resolved and connected to by the proxy, past
/// this crate's address filter: **the proxy must refuse private and link-local destinations itself** when images are
/// pulled for strangers. What this crate can still see is refused as without a proxy: literal addresses that may not be
/// connected to, in any spelling, and besides them names that mean something inside a network only (`localhost`, names
/// without a dot, `.local`, `.internal`, `.home.arpa`), except for registries that the operator has named. Loopback
/// addresses and `localhost` are always reached directly.
///
/// Over TLS a proxy sees the host's name only; TLS reaches to the registry, with its own authorities and client
/// certificates. User name and password of a proxy stand in its URL and are in no output.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Proxies {
    http: Option<Url>,
    https: Option<Url>,
    exceptions: Vec<Exception>,
}

/// One entry of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Exception {
    All,
    /// A domain and everything below it, or only what is below it; with a port, only that.
    Domain {
        name: String,
        only_below: bool,
        port: Option<u16>,
    },
    /// Addresses that agree in the first bits.
    Network {
        address: IpAddr,
        bits: u32,
    },
}

impl Proxies {
    /// No proxy at all.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// The proxy for `http://` URLs: `http://[user:password@]host[:port]`, or with `https://` TLS to the proxy itself;
    /// without a scheme, `http://` is meant.
    ///
    /// # Errors
    /// `InvalidInput` for anything else, SOCKS included.
    pub fn with_http(mut self, proxy: &str) -> Result<Self, FetchError> {
        self.http = Some(parse_proxy(proxy)?);
        Ok(self)
    }

    /// The proxy for `https://` URLs, asked to `CONNECT`; of the same form.
    ///
    /// # Errors
    /// As for [`with_http`](Self::with_http).
    pub fn with_https(mut self, proxy: &str) -> Result<Self, FetchError> {
        self.https = Some(parse_proxy(proxy)?);
        Ok(self)
    }

    /// What is reached directly, with commas between: `*` for everything, a domain (itself and all below it), `.domain`
    /// (only below it), `domain:port`, an address, or a network as `10.0.0.0/8`.
    ///
    /// # Errors
    /// `InvalidInput` for an entry of another form.
    pub fn with_exceptions(mut self, list: &str) -> Result<Self, FetchError> {
        for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            self.exceptions.push(parse_exception(entry)?);
        }
        Ok(self)
    }

    /// As `curl` reads them: `http_proxy`, `https_proxy` (else `all_proxy`) and `no_proxy`, each in lower case or else in
    /// upper case. `lookup` gives a variable's value, [`std::env::var`] for instance.
    ///
    /// # Errors
    /// `InvalidInput` naming the variable whose value is of another form.
    pub fn from_variables(lookup: impl Fn(&str) -> Option<String>) -> Result<Self, FetchError> {
        let find = |name: &str| {
            [name.to_owned(), name.to_ascii_uppercase()]
                .into_iter()
                .find_map(|name| {
                    lookup(&name)
                        .filter(|value| !value.is_empty())
                        .map(|value| (name, value))
                })
        };
        let named = |name: String| move |error: FetchError| FetchError::invalid(format!("{name}: {error}"));
        let mut proxies = Self::none();
        if let Some((name, value)) = find("http_proxy").or_else(|| find("all_proxy")) {
            proxies = proxies.with_http(&value).map_err(named(name))?;
        }
        if let Some((name, value)) = find("https_proxy").or_else(|| find("all_proxy")) {
            proxies = proxies.with_https(&value).map_err(named(name))?;
        }
        if let Some((name, value)) = find("no_proxy") {
            proxies = proxies.with_exceptions(&value).map_err(named(name))?;
        }
        Ok(proxies)
    }

    /// Whether no request ever goes through a proxy.
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.http.is_none() && self.https.is_none()
    }

    /// The proxy for a URL.
    pub(crate) fn for_url(&self, url: &Url) -> Option<&Url> {
        let proxy = match url.scheme() {
            "https" => self.https.as_ref(),
            _ => self.http.as_ref(),
        }?;
        let is_direct = is_loopback(url) || self.exceptions.iter().any(|exception| exception.covers(url));
        (!is_direct).then_some(proxy)
    }
}

impl Exception {
    fn covers(&self, url: &Url) -> bool {
        match (self, url.host()) {
            (Self::All, _) => true,
            (
                Self::Domain {
                    name,
                    only_below,
                    port,
                },
                Some(host),
            ) => {
                let host = host.to_string();
                let is_below = host
                    .strip_suffix(name.as_str())
                    .is_some_and(|front| front.ends_with('.'));
                (is_below || (!only_below && host == *name))
                    && port.is_none_or(|port| url.port_or_known_default() == Some(port))
            }
            (Self::Network { address, bits }, Some(Host::Ipv4(host))) => {
                is_in_network(IpAddr::V4(host), *address, *bits)
            }
            (Self::Network { address, bits }, Some(Host::Ipv6(host))) => {
                is_in_network(IpAddr::V6(host), *address, *bits)
            }
            (_, _) => false,
        }
    }
}

/// Whether a name can only mean something inside a network; the proxy's, in this case.
///
/// Source: RFC 6761, RFC 6762, RFC 8375; `.internal` is reserved by ICANN and the domain of clouds' metadata services.
pub(crate) fn is_inside_name(url: &Url) -> bool {
    let Some(Host::Domain(name)) = url.host() else {
        return false;
    };
    let name = name.trim_end_matches('.');
    let ends_in = |domain: &str| {
        name.strip_suffix(domain)
            .is_some_and(|front| front.is_empty() || front.ends_with('.'))
    };
    !name.contains('.')
        || ["localhost", "local", "internal", "home.arpa"]
            .iter()
            .any(|domain| ends_in(domain))
}

fn is_loopback(url: &Url) -> bool {
    match url.host() {
        Some(Host::Domain(name)) => name == "localhost" || name.ends_with(".localhost"),
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn is_in_network(host: IpAddr, network: IpAddr, bits: u32) -> bool {
    let common = match (host, network) {
        (IpAddr::V4(host), IpAddr::V4(network)) => (host.to_bits() ^ network.to_bits()).leading_zeros(),
        (IpAddr::V6(host), IpAddr::V6(network)) => (host.to_bits() ^ network.to_bits()).leading_zeros(),
        _ => return false,
    };
    common >= bits
}

fn parse_proxy(text: &str) -> Result<Url, FetchError> {
    // The value may hold a password: it is not shown.
    let malformed = || FetchError::invalid("proxy is not of the form http://[user:password@]host[:port]");
    let text = text.trim();
    let url = if text.contains("://") {
        Url::parse(text)
    } else {
        Url::parse(&format!("http://{text}"))
    };
    let url = url.map_err(|_| malformed())?;
    if url.scheme().starts_with("socks") {
        return Err(FetchError::unsupported(
            "SOCKS proxies are not supported, only HTTP ones are",
        ));
    }
    let is_bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
    if !matches!(url.scheme(), "http" | "https") || url.host().is_none() || !is_bare {
        return Err(malformed());
    }
    Ok(url)
}

fn parse_exception(text: &str) -> Result<Exception, FetchError> {
    let malformed = || {
        FetchError::invalid(format!(
            "{text:?} is not *, a domain, an address or a network as 10.0.0.0/8"
        ))
    };
    if text == "*" {
        return Ok(Exception::All);
    }
    let unbracketed = text.trim_start_matches('[').trim_end_matches(']');
    if let Ok(address) = unbracketed.parse::<IpAddr>() {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        return Ok(Exception::Network { address, bits });
    }
    if let Some((address, bits)) = text.split_once('/') {
        let address: IpAddr = address.parse().map_err(|_| malformed())?;
        let bits: u32 = bits.parse().map_err(|_| malformed())?;
        if bits > if address.is_ipv4() { 32 } else { 128 } {
            return Err(malformed());
        }
        return Ok(Exception::Network { address, bits });
    }
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) => (name, Some(port.parse().map_err(|_| malformed())?)),
        None => (text, None),
    };
    let name = name.strip_prefix('*').unwrap_or(name);
    let (only_below, name) = match name.strip_prefix('.') {
        Some(name) => (true, name),
        None => (false, name),
    };
    // As a URL spells it, so that the two can be compared.
    let host = Url::parse(&format!("http://{name}/")).map_err(|_| malformed())?;
    match host.host() {
        Some(host @ (Host::Domain(_) | Host::Ipv4(_))) if !name.contains(['/', '@', '*']) => {
            Ok(Exception::Domain {
                name: host.to_string(),
                only_below,
                port,
            })
        }
        _ => Err(malformed()),
    }
}

/// For a client whose every connection goes to one proxy, wherever the operator keeps it.
pub(crate) struct ProxyResolver {
    pub(crate) host: String,
    pub(crate) inner: GuardedResolver,
}

impl Resolve for ProxyResolver {
    fn resolve(&self, name: Name) -> Resolving {
        if name.as_str().eq_ignore_ascii_case(&self.host) {
            return self.inner.resolve(name);
        }
        // Should a request ever miss the proxy, it gets nowhere.
        Box::pin(async { Err(AddressDenied.into()) })
    }
}

impl ProxyResolver {
    pub(crate) fn new(proxy: &Url, inner: GuardedResolver) -> Arc<Self> {
        Arc::new(Self {
            host: proxy.host_str().unwrap_or_default().to_owned(),
            inner,
        })
    }
}

impl fmt::Debug for Proxies {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = |proxy: &Option<Url>| proxy.as_ref().and_then(|url| url.host_str().map(str::to_owned));
        formatter
            .debug_struct("Proxies")
            .field("http", &host(&self.http))
            .field("https", &host(&self.https))
            .field("exceptions", &self.exceptions)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn via(proxies: &Proxies, url: &str) -> Option<String> {
        let url = Url::parse(url).unwrap();
        proxies
            .for_url(&url)
            .map(|proxy| proxy.host_str().unwrap().to_owned())
    }

    #[test]
    fn variables_are_read_as_curl_does() {
        let with = |pairs: &[(&str, &str)]| {
            Proxies::from_variables(|name| {
                pairs
                    .iter()
                    .find(|(known, _)| *known == name)
                    .map(|(_, value)| (*value).to_owned())
            })
        };
        for (name, pairs, https, http) in [
            ("nothing", &[][..], None, None),
            ("upper", &[("HTTPS_PROXY", "http://a:1")], Some("a"), None),
            (
                "lower first",
                &[("HTTPS_PROXY", "http://a:1"), ("https_proxy", "b:2")],
                Some("b"),
                None,
            ),
            (
                "all",
                &[("ALL_PROXY", "http://a:1"), ("HTTP_PROXY", "http://b")],
                Some("a"),
                Some("b"),
            ),
            ("empty", &[("HTTPS_PROXY", "")], None, None),
            (
                "excepted",
                &[("ALL_PROXY", "a"), ("NO_PROXY", "example.com")],
                None,
                None,
            ),
        ] {
            let proxies = with(pairs).unwrap();
            assert_eq!(
                via(&proxies, "https://ghcr.example.com/").as_deref(),
                https,
                "{name}"
            );
            assert_eq!(
                via(&proxies, "http://ghcr.example.com/").as_deref(),
                http,
                "{name}"
            );
        }
        for (variable, value, words) in [
            ("HTTPS_PROXY", "socks5://a:1", "HTTPS_PROXY: SOCKS"),
            ("http_proxy", "ftp://u:hunter2@a", "http_proxy: proxy is not"),
            ("HTTP_PROXY", "http://a/path", "HTTP_PROXY: proxy is not"),
            ("NO_PROXY", "10.0.0.0/33", "NO_PROXY: \"10.0.0.0/33\" is not"),
        ] {
            let text = with(&[(variable, value)]).unwrap_err().to_string();
            assert!(text.starts_with(words) && !text.contains("hunter2"), "{text}");
        }
    }

    #[test]
    fn exceptions_cover_what_they_say() {
        for (entry, url, is_direct) in [
            ("*", "https://a.io/", true),
            ("a.io", "https://a.io/", true),
            ("A.io", "https://b.a.io/", true),
            ("a.io", "https://ba.io/", false),
            (".a.io", "https://a.io/", false),
            ("*.a.io", "https://b.a.io/", true),
            ("a.io:5000", "https://a.io:5000/", true),
            ("a.io:5000", "https://a.io/", false),
            ("a.io:443", "https://a.io/", true),
            ("10.0.0.0/8", "https://10.9.9.9/", true),
            ("10.0.0.0/8", "https://11.0.0.1/", false),
            ("10.0.0.7", "https://10.0.0.7:5000/", true),
            ("10.0.0.7:5000", "https://10.0.0.7:5000/", true),
            ("0.0.0.0/0", "https://1.1.1.1/", true),
            ("0.0.0.0/0", "https://[2606::1]/", false),
            ("fd00::/8", "https://[fd12::1]/", true),
            ("[fd12::1]", "https://[fd12::1]/", true),
            ("x.io", "https://localhost:5000/", true),
            ("x.io", "http://127.0.0.1:5000/", true),
        ] {
            let proxies = Proxies::none()
                .with_https("proxy")
                .and_then(|proxies| proxies.with_http("proxy"))
                .and_then(|proxies| proxies.with_exceptions(entry))
                .unwrap();
            assert_eq!(via(&proxies, url).is_none(), is_direct, "{entry} {url}");
        }
    }

    #[test]
    fn names_of_the_inside_are_known() {
        for (url, expected) in [
            ("https://localhost/", true),
            ("https://registry/", true),
            ("https://metadata.google.internal/", true),
            ("https://metadata.google.internal./", true),
            ("https://printer.local/", true),
            ("https://router.home.arpa/", true),
            ("https://internal.example/", false),
            ("https://notlocal.io/", false),
            ("https://1.1.1.1/", false),
        ] {
            assert_eq!(is_inside_name(&Url::parse(url).unwrap()), expected, "{url}");
        }
    }

    #[test]
    fn no_password_is_printed() {
        let proxies = Proxies::none().with_https("http://u:hunter2@proxy:3128").unwrap();
        let text = format!("{proxies:?}");
        assert!(text.contains("proxy") && !text.contains("hunter2"), "{text}");
    }
}
