//! `TLS_MODE=file`: clients with and without certificates, and files that change.

use std::{
    fs,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use builderd::tls::{FileRole, Tls, TlsError, TlsFiles, TlsSettings};
use test_support::pki::{Authority, Subject, replace};

use crate::{
    Http1, from_files, health, host, serve, shown, shown_by,
    support::tunnel::{self, client_config},
};

/// Looks at the files, as the service does every few seconds.
fn refresh(tls: &Tls) -> Result<bool, String> {
    let Tls::Files(files) = tls else {
        panic!("expected files");
    };
    files.refresh().map_err(|error| error.to_string())
}

#[tokio::test]
async fn with_authorities_every_client_shows_a_certificate_of_theirs() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, clients, strangers) = (
        Authority::new("ours"),
        Authority::new("clients"),
        Authority::new("clients"),
    );
    let tls = from_files(directory.path(), &ours.issue(&host()), Some(&clients))
        .await
        .unwrap();
    let server = serve(&tls).await;
    let who = Subject::host(&["client"]);
    for (name, shown, accepted) in [
        ("one of theirs", Some(clients.issue(&who)), true),
        (
            "a workload of theirs",
            Some(clients.issue(&Subject::spiffe("spiffe://a.example/b"))),
            true,
        ),
        ("none", None, false),
        (
            "an expired one",
            Some(clients.issue(&who.clone().expired())),
            false,
        ),
        (
            "one of the future",
            Some(clients.issue(&who.clone().not_yet())),
            false,
        ),
        (
            "another authority's of the same name",
            Some(strangers.issue(&who)),
            false,
        ),
        ("the server's authority's", Some(ours.issue(&who)), false),
    ] {
        let answer = health(server.address, client_config(&ours, shown.as_ref())).await;
        assert_eq!(answer.is_ok(), accepted, "{name}: {answer:?}");
    }
}

#[tokio::test]
async fn a_server_of_another_authority_or_name_is_not_believed() {
    let directory = tempfile::tempdir().unwrap();
    let ours = Authority::new("ours");
    let server = serve(
        &from_files(directory.path(), &ours.issue(&host()), None)
            .await
            .unwrap(),
    )
    .await;
    health(server.address, client_config(&Authority::new("ours"), None))
        .await
        .unwrap_err();
    let elsewhere = tempfile::tempdir().unwrap();
    let pair = ours.issue(&Subject::host(&["elsewhere"]));
    let server = serve(&from_files(elsewhere.path(), &pair, None).await.unwrap()).await;
    health(server.address, client_config(&ours, None))
        .await
        .unwrap_err();
}

