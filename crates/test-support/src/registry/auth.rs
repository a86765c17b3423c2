//! Who may pull: Basic, or bearer tokens as the distribution project describes them
//! (<https://distribution.github.io/distribution/spec/auth/token/>).

use std::collections::BTreeMap;

use axum::{
    body::Body,
    http::{HeaderMap, Response, StatusCode, header},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde_json::json;

use super::{Shared, State, handler::json_response};

/// How a registry knows who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Authentication {
    /// It does not ask.
    #[default]
    None,
    /// User and password with every request.
    Basic {
        /// Passwords by user.
        accounts: BTreeMap<String, String>,
    },
    /// A token from `/token` with every request. Without credentials `/token` gives one for all repositories that
    /// are not [restricted](super::Registry::restrict).
    Bearer {
        /// Passwords by user.
        accounts: BTreeMap<String, String>,
        /// Users by identity token (`grant_type=refresh_token`).
        identity_tokens: BTreeMap<String, String>,
        /// Whether a token is to be had without credentials.
        anonymous: bool,
    },
}

impl Authentication {
    /// Basic, with one account.
    #[must_use]
    pub fn basic(user: &str, password: &str) -> Self {
        Self::Basic {
            accounts: BTreeMap::from([(user.to_owned(), password.to_owned())]),
        }
    }

    /// Bearer tokens that everybody gets.
    #[must_use]
    pub const fn anonymous_bearer() -> Self {
        Self::Bearer {
            accounts: BTreeMap::new(),
            identity_tokens: BTreeMap::new(),
            anonymous: true,
        }
    }

    /// Bearer tokens for these users and for nobody else.
    #[must_use]
    pub fn bearer(accounts: &[(&str, &str)]) -> Self {
        let accounts = accounts
            .iter()
            .map(|(user, password)| ((*user).into(), (*password).into()))
            .collect();
        Self::Bearer {
            accounts,
            identity_tokens: BTreeMap::new(),
            anonymous: false,
        }
    }

    /// Adds an identity token of a user.
    ///
    /// # Panics
    /// When this is not bearer authentication.
    #[must_use]
    pub fn with_identity_token(mut self, token: &str, user: &str) -> Self {
        let Self::Bearer { identity_tokens, .. } = &mut self else {
            panic!("only /token knows identity tokens")
        };
        identity_tokens.insert(token.to_owned(), user.to_owned());
        self
    }
}

/// Answers a request that may not be served, or gives `None` when it may.
pub(super) fn refuse(shared: &Shared, headers: &HeaderMap, repository: &str) -> Option<Response<Body>> {
    let state = shared.lock();
    let (allowed, challenge) = match &shared.authentication {
        Authentication::None => return None,
        Authentication::Basic { accounts } => {
            let user = basic_user(headers, accounts);
            let allowed = user.is_some_and(|user| may_pull(&state, repository, Some(&user)));
            (allowed, r#"Basic realm="test registry""#.to_owned())
        }
        Authentication::Bearer { .. } => {
            let token = authorization(headers, "bearer").unwrap_or_default();
            let repositories = state.tokens.get(&token);
            let allowed = repositories
                .is_some_and(|names| repository.is_empty() || names.iter().any(|name| name == repository));
            let scope = match repository {
                "" => String::new(),
                _ => format!(r#",scope="repository:{repository}:pull""#),
            };
            let realm = format!("http://{}/token", shared.address);
            let challenge = format!(r#"Bearer realm="{realm}",service="test-registry"{scope}"#);
            (allowed, challenge)
        }
    };
    if allowed {
        return None;
    }
    let mut response = json_response(
        StatusCode::UNAUTHORIZED,
        &json!({ "errors": [{ "code": "UNAUTHORIZED", "message": "authentication required" }] }),
    );
    response
        .headers_mut()
        .insert(header::WWW_AUTHENTICATE, challenge.parse().ok()?);
    Some(response)
}

/// Answers `/token`, asked with a query (GET) or a form (POST, OAuth2).
pub(super) fn token(shared: &Shared, headers: &HeaderMap, parameters: &[(String, String)]) -> Response<Body> {
    let Authentication::Bearer {
        accounts,
        identity_tokens,
        anonymous,
    } = &shared.authentication
    else {
        return json_response(StatusCode::NOT_FOUND, &json!({}));
    };
    let parameter = |name: &str| {
        parameters
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
    };
    let user = match parameter("grant_type") {
        Some("refresh_token") => identity_tokens
            .get(parameter("refresh_token").unwrap_or_default())
            .cloned(),
        Some("password") => {
            let user = parameter("username").unwrap_or_default();
            let known = accounts
                .get(user)
                .is_some_and(|password| Some(password.as_str()) == parameter("password"));
            known.then(|| user.to_owned())
        }
        _ => basic_user(headers, accounts),
    };
    let gave_credentials = headers.contains_key(header::AUTHORIZATION) || parameter("grant_type").is_some();
    if user.is_none() && (gave_credentials || !anonymous) {
        return json_response(
            StatusCode::UNAUTHORIZED,
            &json!({ "details": "incorrect username or password" }),
        );
    }
    let mut state = shared.lock();
    let granted: Vec<String> = parameters
        .iter()
        .filter(|(key, _)| key == "scope")
        .flat_map(|(_, scopes)| scopes.split(' '))
        .filter_map(|scope| scope.strip_prefix("repository:")?.rsplit_once(':'))
        .map(|(repository, _)| repository.to_owned())
        .filter(|repository| may_pull(&state, repository, user.as_deref()))
        .collect();
    state.issued_tokens += 1;
    let token = format!("token-{}", state.issued_tokens);
    state.tokens.insert(token.clone(), granted);
    json_response(
        StatusCode::OK,
        &json!({ "token": token, "access_token": token, "expires_in": 300 }),
    )
}

fn may_pull(state: &State, repository: &str, user: Option<&str>) -> bool {
    state
        .private
        .get(repository)
        .is_none_or(|owner| Some(owner.as_str()) == user)
}

fn basic_user(headers: &HeaderMap, accounts: &BTreeMap<String, String>) -> Option<String> {
    let decoded = STANDARD.decode(authorization(headers, "basic")?).ok()?;
    let text = String::from_utf8(decoded).ok()?;
    let (user, password) = text.split_once(':')?;
    (accounts.get(user)? == password).then(|| user.to_owned())
}

fn authorization(headers: &HeaderMap, scheme: &str) -> Option<String> {
    let (given, value) = headers
        .get(header::AUTHORIZATION)?
        .to_str()
        .ok()?
        .split_once(' ')?;
    given.eq_ignore_ascii_case(scheme).then(|| value.to_owned())
}
