//! The service port as clients of every protocol meet it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod support;

use std::{io::Write as _, time::Duration};

use builderd::proto;
use flate2::{Compression, write::GzEncoder};
use futures_util::StreamExt as _;
use prost::Message as _;
use serde_json::json;
use support::{
    Server, client, envelope, frames,
    protocols::{Protocol, call, encoded},
    raw_grpc,
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
async fn messages_beyond_the_limit_are_refused_by_every_protocol() {
    let server = Server::start().await;
    let body = serde_json::json!({ "build_id": "x".repeat(5 << 20) });
    for method in ["GetBuild", "StreamBuildLogs"] {
        for protocol in Protocol::ALL {
            let message = encoded(protocol, method, &body);
            let refused = call(server.address, protocol, method, &[], message)
                .await
                .unwrap_err();
            assert_eq!(
                refused.code(),
                Code::ResourceExhausted,
                "{protocol:?} {method}: {refused}"
            );
        }
    }
    // What is small as it comes and large as it is.
    let compressed = gzip(body.to_string().as_bytes());
    assert!(compressed.len() < 100_000);
    let response = server
        .post("GetBuild", "application/json")
        .header("content-encoding", "gzip")
        .body(compressed)
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), 429);
    let mut grpc = server.grpc().await.send_compressed(CompressionEncoding::Gzip);
    let refused = grpc.get_build(get(&"x".repeat(5 << 20))).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused}");
}

#[tokio::test]
async fn a_body_that_is_no_message_is_the_callers_mistake() {
    let server = Server::start().await;
    for method in ["GetBuild", "StreamBuildLogs"] {
        for protocol in [Protocol::Grpc, Protocol::GrpcWeb, Protocol::ConnectProto] {
            // A field of 100 bytes, of which none is there.
            let refused = call(server.address, protocol, method, &[], vec![0x0a, 100])
                .await
                .unwrap_err();
            assert_eq!(
                refused.code(),
                Code::InvalidArgument,
                "{protocol:?} {method}: {refused}"
            );
            assert!(refused.message().contains("cannot be read"), "{refused}");
        }
    }
}
