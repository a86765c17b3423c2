//! `builderd-cli` over TLS.

use std::{
    net::SocketAddr,
    process::{Output, Stdio},
    sync::Arc,
};

use builderd::tls::{Tls, TlsSettings};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject as _};
use test_support::{
    pki::{Authority, Subject, replace},
    workload_api::Agent,
};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpListener,
    process::Command,
};
use tokio_rustls::TlsAcceptor;

use crate::{from_files, host, serve};

async fn run(server: SocketAddr, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_builderd-cli"));
    command
        .env_clear()
        .args(["get-build", "one", "--tenant", "acme", "--json", "--server"])
        .arg(format!("https://localhost:{}", server.port()))
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command.output().await.unwrap()
}

/// Runs the client with each of these, and compares the code it ends with and what it says on standard error.
async fn check(server: SocketAddr, cases: &[(&str, &[&str], i32, &str)]) {
    for (name, arguments, code, said) in cases {
        let output = run(server, arguments).await;
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(*code), "{name}: {errors}");
        assert!(errors.contains(said), "{name}: {errors}");
        let printed = String::from_utf8_lossy(&output.stdout);
        assert_eq!(printed.contains("one"), *code == 0, "{name}: {printed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_shows_and_trusts_what_its_files_say() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let server = serve(
        &from_files(directory.path(), &authority.issue(&host()), Some(&authority))
            .await
            .unwrap(),
    )
    .await;
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    drop(
        authority
            .issue(&Subject::host(&["me"]))
            .write(directory.path(), "me"),
    );
    drop(
        authority
            .issue(&Subject::host(&["me"]))
            .write(directory.path(), "other"),
    );
    replace(&directory.path().join("ca.crt"), &authority.pem());
    replace(
        &directory.path().join("strangers.crt"),
        &Authority::new("ours").pem(),
    );
    let (ca, strangers) = (path("ca.crt"), path("strangers.crt"));
    let (certificate, key, other) = (path("me.crt"), path("me.key"), path("other.key"));
    let pair: &[&str] = &["--tls-cert", &certificate, "--tls-key", &key];
    let with = |more: &[&'static str], ca: &str| {
        let mut arguments: Vec<String> = more.iter().map(|argument| (*argument).to_owned()).collect();
        arguments.extend(["--tls-ca".to_owned(), ca.to_owned()]);
        arguments.extend(pair.iter().map(|argument| (*argument).to_owned()));
        arguments
    };
    let good = with(&[], &ca);
    let named = with(&["--tls-mode", "file"], &ca);
    let distrusting = with(&[], &strangers);
    let good: Vec<&str> = good.iter().map(String::as_str).collect();
    let named: Vec<&str> = named.iter().map(String::as_str).collect();
    let distrusting: Vec<&str> = distrusting.iter().map(String::as_str).collect();
    check(
        server.address,
        &[
            ("all of it", &good, 0, ""),
            ("the mode by its name", &named, 0, ""),
            ("another authority", &distrusting, 69, "invalid peer certificate"),
            (
                "half a pair",
                &["--tls-ca", &ca, "--tls-cert", &certificate],
                64,
                "expected both or neither",
            ),
            (
                "another key",
                &["--tls-ca", &ca, "--tls-cert", &certificate, "--tls-key", &other],
                64,
                "--tls-key: ",
            ),
            ("a key for authorities", &["--tls-ca", &key], 64, "--tls-ca: "),
            (
                "no authorities",
                &["--tls-mode", "file"],
                64,
                "--tls-ca: required",
            ),
            (
                "an ID that nobody looks at",
                &["--tls-ca", &ca, "--server-spiffe-id", "spiffe://a/b"],
                64,
                "--server-spiffe-id: only with",
            ),
        ],
    )
    .await;
}

/// What a client is told whose certificate is refused, while it connects or with its first call, as it happens.
const REFUSED: &str = "refused the certificate of this client";

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_certificate_is_said_and_is_no_cancelled_call() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let tls = from_files(directory.path(), &authority.issue(&host()), Some(&authority)).await;
    let server = serve(&tls.unwrap()).await;
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    replace(&directory.path().join("ca.crt"), &authority.pem());
    let me = || Subject::host(&["me"]);
    drop(
        authority
            .issue(&me().expired())
            .write(directory.path(), "expired"),
    );
    for (authority, name) in [("theirs", "stranger"), ("ours", "namesake")] {
        drop(
            Authority::new(authority)
                .issue(&me())
                .write(directory.path(), name),
        );
    }
    let ca = path("ca.crt");
    let (expired, expired_key) = (path("expired.crt"), path("expired.key"));
    let (stranger, stranger_key) = (path("stranger.crt"), path("stranger.key"));
    let (namesake, namesake_key) = (path("namesake.crt"), path("namesake.key"));
    let with = ["--tls-ca", &ca];
    // An expired one is not even shown.
    let [a, b] = with;
    let expired = [a, b, "--tls-cert", &expired, "--tls-key", &expired_key];
    let cases: &[(&str, &[&str], i32, &str)] = &[("an expired one", &expired, 64, "--tls-cert: ")];
    check(server.address, cases).await;
    // Where the refusal is seen is a race: more than once.
    for _ in 0..4 {
        check(
            server.address,
            &[
                ("no certificate", &with, 69, REFUSED),
                (
                    "another authority's",
                    &[a, b, "--tls-cert", &stranger, "--tls-key", &stranger_key],
                    69,
                    REFUSED,
                ),
                (
                    "one of an authority of the same name",
                    &[a, b, "--tls-cert", &namesake, "--tls-key", &namesake_key],
                    69,
                    REFUSED,
                ),
            ],
        )
        .await;
    }
}

