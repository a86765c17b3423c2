//! One party's access to one repository: requests with authentication and retries.

use std::sync::Arc;

use http::Method;

use crate::auth::{Authenticator, Identity, challenge};
use crate::digest::Digest;
use crate::error::{FetchError, FetchErrorKind};
use crate::manifest::{ACCEPT, Descriptor, MAX_DOCUMENT_BYTES};
use crate::net::response::Answer;
use crate::net::retry::Attempts;
use crate::net::route::Route;
use crate::net::slots::Traffic;
use crate::net::{Request, Transport};

/// The right of one party to read one repository, as far as the registry grants it.
pub(crate) struct Session {
    pub(crate) transport: Arc<Transport>,
    pub(crate) authenticator: Arc<Authenticator>,
    pub(crate) route: Route,
    /// The registry of the reference, under whose name the cache and the downloads know the blobs; `route` may lead to a
    /// mirror of it.
    pub(crate) registry: String,
    pub(crate) repository: String,
    pub(crate) identity: Identity,
}

/// What is asked of the repository.
pub(crate) struct Ask<'a> {
    pub(crate) method: Method,
    /// Behind `/v2/REPOSITORY/`.
    pub(crate) path: &'a str,
    pub(crate) accept: Option<&'static str>,
    pub(crate) range: Option<(u64, Option<u64>)>,
    pub(crate) traffic: Traffic,
    /// For messages: `manifest`, `layer`.
    pub(crate) what: &'static str,
}

impl Session {
    pub(crate) fn attempts(&self) -> Attempts {
        let mut policy = self.transport.config().retry;
        if self.route.is_mirror() {
            // Behind a mirror there is somebody else to ask.
            policy.attempts = policy.attempts.min(2);
        }
        Attempts::new(policy)
    }

    /// What the cache notes as the source of a blob.
    pub(crate) fn source(&self) -> String {
        format!("{} {}", self.registry, self.repository)
    }

    /// Fetches a manifest by tag or digest: its bytes and the `Content-Type`.
    pub(crate) async fn manifest(&self, selector: &str) -> Result<(Vec<u8>, Option<String>), FetchError> {
        self.document(
            &format!("manifests/{selector}"),
            Some(ACCEPT),
            MAX_DOCUMENT_BYTES,
            "manifest",
        )
        .await
    }

    /// Fetches a document that is small enough to be held in memory and must be what the descriptor says.
    pub(crate) async fn described(
        &self,
        descriptor: &Descriptor,
        kind: &str,
        what: &'static str,
    ) -> Result<(Vec<u8>, Option<String>), FetchError> {
        if descriptor.size_bytes > MAX_DOCUMENT_BYTES {
            return Err(FetchError::limit(format!(
                "{what} is larger than {MAX_DOCUMENT_BYTES} bytes"
            )));
        }
        let accept = if kind == "manifests" { Some(ACCEPT) } else { None };
        let path = format!("{kind}/{}", descriptor.digest);
        let (bytes, content_type) = self.document(&path, accept, descriptor.size_bytes, what).await?;
        verify(&bytes, &descriptor.digest, what)?;
        Ok((bytes, content_type))
    }

    /// Whether the registry shows this party the blob in this repository.
    pub(crate) async fn prove_blob(&self, digest: &Digest, size_bytes: u64) -> Result<(), FetchError> {
        let path = format!("blobs/{digest}");
        let ask = Ask {
            method: Method::HEAD,
            path: &path,
            accept: None,
            range: None,
            traffic: Traffic::Document,
            what: "layer",
        };
        let answer = match self.fetch(&ask, &mut self.attempts()).await {
            Ok(answer) => answer,
            // Some registries, and some storages behind them, do not do HEAD; then the first byte shows as much.
            Err(error) if matches!(error.kind(), FetchErrorKind::Protocol | FetchErrorKind::Transient) => {
                let ask = Ask {
                    method: Method::GET,
                    range: Some((0, Some(0))),
                    ..ask
                };
                return self.fetch(&ask, &mut self.attempts()).await.map(drop);
            }
            Err(error) => return Err(error),
        };
        if answer.content_length().is_some_and(|length| length != size_bytes) {
            return Err(FetchError::new(
                FetchErrorKind::DigestMismatch,
                format!("layer {digest} does not have the size its manifest gives"),
            ));
        }
        Ok(())
    }

