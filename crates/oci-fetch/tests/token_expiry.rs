//! Tokens that come to their end: replaced before it where the client can know, and after a refusal where it cannot.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use common::*;
use oci_fetch::{Client, Ranges};
use tokio::net::TcpListener;

const LENGTH: usize = 600_000;

/// What the token service says: `token-1`, `token-2` and so on.
fn token_document(number: usize, expires_in: Option<u64>) -> String {
    let mut document = serde_json::json!({"token": format!("token-{number}")});
    if let Some(seconds) = expires_in {
        document["expires_in"] = seconds.into();
    }
    document.to_string()
}

/// A registry that wants tokens and has the image. `fault` is asked about each request with a token, whose number it gets
/// together with the number of the newest token.
async fn start(
    image: &TestImage,
    expires_in: Option<u64>,
    fault: impl Fn(&Seen, usize, usize) -> Option<Reply> + Send + Sync + 'static,
) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let challenge = format!(
        r#"Bearer realm="http://{}/token",service="test""#,
        listener.local_addr().unwrap()
    );
    let mut store = Store::default();
    store.publish("app", "1", image);
    let issued = AtomicUsize::new(0);
    Server::on(listener, store, move |seen| {
        if seen.path.starts_with("/token") {
            let number = issued.fetch_add(1, Ordering::SeqCst) + 1;
            return Some(Reply::ok("application/json", token_document(number, expires_in)));
        }
        let token = seen
            .authorization()
            .and_then(|value| value.strip_prefix("Bearer token-"));
        match token {
            None => Some(Reply::challenge(&challenge)),
            Some(number) => match fault(seen, number.parse().unwrap(), issued.load(Ordering::SeqCst)) {
                Some(reply) if reply.status == 401 => Some(Reply::challenge(&challenge)),
                reply => reply,
            },
        }
    })
}

/// The numbers of the tokens in these requests; 0 for a request of a token.
fn tokens(seen: &[Seen]) -> Vec<usize> {
    seen.iter()
        .map(|seen| match seen.authorization() {
            Some(value) => value.strip_prefix("Bearer token-").unwrap().parse().unwrap(),
            None => {
                assert!(seen.path.starts_with("/token"), "{seen:#?}");
                0
            }
        })
        .collect()
}

/// Moves the client's clock. It stands still no longer than that: beside a real socket, a clock that stands jumps to the
/// next timeout.
async fn advance(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

#[tokio::test]
async fn a_token_is_replaced_before_it_expires_and_not_earlier() {
    let image = TestImage::new(&(0..6).map(|seed| noise(1000, seed)).collect::<Vec<_>>());
    for (expires_in, lifetime_seconds) in [
        (Some(300), 300),
        // What the specification says of a token without a time, and the least that is believed.
        (None, 60),
        (Some(0), 60),
        // The most that is believed.
        (Some(u64::MAX), 86_400),
    ] {
        let server = start(&image, expires_in, |_, _, _| None).await;
        let cache = tempfile::tempdir().unwrap();
        let client = server.client(cache.path());
        let found = resolve(&client, &server.source("app:1")).await.unwrap();
        let open = async |index: usize| {
            let blob = client.open_layer(&found, index).await.unwrap();
            assert_eq!(
                read(&blob).await.unwrap().0,
                image.layers[index],
                "{expires_in:?}"
            );
        };
        open(0).await;

        advance(Duration::from_secs(lifetime_seconds - 40)).await;
        let before = server.log().len();
        open(1).await;
        assert_eq!(tokens(&server.log()[before..]), [1], "{expires_in:?}: time left");

        // The registry would still take the old one, but perhaps no more at the end of a request.
        advance(Duration::from_secs(20)).await;
        let before = server.log().len();
        futures_util::future::join_all((2..6).map(open)).await;
        assert_eq!(
            tokens(&server.log()[before..]),
            [0, 2, 2, 2, 2],
            "{expires_in:?}: near its end, fetched once for four that wait"
        );
    }
}

#[tokio::test]
async fn a_resume_inside_a_blob_gets_a_new_token_and_goes_on_where_it_broke() {
    const CUT_AT: usize = 40_000;
    let image = TestImage::one_layer(LENGTH);
    for (status, connections) in [(401, 1), (403, 1), (401, 3), (403, 3)] {
        let case = format!("{status}, {connections} connections");
        // Over several connections, the first answer shows that ranges work; the one behind it is cut.
        let cut_nth = usize::from(connections > 1);
        let layer = image.layers[0].clone();
        let valid_from = AtomicUsize::new(0);
        let server = start(&image, None, move |seen, token, newest| {
            if token < valid_from.load(Ordering::SeqCst) {
                return Some(Reply::new(status));
            }
            if !seen
                .path
                .ends_with(&oci_fetch::Digest::sha256(&layer).to_string())
                || seen.nth != cut_nth
            {
                return None;
            }
            // The time of all tokens is over with the first bytes of this answer.
            valid_from.store(newest + 1, Ordering::SeqCst);
            let mut healthy = Store::default();
            healthy.blob("app", &layer);
            Some(healthy.reply(seen).manner(Manner::CutAt(CUT_AT)))
        })
        .await;
        let cache = tempfile::tempdir().unwrap();
        let config = server.config(cache.path()).with_ranges(Ranges {
            connections,
            min_blob_bytes: 1,
            range_bytes: 65_536,
            one_connection_time: Duration::ZERO,
        });
        let pulled = pull_with(
            &Client::new(config).unwrap(),
            &server.source("app:1"),
            &as_tenant("t"),
        )
        .await;
        assert_eq!(pulled.unwrap(), image.layers, "{case}");

        let requests = server.layer_requests(&image);
        let (first, last) = requests[cut_nth].range().unwrap_or((0, Some(LENGTH - 1)));
        let resume = Some((first + CUT_AT, last));
        let resumes: Vec<_> = requests
            .iter()
            .filter(|seen| seen.range() == resume)
            .cloned()
            .collect();
        // Of several connections another may have been refused first; the resume then has the new token at once.
        let sent = tokens(&resumes);
        assert!(
            sent == [1, 2] || connections > 1 && sent == [2],
            "{case}: {sent:?} {requests:#?}"
        );
        let n_tokens = server
            .log()
            .iter()
            .filter(|seen| seen.path.starts_with("/token"))
            .count();
        assert_eq!(n_tokens, 2, "{case}: once for all connections");
        let expected = LENGTH + image.config.len() + image.manifest.len() + 2 * token_document(1, None).len();
        assert_eq!(server.sent_bytes(), expected, "{case}: no byte twice");
    }
}
