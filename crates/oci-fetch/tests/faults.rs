//! Registries that break, lie, stall and overdo it: each ends in the right bytes or in an error of the right kind.
//!
//! What registries and whoever sits before them have been seen to do, and the test of each; those without a file are here.
//!
//! | fault | test |
//! |---|---|
//! | cut at a byte; cut again and again | `a_cut_body_goes_on_where_it_broke`, `a_registry_that_never_gets_through_is_given_up` |
//! | stall; slow drip; no answer | `a_stalled_body_is_broken_off_and_goes_on`, `a_dripping_body_counts_as_stalled`, `a_silent_registry_times_out` |
//! | wrong `Content-Range` | `a_wrong_content_range_is_not_believed` |
//! | 206 → 200 | `a_range_answered_with_the_whole_is_taken_from_where_it_matters`, `a_server_without_ranges_is_read_in_one_piece` |
//! | 416 | `a_refused_range_is_fetched_from_the_start` |
//! | 401 and 403 in mid-pull | `auth.rs`: `a_token_that_expires_in_mid_pull_is_replaced`, `a_fresh_token_that_is_refused_…` |
//! | 401 and 403 on the resume of a cut blob | `token_expiry.rs`: `a_resume_inside_a_blob_gets_a_new_token_and_goes_on_where_it_broke` |
//! | a token whose time runs out | `token_expiry.rs`: `a_token_is_replaced_before_it_expires_and_not_earlier` |
//! | 429 with seconds, with a date, too long | `rate_limits_are_waited_for_in_both_forms`, `a_long_rate_limit_fails_at_once_and_says_until_when` |
//! | 5xx | `passing_server_errors_are_retried_and_lasting_ones_reported` |
//! | redirect chains, loops, to literals in odd forms, without a location | `redirects.rs`: `redirect_loops_chains_and_bad_locations_end` |
//! | redirect across hosts | `redirects.rs`: `redirects_carry_no_credential_to_another_origin`, `a_challenge_from_behind_a_redirect_is_not_answered` |
//! | redirect out of TLS | `src/net/mod.rs`: `a_redirect_leads_to_one_place_and_never_out_of_tls` |
//! | a name that turns to a private address | `redirects.rs`: `a_name_that_turns_to_a_private_address_is_not_connected_to` |
//! | `Content-Encoding` nobody asked for | `documents.rs`: `a_content_encoding_nobody_asked_for_is_refused` |
//! | chunks without a length, short, long | `a_chunked_body_that_ends_early_goes_on_too`, `one_byte_too_many_in_chunks_is_noticed` |
//! | wrong bytes; lying sizes | `wrong_bytes_are_a_digest_mismatch_and_leave_nothing`, `lying_sizes_are_refused_without_reading_on` |
//! | garbage, two lengths, huge headers | `documents.rs`: `garbage_is_transient_and_huge_headers_are_bounded` |
//! | wrong `Content-Type` and other lies of a manifest | `documents.rs`: `manifests_that_lie_about_themselves_are_refused` |
//! | manifest bomb; endless error body | `documents.rs`: `documents_are_bounded`, `an_endless_error_body_is_not_read_on` |
//! | realm inside or elsewhere; endless token | `auth.rs`: `a_realm_elsewhere_gets_no_secret_and_no_connection_inside`, `token_documents_are_bounded_and_checked` |
//! | a cold pull-through cache | `real_registry/main.rs`: `a_cold_pull_through_cache_answers_ranges_with_the_whole` |
//! | a mirror that breaks in mid-layer | `mirrors.rs`: `a_mirror_that_breaks_in_mid_layer_is_replaced_by_the_registry` |
//! | any of them in any order | `schedule.rs`: `any_fault_schedule_ends_well` |
//! | cuts, and tokens that expire among them | `schedule.rs`: `cuts_and_an_expiry_fail_no_pull` |
//!
//! `Link` headers are not followed at all: nothing here asks for lists.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use oci_fetch::{Client, FetchErrorKind, Ranges};
use tokio::net::TcpListener;

