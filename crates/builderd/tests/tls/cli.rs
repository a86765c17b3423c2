//! `builderd-cli` over TLS.

use std::process::{Output, Stdio};

use builderd::tls::{Tls, TlsSettings};
use test_support::{
    pki::{Authority, Subject, replace},
    workload_api::Agent,
};
use tokio::process::Command;

use crate::{from_files, host, serve, support::Server};

async fn run(server: &Server, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_builderd-cli"));
    command
        .env_clear()
        .args(["get-build", "one", "--tenant", "acme", "--json", "--server"])
        .arg(format!("https://localhost:{}", server.address.port()))
        .args(arguments)
        .stdin(Stdio::null())
        .kill_on_drop(true);
    command.output().await.unwrap()
}

/// Runs the client with each of these, and compares the code it ends with and what it says on standard error.
async fn check(server: &Server, cases: &[(&str, &[&str], i32, &str)]) {
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
        &server,
        &[
            ("all of it", &good, 0, ""),
            ("the mode by its name", &named, 0, ""),
            ("another authority", &distrusting, 69, "invalid peer certificate"),
            // Told while it connects or with the first call, as it happens.
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
        &server,
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
