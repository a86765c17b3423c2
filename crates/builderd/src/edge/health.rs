//! `GET /health` and `GET /health/live`.

mod limit;

use std::sync::Arc;

use axum::{
    Extension,
    extract::State,
    response::{IntoResponse, Response},
};
use futures_util::future::BoxFuture;
use http::{StatusCode, header};
use serde::Serialize;
use tokio::{sync::Mutex, time::Instant};

use self::limit::RateLimiter;
use super::connection::Peer;

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
    /// What the last probe found, and when it began. Locked while one looks.
    found: Arc<Mutex<Option<(Instant, Vitals)>>>,
    started: Instant,
    limiter: Arc<RateLimiter>,
}

impl Health {
    pub(super) fn new(probe: Probe, requests_per_second: u32) -> Self {
        Self {
            probe,
            found: Arc::default(),
            started: Instant::now(),
            limiter: Arc::new(RateLimiter::new(requests_per_second)),
        }
    }

    /// Looks how the service is. There is one look at a time, since it writes to disks, and whoever asked before it began
    /// gets its answer.
    async fn vitals(&self) -> Vitals {
        let asked = Instant::now();
        let mut found = self.found.lock().await;
        if let Some((began, vitals)) = found.as_ref()
            && *began >= asked
        {
            return vitals.clone();
        }
        let began = Instant::now();
        let vitals = (self.probe)().await;
        *found = Some((began, vitals.clone()));
        vitals
    }
}

/// Answers 200 as long as the process answers at all, draining or not: who restarts what does not answer asks this.
/// Nothing is looked at, so there is no allowance either.
pub(super) async fn alive() -> Response {
    ([(header::CACHE_CONTROL, "no-store")], "alive\n").into_response()
}

#[derive(Serialize)]
struct Report {
    status: &'static str,
    version: &'static str,
    uptime_seconds: u64,
    checks: Checks,
}

/// Answers 200 while the service can build, 503 when it cannot, 429 when asked too often.
pub(super) async fn answer(State(health): State<Health>, peer: Option<Extension<Peer>>) -> Response {
    let peer = peer.map(|Extension(peer)| peer.network());
    if let Err(wait) = health.limiter.take(peer) {
        // Whole seconds, rounded up: a client that waits so long is let through.
        let seconds = wait.as_secs() + u64::from(wait.subsec_nanos() > 0);
        let retry_after = [(header::RETRY_AFTER, seconds.to_string())];
        return (StatusCode::TOO_MANY_REQUESTS, retry_after, "too many requests\n").into_response();
    }
    let vitals = health.vitals().await;
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[tokio::test]
    async fn who_asks_while_a_look_is_taken_shares_the_next_one() {
        let looks = Arc::new(AtomicUsize::new(0));
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let (counted, opened) = (Arc::clone(&looks), Arc::clone(&gate));
        let probe: Probe = Arc::new(move || {
            let (counted, opened) = (Arc::clone(&counted), Arc::clone(&opened));
            Box::pin(async move {
                counted.fetch_add(1, Ordering::SeqCst);
                opened.acquire().await.unwrap().forget();
                Vitals {
                    status: "healthy",
                    checks: Checks {
                        storage: "healthy",
                        database: "healthy",
                        isolation: "healthy",
                        registry: "not_checked",
                        assetmanager: "disabled",
                    },
                }
            })
        });
        let health = Health::new(probe, 10);
        let mut asking = Vec::new();
        for _ in 0..20 {
            let health = health.clone();
            asking.push(tokio::spawn(async move { health.vitals().await }));
        }
        // Each of them has its turn before the first look ends.
        for _ in 0..50 {
            tokio::task::yield_now().await;
        }
        assert_eq!(looks.load(Ordering::SeqCst), 1);
        gate.add_permits(2);
        for asked in asking {
            assert_eq!(asked.await.unwrap().status, "healthy");
        }
        assert_eq!(looks.load(Ordering::SeqCst), 2, "those who came later share one");
        // What was found before somebody asked is not their answer.
        gate.add_permits(1);
        assert_eq!(health.vitals().await.status, "healthy");
        assert_eq!(looks.load(Ordering::SeqCst), 3);
    }
}
