//! A service with scripted answers behind the real edge, on a port of its own.

// Each test binary uses its own part of this.
#![allow(dead_code, unreachable_pub, reason = "shared by several test binaries")]

pub mod protocols;
pub mod tunnel;

use std::{
    net::SocketAddr,
    pin::Pin,
    sync::{Arc, OnceLock},
    time::Duration,
};

use builderd::{
    edge::{self, Checks, ConnectionLimits, EdgeConfig, Vitals},
    proto::{self, builder_service_client::BuilderServiceClient, builder_service_server::BuilderService},
    tls::ServerTls,
};
use futures_util::{Stream, StreamExt as _, stream};
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;
use tonic::{
    Request, Response, Status,
    transport::{Channel, Endpoint},
};

/// Answers by what the build is called.
#[derive(Clone, Debug, Default)]
pub struct Scripted {
    /// Cancelled when a call that never ends is dropped.
    pub dropped: CancellationToken,
}

type Lines = Pin<Box<dyn Stream<Item = Result<proto::StreamBuildLogsResponse, Status>> + Send>>;

fn line(sequence: i64) -> proto::StreamBuildLogsResponse {
    proto::StreamBuildLogsResponse {
        message: format!("line {sequence}"),
        sequence,
        ..Default::default()
    }
}

#[tonic::async_trait]
impl BuilderService for Scripted {
    async fn create_build(
        &self,
        request: Request<proto::CreateBuildRequest>,
    ) -> Result<Response<proto::CreateBuildResponse>, Status> {
        let config = request.into_inner().config.unwrap_or_default();
        let mut response = Response::new(proto::CreateBuildResponse {
            build_id: config.build_name,
            state: proto::BuildState::Pending.into(),
            created_at: Some(prost_types::Timestamp {
                seconds: 1_700_000_000,
                nanos: 5,
            }),
            rootfs_path: config.tenant.unwrap_or_default().tenant_id,
        });
        response
            .metadata_mut()
            .insert("x-from-service", "yes".parse().expect("a header value"));
        Ok(response)
    }

    async fn get_build(
        &self,
        request: Request<proto::GetBuildRequest>,
    ) -> Result<Response<proto::GetBuildResponse>, Status> {
        let seen = request
            .metadata()
            .get("x-from-client")
            .and_then(|value| value.to_str().ok())
            .map(str::to_owned);
        let seen_timeout = request.metadata().get("grpc-timeout").is_some();
        let message = request.into_inner();
        match message.build_id.as_str() {
            "panic" => panic!("the script says so"),
            "never" => {
                let _guard = self.dropped.clone().drop_guard();
                std::future::pending::<()>().await;
            }
            "missing" => return Err(Status::not_found("no such build")),
            _ => {}
        }
        Ok(Response::new(proto::GetBuildResponse {
            build: Some(proto::BuildJob {
                build_id: message.build_id,
                rootfs_size_bytes: 9_007_199_254_740_993,
                rootfs_path: message.tenant_id,
                error_message: seen.unwrap_or_default(),
                current_step: seen_timeout.to_string(),
                state: proto::BuildState::Completed.into(),
                ..Default::default()
            }),
        }))
    }

    async fn list_builds(
        &self,
        request: Request<proto::ListBuildsRequest>,
    ) -> Result<Response<proto::ListBuildsResponse>, Status> {
        // As many builds as the page has, to make answers of any size.
        let count = usize::try_from(request.into_inner().page_size).unwrap_or(0);
        let build = proto::BuildJob {
            build_id: "x".repeat(100),
            ..Default::default()
        };
        Ok(Response::new(proto::ListBuildsResponse {
            builds: vec![build; count],
            ..Default::default()
        }))
    }

    async fn cancel_build(
        &self,
        _request: Request<proto::CancelBuildRequest>,
    ) -> Result<Response<proto::CancelBuildResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn delete_build(
        &self,
        _request: Request<proto::DeleteBuildRequest>,
    ) -> Result<Response<proto::DeleteBuildResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    type StreamBuildLogsStream = Lines;

