//! The service port: gRPC, gRPC-Web and Connect on one listener, and `GET /health`.
//!
//! ```text
//!                     ┌ application/grpc, +proto ──────────────────────────┐
//! connection ─ axum ──┤                                                    ├─ guard ─ tonic services
//!                     ├ everything else ─ connectrpc ─ forwarder ─ (bytes) ┘
//!                     └ GET /health, /health/live
//! ```
//!
//! There is one implementation of each method, tonic's. Size limits hold on both ways in; authentication, deadlines,
//! panics and spans are the guard's, which every call passes once.

mod calls;
mod connection;
mod forward;
mod framing;
mod guard;
mod health;
mod json;
mod raw_codec;

use std::{collections::HashSet, convert::Infallible, fmt, panic::AssertUnwindSafe, time::Duration};

use axum::{Router, body::Body, routing::get};
use connectrpc::{ConnectRpcService, DeadlinePolicy, Limits};
use futures_util::FutureExt as _;
use http::{HeaderMap, Request, Response, StatusCode, header};
use prost_reflect::DescriptorPool;
use tonic::{Code, codec::CompressionEncoding, service::Routes};
use tonic_health::server::HealthReporter;
use tower::Service as _;
use tower_http::timeout::RequestBodyTimeoutLayer;

pub use connection::{ConnectionLimits, serve};
pub use health::{Checks, Probe, Vitals};

use self::{
    calls::{Calls, MAX_STREAMS, MAX_UNARY},
    connection::Peer,
    forward::Forwarder,
    guard::Guard,
    health::Health,
};
use crate::{
    audit::AuditLog,
    auth::Authentication,
    proto::{
        self,
        builder_service_server::{BuilderService, BuilderServiceServer},
    },
    status::with_info,
};

/// The largest message that is read, compressed or not.
pub const MAX_MESSAGE_BYTES: usize = 4 << 20;

/// How long a body may stand still while it is read.
const BODY_STALL: Duration = Duration::from_secs(60);

/// How long reading the request of a Connect or gRPC-Web call may take altogether. (For gRPC the guard's deadline says
/// so.)
const REQUEST_READ: Duration = Duration::from_secs(60);

/// What the edge needs to know.
pub struct EdgeConfig {
    /// Requests to `/health` a second, at least 1.
    pub health_requests_per_second: u32,
    /// How callers show who they are.
    pub authentication: Authentication,
    /// Where calls are noted that change something or are refused; `None` for nowhere.
    pub audit: Option<AuditLog>,
    /// Whether the reflection services answer.
    pub reflection: bool,
    /// Looks how the service is.
    pub probe: Probe,
}

impl fmt::Debug for EdgeConfig {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("EdgeConfig")
            .field("health_requests_per_second", &self.health_requests_per_second)
            .field("authentication", &self.authentication)
            .field("reflection", &self.reflection)
            .finish_non_exhaustive()
    }
}

