//! From a registry's challenge to the `Authorization` header, for one party at a time.

pub(crate) mod challenge;
pub(crate) mod docker_config;
mod helper;
mod token;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use base64::Engine as _;
use http::HeaderValue;
use tokio::time::Instant;

use crate::auth::challenge::Challenge;
use crate::credentials::{CredentialIdentity, Credentials, Secret};
use crate::error::{FetchError, FetchErrorKind};
use crate::net::Transport;
use crate::net::route::Route;

/// Beyond this, what has expired is thrown away before something new is kept.
const MAX_KEPT: usize = 4096;

/// On whose behalf requests to one registry are made.
#[derive(Clone)]
pub(crate) struct Identity {
    pub(crate) isolation_key: String,
    pub(crate) credentials: Option<Credentials>,
    fingerprint: CredentialIdentity,
}

/// The value of an `Authorization` header, and which token it is made of.
#[derive(Clone)]
pub(crate) struct Authorization {
    pub(crate) header: HeaderValue,
    /// `None` for what cannot be refreshed.
    pub(crate) token: Option<HeldToken>,
}

/// A token that was taken from the cache, to be given back when the registry does not take it.
#[derive(Clone)]
pub(crate) struct HeldToken {
    cell: Arc<TokenCell>,
    pub(crate) serial: u64,
}

/// Tokens and challenges of all parties, each under a key that names the party, its credential and the registry.
pub(crate) struct Authenticator {
    challenges: Mutex<HashMap<PartyKey, Challenge>>,
    tokens: Mutex<HashMap<TokenKey, Arc<TokenCell>>>,
    serial: AtomicU64,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct PartyKey {
    isolation_key: String,
    fingerprint: CredentialIdentity,
    registry: String,
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct TokenKey {
    party: PartyKey,
    realm: String,
    service: Option<String>,
    scope: String,
}

/// One token; whoever holds the lock fetches it for all who wait.
#[derive(Default)]
struct TokenCell {
    state: tokio::sync::Mutex<TokenState>,
    /// Counts finished fetches, so that a waiter can tell that its turn's work has been done, and failed, by another.
    fetches: AtomicU64,
}

#[derive(Default)]
enum TokenState {
    #[default]
    Empty,
    Ready {
        header: HeaderValue,
        serial: u64,
        refresh_at: Instant,
    },
    Failed(FetchError),
}

impl Identity {
    pub(crate) fn new(isolation_key: &str, credentials: Option<&Credentials>) -> Self {
        Self {
            isolation_key: isolation_key.to_owned(),
            fingerprint: CredentialIdentity::of(credentials),
            credentials: credentials.cloned(),
        }
    }
}

impl Authenticator {
    pub(crate) fn new() -> Self {
        Self {
            challenges: Mutex::default(),
            tokens: Mutex::default(),
            serial: AtomicU64::new(0),
        }
    }

    /// The serial number of the newest token of anybody; tokens above it were fetched after this call.
    pub(crate) fn newest_serial(&self) -> u64 {
        self.serial.load(Ordering::SeqCst)
    }

    /// Remembers what the registry asks this party for.
    pub(crate) fn remember(&self, route: &Route, identity: &Identity, challenge: Challenge) {
        let mut challenges = self.challenges.lock().unwrap_or_else(PoisonError::into_inner);
        if challenges.len() >= MAX_KEPT {
            challenges.clear();
        }
        challenges.insert(party(route, identity), challenge);
    }

    /// Forgets what the registry asked this party for, because it led nowhere: the registry is asked anew next time, and one
    /// wrong answer of it does not outlive the pull that it was given to.
    pub(crate) fn forget(&self, route: &Route, identity: &Identity) {
        self.challenges
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&party(route, identity));
    }

    /// The header for a request that only reads the repository; `None` as long as the registry has not asked for one.
    pub(crate) async fn authorization(
        &self,
        transport: &Transport,
        route: &Route,
        identity: &Identity,
        repository: &str,
    ) -> Result<Option<Authorization>, FetchError> {
        let party = party(route, identity);
        let challenge = self
            .challenges
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&party)
            .cloned();
        let secret = identity.credentials.as_ref().map(Credentials::secret);
        let fixed = |header: HeaderValue| Ok(Some(Authorization { header, token: None }));
        match (challenge, secret) {
            (None, _) => Ok(None),
            (Some(_), Some(Secret::Bearer { token })) => fixed(bearer_header(token)?),
            (Some(Challenge::Basic), Some(Secret::Basic { user, password })) => {
                fixed(basic_header(user, password)?)
            }
            (Some(Challenge::Basic), Some(Secret::AnyToken { token })) => fixed(bearer_header(token)?),
            (Some(Challenge::Basic), Some(Secret::IdentityToken { .. })) => Err(FetchError::new(
                FetchErrorKind::Unauthorized,
                format!(
                    "registry {} wants a user name and password, not an identity token",
                    route.registry
                ),
            )),
            (Some(Challenge::Basic), None) => Err(FetchError::new(
                FetchErrorKind::Unauthorized,
                format!("registry {} wants a user name and password", route.registry),
            )),
            (Some(Challenge::Bearer { realm, service }), _) => {
                let scope = format!("repository:{repository}:pull");
                let key = TokenKey {
                    party,
                    realm,
                    service,
                    scope,
                };
                self.token(transport, route, identity, key).await.map(Some)
            }
        }
    }

