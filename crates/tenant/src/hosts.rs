//! Which registries (or git hosts) may be talked to.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

/// A host as an operator lists it: `*` for all, `*.DOMAIN[:PORT]` for every name below a domain, `HOST[:PORT]` for one.
///
/// Case does not matter. A port is part of the name: `example.com` does not stand for `example.com:5000`, and
/// `example.com:443` is another spelling that has to be listed by itself. The names under which Docker Hub
/// is reached all mean `docker.io`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPattern {
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Kind {
    All,
    /// `.domain` and the port, empty for none.
    Below {
        suffix: String,
        port: String,
    },
    One(String),
}

/// Not a form in which a host can be listed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{value:?} is not a host: expected HOST[:PORT], *.DOMAIN[:PORT] or *")]
pub struct InvalidHostPattern {
    /// What was given, shortened to 80 characters.
    pub value: String,
}

/// A set of hosts: everything, or what every one of some lists allows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowedHosts {
    /// Each must have a pattern that matches; without a list everything is allowed.
    lists: Vec<Vec<HostPattern>>,
}

/// Names under which clients reach Docker Hub.
const DOCKER_HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

impl HostPattern {
    /// Whether this pattern means `host`, a host name or address with the port when the reference has one.
    #[must_use]
    pub fn matches(&self, host: &str) -> bool {
        let host = normalize(host);
        match &self.kind {
            Kind::All => true,
            Kind::One(name) => *name == host,
            Kind::Below { suffix, port } => {
                let (name, given_port) = split_port(&host);
                name.len() > suffix.len() && name.ends_with(suffix.as_str()) && given_port == port
            }
        }
    }
}

impl AllowedHosts {
    /// Every host.
    #[must_use]
    pub const fn any() -> Self {
        Self { lists: Vec::new() }
    }

    /// The hosts that one of `patterns` means; none at all when there is no pattern.
    #[must_use]
    pub fn only(patterns: impl IntoIterator<Item = HostPattern>) -> Self {
        Self {
            lists: vec![patterns.into_iter().collect()],
        }
    }

    /// Whether `host` (with its port, when the reference has one) is in the set.
    #[must_use]
    pub fn allows(&self, host: &str) -> bool {
        self.lists
            .iter()
            .all(|patterns| patterns.iter().any(|pattern| pattern.matches(host)))
    }

    /// Whether some list names exactly this host, and the others allow it. Only such a host may have a private
    /// or loopback address: whoever writes a wildcard did not think of this machine.
    #[must_use]
    pub fn names_exactly(&self, host: &str) -> bool {
        let wanted = normalize(host);
        let is_it = |pattern: &HostPattern| matches!(&pattern.kind, Kind::One(name) if *name == wanted);
        self.allows(host) && self.lists.iter().flatten().any(is_it)
    }

    /// Whether every host is allowed.
    #[must_use]
    pub fn is_any(&self) -> bool {
        self.lists
            .iter()
            .all(|patterns| patterns.iter().any(|pattern| pattern.kind == Kind::All))
    }

    /// The hosts that are in both sets.
    #[must_use]
    pub fn intersection(&self, other: &Self) -> Self {
        let mut lists = self.lists.clone();
        for list in &other.lists {
            if !lists.contains(list) {
                lists.push(list.clone());
            }
        }
        Self { lists }
    }

    /// The patterns, for people: of several lists, those of the last and narrowest that every other list has a
    /// pattern for.
    #[must_use]
    pub fn describe(&self) -> Vec<String> {
        let Some((last, others)) = self.lists.split_last() else {
            return Vec::new();
        };
        let others = Self {
            lists: others.to_vec(),
        };
        last.iter()
            .map(ToString::to_string)
            .filter(|text| text.contains('*') || others.allows(text))
            .collect()
    }
}

impl FromStr for HostPattern {
    type Err = InvalidHostPattern;

    fn from_str(value: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidHostPattern {
            value: value.chars().take(80).collect(),
        };
        if value == "*" {
            return Ok(Self { kind: Kind::All });
        }
        let text = normalize(value);
        let (below, name) = text
            .strip_prefix("*.")
            .map_or((false, text.as_str()), |rest| (true, rest));
        let (name, port) = split_port(name);
        let valid_port = port.is_empty() || port.parse::<u16>().is_ok_and(|port| port != 0);
        let ends_in_colon = text.ends_with(':');
        if !valid_port || ends_in_colon || !is_host(name) || (below && name.starts_with('[')) {
            return Err(invalid());
        }
        let kind = if below {
            Kind::Below {
                suffix: format!(".{name}"),
                port: port.to_owned(),
            }
        } else {
            Kind::One(text)
        };
        Ok(Self { kind })
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::All => formatter.write_str("*"),
            Kind::One(name) => formatter.write_str(name),
            Kind::Below { suffix, port } if port.is_empty() => write!(formatter, "*{suffix}"),
            Kind::Below { suffix, port } => write!(formatter, "*{suffix}:{port}"),
        }
    }
}

impl TryFrom<String> for HostPattern {
    type Error = InvalidHostPattern;

    fn try_from(value: String) -> Result<Self, Self::Error> {
        value.parse()
    }
}