#[tokio::test]
async fn what_cannot_be_used_is_refused_at_the_start_by_its_file() {
    let authority = Authority::new("ours");
    let (good, other) = (authority.issue(&host()), authority.issue(&host()));
    let expired = authority.issue(&host().expired());
    let truncated = &good.certificate_pem[..good.certificate_pem.len() / 2];
    let large = "x".repeat((1 << 20) + 1);
    for (name, certificate, key, authorities, role, expected) in [
        (
            "no certificate",
            "",
            good.key_pem.as_str(),
            None,
            FileRole::Certificate,
            "expected certificates in PEM",
        ),
        (
            "half a certificate",
            truncated,
            &good.key_pem,
            None,
            FileRole::Certificate,
            "expected certificates in PEM",
        ),
        (
            "a key for a certificate",
            &good.key_pem,
            &good.key_pem,
            None,
            FileRole::Certificate,
            "expected certificates",
        ),
        (
            "a large file",
            &large,
            &good.key_pem,
            None,
            FileRole::Certificate,
            "at most 1 MiB",
        ),
        (
            "no key",
            &good.certificate_pem,
            "",
            None,
            FileRole::Key,
            "expected a private key in PEM",
        ),
        (
            "another key",
            &good.certificate_pem,
            &other.key_pem,
            None,
            FileRole::Key,
            "does not belong to",
        ),
        (
            "an expired certificate",
            &expired.certificate_pem,
            &expired.key_pem,
            None,
            FileRole::Certificate,
            "expired",
        ),
        (
            "no authorities",
            &good.certificate_pem,
            &good.key_pem,
            Some("nothing"),
            FileRole::Authorities,
            "expected certificates in PEM",
        ),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        fs::write(path("crt"), certificate).unwrap();
        fs::write(path("key"), key).unwrap();
        let files = TlsFiles {
            certificate: path("crt"),
            key: path("key"),
            authorities: authorities.map(|content| {
                fs::write(path("ca"), content).unwrap();
                path("ca")
            }),
        };
        let refused = Tls::start(&TlsSettings::Files(files)).await;
        let Err(TlsError::File(error)) = refused else {
            panic!("{name}: {refused:?}");
        };
        assert_eq!(error.role, role, "{name}");
        let text = error.to_string();
        assert!(
            text.contains(expected) && !text.contains("PRIVATE"),
            "{name}: {text}"
        );
    }
    let absent = TlsFiles {
        certificate: "/nonexistent/tls.crt".into(),
        key: "/nonexistent/tls.key".into(),
        authorities: None,
    };
    let refused = Tls::start(&TlsSettings::Files(absent)).await.unwrap_err();
    assert!(
        refused
            .to_string()
            .contains("/nonexistent/tls.crt: cannot be read"),
        "{refused}"
    );
}

#[tokio::test]
async fn a_renewed_pair_is_in_the_next_handshake_and_a_broken_one_in_none() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let first = authority.issue(&host());
    let tls = from_files(directory.path(), &first, None).await.unwrap();
    let server = serve(&tls).await;
    let config = Arc::new(client_config(&authority, None));
    let mut open = Http1::over(tunnel::connect(server.address, (*config).clone()).await.unwrap()).await;
    let path = |name: &str| directory.path().join(name);
    assert_eq!(refresh(&tls), Ok(false));

    // The certificate came, the key has not yet.
    let second = authority.issue(&host());
    replace(&path("tls.crt"), &second.certificate_pem);
    assert!(refresh(&tls).unwrap_err().contains("does not belong to"));
    assert_eq!(refresh(&tls), Ok(false), "a broken pair is told of once");
    assert_eq!(
        shown_by(server.address, &config).await,
        first.certificate_der,
        "the old pair is kept"
    );
    // The key is written in place, in two halves.
    let (half, rest) = second.key_pem.split_at(second.key_pem.len() / 2);
    fs::write(path("tls.key"), half).unwrap();
    assert!(refresh(&tls).unwrap_err().contains("expected a private key"));
    assert_eq!(
        shown_by(server.address, &config).await,
        first.certificate_der,
        "the old pair is kept"
    );
    fs::write(path("tls.key"), [half, rest].concat()).unwrap();
    assert_eq!(refresh(&tls), Ok(true));
    assert_eq!(shown_by(server.address, &config).await, second.certificate_der);

    // Files that go away, and an expired pair.
    fs::remove_file(path("tls.key")).unwrap();
    assert!(refresh(&tls).unwrap_err().contains("tls.key"));
    drop(authority.issue(&host().expired()).write(directory.path(), "tls"));
    assert!(refresh(&tls).unwrap_err().contains("expired"));
    assert_eq!(shown_by(server.address, &config).await, second.certificate_der);
    // The connection from before all of that is still good.
    assert_eq!(open.health().await, Ok(200));
}

