//! The service port as clients of every protocol meet it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{io::Write as _, time::Duration};

use builderd::{edge::ConnectionLimits, proto};
use flate2::{Compression, write::GzEncoder};
use futures_util::StreamExt as _;
use prost::Message as _;
use serde_json::json;
use support::{Server, client, envelope, frames, raw_grpc};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tonic::{Code, codec::CompressionEncoding};

/// The documented request, word for word.
const DOCUMENTED: &str = r#"{
    "config": {
      "tenant": {
        "tenant_id": "test-tenant",
        "tier": "TENANT_TIER_FREE"
      },
      "source": {
        "docker_image": {
          "image_uri": "nginx:1.21-alpine"
        }
      },
      "target": {
        "microvm_rootfs": {
          "init_strategy": "INIT_STRATEGY_TINI"
        }
      },
      "strategy": {
        "docker_extract": {}
      }
    }
  }"#;

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::default());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

fn get(build_id: &str) -> proto::GetBuildRequest {
    proto::GetBuildRequest {
        build_id: build_id.to_owned(),
        tenant_id: "t".to_owned(),
    }
}

fn logs(build_id: &str) -> proto::StreamBuildLogsRequest {
    proto::StreamBuildLogsRequest {
        build_id: build_id.to_owned(),
        tenant_id: "t".to_owned(),
        ..Default::default()
    }
}

#[tokio::test]
async fn the_documented_request_is_understood() {
    let server = Server::start().await;
    let (status, answer) = server.connect("CreateBuild", DOCUMENTED).await;
    assert_eq!(status, 200);
    assert_eq!(answer["rootfsPath"], "test-tenant");
    assert_eq!(answer["state"], "BUILD_STATE_PENDING");
    assert_eq!(answer["createdAt"], "2023-11-14T22:13:20.000000005Z");
}

#[tokio::test]
async fn json_takes_both_spellings_and_answers_in_one() {
    let server = Server::start().await;
    for body in [
        r#"{"build_id":"b","tenant_id":"t"}"#,
        r#"{"buildId":"b","tenantId":"t"}"#,
        r#"{"buildId":"b","tenant_id":"t","unknownField":{"x":[1]}}"#,
    ] {
        let (status, answer) = server.connect("GetBuild", body).await;
        assert_eq!(status, 200, "{body}");
        let build = &answer["build"];
        assert_eq!(build["buildId"], "b");
        assert_eq!(build["rootfsPath"], "t");
        // A number of this size is not exact in JavaScript, which is why it is a string.
        assert_eq!(build["rootfsSizeBytes"], "9007199254740993");
        assert_eq!(build["state"], "BUILD_STATE_COMPLETED");
        assert_eq!(build.get("metrics"), None, "what is not known is absent");
    }
}