/// A server that shakes hands, does as `reads` and `bytes` say, and closes the connection.
async fn closing(authority: &Authority, reads: bool, bytes: &'static [u8]) -> SocketAddr {
    let shown = authority.issue(&host());
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![shown.certificate_der.clone().into()],
            PrivateKeyDer::from_pem_slice(shown.key_pem.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let Ok(mut stream) = TlsAcceptor::from(Arc::new(config.clone())).accept(stream).await else {
                continue;
            };
            if reads {
                let _ = stream.read(&mut [0; 4096]).await;
            }
            // The client may have gone.
            let _ = stream.write_all(bytes).await;
            let _ = stream.shutdown().await;
            // A socket that is closed with bytes unread resets the connection, and what was sent may be lost by it.
            while stream.read(&mut [0; 4096]).await.is_ok_and(|length| length > 0) {}
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_breaks_is_said_and_is_no_cancelled_call() {
    /// Of HTTP/2: an empty SETTINGS frame.
    const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    replace(&directory.path().join("ca.crt"), &authority.pem());
    let ca = directory.path().join("ca.crt").to_str().unwrap().to_owned();
    let arguments = ["--tls-ca", &ca];
    for (name, reads, bytes, said) in [
        ("at once", false, &[][..], "right after the TLS handshake"),
        ("after a request", true, &[][..], "right after the TLS handshake"),
        ("after a beginning", true, SETTINGS, ""),
    ] {
        let server = closing(&authority, reads, bytes).await;
        check(server, &[(name, &arguments, 69, said)]).await;
        let errors = run(server, &arguments).await.stderr;
        let errors = String::from_utf8_lossy(&errors);
        assert_eq!(
            errors.contains("certificate of this client"),
            bytes.is_empty(),
            "{name}: {errors}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_client_shows_and_trusts_what_the_agent_says() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::of_trust_domain("test.example");
    let path = |name: &str| directory.path().join(name);
    let agent = Agent::start(&path("service.sock")).unwrap();
    drop(agent.give("spiffe://test.example/builderd", &authority));
    let tls = Tls::start(&TlsSettings::Spiffe(path("service.sock")))
        .await
        .unwrap();
    let server = serve(&tls).await;
    let tenants_agent = Agent::start(&path("tenant.sock")).unwrap();
    drop(tenants_agent.give("spiffe://test.example/tenant/acme", &authority));
    let foreign_agent = Agent::start(&path("foreign.sock")).unwrap();
    let foreign = Authority::of_trust_domain("foreign.example");
    drop(foreign_agent.give("spiffe://foreign.example/tenant/acme", &foreign));

    let socket = |name: &str| path(name).to_str().unwrap().to_owned();
    let (tenant, stranger) = (socket("tenant.sock"), socket("foreign.sock"));
    let uri = format!("unix://{tenant}");
    let mode: [&str; 3] = ["--tls-mode", "spiffe", "--spiffe-socket"];
    let [a, b, c] = mode;
    check(
        server.address,
        &[
            ("the agent's", &[a, b, c, &tenant], 0, ""),
            ("in SPIFFE's spelling", &[a, b, c, &uri], 0, ""),
            (
                "the service by its ID",
                &[
                    a,
                    b,
                    c,
                    &tenant,
                    "--server-spiffe-id",
                    "spiffe://test.example/builderd",
                ],
                0,
                "",
            ),
            (
                "another service",
                &[
                    a,
                    b,
                    c,
                    &tenant,
                    "--server-spiffe-id",
                    "spiffe://test.example/metald",
                ],
                69,
                "cannot be reached",
            ),
            (
                "no ID",
                &[a, b, c, &tenant, "--server-spiffe-id", "metald"],
                64,
                "--server-spiffe-id: ",
            ),
            ("another domain's", &[a, b, c, &stranger], 69, "cannot be reached"),
            (
                "no agent",
                &[a, b, c, "/nonexistent/agent.sock"],
                69,
                "--spiffe-socket: no agent answers",
            ),
        ],
    )
    .await;
}
