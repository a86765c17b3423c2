//! The registry credentials that `docker login` has stored.

use std::{env, path::PathBuf};

use builder_core::{
    event::{Component, Event, Level},
    request::{RegistryCredentials, Secret},
};
use oci_fetch::{DockerConfig, RevealedCredentials};

use super::show::Show;
use crate::{
    commands::chain,
    exit::{Exit, Failure},
};

/// The caller's own credentials for a registry, as Docker would find them.
///
/// A helper that does not work is warned of, and the image pulled without: it may well be public.
pub(super) async fn stored(registry: &str, show: &mut Show) -> Result<Option<RegistryCredentials>, Failure> {
    let variable = |name| {
        env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let path = DockerConfig::default_path(variable("DOCKER_CONFIG").as_deref(), variable("HOME").as_deref());
    let Some(path) = path else { return Ok(None) };
    let config = DockerConfig::load(&path)
        .map_err(|error| Failure::new(Exit::Data, format!("{}: {}", path.display(), chain(&error))))?;
    let found = match config.find(registry).await {
        Ok(found) => found,
        Err(error) => {
            let message = format!(
                "No credentials for {registry} from Docker's configuration: {}",
                chain(&error)
            );
            show.event(Event::Log {
                level: Level::Warn,
                component: Component::Puller,
                message,
                metadata: std::collections::BTreeMap::new(),
            });
            None
        }
    };
    Ok(found.and_then(|found| match found.reveal() {
        RevealedCredentials::Basic { user, password } => Some(RegistryCredentials {
            username: user.to_owned(),
            password: Secret::new(password.to_owned()),
            ..RegistryCredentials::default()
        }),
        RevealedCredentials::Token(token) => Some(RegistryCredentials {
            token: Secret::new(token.to_owned()),
            ..RegistryCredentials::default()
        }),
        _ => None,
    }))
}
