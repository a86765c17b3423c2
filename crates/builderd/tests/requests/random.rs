//! Random bodies: whatever comes, it is never said to be the service's own fault.

use proptest::{
    collection::vec,
    prelude::{Just, Strategy, any, prop_oneof},
    test_runner::{Config, RngAlgorithm, TestRng, TestRunner},
};
use serde_json::{Value, json};
use tonic::Code;

use crate::{
    NO_BUILD, Service, create,
    support::protocols::{Protocol, call, encoded},
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
                .run(&bodies(encoded(protocol, method, &seed(method))), |body| {
                    let answer = runtime.block_on(call(address, protocol, method, &[], body.clone()));
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

/// Where no compression is named, the specifications themselves want INTERNAL for this (gRPC's "Compression", which
/// Connect follows), and the side of Connect and gRPC-Web keeps to it.
fn says_compressed(frame: &[u8]) -> bool {
    frame.first().is_some_and(|flags| flags & 1 == 1)
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
            if protocol == Protocol::GrpcWeb && says_compressed(&frame) {
                continue;
            }
            for method in METHODS {
                let answer =
                    crate::support::protocols::call_framed(address, protocol, method, &[], frame.clone())
                        .await;
                let code = answer.as_ref().map_or_else(tonic::Status::code, |()| Code::Ok);
                assert!(
                    !matches!(code, Code::Internal | Code::Unknown),
                    "{protocol:?} {method}, {name}: {answer:?}"
                );
            }
        }
        for protocol in [Protocol::ConnectJson, Protocol::ConnectProto] {
            if says_compressed(&frame) {
                continue;
            }
            let method = "StreamBuildLogs";
            let answer =
                crate::support::protocols::call_framed(address, protocol, method, &[], frame.clone()).await;
            let code = answer.as_ref().map_or_else(tonic::Status::code, |()| Code::Ok);
            assert!(
                !matches!(code, Code::Internal | Code::Unknown),
                "{protocol:?} {method}, {name}: {answer:?}"
            );
        }
    }
}
