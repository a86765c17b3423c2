//! Any schedule of faults ends in the source's bytes or in a typed error, within a bound of bytes, with no slot lost.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::Mutex;

use common::*;
use oci_fetch::{Client, FetchErrorKind, Ranges};
use proptest::prelude::*;

#[derive(Debug, Clone)]
enum Fault {
    None,
    Cut(usize),
    Status(u16),
    Whole,
    WrongRange,
    RefuseRange,
    Chunked(usize),
    Garbage,
    Flip(usize),
    TooLong,
}

fn fault() -> impl Strategy<Value = Fault> {
    prop_oneof![
        4 => Just(Fault::None),
        3 => (0usize..300_000).prop_map(Fault::Cut),
        2 => prop_oneof![Just(429u16), Just(500), Just(502), Just(503), Just(401), Just(403), Just(404)].prop_map(Fault::Status),
        1 => Just(Fault::Whole),
        1 => Just(Fault::WrongRange),
        1 => Just(Fault::RefuseRange),
        1 => (0usize..300_000).prop_map(Fault::Chunked),
        1 => Just(Fault::Garbage),
        1 => (0usize..300_000).prop_map(Fault::Flip),
        1 => Just(Fault::TooLong),
    ]
}

fn apply(fault: &Fault, seen: &Seen, healthy: Reply, whole: &[u8]) -> Reply {
    let mut reply = healthy;
    match fault {
        Fault::None => reply,
        Fault::Cut(at) => reply.manner(Manner::CutAt(*at)),
        Fault::Status(status) => Reply::new(*status),
        Fault::Whole => Reply::ok("x", whole),
        Fault::WrongRange => Reply::new(206)
            .header("content-range", &format!("bytes 0-9/{}", whole.len()))
            .body(&whole[..10]),
        Fault::RefuseRange if seen.range().is_some() => Reply::new(416),
        Fault::RefuseRange => reply,
        Fault::Chunked(at) => {
            let length = reply.body.len();
            reply.body.truncate((*at).min(length));
            reply.manner(Manner::Chunked)
        }
        Fault::Garbage => Reply::raw("\u{1}garbage\r\n\r\n"),
        Fault::Flip(at) => {
            let length = reply.body.len().max(1);
            if let Some(byte) = reply.body.get_mut(at % length) {
                *byte ^= 0x10;
            }
            reply
        }
        Fault::TooLong => {
            reply.body.push(0);
            reply.manner(Manner::Chunked)
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn any_fault_schedule_ends_well(faults in proptest::collection::vec(fault(), 0..12), is_split in any::<bool>()) {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            const LENGTH: usize = 300_000;
            let image = TestImage::one_layer(LENGTH);
            let layer = image.layers[0].clone();
            let digest = oci_fetch::Digest::sha256(&layer).to_string();
            let schedule = Mutex::new(faults.clone().into_iter());
            let mut store = Store::default();
            store.publish("app", "1", &image);
            let healthy = store.clone();
            let server = Server::start(store, move |seen| {
                if !seen.path.ends_with(&digest) {
                    return None;
                }
                let fault = schedule.lock().unwrap().next().unwrap_or(Fault::None);
                Some(apply(&fault, seen, healthy.reply(seen), &layer))
            })
            .await;
            let cache = tempfile::tempdir().unwrap();
            let ranges = Ranges { connections: if is_split { 3 } else { 1 }, min_blob_bytes: 1, range_bytes: 65_536 };
            // One slot: if a fault loses it, the second pull hangs.
            let config = server.config(cache.path()).with_ranges(ranges).with_connections(1, 1);
            let client = Client::new(config).unwrap();
            let source = server.source("app:1");
            let mut last = None;
            // Each pull that fails uses up at least one fault, so the healthy rest comes in the end.
            for _ in 0..=faults.len() {
                let context = as_tenant("t");
                let pull = pull_with(&client, &source, &context);
                let result = tokio::time::timeout(std::time::Duration::from_secs(20), pull).await.expect("no hang");
                match &result {
                    Ok(layers) => assert_eq!(layers, &image.layers),
                    Err(error) => assert!(
                        matches!(
                            error.kind(),
                            FetchErrorKind::Transient
                                | FetchErrorKind::DigestMismatch
                                | FetchErrorKind::RateLimited { .. }
                                | FetchErrorKind::Unauthorized
                                | FetchErrorKind::Denied
                                | FetchErrorKind::NotFound
                                | FetchErrorKind::Protocol
                        ),
                        "{error:?}"
                    ),
                }
                let is_done = result.is_ok();
                last = Some(result);
                if is_done {
                    break;
                }
            }
            assert!(last.unwrap().is_ok());
            // Per pull at most twice the size and 4 MiB, and each pull but the last consumes a fault.
            let bound = (2 * LENGTH + (4 << 20)) * (faults.len() + 1);
            assert!(server.sent_bytes() <= bound, "{}", server.sent_bytes());
        });
    }
}