const LENGTH: usize = 600_000;

#[tokio::test]
async fn a_healthy_registry_is_asked_once_for_each_thing() {
    let image = TestImage::new(&[noise(LENGTH, 1), noise(10, 2), noise(LENGTH, 1), Vec::new()]);
    let server = Server::with_image(&image, |_| None).await;
    assert_eq!(pull(&server).await.unwrap(), image.layers);
    // Manifest, config, two distinct layers; the empty one needs no request.
    assert_eq!(server.log().len(), 4, "{:#?}", server.log());
}

#[tokio::test]
async fn a_cut_body_goes_on_where_it_broke() {
    let image = TestImage::one_layer(LENGTH);
    let server = Server::with_image(
        &image,
        on_layer(&image, |seen, layer| {
            (seen.nth == 0).then(|| Reply::ok("x", layer).manner(Manner::CutAt(200_000)))
        }),
    )
    .await;
    assert_eq!(pull(&server).await.unwrap(), image.layers);
    let requests = server.layer_requests(&image);
    assert_eq!(requests.len(), 2);
    assert_eq!(requests[1].range(), Some((200_000, Some(LENGTH - 1))));
}

#[tokio::test]
async fn a_chunked_body_that_ends_early_goes_on_too() {
    let image = TestImage::one_layer(LENGTH);
    let server = Server::with_image(
        &image,
        on_layer(&image, |seen, layer| {
            (seen.nth == 0).then(|| Reply::ok("x", &layer[..200_000]).manner(Manner::Chunked))
        }),
    )
    .await;
    assert_eq!(pull(&server).await.unwrap(), image.layers);
    assert_eq!(
        server.layer_requests(&image)[1].range(),
        Some((200_000, Some(LENGTH - 1)))
    );
}

/// Where a server that does not get on is what is tested.
async fn pull_impatiently(server: &Server) -> Result<Vec<Vec<u8>>, oci_fetch::FetchError> {
    let cache = tempfile::tempdir().unwrap();
    let client = Client::new(impatient(server.config(cache.path()))).unwrap();
    pull_with(&client, &server.source("app:1"), &as_tenant("t")).await
}

#[tokio::test]
async fn a_stalled_body_is_broken_off_and_goes_on() {
    let image = TestImage::one_layer(LENGTH);
    let server = Server::with_image(
        &image,
        on_layer(&image, |seen, layer| {
            (seen.nth == 0).then(|| Reply::ok("x", layer).manner(Manner::StallAt(200_000)))
        }),
    )
    .await;
    assert_eq!(pull_impatiently(&server).await.unwrap(), image.layers);
}

#[tokio::test]
async fn a_dripping_body_counts_as_stalled() {
    let image = TestImage::one_layer(LENGTH);
    let server = Server::with_image(
        &image,
        on_layer(&image, |_, layer| {
            Some(Reply::ok("x", layer).manner(Manner::Drip(Duration::from_millis(20))))
        }),
    )
    .await;
    assert_eq!(kind(pull_impatiently(&server).await), FetchErrorKind::Transient);
    assert_eq!(
        server.layer_requests(&image).len(),
        4,
        "as many as the retry policy allows"
    );
}

#[tokio::test]
async fn a_registry_that_never_gets_through_is_given_up() {
    let image = TestImage::one_layer(LENGTH);
    let server = Server::with_image(
        &image,
        on_layer(&image, |seen, layer| {
            let start = seen.range().map_or(0, |(first, _)| first);
            Some(if start == 0 {
                Reply::ok("x", layer).manner(Manner::CutAt(100))
            } else {
                Reply::new(206)
                    .header(
                        "content-range",
                        &format!("bytes {start}-{}/{}", layer.len() - 1, layer.len()),
                    )
                    .body(&layer[start..])
                    .manner(Manner::CutAt(100))
            })
        }),
    )
    .await;
    assert_eq!(kind(pull(&server).await), FetchErrorKind::Transient);
    assert_eq!(server.layer_requests(&image).len(), 4);
}

