//! Image references as Docker users write them.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::digest::Digest;
use crate::error::FetchError;

/// The registry that a name without one means.
pub(crate) const DOCKER_HUB: &str = "docker.io";

/// A reference to an image in a registry: `[registry/]repository[:tag][@digest]`.
///
/// A first component with a dot or a colon in it, or `localhost`, is the registry; otherwise the image is on Docker Hub,
/// below `library/` when the name has one component. Without tag and digest the tag is `latest`. With both, the digest
/// decides and the tag is only kept for display. Registry names are kept in lower case.
///
/// Source: the grammar in distribution/reference; a repository has at most 255 bytes, a tag at most 128.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// The registry as `host[:port]`, for example `docker.io` or `127.0.0.1:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository within the registry, for example `library/nginx`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, where there is one; always there when there is no digest.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, where the reference is pinned.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The same repository, pinned to a digest.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self {
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// What stands behind `/manifests/` in the URL.
    pub(crate) fn manifest_selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.to_string(),
            (None, Some(tag)) => tag.clone(),
            (None, None) => "latest".to_owned(),
        }
    }
}

impl fmt::Display for Reference {
    /// The full form, without any default left out: `docker.io/library/nginx:latest`.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(formatter, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(formatter, "@{digest}")?;
        }
        Ok(())
    }
}

impl FromStr for Reference {
    type Err = FetchError;

    /// # Errors
    /// `InvalidInput` with the part that is wrong; the text itself is not repeated.
    fn from_str(text: &str) -> Result<Self, FetchError> {
        if text.is_empty() {
            return Err(invalid("is empty"));
        }
        if text.len() > 1024 {
            return Err(invalid("is longer than 1024 bytes"));
        }
        if text.contains("://") {
            return Err(invalid("must not have a URL scheme such as https://"));
        }
        if user_information(text).is_some() {
            return Err(invalid(
                "must not have a user name or password in front of the registry",
            ));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (registry, path) = split_registry(rest);
        // The tag is behind the colon of the path; the colon of the registry's port has been cut off above.
        let (path, tag) = match path.split_once(':') {
            Some((path, tag)) => (path, Some(tag)),
            None => (path, None),
        };
        let registry = match registry {
            Some(name) => check_registry(name)?,
            None => DOCKER_HUB.to_owned(),
        };
        let repository = if registry == DOCKER_HUB && !path.contains('/') {
            // Docker refuses names that could be mistaken for an image ID.
            if path.len() == 64 && path.bytes().all(|byte| byte.is_ascii_hexdigit()) {
                return Err(invalid("looks like an image ID; name a repository"));
            }
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        check_repository(path)?;
        if repository.len() > 255 {
            return Err(invalid("has a repository name longer than 255 bytes"));
        }
        if let Some(tag) = tag {
            check_tag(tag)?;
        }
        let tag = match (tag, &digest) {
            (None, None) => Some("latest".to_owned()),
            (tag, _) => tag.map(str::to_owned),
        };
        Ok(Self {
            registry,
            repository,
            tag,
            digest,
        })
    }
}

/// The text with what looks like a user name and password before an `@` replaced by `REDACTED`, for messages that quote a
/// reference as it was given. What stands before a digest stays, as in `name@sha256:…`.
///
/// ```
/// use oci_fetch::redact_user_information;
/// assert_eq!(redact_user_information("bob:secret@ghcr.io/app"), "REDACTED@ghcr.io/app");
/// assert_eq!(redact_user_information("app@sha256:00"), "app@sha256:00");
/// ```
#[must_use]
pub fn redact_user_information(text: &str) -> Cow<'_, str> {
    match user_information(text) {
        Some(range) => Cow::Owned([&text[..range.start], "REDACTED", &text[range.end..]].concat()),
        None => Cow::Borrowed(text),
    }
}

/// Where the text has something before an `@` that is not the name before a digest. It reaches to the last such `@`: a
/// password may have an `@` or a slash in it.
fn user_information(text: &str) -> Option<Range<usize>> {
    let start = text.find("://").map_or(0, |scheme| scheme + 3);
    let is_digest = |rest: &str| rest.starts_with("sha256:") || rest.starts_with("sha512:");
    let (end, _) = text
        .rmatch_indices('@')
        .find(|(at, _)| *at > start && !text[..*at].ends_with('/') && !is_digest(&text[at + 1..]))?;
    let rest = &text[end + 1..];
    // `name@` and `name@algorithm:…` are malformed digests.
    let is_registry = rest.contains('/') || text[start..end].contains(':');
    (is_registry && !rest.is_empty()).then_some(start..end)
}

/// The normal form of a registry name as it stands in references, configuration and policies: lower case, with the other
/// names of Docker Hub folded into `docker.io`.
///
/// # Errors
/// `InvalidInput` when it is not `host[:port]` with a DNS name, an IPv4 or a bracketed IPv6 address.
pub fn normalise_registry(name: &str) -> Result<String, FetchError> {
    check_registry(name)
}

fn invalid(what: &str) -> FetchError {
    FetchError::invalid(format!("image reference {what}"))
}

fn split_registry(text: &str) -> (Option<&str>, &str) {
    match text.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first.eq_ignore_ascii_case("localhost") => {
            (Some(first), rest)
        }
        _ => (None, text),
    }
}