#[tokio::test]
async fn json_bodies_that_hide_a_mistake_are_refused() {
    let server = Server::start().await;
    for (method, body, expected) in [
        ("GetBuild", "[]", "expected a JSON object"),
        ("GetBuild", "null", "expected a JSON object"),
        ("GetBuild", "7", "expected a JSON object"),
        ("GetBuild", "", "EOF"),
        ("GetBuild", "{", "EOF"),
        ("GetBuild", "{} {}", "trailing characters"),
        (
            "GetBuild",
            r#"{"build_id":"b","buildId":"c"}"#,
            "build_id: expected once",
        ),
        (
            "GetBuild",
            r#"{"build_id":"b","build_id":"c"}"#,
            "build_id: expected once",
        ),
        ("GetBuild", r#"{"build_id":7}"#, "invalid type"),
        ("GetBuild", "{\"build_id\":\"\u{0}\"}", "control character"),
        ("CreateBuild", r#"{"config":[]}"#, "config to be a JSON object"),
        (
            "CreateBuild",
            r#"{"config":{"tenant":{"tier":"TENANT_TIER_GOLD"}}}"#,
            "config.tenant.tier: expected one of",
        ),
        (
            "CreateBuild",
            r#"{"config":{"tenant":{"tier":99999999999}}}"#,
            "config.tenant.tier",
        ),
        (
            "CreateBuild",
            r#"{"config":{"tenant":{"tier":{}}}}"#,
            "config.tenant.tier",
        ),
        (
            "CreateBuild",
            r#"{"config":{"labels":{"a":"1","a":"2"}}}"#,
            "config.labels.a: expected once",
        ),
        (
            "CreateBuild",
            r#"{"config":{"labels":["a"]}}"#,
            "config.labels to be a JSON object",
        ),
        (
            "CreateBuild",
            r#"{"config":{"limits":{"max_disk_bytes":"many"}}}"#,
            "",
        ),
        (
            "CreateBuild",
            r#"{"config":{"limits":{"max_disk_bytes":9223372036854775808}}}"#,
            "",
        ),
        (
            "CreateBuild",
            r#"{"config":{"source":{"docker_image":{},"archive":{}}}}"#,
            "",
        ),
        (
            "ListBuilds",
            r#"{"state_filter":["BUILD_STATE_DONE"]}"#,
            "state_filter: expected one of",
        ),
        (
            "ListBuilds",
            r#"{"state_filter":"BUILD_STATE_FAILED"}"#,
            "state_filter to be a JSON array",
        ),
        ("GetBuildStats", r#"{"start_time":"yesterday"}"#, ""),
    ] {
        let (status, answer) = server.connect(method, body).await;
        assert_eq!(status, 400, "{method} {body}: {answer}");
        assert_eq!(answer["code"], "invalid_argument", "{method} {body}");
        let message = answer["message"].as_str().unwrap();
        assert!(
            !message.is_empty() && message.contains(expected),
            "{method} {body}: {message}"
        );
    }
    let nested = "[".repeat(20_000);
    let (status, answer) = server
        .connect("CreateBuild", format!(r#"{{"config":{{"x":{nested}"#))
        .await;
    assert_eq!((status, answer["code"].as_str()), (400, Some("invalid_argument")));
}

#[tokio::test]
async fn json_takes_integers_as_strings_and_enums_as_numbers() {
    let server = Server::start().await;
    for body in [
        r#"{"config":{"build_name":"n","limits":{"maxDiskBytes":"9007199254740993"}}}"#,
        r#"{"config":{"build_name":"n","limits":{"max_disk_bytes":12}}}"#,
        r#"{"config":{"build_name":"n","tenant":{"tier":4,"permissions":null}}}"#,
        r#"{"config":{"build_name":"n","tenant":null,"labels":{"a":"1","b":"2"}}}"#,
    ] {
        let (status, answer) = server.connect("CreateBuild", body).await;
        assert_eq!(
            (status, answer["buildId"].as_str()),
            (200, Some("n")),
            "{body}: {answer}"
        );
    }
}

#[tokio::test]
async fn bodies_may_be_compressed_both_ways() {
    let server = Server::start().await;
    let response = server
        .post("ListBuilds", "application/json")
        .header("content-encoding", "gzip")
        .header("accept-encoding", "gzip")
        .body(gzip(br#"{"page_size":200}"#))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    assert_eq!(response.headers()["content-encoding"], "gzip");

    let mut grpc = server
        .grpc()
        .await
        .send_compressed(CompressionEncoding::Gzip)
        .accept_compressed(CompressionEncoding::Gzip);
    let request = proto::ListBuildsRequest {
        page_size: 200,
        ..Default::default()
    };
    let answer = grpc.list_builds(request).await.unwrap();
    assert_eq!(answer.metadata().get("grpc-encoding").unwrap(), "gzip");
    assert_eq!(answer.into_inner().builds.len(), 200);
}

#[tokio::test]
async fn messages_beyond_the_limit_are_refused_however_they_are_packed() {
    let server = Server::start().await;
    let large = "x".repeat(5 << 20);
    let body = format!(r#"{{"build_id":"{large}"}}"#);
    let (status, answer) = server.connect("GetBuild", body.clone()).await;
    assert_eq!(
        (status, answer["code"].as_str()),
        (429, Some("resource_exhausted"))
    );

    let compressed = gzip(body.as_bytes());
    assert!(compressed.len() < 100_000);
    let response = server
        .post("GetBuild", "application/json")
        .header("content-encoding", "gzip")
        .body(compressed)
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 429);

    let mut grpc = server.grpc().await;
    let refused = grpc.get_build(get(&large)).await.unwrap_err();
    assert!(
        matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted),
        "{refused}"
    );
    let mut grpc = server.grpc().await.send_compressed(CompressionEncoding::Gzip);
    let refused = grpc.get_build(get(&large)).await.unwrap_err();
    assert!(
        matches!(refused.code(), Code::OutOfRange | Code::ResourceExhausted),
        "{refused}"
    );
}

#[tokio::test]
async fn answers_beyond_the_request_limit_pass() {
    let server = Server::start().await;
    let (status, answer) = server.connect("ListBuilds", r#"{"page_size":60000}"#).await;
    assert_eq!(status, 200);
    assert_eq!(answer["builds"].as_array().unwrap().len(), 60_000);
}

#[tokio::test]
async fn connect_in_protobuf_works() {
    let server = Server::start().await;
    let response = server
        .post("GetBuild", "application/proto")
        .body(get("b").encode_to_vec())
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let answer = proto::GetBuildResponse::decode(response.bytes().await.unwrap()).unwrap();
    assert_eq!(answer.build.unwrap().build_id, "b");
}

#[tokio::test]
async fn connect_streams_are_enveloped() {
    let server = Server::start().await;
    let frames = server
        .connect_stream("StreamBuildLogs", r#"{"build_id":"b"}"#)
        .await;
    let sequences: Vec<_> = frames
        .iter()
        .filter(|frame| frame.0 == 0)
        .map(|frame| frame.1["sequence"].clone())
        .collect();
    assert_eq!(sequences, ["1", "2", "3"].map(|sequence| json!(sequence)));
    assert_eq!(frames.last().unwrap(), &(2, json!({})));

    for (build, messages, code) in [
        ("fail-later", 3, "unavailable"),
        ("missing", 0, "not_found"),
        ("panic", 0, "internal"),
        ("panic-later", 3, "internal"),
    ] {
        let frames = server
            .connect_stream("StreamBuildLogs", &json!({ "build_id": build }).to_string())
            .await;
        let (flags, end) = frames.last().unwrap();
        assert_eq!((frames.len() - 1, *flags), (messages, 2), "{build}");
        assert_eq!(end["error"]["code"], code, "{build}");
    }
    let frames = server
        .connect_stream("StreamBuildLogs", r#"{"build_id":1}"#)
        .await;
    assert_eq!(frames[0].1["error"]["code"], "invalid_argument");
}

#[tokio::test]
async fn grpc_web_works() {
    let server = Server::start().await;
    let response = server
        .post("GetBuild", "application/grpc-web+proto")
        .body(envelope(&get("b").encode_to_vec()))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 200);
    let frames = frames(&response.bytes().await.unwrap());
    let answer = proto::GetBuildResponse::decode(frames[0].1.as_slice()).unwrap();
    assert_eq!(answer.build.unwrap().build_id, "b");
    let (flags, trailers) = &frames[1];
    assert_eq!(*flags, 0x80);
    assert!(
        String::from_utf8_lossy(trailers).contains("grpc-status: 0"),
        "{}",
        String::from_utf8_lossy(trailers)
    );

    let text = server
        .post("GetBuild", "application/grpc-web-text")
        .body("AAAAAAA=")
        .send()
        .await
        .unwrap();
    let text = text.bytes().await.unwrap();
    assert!(
        String::from_utf8_lossy(&text).contains("grpc-status: 12"),
        "{text:?}"
    );
}

#[tokio::test]
async fn grpc_works() {
    let server = Server::start().await;
    let mut grpc = server.grpc().await;
    let build = grpc
        .get_build(get("b"))
        .await
        .unwrap()
        .into_inner()
        .build
        .unwrap();
    assert_eq!(build.build_id, "b");
    assert_eq!(
        grpc.get_build(get("missing")).await.unwrap_err().code(),
        Code::NotFound
    );

    let lines = grpc.stream_build_logs(logs("b")).await.unwrap().into_inner();
    let sequences: Vec<_> = lines.map(|line| line.unwrap().sequence).collect().await;
    assert_eq!(sequences, [1, 2, 3]);
}

#[tokio::test]
async fn metadata_crosses_the_translation() {
    let server = Server::start().await;
    let response = server
        .post("GetBuild", "application/json")
        .header("x-from-client", "hello")
        .body(r#"{"build_id":"b"}"#)
        .send()
        .await
        .unwrap();
    let answer: serde_json::Value = response.json().await.unwrap();
    assert_eq!(answer["build"]["errorMessage"], "hello");
    let response = server
        .post("CreateBuild", "application/json")
        .body("{}")
        .send()
        .await
        .unwrap();
    assert_eq!(response.headers()["x-from-service"], "yes");
    assert!(
        response
            .headers()
            .keys()
            .all(|name| !name.as_str().starts_with("grpc-")),
        "{:?}",
        response.headers()
    );
}

#[tokio::test]
async fn a_panic_is_an_internal_error_and_the_connection_lives() {
    let server = Server::start().await;
    let (status, answer) = server.connect("GetBuild", r#"{"build_id":"panic"}"#).await;
    assert_eq!((status, answer["code"].as_str()), (500, Some("internal")));
    assert!(
        !answer.to_string().contains("script"),
        "what went wrong is for the log: {answer}"
    );

    let mut grpc = server.grpc().await;
    let refused = grpc.get_build(get("panic")).await.unwrap_err();
    assert_eq!(refused.code(), Code::Internal);
    assert!(!refused.message().contains("script"), "{refused}");
    let mut lines = grpc
        .stream_build_logs(logs("panic-later"))
        .await
        .unwrap()
        .into_inner();
    for sequence in 1..=3 {
        assert_eq!(lines.next().await.unwrap().unwrap().sequence, sequence);
    }
    assert_eq!(lines.next().await.unwrap().unwrap_err().code(), Code::Internal);
    assert!(lines.next().await.is_none());
    grpc.get_build(get("b")).await.unwrap();
}

#[tokio::test]
async fn deadlines_end_calls_of_every_protocol() {
    let server = Server::start().await;
    let response = server
        .post("GetBuild", "application/json")
        .header("connect-timeout-ms", "50")
        .body(r#"{"build_id":"never"}"#)
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 504);
    // The handler's future is dropped with the call: nothing works on for nobody.
    server.dropped.cancelled().await;

    // 4 is DEADLINE_EXCEEDED.
    let (messages, status) = raw_grpc(&server, "GetBuild", &get("never").encode_to_vec(), "50m").await;
    assert_eq!((messages, status.as_deref()), (0, Some("4")));
    let (messages, status) =
        raw_grpc(&server, "StreamBuildLogs", &logs("never").encode_to_vec(), "100m").await;
    assert_eq!((messages, status.as_deref()), (3, Some("4")));

    let body = envelope(br#"{"build_id":"never"}"#);
    let response = server
        .post("StreamBuildLogs", "application/connect+json")
        .header("connect-timeout-ms", "100")
        .body(body)
        .send()
        .await
        .unwrap();
    let frames = frames(&response.bytes().await.unwrap());
    let end: serde_json::Value = serde_json::from_slice(&frames.last().unwrap().1).unwrap();
    assert_eq!(
        (frames.len(), end["error"]["code"].as_str()),
        (4, Some("deadline_exceeded"))
    );

    for timeout in ["soon", "-1S", "123456789S"] {
        let (_, status) = raw_grpc(&server, "GetBuild", &get("b").encode_to_vec(), timeout).await;
        assert_eq!(status.as_deref(), Some("3"), "{timeout}");
    }
}

#[tokio::test]
async fn a_caller_that_goes_away_ends_its_call() {
    let server = Server::start().await;
    let mut grpc = server.grpc().await;
    let mut lines = grpc.stream_build_logs(logs("never")).await.unwrap().into_inner();
    lines.next().await.unwrap().unwrap();
    drop(lines);
    drop(grpc);
    tokio::time::timeout(Duration::from_secs(10), server.dropped.cancelled())
        .await
        .expect("the stream is dropped");
}

#[tokio::test]
async fn unknown_methods_and_content_types_are_named() {
    let server = Server::start().await;
    let (status, answer) = server.connect("Nonsense", "{}").await;
    assert_eq!((status, answer["code"].as_str()), (404, Some("unimplemented")));
    let response = server
        .post("GetBuild", "text/plain")
        .body("x")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 415);
    let response = client()
        .get(server.url("/builder.v1.BuilderService/GetBuild"))
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 405);
    let response = client().get(server.url("/")).send().await.unwrap();
    assert_eq!(response.status(), 404);
}

#[tokio::test]
async fn health_answers_over_http_grpc_and_connect() {
    let server = Server::start().await;
    let response = client().get(server.url("/health")).send().await.unwrap();
    assert_eq!(response.status(), 200);
    let report: serde_json::Value = response.json().await.unwrap();
    assert_eq!(report["status"], "healthy");
    assert_eq!(report["version"], env!("CARGO_PKG_VERSION"));
    assert!(report["uptime_seconds"].is_u64());
    for check in ["storage", "database", "registry", "assetmanager"] {
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
async fn errors_carry_details_that_both_worlds_can_decode() {
    let server = Server::start().await;
    // The guard's own error is the only one here with details: the scripted service gives none.
    let response = server
        .post("GetBuild", "application/json")
        .body(r#"{"build_id":"panic"}"#)
        .send()
        .await
        .unwrap();
    let answer: serde_json::Value = response.json().await.unwrap();
    let detail = &answer["details"][0];
    assert_eq!(detail["type"], "google.rpc.ErrorInfo");
    let id = answer["message"].as_str().unwrap().rsplit(' ').next().unwrap();
    assert!(id.starts_with("error-"), "{answer}");

    let refused = server.grpc().await.get_build(get("panic")).await.unwrap_err();
    let status = builderd::status::RpcStatus::decode(refused.details()).unwrap();
    let info = builderd::status::ErrorInfo::decode(status.details[0].value.as_slice()).unwrap();
    assert_eq!(info.reason, "INTERNAL");
    assert!(refused.message().contains(&info.metadata["error_id"]));
}

#[tokio::test]
async fn a_client_that_says_nothing_is_cut_off() {
    let limits = ConnectionLimits {
        header_read: Duration::from_millis(200),
        ..limits()
    };
    let server = Server::with(limits, 10, "healthy").await;
    for opening in [
        "",
        "P",
        "PRI * HTTP/2",
        "GET /health HTTP/1.1\r\nHost: x\r\nX-Slow: ",
    ] {
        let mut stream = TcpStream::connect(server.address).await.unwrap();
        stream.write_all(opening.as_bytes()).await.unwrap();
        let mut answer = Vec::new();
        let read = tokio::time::timeout(Duration::from_secs(10), stream.read_to_end(&mut answer)).await;
        assert!(read.is_ok(), "{opening:?}: still open");
    }
}

#[tokio::test]
async fn connections_beyond_the_cap_wait_for_their_turn() {
    let server = Server::with(
        ConnectionLimits {
            connections: 1,
            ..limits()
        },
        100,
        "healthy",
    )
    .await;
    let mut first = TcpStream::connect(server.address).await.unwrap();
    first
        .write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
        .await
        .unwrap();
    let mut byte = [0; 1];
    first.read_exact(&mut byte).await.unwrap();

    let mut second = TcpStream::connect(server.address).await.unwrap();
    second
        .write_all(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .await
        .unwrap();
    let waiting = tokio::time::timeout(Duration::from_millis(200), second.read_exact(&mut byte)).await;
    assert!(waiting.is_err(), "answered while the only place was taken");
    drop(first);
    second.read_exact(&mut byte).await.unwrap();
}

#[tokio::test]
async fn stopping_finishes_calls_and_then_cuts() {
    let limits = ConnectionLimits {
        close: Duration::from_millis(300),
        ..limits()
    };
    let server = Server::with(limits, 10, "healthy").await;
    let mut grpc = server.grpc().await;
    let mut lines = grpc.stream_build_logs(logs("never")).await.unwrap().into_inner();
    lines.next().await.unwrap().unwrap();
    server.stop.cancel();
    tokio::time::timeout(Duration::from_secs(10), server.serving)
        .await
        .expect("serving ends")
        .unwrap();
    assert!(
        TcpStream::connect(server.address).await.is_err(),
        "still listening"
    );
    tokio::time::timeout(Duration::from_secs(10), server.dropped.cancelled())
        .await
        .expect("the stream is cut");
}

fn limits() -> ConnectionLimits {
    ConnectionLimits::default()
}
