//! Credentials from Docker's `config.json`, for the operator and the command line.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;

use crate::credentials::Credentials;
use crate::error::{FetchError, FetchErrorKind};
use crate::reference::normalise_registry;

/// The largest file that is read.
const MAX_CONFIG_BYTES: u64 = 4 * 1024 * 1024;

/// What `docker login` has stored in `config.json`.
///
/// Only the `auths` section is used: `credsStore` and `credHelpers` name programs, and this crate starts none. A registry
/// whose entry is empty because its secret is in such a store is reported by [`is_in_a_helper`](Self::is_in_a_helper).
#[derive(Clone, Default)]
pub struct DockerConfig {
    auths: BTreeMap<String, Credentials>,
    elsewhere: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct RawConfig {
    auths: Option<BTreeMap<String, RawAuth>>,
    cred_helpers: Option<BTreeMap<String, String>>,
}

#[derive(Deserialize, Default)]
struct RawAuth {
    auth: Option<String>,
    username: Option<String>,
    password: Option<String>,
    identitytoken: Option<String>,
    registrytoken: Option<String>,
}

impl DockerConfig {
    /// Reads a file; a missing one is an empty configuration.
    ///
    /// # Errors
    /// `Io` when it cannot be read, `InvalidInput` when it is not Docker's format, `Limit` over 4 MiB.
    pub fn load(path: &Path) -> Result<Self, FetchError> {
        let failed = |error| FetchError::io(format!("failed to read {}", path.display()), error);
        let file = match std::fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(failed(error)),
        };
        let mut bytes = Vec::new();
        file.take(MAX_CONFIG_BYTES + 1)
            .read_to_end(&mut bytes)
            .map_err(failed)?;
        if bytes.len() as u64 > MAX_CONFIG_BYTES {
            return Err(FetchError::limit(format!(
                "{} is larger than {MAX_CONFIG_BYTES} bytes",
                path.display()
            )));
        }
        Self::parse(&bytes)
    }

    /// Where Docker keeps the file, given the values of the environment variables `DOCKER_CONFIG` and `HOME`.
    #[must_use]
    pub fn default_path(docker_config: Option<&Path>, home: Option<&Path>) -> Option<PathBuf> {
        match (docker_config, home) {
            (Some(directory), _) => Some(directory.join("config.json")),
            (None, Some(home)) => Some(home.join(".docker").join("config.json")),
            (None, None) => None,
        }
    }

    /// Parses the content of the file. Entries that make no sense are left out: one broken login must not break the others.
    ///
    /// # Errors
    /// `InvalidInput` when it is not a JSON object of Docker's shape.
    pub fn parse(bytes: &[u8]) -> Result<Self, FetchError> {
        // serde_json's message could quote a secret; it is dropped.
        let raw: RawConfig = serde_json::from_slice(bytes)
            .map_err(|_| FetchError::new(FetchErrorKind::InvalidInput, "docker config.json is malformed"))?;
        let mut config = Self::default();
        for (key, entry) in raw.auths.unwrap_or_default() {
            let Some(registry) = registry_of(&key) else {
                continue;
            };
            match credentials(&entry) {
                // The key that is spelled exactly as the registry wins over `https://…/v1/`.
                Some(found) if registry == key => drop(config.auths.insert(registry, found)),
                Some(found) => drop(config.auths.entry(registry).or_insert(found)),
                None => config.elsewhere.push(registry),
            }
        }
        config.elsewhere.extend(
            raw.cred_helpers
                .unwrap_or_default()
                .keys()
                .filter_map(|key| registry_of(key)),
        );
        Ok(config)
    }

    /// The credentials for a registry (`host[:port]`; every name of Docker Hub).
    #[must_use]
    pub fn credentials(&self, registry: &str) -> Option<&Credentials> {
        self.auths.get(&normalise_registry(registry).ok()?)
    }

