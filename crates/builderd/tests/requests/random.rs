//! Random bodies: whatever comes, it is never said to be the service's own fault.

use proptest::{
    collection::vec,
    prelude::{BoxedStrategy, Just, Strategy, any, prop_oneof},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    NO_BUILD, Service, create,
    support::protocols::{Protocol, call_framed, encoded, framed},
};

const METHODS: [&str; 8] = [
    "CreateBuild",
    "GetBuild",
    "ListBuilds",
    "CancelBuild",
    "DeleteBuild",
    "StreamBuildLogs",
    "GetTenantQuotas",
    "GetBuildStats",
];

/// Each method with each protocol is tried so often.
const CASES: u32 = 24;

/// Bodies that are nearly in order.
fn seed(method: &str) -> Value {
    match method {
        "CreateBuild" => create(
            "/config/limits",
            json!({"max_disk_bytes": "1000", "allowed_registries": ["ghcr.io"], "timeout_seconds": 5}),
        ),
        "ListBuilds" => json!({"tenant_id": "acme", "page_size": 3, "state_filter": [1, 2]}),
        "GetBuildStats" => json!({"tenant_id": "acme", "start_time": "2026-01-01T00:00:00Z"}),
        "GetTenantQuotas" => json!({"tenant_id": "acme"}),
        _ => json!({"tenant_id": "acme", "build_id": NO_BUILD}),
    }
}

/// A body: anything, or the seed with bytes changed, removed or doubled.
fn bodies(seed: Vec<u8>) -> impl Strategy<Value = Vec<u8>> {
    let changes = vec((any::<proptest::sample::Index>(), any::<u8>(), 0..4_u8), 1..6);
    let changed = (Just(seed), changes).prop_map(|(mut body, changes)| {
        for (at, byte, how) in changes {
            if body.is_empty() {
                break;
            }
            let at = at.index(body.len());
            match how {
                0 => body[at] = byte,
                1 => drop(body.remove(at)),
                2 => body.insert(at, byte),
                _ => {
                    let copy = body[at..].to_vec();
                    body.extend(copy);
                }
            }
        }
        body
    });
    prop_oneof![1 => vec(any::<u8>(), 0..64), 4 => changed]
}

#[test]
fn no_body_is_answered_with_internal() {
    never_internal(|protocol, method| {
        let body = encoded(protocol, method, &seed(method));
        bodies(body)
            .prop_map(move |body| framed(protocol, method, &body))
            .boxed()
    });
}

#[test]
fn no_envelope_is_answered_with_internal() {
    never_internal(|protocol, method| {
        let body = framed(protocol, method, &encoded(protocol, method, &seed(method)));
        // The head, mostly: flags and length.
        let head = vec((0..6_usize, any::<u8>()), 1..4);
        let changed = (Just(body), head).prop_map(|(mut body, changes)| {
            for (at, byte) in changes {
                if let Some(old) = body.get_mut(at) {
                    *old = byte;
                }
            }
            body
        });
        let whole = bodies(framed(
            protocol,
            method,
            &encoded(protocol, method, &seed(method)),
        ));
        prop_oneof![3 => changed, 1 => whole].boxed()
    });
}

