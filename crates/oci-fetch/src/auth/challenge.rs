//! The `WWW-Authenticate` header of a registry.

use url::Url;

use crate::error::FetchError;
use crate::net::route::Route;

/// What a registry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Challenge {
    Basic,
    /// A token from the service at `realm`.
    Bearer {
        realm: String,
        service: Option<String>,
    },
}

/// Longer values than any registry's.
const MAX_PARAMETER_BYTES: usize = 2048;

/// The strongest challenge that we can answer; `None` when there is none.
///
/// Source: RFC 9110, section 11.6.1; distribution, "Token Authentication Specification".
pub(crate) fn parse(headers: &[String]) -> Option<Challenge> {
    let mut basic = None;
    for header in headers {
        let Ok(challenges) = http_auth::parse_challenges(header) else {
            continue;
        };
        for challenge in challenges {
            if challenge.scheme.eq_ignore_ascii_case("bearer") {
                let parameter = |name: &str| {
                    let mut found = challenge
                        .params
                        .iter()
                        .filter(|(key, _)| key.eq_ignore_ascii_case(name));
                    match (found.next(), found.next()) {
                        (Some((_, value)), None) => Some(value.to_unescaped()),
                        // A parameter given twice could be read in two ways.
                        _ => None,
                    }
                };
                let Some(realm) = parameter("realm").filter(|realm| realm.len() <= MAX_PARAMETER_BYTES)
                else {
                    continue;
                };
                let service = parameter("service").filter(|service| service.len() <= MAX_PARAMETER_BYTES);
                return Some(Challenge::Bearer { realm, service });
            }
            if challenge.scheme.eq_ignore_ascii_case("basic") {
                basic = Some(Challenge::Basic);
            }
        }
    }
    basic
}

/// Checks the address of a token service before anything is sent to it.
///
/// `has_secret` is whether the request will carry a credential: then the service must belong to the registry. Without one
/// any public service will do (`lscr.io` sends its users to `ghcr.io`), and the address filter bounds what it can be.
pub(crate) fn check_realm(route: &Route, realm: &str, has_secret: bool) -> Result<Url, FetchError> {
    let url = Url::parse(realm).map_err(|_| {
        FetchError::protocol(format!(
            "registry {} names a malformed token service",
            route.registry
        ))
    })?;
    route.admit(&url)?;
    let related = match (route.base.host_str(), url.host_str()) {
        (Some(registry), Some(service)) => is_related(registry, service),
        _ => false,
    };
    if has_secret && route.is_foreign_port_inside(&url) {
        return Err(FetchError::policy(format!(
            "registry {} wants the credentials sent to another port, which is not a named registry",
            route.registry
        )));
    }
    if has_secret && !related {
        return Err(FetchError::policy(format!(
            "registry {} wants the credentials sent to a token service of another domain",
            route.registry
        )));
    }
    Ok(url)
}