#[tokio::test]
async fn a_wrong_content_range_is_not_believed() {
    for header in [
        "bytes 0-99/600000",
        "bytes 200001-599999/600000",
        "bytes 200000-600000/600001",
        "bytes 200000-599998/*/",
        "items 200000-599999/600000",
        "",
    ] {
        let image = TestImage::one_layer(LENGTH);
        let server = Server::with_image(
            &image,
            on_layer(&image, move |seen, layer| match (seen.nth, seen.range()) {
                (0, _) => Some(Reply::ok("x", layer).manner(Manner::CutAt(200_000))),
                (_, Some(_)) => {
                    let reply = Reply::new(206).body(vec![0x55; 400_000]);
                    Some(if header.is_empty() {
                        reply
                    } else {
                        reply.header("content-range", header)
                    })
                }
                _ => None,
            }),
        )
        .await;
        match pull(&server).await {
            Ok(layers) => assert_eq!(layers, image.layers, "{header}"),
            // A total that contradicts the manifest cannot be made good.
            Err(error) => assert_eq!(error.kind(), &FetchErrorKind::DigestMismatch, "{header}"),
        }
    }
}

#[tokio::test]
async fn a_range_answered_with_the_whole_is_taken_from_where_it_matters() {
    let image = TestImage::one_layer(LENGTH);
    let server = Server::with_image(
        &image,
        on_layer(&image, |seen, layer| {
            let manner = if seen.nth == 0 {
                Manner::CutAt(200_000)
            } else {
                Manner::Whole
            };
            Some(Reply::ok("x", layer).manner(manner))
        }),
    )
    .await;
    assert_eq!(pull(&server).await.unwrap(), image.layers);
    assert_eq!(server.layer_requests(&image).len(), 2);
}

#[tokio::test]
async fn a_refused_range_is_fetched_from_the_start() {
    let image = TestImage::one_layer(LENGTH);
    let server = Server::with_image(
        &image,
        on_layer(&image, |seen, layer| match (seen.nth, seen.range()) {
            (0, _) => Some(Reply::ok("x", layer).manner(Manner::CutAt(200_000))),
            (_, Some(_)) => Some(Reply::new(416)),
            _ => None,
        }),
    )
    .await;
    assert_eq!(pull(&server).await.unwrap(), image.layers);
    assert_eq!(server.layer_requests(&image).len(), 3);
}

#[tokio::test]
async fn restarts_without_ranges_are_bounded_in_bytes() {
    let image = TestImage::one_layer(8 << 20);
    let server = Server::with_image(
        &image,
        on_layer(&image, |_, layer| {
            Some(Reply::ok("x", layer).manner(Manner::CutAt(layer.len() - 1)))
        }),
    )
    .await;
    assert_eq!(kind(pull(&server).await), FetchErrorKind::Transient);
    assert!(server.sent_bytes() < 5 * (8 << 20), "{}", server.sent_bytes());
}

#[tokio::test]
async fn rate_limits_are_waited_for_in_both_forms() {
    let image = TestImage::one_layer(10);
    let date = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(1));
    for wish in ["1".to_owned(), date, "0".to_owned()] {
        let server = Server::with_image(&image, move |seen| {
            (seen.nth == 0 && seen.is_blob()).then(|| Reply::new(429).header("retry-after", &wish))
        })
        .await;
        assert_eq!(pull(&server).await.unwrap(), image.layers);
    }
}

