//! Which registries may be pulled from.

use std::str::FromStr;

use crate::error::FetchError;
use crate::reference::normalise_registry;

/// A list of allowed registries. The default allows every registry.
///
/// Being allowed here says nothing about addresses: a registry on a private network must besides be named with
/// [`ClientConfig::with_private_registry`](crate::ClientConfig::with_private_registry).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// Any one of these patterns allows.
    patterns: Vec<Pattern>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Pattern {
    Any,
    /// `host[:port]`, exactly as in a reference.
    Exact(String),
    /// What stands behind `*`, with the dot: `.example.com`.
    Below(String),
}

impl Policy {
    /// Allows exactly what one of the patterns matches; an empty list allows nothing.
    ///
    /// A pattern is `*` (any registry), `*.domain[:port]` (every name below the domain, not the domain itself), or a
    /// registry as it stands in a reference, `host[:port]`. The port must be equal: `host` does not allow `host:5000`. All
    /// names of Docker Hub count as `docker.io`.
    ///
    /// # Errors
    /// `InvalidInput` for a malformed pattern.
    pub fn allowing<S: AsRef<str>>(patterns: impl IntoIterator<Item = S>) -> Result<Self, FetchError> {
        let patterns = patterns
            .into_iter()
            .map(|text| text.as_ref().parse())
            .collect::<Result<_, _>>()?;
        Ok(Self { patterns })
    }

    /// Whether images of this registry (`host[:port]`, normalised as by [`Reference`](crate::Reference)) may be pulled.
    #[must_use]
    pub fn allows(&self, registry: &str) -> bool {
        self.patterns.iter().any(|pattern| match pattern {
            Pattern::Any => true,
            Pattern::Exact(name) => name == registry,
            Pattern::Below(suffix) => registry.len() > suffix.len() && registry.ends_with(suffix.as_str()),
        })
    }
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            patterns: vec![Pattern::Any],
        }
    }
}

impl FromStr for Pattern {
    type Err = FetchError;

    fn from_str(text: &str) -> Result<Self, FetchError> {
        let text = text.trim();
        if text == "*" {
            return Ok(Self::Any);
        }
        let malformed = |_| FetchError::invalid("registry pattern is not *, *.domain or host[:port]");
        match text.strip_prefix("*.") {
            Some(domain) => Ok(Self::Below(format!(
                ".{}",
                normalise_registry(domain).map_err(malformed)?
            ))),
            None => Ok(Self::Exact(normalise_registry(text).map_err(malformed)?)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_allow_what_they_say() {
        for (patterns, registry, expected) in [
            (&["*"][..], "anything.example:5000", true),
            (&[], "docker.io", false),
            (&["docker.io", "ghcr.io"], "ghcr.io", true),
            (&["docker.io", "ghcr.io"], "quay.io", false),
            (&["index.docker.io"], "docker.io", true),
            (&["GHCR.io"], "ghcr.io", true),
            (&["ghcr.io"], "ghcr.io:5000", false),
            (&["*.example.com"], "a.example.com", true),
            (&["*.example.com"], "a.b.example.com", true),
            (&["*.example.com"], "example.com", false),
            (&["*.example.com"], "evilexample.com", false),
            (&["*.example.com"], "a.example.com.evil.org", false),
            (&["*.example.com"], "a.example.com:5000", false),
            (&["*.example.com:5000"], "a.example.com:5000", true),
            (&["127.0.0.1:5000"], "127.0.0.1:5000", true),
        ] {
            assert_eq!(
                Policy::allowing(patterns).unwrap().allows(registry),
                expected,
                "{patterns:?} {registry}"
            );
        }
        for pattern in ["", "**", "*.*", "a*b", "https://ghcr.io", "ghcr.io/owner", "*."] {
            assert!(Policy::allowing([pattern]).is_err(), "{pattern}");
        }
    }
}
