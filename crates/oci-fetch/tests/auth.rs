//! Who gets which credential and which token, as seen on the wire.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use common::*;
use oci_fetch::{Client, Credentials, FetchErrorKind, Loopback, PullContext};
use tokio::net::TcpListener;

/// How the token service and the registry behave.
#[derive(Clone, Default)]
struct TokenRegistry {
    /// Another realm than the registry's own `/token`.
    realm: Option<String>,
    /// Users and passwords; without any, anonymous tokens are given out.
    users: Vec<(String, String)>,
    /// The GET protocol is answered with 404.
    only_post: bool,
    /// A token is good for so many requests.
    uses: Option<usize>,
    /// How the registry answers to a token that has been used up.
    expired_status: u16,
}

/// A registry whose tokens read `SUBJECT-NUMBER`.
async fn start(image: &TestImage, setup: TokenRegistry) -> Server {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let mut store = Store::default();
    store.publish("app", "1", image);
    store.publish("other", "1", image);
    let issued = AtomicUsize::new(0);
    let used: std::sync::Mutex<std::collections::HashMap<String, usize>> = std::sync::Mutex::default();
    let realm = setup
        .realm
        .clone()
        .unwrap_or_else(|| format!("http://{address}/token"));
    let challenge = format!(r#"Bearer realm="{realm}",service="test",scope="repository:app:pull""#);
    Server::on(listener, store, move |seen| {
        let authorization = seen.authorization().unwrap_or_default().to_owned();
        if seen.path.starts_with("/token") {
            if setup.only_post && seen.method == "GET" {
                return Some(Reply::new(404));
            }
            let mut subject = None;
            for (user, password) in &setup.users {
                let form = format!("grant_type=password&username={user}&password={password}&service=test");
                if authorization == basic(user, password) || seen.body.starts_with(&form) {
                    subject = Some(user.clone());
                }
                if seen.body.starts_with(&format!(
                    "grant_type=refresh_token&refresh_token={password}&service=test"
                )) {
                    subject = Some(user.clone());
                }
            }
            if setup.users.is_empty() && authorization.is_empty() {
                subject = Some("anonymous".to_owned());
            }
            let Some(subject) = subject else {
                return Some(Reply::new(401).body("secret words"));
            };
            let number = issued.fetch_add(1, Ordering::SeqCst);
            let document = serde_json::json!({"token": format!("{subject}-{number}")});
            return Some(Reply::ok("application/json", document.to_string()));
        }
        let Some(token) = authorization.strip_prefix("Bearer ") else {
            return Some(Reply::challenge(&challenge));
        };
        let mut used = used.lock().unwrap();
        let count = used.entry(token.to_owned()).or_insert(0);
        *count += 1;
        match setup.uses {
            Some(uses) if *count > uses => Some(match setup.expired_status {
                403 => Reply::new(403),
                _ => Reply::challenge(&challenge),
            }),
            _ => None,
        }
    })
}

fn token_requests(server: &Server) -> Vec<Seen> {
    server
        .log()
        .into_iter()
        .filter(|seen| seen.path.starts_with("/token"))
        .collect()
}

#[tokio::test]
async fn an_anonymous_token_is_fetched_once_for_many_waiters() {
    let image = TestImage::new(&(0..8).map(|seed| noise(1000, seed)).collect::<Vec<_>>());
    let server = start(&image, TokenRegistry::default()).await;
    let cache = tempfile::tempdir().unwrap();
    let client = server.client(cache.path());
    let source = server.source("app:1");
    let nobody = PullContext::default();
    let pulls = (0..20).map(|_| pull_with(&client, &source, &nobody));
    for layers in futures_util::future::join_all(pulls).await {
        assert_eq!(layers.unwrap(), image.layers);
    }
    let tokens = token_requests(&server);
    assert_eq!(tokens.len(), 1, "{tokens:#?}");
    assert_eq!(
        tokens[0].path,
        "/token?service=test&scope=repository%3Aapp%3Apull"
    );
    assert_eq!(tokens[0].authorization(), None);
}

#[tokio::test]
async fn basic_credentials_become_a_token_by_get_or_else_by_post() {
    let image = TestImage::one_layer(1000);
    for only_post in [false, true] {
        let users = vec![("alice".to_owned(), "secret".to_owned())];
        let server = start(
            &image,
            TokenRegistry {
                users,
                only_post,
                ..Default::default()
            },
        )
        .await;
        let cache = tempfile::tempdir().unwrap();
        let client = server.client(cache.path());
        let context = as_user("t", "alice", "secret");
        assert_eq!(
            pull_with(&client, &server.source("app:1"), &context)
                .await
                .unwrap(),
            image.layers
        );
        // The password went to the token service alone.
        let registry = server
            .log()
            .into_iter()
            .filter(|seen| seen.path.starts_with("/v2/"));
        assert!(
            registry
                .filter_map(|seen| seen.authorization().map(str::to_owned))
                .all(|a| a == "Bearer alice-0")
        );
        let wrong = as_user("t", "alice", "wrong");
        let error = pull_with(&client, &server.source("app:1"), &wrong)
            .await
            .unwrap_err();
        assert_eq!(error.kind(), &FetchErrorKind::Unauthorized);
        let text = format!("{error:?}");
        assert!(!text.contains("wrong") && !text.contains("secret"), "{text}");
    }
}

#[tokio::test]
async fn an_identity_token_is_exchanged_by_post() {
    let image = TestImage::one_layer(1000);
    let users = vec![("alice".to_owned(), "refresh-me".to_owned())];
    let server = start(
        &image,
        TokenRegistry {
            users,
            ..Default::default()
        },
    )
    .await;
    let cache = tempfile::tempdir().unwrap();
    let context = PullContext {
        isolation_key: "t".to_owned(),
        credentials: Some(Credentials::identity_token("refresh-me")),
    };
    let client = server.client(cache.path());
    assert_eq!(
        pull_with(&client, &server.source("app:1"), &context)
            .await
            .unwrap(),
        image.layers
    );
    let tokens = token_requests(&server);
    assert_eq!((tokens.len(), tokens[0].method.as_str()), (1, "POST"));
    assert!(tokens[0].authorization().is_none() && !tokens[0].path.contains("refresh-me"));
}

#[tokio::test]
async fn a_token_of_unknown_kind_is_exchanged_or_else_sent_as_it_is() {
    let image = TestImage::one_layer(1000);
    let of_token = |token: &str| PullContext {
        isolation_key: "t".to_owned(),
        credentials: Some(Credentials::token(token)),
    };
    // The token service knows it as an identity token.
    let users = vec![("alice".to_owned(), "refresh-me".to_owned())];
    let setup = TokenRegistry {
        users,
        ..Default::default()
    };
    let server = start(&image, setup).await;
    let cache = tempfile::tempdir().unwrap();
    let client = server.client(cache.path());
    let pulled = pull_with(&client, &server.source("app:1"), &of_token("refresh-me")).await;
    assert_eq!(pulled.unwrap(), image.layers);
    assert!(
        server
            .log()
            .iter()
            .all(|seen| seen.authorization() != Some("Bearer refresh-me"))
    );

    // The token service refuses it, or there is none: the registry takes it or not.
    for status in [400, 401, 403, 404, 405] {
        for challenge in ["Bearer realm=\"http://ADDRESS/token\"", "Basic realm=\"x\""] {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let challenge = challenge.replace("ADDRESS", &listener.local_addr().unwrap().to_string());
            let mut store = Store::default();
            store.publish("app", "1", &image);
            let server = Server::on(listener, store, move |seen| {
                if seen.path.starts_with("/token") {
                    return Some(Reply::new(status));
                }
                (seen.authorization() != Some("Bearer ready")).then(|| Reply::challenge(&challenge))
            });
            let cache = tempfile::tempdir().unwrap();
            let client = server.client(cache.path());
            let source = server.source("app:1");
            let pulled = pull_with(&client, &source, &of_token("ready")).await;
            assert_eq!(pulled.unwrap(), image.layers, "{status}");
            let refused = pull_with(&client, &source, &of_token("wrong")).await;
            assert_eq!(kind(refused), FetchErrorKind::Unauthorized, "{status}");
        }
    }
}

#[tokio::test]
async fn plain_basic_and_ready_bearer_go_out_only_after_a_challenge() {
    let image = TestImage::one_layer(1000);
    let good = basic("alice", "secret");
    let server = Server::with_image(&image, {
        let good = good.clone();
        move |seen| {
            (seen.authorization() != Some(good.as_str())).then(|| Reply::challenge(r#"Basic realm="x""#))
        }
    })
    .await;
    let cache = tempfile::tempdir().unwrap();
    let client = server.client(cache.path());
    let source = server.source("app:1");
    assert_eq!(
        pull_with(&client, &source, &as_user("t", "alice", "secret"))
            .await
            .unwrap(),
        image.layers
    );
    assert_eq!(server.log()[0].authorization(), None);
    assert_eq!(
        kind(pull_with(&client, &source, &as_tenant("t")).await),
        FetchErrorKind::Unauthorized
    );
    assert_eq!(
        kind(pull_with(&client, &source, &as_user("t", "alice", "x")).await),
        FetchErrorKind::Unauthorized
    );

    let server = Server::with_image(&image, |seen| {
        (seen.authorization() != Some("Bearer ready"))
            .then(|| Reply::challenge(r#"Bearer realm="https://x.example/""#))
    })
    .await;
    let context = PullContext {
        isolation_key: "t".to_owned(),
        credentials: Some(Credentials::bearer("ready")),
    };
    let cache = tempfile::tempdir().unwrap();
    let pulled = pull_with(&server.client(cache.path()), &server.source("app:1"), &context).await;
    assert_eq!(pulled.unwrap(), image.layers);
}

#[tokio::test]
async fn a_token_that_expires_in_mid_pull_is_replaced() {
    let image = TestImage::new(&(0..6).map(|seed| noise(1000, seed)).collect::<Vec<_>>());
    for expired_status in [401, 403] {
        let setup = TokenRegistry {
            uses: Some(3),
            expired_status,
            ..Default::default()
        };
        let server = start(&image, setup).await;
        let cache = tempfile::tempdir().unwrap();
        let client = server.client(cache.path());
        let image_found = client
            .resolve(&server.source("app:1"), &amd64(), &as_tenant("t"))
            .await
            .unwrap();
        for (index, layer) in image.layers.iter().enumerate() {
            let blob = client.open_layer(&image_found, index).await.unwrap();
            assert_eq!(&read(&blob).await.unwrap().0, layer, "{expired_status}");
        }
        assert_eq!(token_requests(&server).len(), 3, "{expired_status}");
    }
}

#[tokio::test]
async fn a_fresh_token_that_is_refused_is_not_fetched_again_and_again() {
    let image = TestImage::one_layer(1000);
    for (expired_status, expected) in [(401, FetchErrorKind::Unauthorized), (403, FetchErrorKind::Denied)] {
        let server = start(
            &image,
            TokenRegistry {
                uses: Some(0),
                expired_status,
                ..Default::default()
            },
        )
        .await;
        let cache = tempfile::tempdir().unwrap();
        let pulled = pull_with(
            &server.client(cache.path()),
            &server.source("app:1"),
            &as_tenant("t"),
        )
        .await;
        assert_eq!(kind(pulled), expected);
        assert_eq!(token_requests(&server).len(), 1);
    }
}

#[tokio::test]
async fn two_parties_share_no_token_even_with_equal_credentials() {
    let image = TestImage::one_layer(1000);
    let users = vec![
        ("alice".to_owned(), "a".to_owned()),
        ("bob".to_owned(), "b".to_owned()),
    ];
    let server = start(
        &image,
        TokenRegistry {
            users,
            ..Default::default()
        },
    )
    .await;
    let cache = tempfile::tempdir().unwrap();
    let client = server.client(cache.path());
    let source = server.source("app:1");
    for (context, token) in [
        (as_user("one", "alice", "a"), "Bearer alice-0"),
        (as_user("one", "bob", "b"), "Bearer bob-1"),
        (as_user("two", "alice", "a"), "Bearer alice-2"),
        (as_user("one", "alice", "a"), "Bearer alice-0"),
    ] {
        let before = server.log().len();
        client.resolve(&source, &amd64(), &context).await.unwrap();
        let seen: Vec<_> = server.log().split_off(before);
        let tokens: Vec<_> = seen
            .iter()
            .filter_map(Seen::authorization)
            .filter(|a| a.starts_with("Bearer"))
            .collect();
        assert!(
            !tokens.is_empty() && tokens.iter().all(|found| *found == token),
            "{token}: {tokens:?}"
        );
    }
    // Nobody's credential or token helps an anonymous party, nor is one sent for it.
    let before = server.log().len();
    assert_eq!(
        kind(client.resolve(&source, &amd64(), &as_tenant("one")).await),
        FetchErrorKind::Unauthorized
    );
    assert!(
        server
            .log()
            .split_off(before)
            .iter()
            .all(|seen| seen.authorization().is_none())
    );
    // Another repository needs another token.
    client
        .resolve(&server.source("other:1"), &amd64(), &as_user("one", "alice", "a"))
        .await
        .unwrap();
    assert_eq!(
        token_requests(&server).last().unwrap().path,
        "/token?service=test&scope=repository%3Aother%3Apull"
    );
}

#[tokio::test]
async fn a_realm_elsewhere_gets_no_secret_and_no_connection_inside() {
    let image = TestImage::one_layer(1000);
    let inside = Server::start(Store::default(), |_| {
        Some(Reply::ok("application/json", r#"{"token":"x"}"#))
    })
    .await;
    for realm in [
        // Another port of the very address that the operator named.
        format!("http://{}/token", inside.address),
        format!("http://localhost:{}/token", inside.address.port()),
        format!("http://2130706434:{}/token", inside.address.port()),
        format!("http://[::ffff:127.0.0.1]:{}/token", inside.address.port()),
        format!("http://user:secret@127.0.0.1:{}/token", inside.address.port()),
        "file:///etc/passwd".to_owned(),
        "https://token.example/".to_owned(),
    ] {
        let users = vec![("alice".to_owned(), "a".to_owned())];
        let server = start(
            &image,
            TokenRegistry {
                realm: Some(realm.clone()),
                users,
                ..Default::default()
            },
        )
        .await;
        let cache = tempfile::tempdir().unwrap();
        let client = server.client(cache.path());
        let result = client
            .resolve(&server.source("app:1"), &amd64(), &as_user("t", "alice", "a"))
            .await;
        assert_eq!(kind(result), FetchErrorKind::Policy, "{realm}");
    }
    assert!(inside.log().is_empty());
}

#[tokio::test]
async fn a_token_service_on_another_port_gets_credentials_only_when_it_is_named() {
    let image = TestImage::one_layer(1000);
    let service = Server::start(Store::default(), |_| {
        Some(Reply::ok("application/json", r#"{"token":"x"}"#))
    })
    .await;
    let setup = TokenRegistry {
        realm: Some(format!("http://{}/token", service.address)),
        ..Default::default()
    };
    let server = start(&image, setup).await;
    let source = server.source("app:1");
    let cache = tempfile::tempdir().unwrap();
    let alice = as_user("t", "alice", "a");
    // The developer's switch lets the token service be reached, without a password.
    let local = quick(oci_fetch::ClientConfig::new(cache.path())).with_loopback(Loopback::PlainHttp);
    for config in [
        local.clone(),
        local.with_plain_http(&server.address.to_string()).unwrap(),
    ] {
        let client = Client::new(config).unwrap();
        let result = client.resolve(&source, &amd64(), &alice).await;
        assert_eq!(kind(result), FetchErrorKind::Policy);
        assert!(service.log().iter().all(|seen| seen.authorization().is_none()));
        resolve(&client, &source).await.unwrap();
    }
    let config = server
        .config(cache.path())
        .with_plain_http(&service.address.to_string())
        .unwrap();
    let client = Client::new(config).unwrap();
    client.resolve(&source, &amd64(), &alice).await.unwrap();
    assert_eq!(
        service.log().last().unwrap().authorization(),
        Some(basic("alice", "a").as_str())
    );
}

#[tokio::test]
async fn one_bad_realm_does_not_outlive_its_pull() {
    let image = TestImage::one_layer(1000);
    let mut store = Store::default();
    store.publish("app", "1", &image);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let asked = AtomicUsize::new(0);
    let server = Server::on(listener, store, move |seen| match seen.authorization() {
        _ if seen.path.starts_with("/token") => Some(Reply::ok("application/json", r#"{"token":"good"}"#)),
        _ if seen.path.starts_with("/useless") => Some(Reply::ok("application/json", r#"{"token":"bad"}"#)),
        _ if seen.path.starts_with("/broken") => Some(Reply::new(404)),
        Some("Bearer good") => None,
        Some(_) => Some(Reply::new(401)),
        None => {
            let realm = ["broken", "useless", "token"][asked.fetch_add(1, Ordering::SeqCst).min(2)];
            Some(Reply::challenge(&format!(
                r#"Bearer realm="http://{address}/{realm}",service="test""#
            )))
        }
    });
    let cache = tempfile::tempdir().unwrap();
    let client = server.client(cache.path());
    for expected in [
        Some(FetchErrorKind::NotFound),
        Some(FetchErrorKind::Unauthorized),
        None,
    ] {
        let pulled = resolve(&client, &server.source("app:1")).await;
        assert_eq!(pulled.err().map(|error| error.kind().clone()), expected);
    }
}

#[tokio::test]
async fn token_documents_are_bounded_and_checked() {
    for (name, reply, expected) in [
        (
            "bomb",
            Reply::ok("application/json", vec![b' '; 1 << 20]).manner(Manner::Endless),
            FetchErrorKind::Limit,
        ),
        (
            "no token",
            Reply::ok("application/json", "{}"),
            FetchErrorKind::Protocol,
        ),
        (
            "not JSON",
            Reply::ok("text/html", "<html>secret words</html>"),
            FetchErrorKind::Protocol,
        ),
        (
            "a line break",
            Reply::ok("application/json", r#"{"token":"a\r\nx: y"}"#),
            FetchErrorKind::Protocol,
        ),
        (
            "an internal page",
            Reply::new(500).body("secret words"),
            FetchErrorKind::Transient,
        ),
        (
            "not found",
            Reply::new(404).body("secret words"),
            FetchErrorKind::NotFound,
        ),
    ] {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let challenge = format!(
            r#"Bearer realm="http://{}/token",service="s""#,
            listener.local_addr().unwrap()
        );
        let server = Server::on(listener, Store::default(), move |seen| {
            Some(if seen.path.starts_with("/token") {
                reply.clone()
            } else {
                Reply::challenge(&challenge)
            })
        });
        let cache = tempfile::tempdir().unwrap();
        let error = resolve(&server.client(cache.path()), &server.source("app:1"))
            .await
            .unwrap_err();
        assert_eq!(error.kind(), &expected, "{name}");
        assert!(!format!("{error:?}").contains("secret"), "{name}: {error:?}");
    }
}