    async fn stream_build_logs(
        &self,
        request: Request<proto::StreamBuildLogsRequest>,
    ) -> Result<Response<Lines>, Status> {
        let lines = stream::iter((1..=3).map(|sequence| Ok(line(sequence))));
        let dropped = self.dropped.clone().drop_guard();
        Ok(Response::new(match request.into_inner().build_id.as_str() {
            "panic" => panic!("the script says so"),
            "panic-later" => Box::pin(lines.chain(stream::once(async {
                // What was said before goes out first; messages of one poll are sent together.
                tokio::task::yield_now().await;
                panic!("the script says so")
            }))),
            "fail-later" => Box::pin(lines.chain(stream::iter([Err(Status::unavailable("draining"))]))),
            "never" => Box::pin(lines.chain(stream::pending().map(move |()| {
                let _ = &dropped;
                Ok(line(0))
            }))),
            "missing" => return Err(Status::not_found("no such build")),
            _ => Box::pin(lines),
        }))
    }

    async fn get_tenant_quotas(
        &self,
        _request: Request<proto::GetTenantQuotasRequest>,
    ) -> Result<Response<proto::GetTenantQuotasResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }

    async fn get_build_stats(
        &self,
        _request: Request<proto::GetBuildStatsRequest>,
    ) -> Result<Response<proto::GetBuildStatsResponse>, Status> {
        Err(Status::unimplemented("not scripted"))
    }
}

/// The edge over a scripted service.
pub struct Server {
    pub address: SocketAddr,
    pub dropped: CancellationToken,
    pub stop: CancellationToken,
    pub serving: JoinHandle<()>,
}

impl Server {
    pub async fn start() -> Self {
        Self::with(ConnectionLimits::default(), 1000, "healthy").await
    }

    pub async fn with(
        limits: ConnectionLimits,
        health_requests_per_second: u32,
        status: &'static str,
    ) -> Self {
        Self::with_edge(limits, status, |config| {
            config.health_requests_per_second = health_requests_per_second;
        })
        .await
    }

    pub async fn with_edge(
        limits: ConnectionLimits,
        status: &'static str,
        change: impl FnOnce(&mut EdgeConfig),
    ) -> Self {
        Self::with_tls(limits, status, None, change).await
    }

    pub async fn with_tls(
        limits: ConnectionLimits,
        status: &'static str,
        tls: Option<ServerTls>,
        change: impl FnOnce(&mut EdgeConfig),
    ) -> Self {
        let service = Scripted::default();
        let dropped = service.dropped.clone();
        let mut config = EdgeConfig {
            audit: None,
            health_requests_per_second: 1000,
            authentication: builderd::auth::Authentication::None,
            reflection: true,
            probe: Arc::new(move || {
                Box::pin(async move {
                    let checks = Checks {
                        storage: "healthy",
                        database: "healthy",
                        isolation: "healthy",
                        registry: "not_checked",
                        assetmanager: "disabled",
                    };
                    Vitals { status, checks }
                })
            }),
        };
        change(&mut config);
        let (router, _reporter) = edge::router(service, config)
            .await
            .expect("descriptors fit together");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("a bound port");
        let stop = CancellationToken::new();
        let serving = tokio::spawn(edge::serve(listener, tls, router, limits, stop.clone()));
        Self {
            address,
            dropped,
            stop,
            serving,
        }
    }

    pub fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    pub async fn grpc(&self) -> BuilderServiceClient<Channel> {
        BuilderServiceClient::new(self.channel().await)
    }

    pub async fn channel(&self) -> Channel {
        let endpoint = Endpoint::from_shared(self.url("")).expect("a URL");
        endpoint.connect().await.expect("a server that listens")
    }

