//! Any schedule of faults ends in the source's bytes or in a typed error, within a bound of bytes, with no slot lost.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::*;
use oci_fetch::{Client, FetchErrorKind, Ranges};
use proptest::prelude::*;
use tokio::net::TcpListener;

const LENGTH: usize = 300_000;
const RANGE: usize = 65_536;

/// How long the clients of this test wait for a server that does not get on. Where the machine is too busy for it, a healthy
/// answer fails like a stalled one, which this test allows.
const PATIENCE: Duration = Duration::from_millis(300);

#[derive(Debug, Clone)]
enum Fault {
    None,
    Cut(usize),
    Stall(usize),
    Drip,
    Hang,
    Status(u16),
    RateLimit(&'static str),
    Whole,
    WrongRange,
    RefuseRange,
    Chunked(usize),
    Garbage,
    Flip(usize),
    TooLong,
    Redirect,
    RedirectInside,
    /// No token is good any more; how the registry says so.
    Expire(u16),
}

fn fault() -> impl Strategy<Value = Fault> {
    let status = prop_oneof![
        Just(500u16),
        Just(502),
        Just(503),
        Just(401),
        Just(403),
        Just(404)
    ];
    prop_oneof![
        4 => Just(Fault::None),
        3 => (0..LENGTH).prop_map(Fault::Cut),
        1 => (0..LENGTH).prop_map(Fault::Stall),
        1 => Just(Fault::Drip),
        1 => Just(Fault::Hang),
        2 => status.prop_map(Fault::Status),
        1 => prop_oneof![Just("0"), Just("3600"), Just("soon")].prop_map(Fault::RateLimit),
        1 => Just(Fault::Whole),
        1 => Just(Fault::WrongRange),
        1 => Just(Fault::RefuseRange),
        1 => (0..LENGTH).prop_map(Fault::Chunked),
        1 => Just(Fault::Garbage),
        1 => (0..LENGTH).prop_map(Fault::Flip),
        1 => Just(Fault::TooLong),
        2 => Just(Fault::Redirect),
        1 => Just(Fault::RedirectInside),
        2 => prop_oneof![Just(401), Just(403)].prop_map(Fault::Expire),
    ]
}

fn apply(fault: &Fault, seen: &Seen, healthy: Reply, whole: &[u8]) -> Reply {
    let mut reply = healthy;
    match fault {
        Fault::None => reply,
        Fault::Cut(at) => reply.manner(Manner::CutAt(*at)),
        Fault::Stall(at) => reply.manner(Manner::StallAt(*at)),
        Fault::Drip => reply.manner(Manner::Drip(Duration::from_millis(5))),
        Fault::Hang => Reply::raw("HTTP/1.1 200 OK\r\n").manner(Manner::RawThenHang),
        Fault::Status(status) | Fault::Expire(status) => Reply::new(*status),
        Fault::RateLimit(after) => Reply::new(429).header("retry-after", after),
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
        // The other path is under the same schedule: two in a row make a chain, six a loop that is too long.
        Fault::Redirect => {
            let (_, digest) = seen.path.rsplit_once('/').unwrap();
            Reply::redirect(&format!("/v2/elsewhere/blobs/{digest}"))
        }
        Fault::RedirectInside => Reply::redirect("http://169.254.169.254/latest"),
    }
}

/// A schedule of the next answers to requests for layers, the layers' digests, and the tokens without which nothing is given.
struct Schedule {
    faults: Mutex<std::vec::IntoIter<Fault>>,
    layers: Vec<(String, Vec<u8>)>,
    challenge: String,
    issued: AtomicUsize,
    /// Tokens with a smaller number have expired.
    valid_from: AtomicUsize,
}

impl Schedule {
    fn answer(&self, seen: &Seen, healthy: &Store) -> Option<Reply> {
        if seen.path.starts_with("/token") {
            let number = self.issued.fetch_add(1, Ordering::SeqCst);
            return Some(Reply::ok("application/json", token_document(number)));
        }
        // Storage behind a redirect knows no tokens.
        if seen.path.starts_with("/v2/app/") {
            let token = seen
                .authorization()
                .and_then(|value| value.strip_prefix("Bearer "));
            let number = token.and_then(|token| token.parse::<usize>().ok());
            if number.is_none_or(|number| number < self.valid_from.load(Ordering::SeqCst)) {
                return Some(Reply::challenge(&self.challenge));
            }
        }
        let (_, layer) = self
            .layers
            .iter()
            .find(|(digest, _)| seen.path.ends_with(digest))?;
        let fault = self.faults.lock().unwrap().next().unwrap_or(Fault::None);
        if matches!(fault, Fault::Expire(_)) {
            self.valid_from
                .store(self.issued.load(Ordering::SeqCst), Ordering::SeqCst);
            if matches!(fault, Fault::Expire(401)) {
                return Some(Reply::challenge(&self.challenge));
            }
        }
        Some(apply(&fault, seen, healthy.reply(seen), layer))
    }
}

fn token_document(number: usize) -> String {
    format!(r#"{{"token":"{number:03}"}}"#)
}

fn is_a_fault_of_the_server(kind: &FetchErrorKind) -> bool {
    matches!(
        kind,
        FetchErrorKind::Transient
            | FetchErrorKind::DigestMismatch
            | FetchErrorKind::RateLimited { .. }
            | FetchErrorKind::Unauthorized
            | FetchErrorKind::Denied
            | FetchErrorKind::NotFound
            | FetchErrorKind::Policy
            | FetchErrorKind::Protocol
    )
}

/// How many pulls it takes.
async fn ends_well(
    faults: Vec<Fault>,
    slots: usize,
    connections: usize,
    one_connection_time: Duration,
    patience: Duration,
) -> usize {
    // One layer more than there are slots: a slot that somebody keeps is missed.
    let layers: Vec<_> = (0..=slots as u64).map(|seed| noise(LENGTH, seed)).collect();
    let image = TestImage::new(&layers);
    let n_faults = faults.len();
    let mut store = Store::default();
    store.publish("app", "1", &image);
    store.publish("elsewhere", "1", &image);
    let healthy = store.clone();
    let named = |layer: &Vec<u8>| (oci_fetch::Digest::sha256(layer).to_string(), layer.clone());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let realm = format!("http://{}/token", listener.local_addr().unwrap());
    let schedule = Schedule {
        faults: Mutex::new(faults.into_iter()),
        layers: layers.iter().map(named).collect(),
        challenge: format!(r#"Bearer realm="{realm}",service="test""#),
        issued: AtomicUsize::new(0),
        valid_from: AtomicUsize::new(0),
    };
    let server = Server::on(listener, store, move |seen| schedule.answer(seen, &healthy));
    let cache = tempfile::tempdir().unwrap();
    let ranges = Ranges {
        connections,
        min_blob_bytes: 1,
        range_bytes: RANGE as u64,
        one_connection_time,
    };
    let config = quick(server.config(cache.path()))
        .with_timeouts(oci_fetch::Timeouts {
            header: patience,
            no_progress: patience,
            ..oci_fetch::Timeouts::default()
        })
        .with_ranges(ranges)
        .with_connections(slots, slots);
    let client = Client::new(config).unwrap();
    let source = server.source("app:1");
    let mut pulls = 0;
    // A pull that fails has met at least one fault, so the healthy rest comes; a few more for a busy machine.
    let pulled = loop {
        pulls += 1;
        let context = as_tenant("t");
        let pull = pull_with(&client, &source, &context);
        let result = tokio::time::timeout(LIMIT, pull).await.expect("no hang");
        match result {
            Ok(pulled) => break pulled,
            Err(error) => assert!(is_a_fault_of_the_server(error.kind()), "{error:?}"),
        }
        assert!(pulls <= n_faults + 10, "no pull comes through");
    };
    assert_eq!(pulled, image.layers);
    // One token to begin with, and at most one for a fault that may mean that it has expired.
    let tokens = server
        .log()
        .iter()
        .filter(|seen| seen.path.starts_with("/token"))
        .count();
    assert!((1..=1 + n_faults).contains(&tokens), "{tokens} tokens");
    // Each byte once. A fault costs at most the answer that it spoils and, since a blob without ranges starts over, what was
    // there of the blob; a pull that fails gives up what its other layers have under way, in as many slots.
    let documents = image.config.len() + image.manifest.len();
    let bound = pulls * documents
        + tokens * token_document(0).len()
        + layers.len() * LENGTH
        + n_faults * 2 * (LENGTH + 1)
        + (pulls - 1) * slots * (LENGTH + 1);
    assert!(server.sent_bytes() <= bound, "{} of {bound}", server.sent_bytes());
    pulls
}

fn run<T>(test: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = builder.worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(test)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, max_shrink_iters: 100, ..ProptestConfig::default() })]