    async fn document(
        &self,
        path: &str,
        accept: Option<&'static str>,
        limit: u64,
        what: &'static str,
    ) -> Result<(Vec<u8>, Option<String>), FetchError> {
        let registry = &self.route.registry;
        let mut attempts = self.attempts();
        loop {
            let ask = Ask {
                method: Method::GET,
                path,
                accept,
                range: None,
                traffic: Traffic::Document,
                what,
            };
            let answer = self.fetch(&ask, &mut attempts).await?;
            let content_type = answer.content_type();
            let deadline = self.transport.config().timeouts.document;
            match answer.read_document(registry, what, limit, deadline).await {
                Ok(bytes) => return Ok((bytes, content_type)),
                Err(error) => attempts.pause(error, None).await?,
            }
        }
    }

    /// Sends a request until it succeeds with 200, 206 or 416, or fails for good.
    ///
    /// A token that the registry does not take (401, or 403 as ECR sends it for an expired one) is replaced once, if it was
    /// not fetched within this very call.
    pub(crate) async fn fetch(&self, ask: &Ask<'_>, attempts: &mut Attempts) -> Result<Answer, FetchError> {
        let url = self.route.url(&format!("{}/{}", self.repository, ask.path))?;
        let serial_at_start = self.authenticator.newest_serial();
        let mut has_seen_challenge = false;
        loop {
            let authorization = self
                .authenticator
                .authorization(&self.transport, &self.route, &self.identity, &self.repository)
                .await
                .inspect_err(|_| self.authenticator.forget(&self.route, &self.identity))?;
            let token = authorization
                .as_ref()
                .and_then(|authorization| authorization.token.clone());
            let request = Request {
                method: ask.method.clone(),
                url: &url,
                accept: ask.accept,
                range: ask.range,
                authorization: authorization
                    .as_ref()
                    .map(|authorization| authorization.header.clone()),
                form: None,
                traffic: ask.traffic,
                party: &self.identity.isolation_key,
            };
            let answer = match self.transport.send(&self.route, &request).await {
                Ok(answer) => answer,
                Err(error) => {
                    attempts.pause(error, None).await?;
                    continue;
                }
            };
            let status = answer.status().as_u16();
            if matches!(status, 200 | 206 | 416) {
                return Ok(answer);
            }
            let stale = token.as_ref().filter(|token| token.serial <= serial_at_start);
            if answer.is_origin && status == 401 && (!has_seen_challenge || stale.is_some()) {
                if let Some(challenge) = challenge::parse(&answer.challenges()) {
                    has_seen_challenge = true;
                    drop(answer);
                    if let Some(token) = &token {
                        self.authenticator.invalidate(token).await;
                    }
                    self.authenticator
                        .remember(&self.route, &self.identity, challenge);
                    continue;
                }
            } else if answer.is_origin
                && status == 403
                && let Some(token) = stale
            {
                drop(answer);
                self.authenticator.invalidate(token).await;
                continue;
            }
            if answer.is_origin && matches!(status, 401 | 403) {
                self.authenticator.forget(&self.route, &self.identity);
            }
            let refusal = answer.refuse(&self.route.registry, ask.what).await;
            attempts.pause(refusal.error, refusal.retry_after).await?;
        }
    }
}

/// Checks a document against its digest.
pub(crate) fn verify(bytes: &[u8], digest: &Digest, what: &str) -> Result<(), FetchError> {
    if Digest::of(digest.algorithm(), bytes) == *digest {
        return Ok(());
    }
    Err(FetchError::new(
        FetchErrorKind::DigestMismatch,
        format!("{what} does not have the digest {digest}"),
    ))
}