#[tokio::test]
async fn a_long_rate_limit_fails_at_once_and_says_until_when() {
    let image = TestImage::one_layer(10);
    let server = Server::with_image(&image, |_| {
        Some(
            Reply::new(429)
                .header("retry-after", "21600")
                .body("secret words"),
        )
    })
    .await;
    let error = pull(&server).await.unwrap_err();
    let FetchErrorKind::RateLimited { until: Some(until) } = error.kind() else {
        panic!("{error}")
    };
    let left = until.duration_since(std::time::SystemTime::now()).unwrap();
    assert!(
        left > Duration::from_secs(21_000) && left <= Duration::from_secs(21_600),
        "{left:?}"
    );
    assert_eq!(server.log().len(), 1);
}

#[tokio::test]
async fn passing_server_errors_are_retried_and_lasting_ones_reported() {
    let image = TestImage::one_layer(10);
    for status in [500, 502, 503, 504, 408] {
        let server = Server::with_image(&image, move |seen| (seen.nth < 2).then(|| Reply::new(status))).await;
        assert_eq!(pull(&server).await.unwrap(), image.layers, "{status}");
        let server = Server::with_image(&image, move |_| Some(Reply::new(status).body("secret words"))).await;
        let error = pull(&server).await.unwrap_err();
        assert_eq!(error.kind(), &FetchErrorKind::Transient, "{status}");
        assert!(!format!("{error:?}").contains("secret"), "{error:?}");
        assert_eq!(server.log().len(), 4, "{status}");
    }
}

#[tokio::test]
async fn statuses_have_their_kinds() {
    let image = TestImage::one_layer(10);
    for (status, expected) in [
        (400, FetchErrorKind::Protocol),
        (401, FetchErrorKind::Unauthorized),
        (403, FetchErrorKind::Denied),
        (404, FetchErrorKind::NotFound),
        (410, FetchErrorKind::NotFound),
        (418, FetchErrorKind::Protocol),
        (204, FetchErrorKind::Protocol),
        (451, FetchErrorKind::Denied),
    ] {
        let server = Server::with_image(&image, move |_| Some(Reply::new(status))).await;
        assert_eq!(kind(pull(&server).await), expected, "{status}");
        assert_eq!(server.log().len(), 1, "{status} is not retried");
    }
}

#[tokio::test]
async fn an_unknown_image_is_not_found_and_the_servers_words_stay_out() {
    let server = Server::with_image(&TestImage::one_layer(10), |_| None).await;
    let cache = tempfile::tempdir().unwrap();
    let error = resolve(&server.client(cache.path()), &server.source("other:1"))
        .await
        .unwrap_err();
    assert_eq!(error.kind(), &FetchErrorKind::NotFound);
    let text = format!("{error:?}");
    assert!(
        text.contains("NAME_UNKNOWN") && !text.contains("secret"),
        "{text}"
    );
}

#[tokio::test]
async fn an_unreachable_registry_is_transient() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let cache = tempfile::tempdir().unwrap();
    let config = quick(oci_fetch::ClientConfig::new(cache.path()))
        .with_plain_http(&address.to_string())
        .unwrap();
    let client = oci_fetch::Client::new(config).unwrap();
    let error = resolve(&client, &format!("{address}/app:1").parse().unwrap())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), &FetchErrorKind::Transient);
    assert!(error.to_string().contains("failed to connect"), "{error}");
}

#[tokio::test]
async fn a_silent_registry_times_out() {
    let image = TestImage::one_layer(10);
    let server = Server::with_image(&image, |_| {
        Some(Reply::raw("HTTP/1.1 200 OK\r\n").manner(Manner::RawThenHang))
    })
    .await;
    let cache = tempfile::tempdir().unwrap();
    let config = server.config(cache.path()).with_timeouts(oci_fetch::Timeouts {
        header: Duration::from_millis(100),
        document: Duration::from_millis(100),
        ..oci_fetch::Timeouts::default()
    });
    let client = oci_fetch::Client::new(config).unwrap();
    assert_eq!(
        kind(resolve(&client, &server.source("app:1")).await),
        FetchErrorKind::Transient
    );
}