fn check_registry(name: &str) -> Result<String, FetchError> {
    let name = name.to_ascii_lowercase();
    if name.len() > 255 + 6 {
        return Err(invalid("has a registry name that is too long"));
    }
    let (host, port) = if let Some(rest) = name.strip_prefix('[') {
        let (address, rest) = rest
            .split_once(']')
            .ok_or_else(|| invalid("has an unclosed bracket in the registry"))?;
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return Err(invalid("has a malformed IPv6 address as registry"));
        }
        match rest.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if rest.is_empty() => (None, None),
            None => return Err(invalid("has text behind the registry's IPv6 address")),
        }
    } else {
        match name.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(name.as_str()), None),
        }
    };
    if let Some(host) = host {
        let label_is_well_formed = |label: &str| {
            !label.is_empty()
                && label.len() <= 63
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        };
        if !host.split('.').all(label_is_well_formed) {
            return Err(invalid("has a malformed registry name"));
        }
    }
    if let Some(port) = port {
        let in_range = port.len() <= 5 && port.bytes().all(|byte| byte.is_ascii_digit());
        if !in_range || port.parse::<u16>().is_ok_and(|port| port == 0) || port.parse::<u16>().is_err() {
            return Err(invalid("has a registry port that is not between 1 and 65535"));
        }
    }
    Ok(match name.as_str() {
        "index.docker.io" | "registry-1.docker.io" | "registry.hub.docker.com" => DOCKER_HUB.to_owned(),
        _ => name,
    })
}

fn check_repository(path: &str) -> Result<(), FetchError> {
    for component in path.split('/') {
        if component.bytes().any(|byte| byte.is_ascii_uppercase()) {
            return Err(invalid("has an upper-case letter in the repository name"));
        }
        if !component_is_well_formed(component.as_bytes()) {
            return Err(invalid("has a malformed repository name"));
        }
    }
    Ok(())
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn component_is_well_formed(component: &[u8]) -> bool {
    let is_alphanumeric = |byte: &u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9');
    let (Some(first), Some(last)) = (component.first(), component.last()) else {
        return false;
    };
    if !is_alphanumeric(first) || !is_alphanumeric(last) {
        return false;
    }
    component.split(is_alphanumeric).all(|separator| {
        matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|byte| *byte == b'-')
    })
}