    /// Throws a token away that the registry did not take, unless it has been replaced meanwhile.
    pub(crate) async fn invalidate(&self, token: &HeldToken) {
        let mut state = token.cell.state.lock().await;
        if matches!(&*state, TokenState::Ready { serial, .. } if *serial == token.serial) {
            *state = TokenState::Empty;
        }
    }

    async fn token(
        &self,
        transport: &Transport,
        route: &Route,
        identity: &Identity,
        key: TokenKey,
    ) -> Result<Authorization, FetchError> {
        let cell = {
            let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
            if tokens.len() >= MAX_KEPT && !tokens.contains_key(&key) {
                let now = Instant::now();
                tokens.retain(|_, cell| {
                    // A locked cell is in use.
                    cell.state.try_lock().map_or(
                        true,
                        |state| matches!(&*state, TokenState::Ready { refresh_at, .. } if *refresh_at > now),
                    )
                });
                if tokens.len() >= MAX_KEPT {
                    tokens.clear();
                }
            }
            Arc::clone(tokens.entry(key.clone()).or_default())
        };
        let fetches_seen = cell.fetches.load(Ordering::SeqCst);
        let mut state = cell.state.lock().await;
        match &*state {
            TokenState::Ready {
                header,
                serial,
                refresh_at,
            } if *refresh_at > Instant::now() => {
                let token = Some(HeldToken {
                    cell: Arc::clone(&cell),
                    serial: *serial,
                });
                return Ok(Authorization {
                    header: header.clone(),
                    token,
                });
            }
            TokenState::Failed(error) if cell.fetches.load(Ordering::SeqCst) != fetches_seen => {
                return Err(error.clone());
            }
            _ => {}
        }
        // A future that is dropped here leaves the cell as it was, and the next waiter fetches.
        let fetched = token::fetch(
            transport,
            route,
            identity,
            &key.realm,
            key.service.as_deref(),
            &key.scope,
        )
        .await;
        cell.fetches.fetch_add(1, Ordering::SeqCst);
        match fetched {
            Ok(token) => {
                let header = bearer_header(&token.token)?;
                let serial = self.serial.fetch_add(1, Ordering::SeqCst) + 1;
                *state = TokenState::Ready {
                    header: header.clone(),
                    serial,
                    refresh_at: token.refresh_at,
                };
                drop(state);
                Ok(Authorization {
                    header,
                    token: Some(HeldToken { cell, serial }),
                })
            }
            Err(error) => {
                *state = TokenState::Failed(error.clone());
                Err(error)
            }
        }
    }
}

fn party(route: &Route, identity: &Identity) -> PartyKey {
    PartyKey {
        isolation_key: identity.isolation_key.clone(),
        fingerprint: identity.fingerprint,
        registry: route.registry.clone(),
    }
}

/// Source: RFC 7617.
fn basic_header(user: &str, password: &str) -> Result<HeaderValue, FetchError> {
    if user.contains(':') {
        return Err(FetchError::invalid("registry user name has a colon in it"));
    }
    let encoded = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    sensitive(&format!("Basic {encoded}"))
}

/// Source: RFC 6750.
fn bearer_header(token: &str) -> Result<HeaderValue, FetchError> {
    sensitive(&format!("Bearer {token}"))
}

fn sensitive(text: &str) -> Result<HeaderValue, FetchError> {
    let mut header = HeaderValue::from_str(text).map_err(|_| {
        FetchError::invalid("registry credential has a character that no HTTP header can hold")
    })?;
    header.set_sensitive(true);
    Ok(header)
}
