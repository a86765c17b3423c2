//! Credentials from Docker's `config.json`, for the operator and the command line.

use std::collections::BTreeMap;
use std::fmt;
use std::io::Read;
use std::path::{Path, PathBuf};

use base64::Engine as _;
use serde::Deserialize;

use crate::auth::helper::Helper;
use crate::credentials::Credentials;
use crate::error::{FetchError, FetchErrorKind};
use crate::reference::{DOCKER_HUB, normalise_registry};

/// The largest file that is read.
const MAX_CONFIG_BYTES: u64 = 4 * 1024 * 1024;

/// How Docker's programs call Docker Hub when they ask a helper.
const DOCKER_HUB_SERVER: &str = "https://index.docker.io/v1/";

/// What `docker login` has stored in `config.json`, or in the credential helpers that it names (`credHelpers`,
/// `credsStore`).
///
/// For the person whose file it is, never for a file from a stranger: [`find`](Self::find) runs the programs
/// `docker-credential-NAME` that the file names.
#[derive(Clone, Default)]
pub struct DockerConfig {
    auths: BTreeMap<String, Credentials>,
    /// By registry.
    helpers: BTreeMap<String, Helper>,
    /// The name of the helper for all other registries.
    store: Option<String>,
    /// Where helpers are; `None` for `PATH`.
    helper_directory: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "camelCase")]
struct RawConfig {
    auths: Option<BTreeMap<String, RawAuth>>,
    cred_helpers: Option<BTreeMap<String, String>>,
    creds_store: Option<String>,
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
                // Its secret is in a helper, or it is of no use.
                None => {}
            }
        }
        for (key, name) in raw.cred_helpers.unwrap_or_default() {
            if let Some(registry) = registry_of(&key)
                && let Some(helper) = Helper::new(&name, server_of(&registry))
            {
                config.helpers.insert(registry, helper);
            }
        }
        config.store = raw.creds_store.filter(|name| !name.is_empty());
        Ok(config)
    }

    /// Looks for helpers in this directory instead of in those of `PATH`.
    #[must_use]
    pub fn with_helper_directory(mut self, directory: impl Into<PathBuf>) -> Self {
        self.helper_directory = Some(directory.into());
        self
    }

    /// The credentials for a registry (`host[:port]`; every name of Docker Hub) as far as they are in the file itself.
    #[must_use]
    pub fn credentials(&self, registry: &str) -> Option<&Credentials> {
        self.auths.get(&normalise_registry(registry).ok()?)
    }

    /// The credentials for a registry, as Docker itself would find them: from the registry's own helper, else from the
    /// common one, else from the file.
    ///
    /// A helper gets 30 seconds and 64 KiB; what it prints is in no error. A dropped future ends it.
    ///
    /// # Errors
    /// `Io` when the helper cannot be run, `Unauthorized` when it fails, takes too long or does not keep to its protocol.
    pub async fn find(&self, registry: &str) -> Result<Option<Credentials>, FetchError> {
        let Ok(registry) = normalise_registry(registry) else {
            return Ok(None);
        };
        let common = || Helper::new(self.store.as_deref()?, server_of(&registry));
        if let Some(mut helper) = self.helpers.get(&registry).cloned().or_else(common) {
            if let Some(directory) = &self.helper_directory {
                helper = helper.in_directory(directory.clone());
            }
            if let Some(found) = helper.ask().await? {
                return Ok(Some(found));
            }
        }
        Ok(self.auths.get(&registry).cloned())
    }
}

impl fmt::Debug for DockerConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DockerConfig")
            .field("registries", &self.auths.keys())
            .field("helpers", &self.helpers)
            .field("store", &self.store)
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

/// How a registry is called when a helper is asked.
fn server_of(registry: &str) -> &str {
    if registry == DOCKER_HUB {
        DOCKER_HUB_SERVER
    } else {
        registry
    }
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
        assert!(!format!("{config:?}").contains("p:q"));
        assert!(DockerConfig::parse(b"[]").is_err());
    }

    #[tokio::test]
    async fn helpers_are_asked_before_the_file() {
        let directory = tempfile::tempdir().unwrap();
        for (name, known) in [("own", "h.io"), ("common", "https://index.docker.io/v1/")] {
            let path = directory.path().join(format!("docker-credential-{name}"));
            let script = format!(
                "read -r server\nif [ \"$server\" = {known} ]; then echo '{{\"Username\":\"{name}\",\"Secret\":\"s\"}}'; \
                 else echo credentials not found in native keychain; exit 1; fi"
            );
            crate::auth::helper::tests::write_program(&path, &script);
        }
        let text = r#"{"auths":{"docker.io":{},"f.io":{"auth":"dTpw"},"h.io":{"auth":"dTpw"},"i.io":{"auth":"dTpw"}},
            "credHelpers":{"https://h.io":"own","i.io":"../evil"},"credsStore":"common"}"#;
        let config = DockerConfig::parse(text.as_bytes())
            .unwrap()
            .with_helper_directory(directory.path());
        for (registry, expected) in [
            ("h.io", Some(Credentials::basic("own", "s"))),
            ("index.docker.io", Some(Credentials::basic("common", "s"))),
            ("f.io", Some(Credentials::basic("u", "p"))),
            ("i.io", Some(Credentials::basic("u", "p"))),
            ("g.io", None),
        ] {
            assert_eq!(config.find(registry).await.unwrap(), expected, "{registry}");
        }
        let text = r#"{"credsStore":"missing"}"#;
        let config = DockerConfig::parse(text.as_bytes())
            .unwrap()
            .with_helper_directory(directory.path());
        assert_eq!(config.find("a.io").await.unwrap_err().kind(), &FetchErrorKind::Io);
    }

    proptest! {
        #[test]
        fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = DockerConfig::parse(&bytes);
        }
    }
}