/// Whether a token service's host belongs to the registry's: the same host, one above or below it, or one beside it below
/// the same domain (`auth.docker.io` for `registry-1.docker.io`, `gitlab.com` for `registry.gitlab.com`).
///
/// There is no list of public suffixes here; a shared parent of two labels whose first looks like one of the registries'
/// generic second levels (`co.uk`, `com.au`) does not count as a domain.
fn is_related(registry: &str, service: &str) -> bool {
    let registry = registry.trim_end_matches('.');
    let service = service.trim_end_matches('.');
    if registry == service {
        return true;
    }
    let is_name = |host: &str| {
        host.contains('.') && host.parse::<std::net::Ipv4Addr>().is_err() && !host.starts_with('[')
    };
    if !is_name(registry) || !is_name(service) {
        return false;
    }
    let below = |host: &str, domain: &str| {
        host.strip_suffix(domain)
            .is_some_and(|front| front.ends_with('.'))
    };
    if below(service, registry) {
        return true;
    }
    let Some((_, parent)) = registry.split_once('.') else {
        return false;
    };
    let is_domain = match parent.split('.').collect::<Vec<_>>().as_slice() {
        [] | [_] => false,
        [second, top] => !(top.len() == 2 && second.len() <= 3),
        _ => true,
    };
    is_domain && (service == parent || below(service, parent))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ClientConfig;
    use proptest::prelude::*;

    fn bearer(realm: &str, service: Option<&str>) -> Option<Challenge> {
        Some(Challenge::Bearer {
            realm: realm.to_owned(),
            service: service.map(str::to_owned),
        })
    }

    #[test]
    fn challenges_are_read() {
        for (header, expected) in [
            (
                r#"Bearer realm="https://auth.docker.io/token",service="registry.docker.io",scope="repository:a/b:pull""#,
                bearer("https://auth.docker.io/token", Some("registry.docker.io")),
            ),
            (
                r#"bearer REALM="https://a.example/t""#,
                bearer("https://a.example/t", None),
            ),
            (
                r#"Basic realm="x", Bearer realm="https://a.example/t",service="s""#,
                bearer("https://a.example/t", Some("s")),
            ),
            (r#"Basic realm="Registry Realm""#, Some(Challenge::Basic)),
            (
                r#"Bearer realm="https://a.example/\"quoted\"""#,
                bearer("https://a.example/\"quoted\"", None),
            ),
            (
                r#"Bearer realm="https://a.example/1",realm="https://a.example/2""#,
                None,
            ),
            (r#"Bearer service="s""#, None),
            ("Negotiate abc=", None),
            ("Bearer", None),
            ("", None),
            ("\u{0}", None),
        ] {
            assert_eq!(parse(&[header.to_owned()]), expected, "{header}");
        }
    }

    #[test]
    fn secrets_go_to_the_registrys_own_domain_only() {
        for (registry, realm, with_secret, without) in [
            ("docker.io", "https://auth.docker.io/token", true, true),
            ("ghcr.io", "https://ghcr.io/token", true, true),
            ("registry.gitlab.com", "https://gitlab.com/jwt/auth", true, true),
            (
                "registry.example.com:5000",
                "https://registry.example.com:5001/auth",
                true,
                true,
            ),
            (
                "registry.example.com",
                "https://auth.registry.example.com/",
                true,
                true,
            ),
            ("lscr.io", "https://ghcr.io/token", false, true),
            ("ghcr.io", "https://evil.io/token", false, true),
            (
                "registry.example.com",
                "https://example.com.evil.org/",
                false,
                true,
            ),
            ("registry.example.com", "https://evilexample.com/", false, true),
            ("registry.co.uk", "https://evil.co.uk/", false, true),
            ("ghcr.io", "http://ghcr.io/token", false, false),
            ("ghcr.io", "https://user:secret@ghcr.io/token", false, false),
            ("ghcr.io", "https://127.0.0.1/token", false, false),
            (
                "ghcr.io",
                "https://169.254.169.254/latest/meta-data",
                false,
                false,
            ),
            ("ghcr.io", "https://[::ffff:127.0.0.1]/", false, false),
            ("ghcr.io", "file:///etc/passwd", false, false),
            ("ghcr.io", "/token", false, false),
        ] {
            let route = Route::new(registry, &ClientConfig::new("unused")).unwrap();
            assert_eq!(
                check_realm(&route, realm, true).is_ok(),
                with_secret,
                "{registry} {realm} with a secret"
            );
            assert_eq!(
                check_realm(&route, realm, false).is_ok(),
                without,
                "{registry} {realm} without"
            );
        }
    }

    proptest! {
        #[test]
        fn arbitrary_headers_never_panic(header in ".{0,100}", like in r#"(Bearer|Basic)( [a-z]{1,7}="?[^"]{0,9}"?,?){0,4}"#) {
            let _ = parse(&[header, like]);
        }

        #[test]
        fn arbitrary_realms_never_panic(realm in "(https?://)?.{0,40}", secret in any::<bool>()) {
            let route = Route::new("ghcr.io", &ClientConfig::new("unused")).unwrap();
            let _ = check_realm(&route, &realm, secret);
        }
    }
}