    /// Whether Docker would ask a helper program for this registry's credentials, which this crate does not.
    #[must_use]
    pub fn is_in_a_helper(&self, registry: &str) -> bool {
        self.credentials(registry).is_none()
            && normalise_registry(registry).is_ok_and(|registry| self.elsewhere.contains(&registry))
    }
}

impl fmt::Debug for DockerConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DockerConfig")
            .field("registries", &self.auths.keys())
            .finish_non_exhaustive()
    }
}

/// `https://index.docker.io/v1/`, `index.docker.io`, `https://ghcr.io`, `registry:5000` → the name as in references.
fn registry_of(key: &str) -> Option<String> {
    let key = key
        .strip_prefix("https://")
        .or_else(|| key.strip_prefix("http://"))
        .unwrap_or(key);
    let host = key.split('/').next()?;
    normalise_registry(host).ok()
}

fn credentials(entry: &RawAuth) -> Option<Credentials> {
    let present = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    if let Some(token) = present(&entry.registrytoken) {
        return Some(Credentials::bearer(token));
    }
    if let Some(token) = present(&entry.identitytoken) {
        return Some(Credentials::identity_token(token));
    }
    if let (Some(user), Some(password)) = (present(&entry.username), present(&entry.password)) {
        return Some(Credentials::basic(user, password));
    }
    let decoded = base64::engine::general_purpose::STANDARD
        .decode(present(&entry.auth)?)
        .ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, password) = text.split_once(':')?;
    // Docker itself once padded the password with NUL.
    let password = password.trim_end_matches('\0');
    if user.is_empty() {
        None
    } else {
        Some(Credentials::basic(user, password))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_spelling_of_docker_hub_is_found() {
        for key in [
            "https://index.docker.io/v1/",
            "https://index.docker.io/v2/",
            "index.docker.io",
            "docker.io",
            "https://docker.io",
            "registry-1.docker.io",
            "https://registry-1.docker.io/v2/",
        ] {
            let text = format!(r#"{{"auths":{{"{key}":{{"auth":"YWxpY2U6c2VjcmV0"}}}}}}"#);
            let config = DockerConfig::parse(text.as_bytes()).unwrap();
            assert_eq!(
                config.credentials("docker.io"),
                Some(&Credentials::basic("alice", "secret")),
                "{key}"
            );
            assert_eq!(config.credentials("ghcr.io"), None, "{key}");
        }
    }

    #[test]
    fn the_kinds_of_entries_are_told_apart() {
        let text = r#"{"auths":{
            "a.io":{"identitytoken":"t","auth":"eDp5"},
            "b.io":{"registrytoken":"t"},
            "c.io":{"username":"u","password":"p:q"},
            "d.io":{},
            "e.io":{"auth":"not base64"},
            "f.io:5000":{"auth":"dTpwOnE="},
            "g.io":{"auth":"dTpwAAA="}},
            "credHelpers":{"h.io":"ecr-login"},"credsStore":"desktop","HttpHeaders":{}}"#;
        let config = DockerConfig::parse(text.as_bytes()).unwrap();
        for (registry, expected) in [
            ("a.io", Some(Credentials::identity_token("t"))),
            ("b.io", Some(Credentials::bearer("t"))),
            ("c.io", Some(Credentials::basic("u", "p:q"))),
            ("d.io", None),
            ("e.io", None),
            ("f.io", None),
            ("f.io:5000", Some(Credentials::basic("u", "p:q"))),
            ("g.io", Some(Credentials::basic("u", "p"))),
        ] {
            assert_eq!(config.credentials(registry), expected.as_ref(), "{registry}");
        }
        assert!(
            config.is_in_a_helper("d.io") && config.is_in_a_helper("h.io") && !config.is_in_a_helper("a.io")
        );
        assert!(!format!("{config:?}").contains("p:q"));
        assert!(DockerConfig::parse(b"[]").is_err());
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = DockerConfig::parse(&bytes);
        }
    }
}