impl From<HostPattern> for String {
    fn from(pattern: HostPattern) -> Self {
        pattern.to_string()
    }
}

fn normalize(host: &str) -> String {
    let host = host.to_ascii_lowercase();
    if DOCKER_HUB.contains(&host.as_str()) {
        "docker.io".to_owned()
    } else {
        host
    }
}

/// Host and port; the port is empty when there is none. An IPv6 address is in brackets.
fn split_port(host: &str) -> (&str, &str) {
    match host.rsplit_once(':') {
        Some((name, port)) if !port.contains(']') => (name, port),
        _ => (host, ""),
    }
}

/// Labels of letters, digits and hyphens between dots (which includes IPv4 addresses), or an IPv6 address in brackets.
fn is_host(name: &str) -> bool {
    if let Some(address) = name.strip_prefix('[') {
        return address
            .strip_suffix(']')
            .is_some_and(|address| address.parse::<std::net::Ipv6Addr>().is_ok());
    }
    let is_label = |label: &str| {
        (1..=63).contains(&label.len())
            && label
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    name.len() <= 253 && name.split('.').all(is_label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn only(patterns: &[&str]) -> AllowedHosts {
        AllowedHosts::only(patterns.iter().map(|pattern| pattern.parse().unwrap()))
    }

    #[test]
    fn hosts_match_as_they_are_listed() {
        let cases = [
            ("the same", "ghcr.io", "ghcr.io", true),
            ("case does not matter", "GHCR.io", "ghcr.IO", true),
            ("another host", "ghcr.io", "quay.io", false),
            ("a longer host", "ghcr.io", "evilghcr.io", false),
            ("a host below", "ghcr.io", "a.ghcr.io", false),
            ("port given, none listed", "localhost", "localhost:5000", false),
            ("port listed, none given", "localhost:5000", "localhost", false),
            ("same port", "127.0.0.1:5000", "127.0.0.1:5000", true),
            ("other port", "127.0.0.1:5000", "127.0.0.1:5001", false),
            ("everything", "*", "anything:1", true),
            ("below a domain", "*.example.com", "a.example.com", true),
            ("deep below", "*.example.com", "a.b.example.com", true),
            ("the domain itself", "*.example.com", "example.com", false),
            ("nothing before the dot", "*.example.com", ".example.com", false),
            ("only looks as if below", "*.example.com", "badexample.com", false),
            ("continued", "*.example.com", "a.example.com.evil.org", false),
            (
                "below with port",
                "*.example.com:5000",
                "a.example.com:5000",
                true,
            ),
            (
                "below with another port",
                "*.example.com:5000",
                "a.example.com",
                false,
            ),
            (
                "below, port not listed",
                "*.example.com",
                "a.example.com:5000",
                false,
            ),
            (
                "Docker Hub's other names",
                "docker.io",
                "registry-1.docker.io",
                true,
            ),
            ("listed by another name", "index.docker.io", "docker.io", true),
            ("IPv6", "[::1]:5000", "[::1]:5000", true),
            ("IPv6 without port", "[::1]", "[::1]:5000", false),
        ];
        for (name, pattern, host, expected) in cases {
            assert_eq!(
                pattern.parse::<HostPattern>().unwrap().matches(host),
                expected,
                "{name}"
            );
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for value in [
            "",
            "*.",
            "**",
            "*example.com",
            "a.*.com",
            "https://ghcr.io",
            "ghcr.io/",
            "ghcr.io/library",
            "a b",
            "-a.io",
            "a..io",
            "a.io:",
            "a.io:0",
            "a.io:65536",
            "a.io:x",
            ":5000",
            "::1",
            "[::1",
            "[x]:1",
            "*.[::1]",
            "user@a.io",
        ] {
            assert!(value.parse::<HostPattern>().is_err(), "{value:?}");
        }
    }

    #[test]
    fn sets_are_intersected() {
        let tier = only(&["docker.io", "*.example.com"]);
        let request = only(&["a.example.com", "quay.io"]);
        let both = tier.intersection(&request);
        for (host, expected) in [
            ("docker.io", false),
            ("a.example.com", true),
            ("b.example.com", false),
            ("quay.io", false),
        ] {
            assert_eq!(both.allows(host), expected, "{host}");
        }
        assert_eq!(both.describe(), ["a.example.com"]);
        assert_eq!(AllowedHosts::any().intersection(&request), request);
        assert!(!only(&[]).allows("docker.io"), "an empty list allows nothing");
    }

    #[test]
    fn only_an_exact_name_may_be_private() {
        let set = only(&["*.internal", "localhost:5000"]);
        assert!(set.names_exactly("localhost:5000"));
        assert!(!set.names_exactly("registry.internal"));
        assert!(!AllowedHosts::any().names_exactly("localhost:5000"));
        assert!(
            !only(&["localhost:5000"])
                .intersection(&only(&["ghcr.io"]))
                .names_exactly("localhost:5000")
        );
    }

    #[test]
    fn everything_is_recognized() {
        assert!(AllowedHosts::any().is_any() && only(&["*", "a.io"]).is_any());
        assert!(!only(&["*"]).intersection(&only(&["a.io"])).is_any());
    }
}
