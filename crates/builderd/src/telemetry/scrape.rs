//! `GET /metrics`, for Prometheus; what else is served on its port comes from elsewhere.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use builder_core::service::Builder;
use prometheus::{Encoder as _, Registry, TextEncoder};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::gauges::Gauges;
use crate::edge::{self, ConnectionLimits};

/// A handful of servers scrape; whoever else comes must not take the daemon's descriptors.
const CONNECTIONS: usize = 32;

#[derive(Clone)]
struct Scraped {
    registry: Registry,
    gauges: Arc<Gauges>,
    builder: Builder,
}

pub(super) fn router(registry: Registry, gauges: Arc<Gauges>, builder: Builder) -> Router {
    Router::new().route("/metrics", get(answer)).with_state(Scraped {
        registry,
        gauges,
        builder,
    })
}

pub(super) async fn serve(listener: TcpListener, router: Router, stop: CancellationToken) {
    let limits = ConnectionLimits {
        connections: CONNECTIONS,
        connections_per_peer: CONNECTIONS,
        header_read: Duration::from_secs(10),
        ..ConnectionLimits::default()
    };
    edge::serve(listener, None, router, limits, stop).await;
}

async fn answer(State(scraped): State<Scraped>) -> Response {
    scraped.gauges.refresh(&scraped.builder).await;
    let encoder = TextEncoder::new();
    let mut text = Vec::new();
    match encoder.encode(&scraped.registry.gather(), &mut text) {
        Ok(()) => ([(header::CONTENT_TYPE, encoder.format_type().to_owned())], text).into_response(),
        Err(error) => {
            tracing::error!(%error, "Failed to write the metrics");
            StatusCode::INTERNAL_SERVER_ERROR.into_response()
        }
    }
}
