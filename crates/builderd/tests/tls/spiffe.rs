//! `TLS_MODE=spiffe`: identities of an agent, peers of the trust domain and others, renewal, and an agent that goes.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use builderd::tls::{ServerId, Tls, TlsSettings};
use rustls::ClientConfig;
use tempfile::TempDir;
use test_support::{
    pki::{Authority, Subject},
    workload_api::Agent,
};

use crate::{
    Http1, health, serve, shown, shown_by,
    support::{Server, tunnel},
};

const SERVICE: &str = "spiffe://test.example/builderd";
const CLIENT: &str = "spiffe://test.example/metald";

/// The service and a client, each with an agent of its own.
struct Bench {
    directory: TempDir,
    authority: Authority,
    /// Of another trust domain, which the service's agent knows.
    foreign: Authority,
    agent: Agent,
    clients_agent: Agent,
    tls: Tls,
    server: Server,
    client: Tls,
}

impl Bench {
    async fn start() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::of_trust_domain("test.example");
        let agent = Agent::start(&socket(directory.path())).unwrap();
        let foreign = Authority::of_trust_domain("foreign.example");
        drop(agent.give_with(SERVICE, &authority, &[("foreign.example", &foreign)]));
        let clients_agent = Agent::start(&directory.path().join("client.sock")).unwrap();
        drop(clients_agent.give(CLIENT, &authority));
        let tls = connect(socket(directory.path())).await;
        let client = connect(directory.path().join("client.sock")).await;
        let server = serve(&tls).await;
        Self {
            directory,
            authority,
            foreign,
            agent,
            clients_agent,
            tls,
            server,
            client,
        }
    }

    /// What the client shows and trusts.
    fn config(&self) -> Arc<ClientConfig> {
        self.client.client(ServerId::OfTrustDomain).unwrap().current()
    }
}

fn socket(directory: &Path) -> PathBuf {
    directory.join("agent.sock")
}

async fn connect(socket: PathBuf) -> Tls {
    Tls::start(&TlsSettings::Spiffe(socket)).await.unwrap()
}

/// Shakes hands until the service shows a certificate.
async fn until_shown(server: &Server, config: &Arc<ClientConfig>, certificate: &[u8]) {
    for _ in 0..2000 {
        if let Ok(stream) = tunnel::connect(server.address, (**config).clone()).await
            && shown(&stream) == certificate
        {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the renewed identity is not shown");
}

#[tokio::test]
async fn both_sides_are_known_by_their_ids() {
    let bench = Bench::start().await;
    assert_eq!(bench.tls.identity().unwrap().to_string(), SERVICE);
    assert_eq!(bench.tls.trust_domain().unwrap().as_str(), "test.example");
    assert_eq!(
        health(bench.server.address, (*bench.config()).clone()).await,
        Ok(200)
    );
    for (name, server, accepted) in [
        ("its ID", SERVICE, true),
        ("another ID", "spiffe://test.example/assetmanagerd", false),
        ("an ID elsewhere", "spiffe://foreign.example/builderd", false),
    ] {
        let server = ServerId::Exactly(server.parse().unwrap());
        let config = bench.client.client(server).unwrap().current();
        let answer = health(bench.server.address, (*config).clone()).await;
        assert_eq!(answer.is_ok(), accepted, "{name}: {answer:?}");
    }
}

#[tokio::test]
async fn a_tenant_serves_nothing() {
    let bench = Bench::start().await;
    let socket = bench.directory.path().join("tenant.sock");
    let agent = Agent::start(&socket).unwrap();
    drop(agent.give("spiffe://test.example/tenant/acme", &bench.authority));
    let server = serve(&connect(socket).await).await;
    health(server.address, (*bench.config()).clone())
        .await
        .unwrap_err();
}

#[tokio::test]
async fn clients_show_a_valid_identity_of_the_trust_domain() {
    let bench = Bench::start().await;
    let address = bench.server.address;
    let impostor = Authority::of_trust_domain("test.example");
    let (ours, foreign) = (&bench.authority, &bench.foreign);
    let elsewhere = Subject::spiffe("spiffe://foreign.example/metald");
    // The client verifies nothing here, so that only the service can refuse.
    for (name, shown) in [
        ("none", None),
        ("an impostor's", Some(impostor.issue(&Subject::spiffe(CLIENT)))),
        ("a federated domain's", Some(foreign.issue(&elsewhere))),
        (
            "ours by a federated authority",
            Some(foreign.issue(&Subject::spiffe(CLIENT))),
        ),
        (
            "an expired one",
            Some(ours.issue(&Subject::spiffe(CLIENT).expired())),
        ),
        ("one without an ID", Some(ours.issue(&Subject::host(&["metald"])))),
        (
            "one with two IDs",
            Some(ours.issue(&Subject::spiffe(CLIENT).and_uri("spiffe://test.example/b"))),
        ),
        (
            "one of another domain by our authority",
            Some(ours.issue(&Subject::spiffe("spiffe://foreign.example/a"))),
        ),
        ("one that is good", Some(ours.issue(&Subject::spiffe(CLIENT)))),
    ] {
        let mut config = tunnel::client_config(ours, shown.as_ref());
        config
            .dangerous()
            .set_certificate_verifier(Arc::new(crate::calls::Credulous));
        let answer = health(address, config).await;
        assert_eq!(answer.is_ok(), name == "one that is good", "{name}: {answer:?}");
    }
}

#[tokio::test]
async fn a_renewed_identity_is_in_the_next_handshake_and_open_connections_stay() {
    let bench = Bench::start().await;
    let config = bench.config();
    let stream = tunnel::connect(bench.server.address, (*config).clone())
        .await
        .unwrap();
    let first = shown(&stream);
    let mut open = Http1::over(stream).await;
    for _ in 0..3 {
        let renewed = bench.agent.give(SERVICE, &bench.authority);
        assert_ne!(renewed.certificate_der, first);
        until_shown(&bench.server, &config, &renewed.certificate_der).await;
        assert_eq!(open.health().await, Ok(200), "the connection from before");
    }
    // The client's own identity is renewed too, and its former authority ends.
    let next = Authority::of_trust_domain("test.example");
    let served = bench.agent.give(SERVICE, &next);
    drop(bench.clients_agent.give(CLIENT, &next));
    until_shown(&bench.server, &config, &served.certificate_der).await;
    assert_eq!(open.health().await, Ok(200), "the connection from before");
    let old = tunnel::client_config(
        &bench.authority,
        Some(&bench.authority.issue(&Subject::spiffe(CLIENT))),
    );
    health(bench.server.address, old).await.unwrap_err();
}

#[tokio::test]
async fn an_agent_that_is_away_is_not_missed_until_it_is_back() {
    let bench = Bench::start().await;
    let config = bench.config();
    let before = shown_by(bench.server.address, &config).await;
    drop(bench.agent);
    for _ in 0..3 {
        assert_eq!(shown_by(bench.server.address, &config).await, before);
        assert_eq!(health(bench.server.address, (*config).clone()).await, Ok(200));
    }
    let agent = Agent::start(&socket(bench.directory.path())).unwrap();
    let renewed = agent.give(SERVICE, &bench.authority);
    until_shown(&bench.server, &config, &renewed.certificate_der).await;
    assert_eq!(health(bench.server.address, (*config).clone()).await, Ok(200));
}