#[tokio::test]
async fn wrong_bytes_are_a_digest_mismatch_and_leave_nothing() {
    let image = TestImage::one_layer(LENGTH);
    let server = Server::with_image(
        &image,
        on_layer(&image, |_, layer| {
            let mut layer = layer.to_vec();
            layer[LENGTH / 2] ^= 1;
            Some(Reply::ok("x", layer))
        }),
    )
    .await;
    let cache = tempfile::tempdir().unwrap();
    let pulled = pull_with(
        &server.client(cache.path()),
        &server.source("app:1"),
        &as_tenant("t"),
    )
    .await;
    assert_eq!(kind(pulled), FetchErrorKind::DigestMismatch);
    assert_eq!(
        std::fs::read_dir(cache.path().join("blobs/sha256"))
            .unwrap()
            .count(),
        0
    );
}

#[tokio::test]
async fn lying_sizes_are_refused_without_reading_on() {
    let image = TestImage::one_layer(1000);
    for (name, reply) in [
        ("longer, announced", Reply::ok("x", noise(64 << 20, 1))),
        (
            "longer, chunked",
            Reply::ok("x", noise(1 << 20, 1)).manner(Manner::Endless),
        ),
        ("shorter, announced", Reply::ok("x", noise(999, 1))),
    ] {
        let server = Server::with_image(&image, on_layer(&image, move |_, _| Some(reply.clone()))).await;
        assert_eq!(
            kind(pull(&server).await),
            FetchErrorKind::DigestMismatch,
            "{name}"
        );
        assert!(
            server.sent_bytes() < 16 << 20,
            "{name}: {} bytes",
            server.sent_bytes()
        );
    }
}

#[tokio::test]
async fn one_byte_too_many_in_chunks_is_noticed() {
    let image = TestImage::one_layer(1000);
    let server = Server::with_image(
        &image,
        on_layer(&image, |_, layer| {
            Some(Reply::ok("x", [layer, b"!"].concat()).manner(Manner::Chunked))
        }),
    )
    .await;
    assert_eq!(kind(pull(&server).await), FetchErrorKind::DigestMismatch);
}

fn split() -> Ranges {
    Ranges {
        connections: 4,
        min_blob_bytes: 1 << 20,
        range_bytes: 256 << 10,
        one_connection_time: Duration::ZERO,
    }
}

async fn pull_split(server: &Server) -> Result<Vec<Vec<u8>>, oci_fetch::FetchError> {
    let cache = tempfile::tempdir().unwrap();
    let client = oci_fetch::Client::new(server.config(cache.path()).with_ranges(split())).unwrap();
    pull_with(&client, &server.source("app:1"), &as_tenant("t")).await
}

#[tokio::test]
async fn a_large_blob_comes_in_ranges_that_cross_the_wire_once() {
    let image = TestImage::one_layer(3 << 20);
    let server = Server::with_image(&image, |_| None).await;
    assert_eq!(pull_split(&server).await.unwrap(), image.layers);
    let requests = server.layer_requests(&image);
    assert_eq!(requests.len(), 12);
    assert!(requests.iter().all(|seen| seen.range().is_some()));
    assert_eq!(
        server.sent_bytes(),
        (3 << 20) + image.manifest.len() + image.config.len()
    );
}