/// The compiled descriptors do not fit together. They are part of the program, so this is a fault of the build.
#[derive(Debug, thiserror::Error)]
#[error("the compiled proto descriptors are unusable")]
pub struct EdgeError(#[source] Box<dyn std::error::Error + Send + Sync>);

/// The routes of the service port, and the reporter that says over `grpc.health.v1` whether the service serves.
///
/// # Errors
/// [`EdgeError`].
pub async fn router<S: BuilderService>(
    service: S,
    config: EdgeConfig,
) -> Result<(Router, HealthReporter), EdgeError> {
    let mut descriptors = DescriptorPool::new();
    for set in [proto::FILE_DESCRIPTOR_SET, tonic_health::pb::FILE_DESCRIPTOR_SET] {
        descriptors.decode_file_descriptor_set(set).map_err(unusable)?;
    }
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_serving::<BuilderServiceServer<S>>().await;

    let gzip = CompressionEncoding::Gzip;
    let builder = BuilderServiceServer::new(service)
        .accept_compressed(gzip)
        .send_compressed(gzip)
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let health = health.accept_compressed(gzip).send_compressed(gzip);
    let mut routes = Routes::new(builder).add_service(health);
    if config.reflection {
        routes = with_reflection(routes, &mut descriptors)?;
    }

    let grpc = Guard::new(
        routes,
        streaming_methods(&descriptors),
        config.authentication,
        config.audit,
    );
    let limits = Limits::default()
        .with_max_message_size(MAX_MESSAGE_BYTES)
        .with_max_request_body_size(MAX_MESSAGE_BYTES);
    let connect = ConnectRpcService::new(Forwarder::new(grpc.clone(), &descriptors))
        .with_limits(limits)
        .with_deadline_policy(DeadlinePolicy::new().with_default_timeout(REQUEST_READ));

    let calls = Calls::default();
    let fallback = tower::service_fn(move |request: Request<Body>| {
        let (grpc, connect, calls) = (grpc.clone(), connect.clone(), calls.clone());
        // The guard catches what a handler does; this is for the translation around it.
        AssertUnwindSafe(in_turn(calls, grpc, connect, request))
            .catch_unwind()
            .map(|caught| {
                Ok::<_, Infallible>(caught.unwrap_or_else(|_| {
                    tracing::error!("Translating a request panicked");
                    let mut response =
                        Response::new(Body::from(r#"{"code":"internal","message":"internal error"}"#));
                    *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                    let json = http::HeaderValue::from_static("application/json");
                    response.headers_mut().insert(header::CONTENT_TYPE, json);
                    response
                }))
            })
    });
    let router = health_routes(config.probe, config.health_requests_per_second)
        .fallback_service(fallback)
        .layer(RequestBodyTimeoutLayer::new(BODY_STALL));
    Ok((router, reporter))
}

/// `GET /health`, whether the service can build, and `GET /health/live`, whether the process answers at all: for the
/// service port, and for one that probes reach without a certificate. Each port has an allowance of its own.
pub fn health_routes(probe: Probe, requests_per_second: u32) -> Router {
    Router::new()
        .route("/health", get(health::answer))
        .route("/health/live", get(health::alive))
        .with_state(Health::new(probe, requests_per_second.max(1)))
}

/// Adds the reflection services, which tell of everything that is there, themselves included.
fn with_reflection(routes: Routes, descriptors: &mut DescriptorPool) -> Result<Routes, EdgeError> {
    let sets = [
        proto::FILE_DESCRIPTOR_SET,
        tonic_health::pb::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET,
        tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET,
    ];
    let builder = || {
        let builder = tonic_reflection::server::Builder::configure().include_reflection_service(false);
        sets.into_iter().fold(builder, |builder, set| {
            builder.register_encoded_file_descriptor_set(set)
        })
    };
    for set in &sets[2..] {
        descriptors.decode_file_descriptor_set(*set).map_err(unusable)?;
    }
    let v1 = builder().build_v1().map_err(unusable)?;
    let alpha = builder().build_v1alpha().map_err(unusable)?;
    let gzip = CompressionEncoding::Gzip;
    Ok(routes
        .add_service(v1.accept_compressed(gzip).send_compressed(gzip))
        .add_service(alpha.accept_compressed(gzip).send_compressed(gzip)))
}

/// A call among those that its peer has open.
async fn in_turn(
    calls: Calls,
    grpc: Guard,
    connect: ConnectRpcService<Forwarder>,
    request: Request<Body>,
) -> Response<Body> {
    let Some(peer) = request.extensions().get::<Peer>().map(Peer::network) else {
        // Only where no connection is: in tests that call the routes.
        return route(grpc, connect, request).await;
    };
    let is_stream = grpc.is_streaming(request.uri().path());
    match calls.take(peer, is_stream).await {
        Some(place) => place.until_read(route(grpc, connect, request).await),
        None => too_many_calls(request.headers()),
    }
}

fn too_many_calls(headers: &HeaderMap) -> Response<Body> {
    let message = format!(
        "calls: this peer has {MAX_UNARY} calls with one answer open, or {MAX_STREAMS} with a stream; read the answers"
    );
    let content_type = headers.get(header::CONTENT_TYPE);
    if content_type.is_some_and(|value| is_grpc(value.as_bytes())) {
        let status = with_info(Code::ResourceExhausted, &message, "TOO_MANY_CALLS", []);
        return status.into_http();
    }
    let error = serde_json::json!({"code": "resource_exhausted", "message": message});
    let mut response = Response::new(Body::from(error.to_string()));
    *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
    let json = http::HeaderValue::from_static("application/json");
    response.headers_mut().insert(header::CONTENT_TYPE, json);
    response
}

/// gRPC proper goes to tonic, everything else to Connect's own implementation of the other protocols.
async fn route(
    mut grpc: Guard,
    mut connect: ConnectRpcService<Forwarder>,
    request: Request<Body>,
) -> Response<Body> {
    let content_type = request.headers().get(header::CONTENT_TYPE);
    if content_type.is_some_and(|value| is_grpc(value.as_bytes())) {
        match grpc.call(request.map(tonic::body::Body::new)).await {
            Ok(response) => response.map(Body::new),
            Err(never) => match never {},
        }
    } else {
        let is_grpc_like =
            content_type.is_some_and(|value| value.as_bytes().starts_with(b"application/grpc+"));
        let mut response = match connect.call(framing::checked(request)).await {
            Ok(response) => response.map(Body::new),
            Err(never) => match never {},
        };
        if is_grpc_like {
            // connectrpc says the status of a refusal among the trailers too, where it belongs.
            for name in ["grpc-status", "grpc-message"] {
                response.headers_mut().remove(name);
            }
        }
        response
    }
}

/// Whether a content type is gRPC with protobuf: `application/grpc` or `application/grpc+proto`, with parameters or
/// not.
fn is_grpc(content_type: &[u8]) -> bool {
    let end = content_type
        .iter()
        .position(|byte| *byte == b';')
        .unwrap_or(content_type.len());
    let media_type = content_type[..end].trim_ascii();
    media_type.eq_ignore_ascii_case(b"application/grpc")
        || media_type.eq_ignore_ascii_case(b"application/grpc+proto")
}

fn streaming_methods(descriptors: &DescriptorPool) -> HashSet<String> {
    let methods = descriptors
        .services()
        .flat_map(|service| service.methods().collect::<Vec<_>>());
    methods
        .filter(|method| method.is_client_streaming() || method.is_server_streaming())
        .map(|method| format!("/{}/{}", method.parent_service().full_name(), method.name()))
        .collect()
}

fn unusable(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> EdgeError {
    EdgeError(error.into())
}