/// Calls each method by each protocol with random bodies, envelopes included.
fn never_internal(bodies: impl Fn(Protocol, &'static str) -> BoxedStrategy<Vec<u8>>) {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    // No registry may be pulled from, so that nothing becomes a build.
    let service = runtime.block_on(Service::start(&[(
        "DOCKER_ALLOWED_REGISTRIES",
        "nowhere.invalid",
    )]));
    let address = service.daemon.address();
    for protocol in Protocol::ALL {
        for method in METHODS {
            let config = Config {
                cases: CASES,
                failure_persistence: None,
                ..Config::default()
            };
            TestRunner::new_with_rng(config, TestRng::deterministic_rng(RngAlgorithm::ChaCha))
                .run(&bodies(protocol, method), |body| {
                    let answer = runtime.block_on(call_framed(address, protocol, method, &[], body.clone()));
                    if let Err(status) = answer {
                        let fault = matches!(status.code(), Code::Internal | Code::Unknown | Code::DataLoss);
                        proptest::prop_assert!(!fault, "{:?} {}: {}: {:?}", protocol, method, status, body);
                    }
                    Ok(())
                })
                .unwrap();
        }
    }
    runtime.block_on(service.daemon.shutdown(std::time::Duration::ZERO));
}

/// What is not a body in an envelope at all: flags, lengths and compression that are not true.
#[tokio::test]
async fn no_framing_is_answered_with_internal() {
    let service = Service::start(&[]).await;
    let address = service.daemon.address();
    for (name, frame) in [
        ("nothing", vec![]),
        ("half a head", vec![0, 0, 0]),
        ("a body cut short", vec![0, 0, 0, 0, 9, 1, 2]),
        ("more than there is", vec![0, 0xff, 0xff, 0xff, 0xff]),
        ("compressed, with no compression named", vec![1, 0, 0, 0, 1, 0]),
        ("unknown flags", vec![0x7f, 0, 0, 0, 1, 0]),
        ("two messages", vec![0, 0, 0, 0, 0, 0, 0, 0, 0, 0]),
        ("an end before a message", vec![2, 0, 0, 0, 2, b'{', b'}']),
    ] {
        for protocol in [Protocol::Grpc, Protocol::GrpcWeb] {
            for method in METHODS {
                let answer = call_framed(address, protocol, method, &[], frame.clone()).await;
                let code = answer.as_ref().map_or_else(tonic::Status::code, |()| Code::Ok);
                assert!(
                    !matches!(code, Code::Internal | Code::Unknown),
                    "{protocol:?} {method}, {name}: {answer:?}"
                );
            }
        }
        for protocol in [Protocol::ConnectJson, Protocol::ConnectProto] {
            let method = "StreamBuildLogs";
            let answer = call_framed(address, protocol, method, &[], frame.clone()).await;
            let code = answer.as_ref().map_or_else(tonic::Status::code, |()| Code::Ok);
            assert!(
                !matches!(code, Code::Internal | Code::Unknown),
                "{protocol:?} {method}, {name}: {answer:?}"
            );
        }
    }
}

/// What is wrong before any message is, said as the caller's mistake and by its name.
#[tokio::test]
async fn mistakes_of_framing_and_time_limits_are_named() {
    let service = Service::start(&[]).await;
    let address = service.daemon.address();
    let compressed = [1, 0, 0, 0, 2, b'{', b'}'];
    let end = [2, 0, 0, 0, 2, b'{', b'}'];
    let trailers = [0x80, 0, 0, 0, 0];
    let unknown = [0x40, 0, 0, 0, 0];
    let late = framed(
        Protocol::ConnectProto,
        "StreamBuildLogs",
        &encoded(
            Protocol::ConnectProto,
            "StreamBuildLogs",
            &seed("StreamBuildLogs"),
        ),
    );
    let late = [late, end.to_vec()].concat();
    let json = seed("GetBuild").to_string().into_bytes();
    let log = framed(Protocol::ConnectJson, "StreamBuildLogs", &json);
    let web = framed(
        Protocol::GrpcWeb,
        "GetBuild",
        &encoded(Protocol::GrpcWeb, "GetBuild", &seed("GetBuild")),
    );
    let none: &[(&str, &str)] = &[];
    let web_encoding = &[("grpc-encoding", "identity")][..];
    for (name, protocol, method, headers, body, expected) in [
        (
            "compressed over Connect",
            Protocol::ConnectJson,
            "StreamBuildLogs",
            none,
            compressed.to_vec(),
            "connect-content-encoding",
        ),
        (
            "compressed over gRPC-Web",
            Protocol::GrpcWeb,
            "GetBuild",
            none,
            compressed.to_vec(),
            "grpc-encoding",
        ),
        (
            "compressed as identity",
            Protocol::GrpcWeb,
            "StreamBuildLogs",
            web_encoding,
            compressed.to_vec(),
            "grpc-encoding",
        ),
        (
            "an end",
            Protocol::ConnectProto,
            "StreamBuildLogs",
            none,
            end.to_vec(),
            "0x02",
        ),
        (
            "trailers",
            Protocol::GrpcWeb,
            "GetBuild",
            none,
            trailers.to_vec(),
            "0x80",
        ),
        (
            "unknown flags",
            Protocol::GrpcWeb,
            "StreamBuildLogs",
            none,
            unknown.to_vec(),
            "0x40",
        ),
        (
            "a time limit over Connect",
            Protocol::ConnectJson,
            "GetBuild",
            &[("connect-timeout-ms", "-5")][..],
            json.clone(),
            "connect-timeout-ms",
        ),
        (
            "a time limit over a stream of Connect",
            Protocol::ConnectJson,
            "StreamBuildLogs",
            &[("connect-timeout-ms", "5 s")][..],
            log,
            "connect-timeout-ms",
        ),
        (
            "a time limit over gRPC-Web",
            Protocol::GrpcWeb,
            "GetBuild",
            &[("grpc-timeout", "-5S")][..],
            web,
            "grpc-timeout",
        ),
    ] {
        let status = call_framed(address, protocol, method, headers, body)
            .await
            .unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{name}: {status}");
        assert!(status.message().contains(expected), "{name}: {status}");
    }
    let second = call_framed(address, Protocol::ConnectProto, "StreamBuildLogs", none, late).await;
    let second = second.unwrap_err();
    assert_eq!(
        second.code(),
        Code::Unimplemented,
        "more than one message: {second}"
    );
}
