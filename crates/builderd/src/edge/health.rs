//! `GET /health`.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use axum::{
    extract::State,
    response::{IntoResponse, Response},
};
use futures_util::future::BoxFuture;
use http::{StatusCode, header};
use serde::Serialize;
use tokio::time::Instant;

/// How the service is, as far as a probe could tell.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vitals {
    /// `healthy` while the service can build, else a word for what it is.
    pub status: &'static str,
    /// What was looked at.
    pub checks: Checks,
}

/// What was looked at: `healthy`, or a word for what it is instead.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Checks {
    /// Directories take files.
    pub storage: &'static str,
    /// The database takes writes.
    pub database: &'static str,
    /// Workers are put into boxes: `disabled` where that is switched off, `alarm` while a worker lives on after it was
    /// killed, which does not take the service out.
    pub isolation: &'static str,
    /// The registry. Builds name their own, so this is `not_checked`.
    pub registry: &'static str,
    /// assetmanagerd: `disabled`, `healthy`, or `unhealthy` while it cannot be told of an image, which does not take the
    /// service out.
    pub assetmanager: &'static str,
}

/// Looks how the service is.
pub type Probe = Arc<dyn Fn() -> BoxFuture<'static, Vitals> + Send + Sync>;

/// The route's state.
#[derive(Clone)]
pub(super) struct Health {
    probe: Probe,
    started: Instant,
    limiter: Arc<RateLimiter>,
}

impl Health {
    pub(super) fn new(probe: Probe, requests_per_second: u32) -> Self {
        Self {
            probe,
            started: Instant::now(),
            limiter: Arc::new(RateLimiter::new(requests_per_second)),
        }
    }
}

#[derive(Serialize)]
struct Report {
    status: &'static str,
    version: &'static str,
    uptime_seconds: u64,
    checks: Checks,
}

/// Answers 200 while the service can build, 503 when it cannot, 429 when asked too often.
pub(super) async fn answer(State(health): State<Health>) -> Response {
    if let Err(wait) = health.limiter.take() {
        // Whole seconds, rounded up: a client that waits so long is let through.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let retry_after = [(header::RETRY_AFTER, seconds.to_string())];
        return (StatusCode::TOO_MANY_REQUESTS, retry_after, "too many requests\n").into_response();
    }
    let vitals = (health.probe)().await;
    let code = match vitals.status {
        "healthy" => StatusCode::OK,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    };
    let report = Report {
        status: vitals.status,
        version: env!("CARGO_PKG_VERSION"),
        uptime_seconds: health.started.elapsed().as_secs(),
        checks: vitals.checks,
    };
    match serde_json::to_vec(&report) {
        Ok(body) => {
            let headers = [
                (header::CONTENT_TYPE, "application/json"),
                (header::CACHE_CONTROL, "no-store"),
            ];
            (code, headers, body).into_response()
        }
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

/// So many requests a second, and as many at once after a pause.
#[derive(Debug)]
struct RateLimiter {
    per_second: f64,
    bucket: Mutex<Bucket>,
}

#[derive(Debug)]
struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl RateLimiter {
    fn new(per_second: u32) -> Self {
        let per_second = f64::from(per_second);
        Self {
            per_second,
            bucket: Mutex::new(Bucket {
                tokens: per_second,
                filled: Instant::now(),
            }),
        }
    }

    /// Takes one request's share, or says how long until there is one.
    fn take(&self) -> Result<(), Duration> {
        // The lock is held for arithmetic only, so a panic while holding it cannot happen.
        let mut bucket = self.bucket.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let gained = (now - bucket.filled).as_secs_f64() * self.per_second;
        bucket.filled = now;
        bucket.tokens = (bucket.tokens + gained).min(self.per_second);
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - bucket.tokens) / self.per_second))
    }
}