#[tokio::test]
async fn renewed_authorities_let_in_others() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, old, new) = (
        Authority::new("ours"),
        Authority::new("old"),
        Authority::new("new"),
    );
    let tls = from_files(directory.path(), &ours.issue(&host()), Some(&old))
        .await
        .unwrap();
    let server = serve(&tls).await;
    let who = Subject::host(&["client"]);
    let old = client_config(&ours, Some(&old.issue(&who)));
    let of_new = client_config(&ours, Some(&new.issue(&who)));
    let mut open = Http1::over(tunnel::connect(server.address, old.clone()).await.unwrap()).await;
    assert_eq!(open.health().await, Ok(200));
    health(server.address, of_new.clone()).await.unwrap_err();
    replace(&directory.path().join("clients.crt"), &new.pem());
    assert_eq!(refresh(&tls), Ok(true));
    assert_eq!(health(server.address, of_new).await, Ok(200));
    health(server.address, old).await.unwrap_err();
    assert_eq!(open.health().await, Ok(200), "open connections stay open");
}

#[tokio::test(flavor = "multi_thread")]
async fn pairs_are_renewed_under_load_and_no_request_fails() {
    const RENEWALS: usize = 10;
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let tls = from_files(directory.path(), &authority.issue(&host()), None)
        .await
        .unwrap();
    let server = serve(&tls).await;
    let (address, config) = (server.address, client_config(&authority, None));
    let (stop, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let mut callers = Vec::new();
    for caller in 0..4 {
        let (stop, answered, config) = (Arc::clone(&stop), Arc::clone(&answered), config.clone());
        callers.push(tokio::spawn(async move {
            let stream = tunnel::connect(address, config.clone()).await.unwrap();
            let first = shown(&stream);
            let mut open = Http1::over(stream).await;
            while !stop.load(Ordering::Relaxed) {
                // Half of them on connections that stay, half on a new one for each request.
                let answer = match caller % 2 {
                    0 => open.health().await,
                    _ => health(address, config.clone()).await,
                };
                assert_eq!(answer, Ok(200));
                answered.fetch_add(1, Ordering::Relaxed);
            }
            (first, open.health().await)
        }));
    }
    let mut last = Vec::new();
    for _ in 0..RENEWALS {
        let before = answered.load(Ordering::Relaxed);
        let pair = authority.issue(&host());
        let (certificate, key) = (directory.path().join("tls.crt"), directory.path().join("tls.key"));
        replace(&certificate, &pair.certificate_pem);
        // Whoever looks now sees half of it.
        refresh(&tls).unwrap_err();
        replace(&key, &pair.key_pem);
        assert_eq!(refresh(&tls), Ok(true));
        last = pair.certificate_der;
        while answered.load(Ordering::Relaxed) < before + 8
            && callers.iter().all(|caller| !caller.is_finished())
        {
            tokio::task::yield_now().await;
        }
    }
    stop.store(true, Ordering::Relaxed);
    for caller in callers {
        let (first, still) = caller.await.unwrap();
        assert_ne!(first, last);
        assert_eq!(still, Ok(200), "the connection from before all renewals");
    }
    assert_eq!(shown_by(address, &Arc::new(config)).await, last);
    assert!(answered.load(Ordering::Relaxed) >= 8 * RENEWALS);
}

#[test]
fn a_pair_may_be_links_that_are_switched_together() {
    // As Kubernetes mounts secrets: files are links through `..data`, which is replaced by rename.
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let version = |name: &str| {
        let version = directory.path().join(name);
        fs::create_dir(&version).unwrap();
        let pair = authority.issue(&host());
        drop(pair.write(&version, "tls"));
        std::os::unix::fs::symlink(&version, directory.path().join("new")).unwrap();
        fs::rename(directory.path().join("new"), directory.path().join("..data")).unwrap();
        pair
    };
    drop(version("1"));
    let link = |name: &str| {
        let link = directory.path().join(name);
        std::os::unix::fs::symlink(Path::new("..data").join(name), &link).unwrap();
        link
    };
    let files = TlsFiles {
        certificate: link("tls.crt"),
        key: link("tls.key"),
        authorities: None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let tls = runtime.block_on(Tls::start(&TlsSettings::Files(files))).unwrap();
    drop(version("2"));
    assert_eq!(refresh(&tls), Ok(true));
    assert_eq!(refresh(&tls), Ok(false));
}