#[tokio::test]
async fn a_slow_connection_is_helped_by_others() {
    let image = TestImage::one_layer(3 << 20);
    let last_asked_for = Arc::new(tokio::sync::Notify::new());
    let asked = Arc::clone(&last_asked_for);
    let server = Server::with_image(
        &image,
        on_layer(&image, move |seen, layer| {
            let (first, last) = seen.range().unwrap();
            let last = last.unwrap();
            if last + 1 == layer.len() {
                asked.notify_one();
            }
            (first == 0 && seen.nth == 0).then(|| {
                Reply::new(206)
                    .header("content-range", &format!("bytes {first}-{last}/{}", layer.len()))
                    .body(&layer[first..=last])
                    .manner(Manner::StallAt(70_000))
            })
        }),
    )
    .await;
    let cache = tempfile::tempdir().unwrap();
    let ranges = Ranges {
        one_connection_time: Duration::from_secs(2),
        ..split()
    };
    // Were there one connection, it would stand still for an hour.
    let timeouts = oci_fetch::Timeouts {
        no_progress: Duration::from_secs(3600),
        ..oci_fetch::Timeouts::default()
    };
    let config = server.config(cache.path()).with_ranges(ranges);
    let client = oci_fetch::Client::new(config.with_timeouts(timeouts)).unwrap();
    let found = resolve(&client, &server.source("app:1")).await.unwrap();
    let blob = client.open_layer(&found, 0).await.unwrap();
    let asked = tokio::time::timeout(LIMIT, last_asked_for.notified()).await;
    asked.expect("the others ask for the rest");
    server.cut_stalled();
    assert_eq!(read(&blob).await.unwrap().0, image.layers[0]);
}

#[tokio::test]
async fn broken_ranges_go_on_where_they_broke() {
    let image = TestImage::one_layer(3 << 20);
    let server = Server::with_image(
        &image,
        on_layer(&image, |seen, layer| {
            let (first, last) = seen.range().unwrap();
            let last = last.unwrap();
            let is_first_try = seen.nth < 12 && first % (256 << 10) == 0;
            is_first_try.then(|| {
                Reply::new(206)
                    .header("content-range", &format!("bytes {first}-{last}/{}", layer.len()))
                    .body(&layer[first..=last])
                    .manner(if first % (512 << 10) == 0 {
                        Manner::CutAt(70_000)
                    } else {
                        Manner::Whole
                    })
            })
        }),
    )
    .await;
    assert_eq!(pull_split(&server).await.unwrap(), image.layers);
}

#[tokio::test]
async fn a_server_without_ranges_is_read_in_one_piece() {
    let image = TestImage::one_layer(3 << 20);
    for fault in ["whole", "refused", "later whole", "later wrong"] {
        let server = Server::with_image(
            &image,
            on_layer(&image, move |seen, layer| match (fault, seen.range()) {
                ("whole", _) | ("later whole", Some((1048576.., _))) => Some(Reply::ok("x", layer)),
                ("refused", Some(_)) => Some(Reply::new(416)),
                ("later wrong", Some((1048576.., _))) => Some(
                    Reply::new(206)
                        .header("content-range", "bytes 0-9/3145728")
                        .body(&layer[..10]),
                ),
                _ => None,
            }),
        )
        .await;
        assert_eq!(pull_split(&server).await.unwrap(), image.layers, "{fault}");
        assert!(
            server.sent_bytes() < 3 * (3 << 20),
            "{fault}: {}",
            server.sent_bytes()
        );
    }
}

#[tokio::test]
async fn an_error_and_its_causes_say_each_thing_once() {
    let image = TestImage::one_layer(10);
    let gone = Server::with_image(&image, |_| None).await;
    let closed = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap();
    let broken = Server::with_image(&image, |_| Some(Reply::ok("x", "?").manner(Manner::Raw))).await;
    let cache = tempfile::tempdir().unwrap();
    let config = gone
        .config(cache.path())
        .with_plain_http(&closed.to_string())
        .and_then(|config| config.with_plain_http(&broken.address.to_string()))
        .unwrap();
    let client = Client::new(config).unwrap();
    for source in [
        format!("{closed}/app:1"),
        format!("{}/app:1", broken.address),
        "oci:does-not-exist".to_owned(),
    ] {
        let error = resolve(&client, &source.parse().unwrap()).await.unwrap_err();
        let mut texts = vec![error.to_string()];
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            texts.push(error.to_string());
            cause = error.source();
        }
        for pair in texts.windows(2) {
            assert_ne!(pair[0], pair[1], "{texts:?}");
        }
        assert!(texts.len() > 1, "{texts:?}");
    }
}