    /// A unary Connect call in JSON: the HTTP status and the answer.
    pub async fn connect(&self, method: &str, body: impl Into<reqwest::Body>) -> (u16, serde_json::Value) {
        let response = self
            .post(method, "application/json")
            .body(body)
            .send()
            .await
            .expect("an answer");
        let status = response.status().as_u16();
        let text = response.text().await.expect("a body");
        let json = serde_json::from_str(&text).unwrap_or_else(|_| panic!("{method}: not JSON: {text}"));
        (status, json)
    }

    pub fn post(&self, method: &str, content_type: &str) -> reqwest::RequestBuilder {
        let path = if method.contains('/') {
            format!("/{method}")
        } else {
            format!("/builder.v1.BuilderService/{method}")
        };
        client()
            .post(self.url(&path))
            .header("content-type", content_type)
    }

    /// A Connect call of a stream in JSON: the frames as flags and JSON.
    pub async fn connect_stream(&self, method: &str, body: &str) -> Vec<(u8, serde_json::Value)> {
        let response = self
            .post(method, "application/connect+json")
            .body(envelope(body.as_bytes()))
            .send()
            .await
            .expect("an answer");
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/connect+json");
        let bytes = response.bytes().await.expect("a body");
        frames(&bytes)
            .into_iter()
            .map(|(flags, payload)| (flags, serde_json::from_slice(&payload).expect("JSON in a frame")))
            .collect()
    }
}

/// A gRPC call with a deadline that only the server knows of: the messages and the status. (tonic's own client ends
/// the call itself, and what the server does is not seen.)
pub async fn raw_grpc(
    server: &Server,
    method: &str,
    message: &[u8],
    timeout: &str,
) -> (usize, Option<String>) {
    let stream = tokio::net::TcpStream::connect(server.address)
        .await
        .expect("a server that listens");
    let io = hyper_util::rt::TokioIo::new(stream);
    let executor = hyper_util::rt::TokioExecutor::new();
    let (mut sender, connection) = hyper::client::conn::http2::handshake(executor, io)
        .await
        .expect("a server that speaks HTTP/2");
    tokio::spawn(connection);
    let request = http::Request::post(server.url(&format!("/builder.v1.BuilderService/{method}")))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", timeout)
        .body(http_body_util::Full::new(bytes::Bytes::from(envelope(message))))
        .expect("a request");
    let response = sender.send_request(request).await.expect("an answer");
    let in_headers = response.headers().get("grpc-status").cloned();
    let body = http_body_util::BodyExt::collect(response.into_body())
        .await
        .expect("a body");
    let status = in_headers.or_else(|| {
        body.trailers()
            .and_then(|trailers| trailers.get("grpc-status").cloned())
    });
    let status = status.map(|status| status.to_str().expect("a number").to_owned());
    (frames(&body.to_bytes()).len(), status)
}

/// A client that reads no proxy settings. There is one, since making it takes long; it keeps no connections, since each
/// test has a runtime of its own.
pub fn client() -> reqwest::Client {
    static CLIENT: OnceLock<reqwest::Client> = OnceLock::new();
    let client = CLIENT.get_or_init(|| {
        reqwest::Client::builder()
            .no_proxy()
            .timeout(Duration::from_secs(30))
            .pool_max_idle_per_host(0)
            .build()
            .expect("a client")
    });
    client.clone()
}

/// A message in the envelope that Connect streams and gRPC share: flags, length, message.
pub fn envelope(message: &[u8]) -> Vec<u8> {
    let length = u32::try_from(message.len()).expect("a small message");
    [&[0], length.to_be_bytes().as_slice(), message].concat()
}

/// Takes enveloped messages apart.
pub fn frames(mut bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
    let mut frames = Vec::new();
    while let Some((head, rest)) = bytes.split_first_chunk::<5>() {
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let (message, rest) = rest.split_at(length);
        frames.push((head[0], message.to_vec()));
        bytes = rest;
    }
    assert!(bytes.is_empty(), "half a frame at the end");
    frames
}
