//! `/health`, `grpc.health.v1` and reflection.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use builderd::edge::ConnectionLimits;
use futures_util::StreamExt as _;
use prost::Message as _;
use support::{Server, client};

#[tokio::test]
async fn health_answers_over_http_grpc_and_connect() {
    let server = Server::start().await;
    let response = client().get(server.url("/health")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let report: serde_json::Value = response.json().await.unwrap();
    assert_eq!(report["status"], "healthy");
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert!(report["uptime_seconds"].is_u64());
    for check in ["storage", "database", "isolation", "registry", "assetmanager"] {
        assert!(report["checks"][check].is_string(), "{check}: {report}");
    }
    let (status, answer) = server
        .connect(
            "grpc.health.v1.Health/Check",
            r#"{"service":"builder.v1.BuilderService"}"#,
        )
        .await;
    assert_eq!((status, answer["status"].as_str()), (200, Some("SERVING")));

    let channel = server.channel().await;
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    let request = tonic_health::pb::HealthCheckRequest {
        service: "builder.v1.BuilderService".to_owned(),
    };
    let answer = health.check(request).await.unwrap().into_inner();
    assert_eq!(
        answer.status(),
        tonic_health::pb::health_check_response::ServingStatus::Serving
    );
}

#[tokio::test]
async fn health_is_503_when_the_service_cannot_build() {
    for status in ["draining", "unhealthy"] {
        let server = Server::with(ConnectionLimits::default(), 10, status).await;
        let response = client().get(server.url("/health")).send().await.unwrap();
        assert_eq!(response.status(), 503);
        let report: serde_json::Value = response.json().await.unwrap();
        assert_eq!(report["status"], status);
    }
}

#[tokio::test]
async fn health_is_limited_to_its_rate() {
    let server = Server::with(ConnectionLimits::default(), 3, "healthy").await;
    let client = client();
    let mut limited = None;
    // Faster than three a second, whatever the machine.
    for _ in 0..200 {
        let response = client.get(server.url("/health")).send().await.unwrap();
        if response.status() == 429 {
            limited = Some(response);
            break;
        }
    }
    let limited = limited.expect("200 requests in a row are more than 3 a second");
    let seconds: u64 = limited.headers()["retry-after"]
        .to_str()
        .unwrap()
        .parse()
        .unwrap();
    assert!((1..=2).contains(&seconds));
}

#[tokio::test]
async fn reflection_lists_and_describes_the_service() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
        server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
    };

    let server = Server::start().await;
    let channel = server.channel().await;
    let mut reflection = ServerReflectionClient::new(channel);
    let ask = |request| ServerReflectionRequest {
        host: String::new(),
        message_request: Some(request),
    };
    let requests = [
        ask(MessageRequest::ListServices(String::new())),
        ask(MessageRequest::FileContainingSymbol(
            "builder.v1.BuilderService".to_owned(),
        )),
    ];
    let mut answers = reflection
        .server_reflection_info(tokio_stream::iter(requests))
        .await
        .unwrap()
        .into_inner();

    let services = answers.next().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(services) = services else {
        panic!("{services:?}");
    };
    let names: Vec<_> = services.service.into_iter().map(|service| service.name).collect();
    for name in ["builder.v1.BuilderService", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|listed| listed == name), "{names:?}");
    }
    let file = answers.next().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::FileDescriptorResponse(file) = file else {
        panic!("{file:?}");
    };
    let file = prost_types::FileDescriptorProto::decode(file.file_descriptor_proto[0].as_slice()).unwrap();
    assert_eq!(file.service[0].method.len(), 8);
}

#[tokio::test]
async fn reflection_can_be_switched_off() {
    use tonic_reflection::pb::v1::{
        ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    };

    let server = Server::with_edge(ConnectionLimits::default(), "healthy", |config| {
        config.reflection = false;
    })
    .await;
    let mut reflection = ServerReflectionClient::new(server.channel().await);
    let refused = reflection
        .server_reflection_info(tokio_stream::iter([ServerReflectionRequest::default()]))
        .await
        .unwrap_err();
    assert_eq!(refused.code(), tonic::Code::Unimplemented);
    let (status, _) = server
        .connect("grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "{}")
        .await;
    assert_eq!(status, 404);
    let (status, _) = server.connect("GetBuild", r#"{"build_id":"b"}"#).await;
    assert_eq!(status, 200);
}
