//! Fetching a bearer token from a registry's token service.
//!
//! Source: distribution, "Token Authentication Specification" (GET) and "OAuth2 Token Authentication" (POST).

use std::time::Duration;

use http::{HeaderValue, Method};
use serde::Deserialize;
use tokio::time::Instant;
use url::Url;

use crate::auth::challenge::check_realm;
use crate::auth::{Identity, basic_header};
use crate::credentials::{Credentials, Secret};
use crate::error::{FetchError, FetchErrorKind};
use crate::json;
use crate::net::response::Answer;
use crate::net::retry::Attempts;
use crate::net::route::Route;
use crate::net::slots::Traffic;
use crate::net::{Request, Transport};

/// Tokens in use have up to some kilobytes.
const MAX_TOKEN_BYTES: u64 = 64 * 1024;

/// What the specification gives a token without `expires_in`, and the least that is believed.
const MIN_LIFETIME: Duration = Duration::from_secs(60);

/// A token is replaced this long before it expires, so that it lives through the request it is sent with.
const LEEWAY: Duration = Duration::from_secs(30);

pub(super) struct Token {
    pub(super) token: String,
    pub(super) refresh_at: Instant,
}

#[derive(Deserialize)]
struct TokenDocument {
    token: Option<String>,
    access_token: Option<String>,
    expires_in: Option<u64>,
}

pub(super) async fn fetch(
    transport: &Transport,
    route: &Route,
    identity: &Identity,
    realm: &str,
    service: Option<&str>,
    scope: &str,
) -> Result<Token, FetchError> {
    let secret = identity.credentials.as_ref().map(Credentials::secret);
    let realm = check_realm(route, realm, secret.is_some())?;
    let mut attempts = Attempts::new(transport.config().retry);
    let mut must_post = matches!(
        secret,
        Some(Secret::IdentityToken { .. } | Secret::AnyToken { .. })
    );
    loop {
        let (url, form, authorization) = if must_post {
            (realm.clone(), Some(oauth_form(secret, service, scope)), None)
        } else {
            (
                query_url(&realm, service, scope),
                None,
                basic_authorization(secret)?,
            )
        };
        let request = Request {
            method: if must_post { Method::POST } else { Method::GET },
            url: &url,
            accept: Some("application/json"),
            range: None,
            authorization,
            form,
            traffic: Traffic::Document,
            party: &identity.isolation_key,
        };
        let asked_at = Instant::now();
        let answer = match transport.send(route, &request).await {
            Ok(answer) => answer,
            Err(error) => {
                attempts.pause(error, None).await?;
                continue;
            }
        };
        match answer.status().as_u16() {
            200 => match read(transport, route, answer, asked_at).await {
                Ok(token) => return Ok(token),
                Err(error) => attempts.pause(error, None).await?,
            },
            // No identity token, then: the registry itself will say whether it is an access token.
            400 | 401 | 403 | 404 | 405 if let Some(token) = unknown_token(secret) => {
                return Ok(Token {
                    token: token.to_owned(),
                    refresh_at: asked_at + MIN_LIFETIME,
                });
            }
            // Some services speak only one of the two protocols.
            400 | 404 | 405 if !must_post && matches!(secret, Some(Secret::Basic { .. })) => must_post = true,
            401 | 403 => return Err(refused(route, secret.is_some())),
            _ => {
                let refusal = answer.refuse(&route.registry, "token").await;
                attempts.pause(refusal.error, refusal.retry_after).await?;
            }
        }
    }
}

async fn read(
    transport: &Transport,
    route: &Route,
    answer: Answer,
    asked_at: Instant,
) -> Result<Token, FetchError> {
    let deadline = transport.config().timeouts.document;
    let body = answer
        .read_document(&route.registry, "token", MAX_TOKEN_BYTES, deadline)
        .await?;
    let document: TokenDocument = json::parse(&body, "token")?;
    let token = document
        .token
        .or(document.access_token)
        .filter(|token| !token.is_empty())
        .ok_or_else(|| {
            FetchError::protocol(format!(
                "token service of registry {} sends no token",
                route.registry
            ))
        })?;
    if HeaderValue::from_str(&token).is_err() {
        return Err(FetchError::protocol(format!(
            "token service of registry {} sends a malformed token",
            route.registry
        )));
    }
    // A day at most: a service that says "for ever" may still change its mind.
    let lifetime = Duration::from_secs(document.expires_in.unwrap_or(0).min(86_400)).max(MIN_LIFETIME);
    Ok(Token {
        token,
        refresh_at: asked_at + (lifetime - LEEWAY),
    })
}

fn unknown_token(secret: Option<&Secret>) -> Option<&str> {
    match secret {
        Some(Secret::AnyToken { token }) => Some(token),
        _ => None,
    }
}

fn refused(route: &Route, has_secret: bool) -> FetchError {
    let registry = &route.registry;
    FetchError::new(
        FetchErrorKind::Unauthorized,
        if has_secret {
            format!("token service of registry {registry} does not accept the credentials")
        } else {
            format!("token service of registry {registry} wants credentials")
        },
    )
}

fn basic_authorization(secret: Option<&Secret>) -> Result<Option<HeaderValue>, FetchError> {
    match secret {
        Some(Secret::Basic { user, password }) => basic_header(user, password).map(Some),
        _ => Ok(None),
    }
}

fn query_url(realm: &Url, service: Option<&str>, scope: &str) -> Url {
    let mut url = realm.clone();
    {
        let mut query = url.query_pairs_mut();
        if let Some(service) = service {
            query.append_pair("service", service);
        }
        query.append_pair("scope", scope);
    }
    url
}

fn oauth_form(secret: Option<&Secret>, service: Option<&str>, scope: &str) -> String {
    let mut form = url::form_urlencoded::Serializer::new(String::new());
    match secret {
        Some(Secret::IdentityToken { token } | Secret::AnyToken { token }) => {
            form.append_pair("grant_type", "refresh_token")
                .append_pair("refresh_token", token);
        }
        Some(Secret::Basic { user, password }) => {
            form.append_pair("grant_type", "password")
                .append_pair("username", user)
                .append_pair("password", password);
        }
        Some(Secret::Bearer { .. }) | None => {}
    }
    if let Some(service) = service {
        form.append_pair("service", service);
    }
    form.append_pair("scope", scope)
        .append_pair("client_id", "oci-fetch");
    form.finish()
}