    #[test]
    fn any_fault_schedule_ends_well(
        faults in proptest::collection::vec(fault(), 0..12),
        slots in 1usize..=3,
        connections in prop_oneof![Just(1usize), Just(3)],
        one_connection_seconds in prop_oneof![Just(0), Just(3600)],
    ) {
        run(ends_well(faults, slots, connections, Duration::from_secs(one_connection_seconds), PATIENCE));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, max_shrink_iters: 100, ..ProptestConfig::default() })]

    /// Each of these faults is made good within the pull: fewer cuts than a blob may be tried again, and tokens that expire
    /// once, wherever that is.
    #[test]
    fn cuts_and_an_expiry_fail_no_pull(
        cuts in proptest::collection::vec((0..LENGTH).prop_map(Fault::Cut), 0..=3),
        healthy in 0usize..=4,
        expiry in prop_oneof![Just(401), Just(403)].prop_map(Fault::Expire),
        place in any::<proptest::sample::Index>(),
        slots in 1usize..=3,
        connections in prop_oneof![Just(1usize), Just(3)],
    ) {
        let mut faults = vec![Fault::None; healthy];
        faults.extend(cuts);
        faults.insert(place.index(faults.len() + 1), expiry);
        prop_assert_eq!(run(ends_well(faults, slots, connections, Duration::ZERO, LIMIT)), 1);
    }
}