fn check_tag(tag: &str) -> Result<(), FetchError> {
    let mut bytes = tag.bytes();
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let well_formed = tag.len() <= 128
        && bytes.next().is_some_and(is_word)
        && bytes.all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'));
    if well_formed {
        Ok(())
    } else {
        Err(invalid("has a malformed tag"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn references_expand_to_their_full_form() {
        for (input, expected) in [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.21-alpine", "docker.io/library/nginx:1.21-alpine"),
            ("grafana/grafana", "docker.io/grafana/grafana:latest"),
            ("docker.io/nginx", "docker.io/library/nginx:latest"),
            ("index.docker.io/library/nginx", "docker.io/library/nginx:latest"),
            ("registry-1.docker.io/a/b", "docker.io/a/b:latest"),
            ("localhost/app", "localhost/app:latest"),
            ("localhost:5000/app:1", "localhost:5000/app:1"),
            ("127.0.0.1:5000/a/b/c:x_y.z-1", "127.0.0.1:5000/a/b/c:x_y.z-1"),
            ("[::1]:5000/app", "[::1]:5000/app:latest"),
            ("GHCR.io/owner/app", "ghcr.io/owner/app:latest"),
            ("a/b-c/d__e.f", "docker.io/a/b-c/d__e.f:latest"),
            ("x---y", "docker.io/library/x---y:latest"),
            // Without a slash the colon is a tag's, never a port's.
            ("registry.example:5000", "docker.io/library/registry.example:5000"),
            ("example:5000", "docker.io/library/example:5000"),
        ] {
            assert_eq!(
                input.parse::<Reference>().unwrap().to_string(),
                expected,
                "{input}"
            );
        }
    }

    #[test]
    fn a_digest_pins() {
        let pinned: Reference = format!("ghcr.io/a/b@{DIGEST}").parse().unwrap();
        assert_eq!(pinned.tag(), None);
        assert_eq!(pinned.manifest_selector(), DIGEST);
        let both: Reference = format!("ghcr.io/a/b:1@{DIGEST}").parse().unwrap();
        assert_eq!(
            (both.tag(), both.manifest_selector().as_str()),
            (Some("1"), DIGEST)
        );
        assert_eq!(both.to_string(), format!("ghcr.io/a/b:1@{DIGEST}"));
    }

    #[test]
    fn malformed_references_are_refused() {
        let long_tag = format!("a:{}", "t".repeat(129));
        let long_name = "a/".repeat(128) + "b";
        let identifier = "a".repeat(64);
        for input in [
            "",
            "/",
            "a/",
            "/a",
            "a//b",
            "A",
            "a/B",
            "Foo/bar",
            "a:",
            "a:-x",
            "a:.x",
            "a:b c",
            "a b",
            "a@",
            "a@sha256:00",
            "https://ghcr.io/a/b",
            "a_-b",
            "a___b",
            "-a",
            "a-",
            "a..b",
            "../../etc",
            "ghcr.io/../a",
            "ghcr.io/a/%2e",
            "host:0/a",
            "host:65536/a",
            "host:x/a",
            "host:/a",
            "-h.io/a",
            "h..io/a",
            "[::1/a",
            "[::g]/a",
            "[::1]x/a",
            "ghcr.io/",
            "ghcr.io/:tag",
            "user@ghcr.io/a",
            "user:secret@ghcr.io/a",
            "a?b",
            "a#b",
            "a\\b",
            "nginx\0",
            "ñ",
            &long_tag,
            &long_name,
            &identifier,
        ] {
            assert!(input.parse::<Reference>().is_err(), "{input}");
        }
    }

    #[test]
    fn user_information_is_neither_taken_nor_shown() {
        let pinned = format!("ghcr.io:443/a/b:1@{DIGEST}");
        let both = format!("bob:SECRET@ghcr.io/a@{DIGEST}");
        let redacted = format!("REDACTED@ghcr.io/a@{DIGEST}");
        for (text, expected) in [
            ("bob:SECRET@host/x", "REDACTED@host/x"),
            ("SECRET@host/x", "REDACTED@host/x"),
            ("bob:SECRET@host", "REDACTED@host"),
            ("bob:SEC@RET/SECRET@host/x", "REDACTED@host/x"),
            ("https://bob:SECRET@host/x", "https://REDACTED@host/x"),
            (&both, &redacted),
            (&pinned, &pinned),
            ("app@sha256:00", "app@sha256:00"),
            ("nginx:1", "nginx:1"),
        ] {
            assert_eq!(redact_user_information(text), expected);
            if let Err(error) = text.parse::<Reference>() {
                assert!(!format!("{error:?}").contains("SECRET"), "{error:?}");
            }
        }
        let error = "bob:SECRET@host/x".parse::<Reference>().unwrap_err();
        assert_eq!(error.kind(), &crate::FetchErrorKind::InvalidInput);
        assert!(error.to_string().contains("user name or password"), "{error}");
    }

    proptest! {
        #[test]
        fn any_text_parses_or_fails_and_what_parses_is_stable(text in ".{0,80}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let again: Reference = reference.to_string().parse().unwrap();
                prop_assert_eq!(again, reference);
            }
        }

        #[test]
        fn reference_like_text_is_stable(text in "[a-zA-Z0-9.:/@_\\[\\]-]{0,60}") {
            if let Ok(reference) = text.parse::<Reference>() {
                let again: Reference = reference.to_string().parse().unwrap();
                prop_assert_eq!(again, reference);
            }
        }
    }
}
