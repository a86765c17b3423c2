//! TLS, and who may call.

use builderd::{
    config::AuthenticationConfig,
    tls::{ServerId, TlsSettings},
};

use crate::{production, refusal};

/// The variables that this file proves to work.
pub(crate) const PROVEN: [&str; 8] = [
    "TLS_MODE",
    "TLS_CERT_FILE",
    "TLS_KEY_FILE",
    "TLS_CA_FILE",
    "SPIFFE_SOCKET",
    "AUTH_SERVICE_IDS",
    "AUTH_TRUST_DOMAIN",
    "ASSETMANAGER_SPIFFE_ID",
];

const PAIR: [(&str, &str); 3] = [
    ("TLS_MODE", "file"),
    ("TLS_CERT_FILE", "/etc/builderd/tls.crt"),
    ("TLS_KEY_FILE", "/etc/builderd/tls.key"),
];
const AUTHORITIES: (&str, &str) = ("TLS_CA_FILE", "/etc/builderd/ca.crt");
const SPIFFE: (&str, &str) = ("TLS_MODE", "spiffe");
const MTLS: (&str, &str) = ("AUTH_MODE", "mtls");

#[test]
fn certificates_come_from_files_or_from_an_agent() {
    let TlsSettings::Files(files) = production(&PAIR).unwrap().tls else {
        panic!("expected files");
    };
    assert_eq!(files.certificate.to_str(), Some("/etc/builderd/tls.crt"));
    assert_eq!(files.key.to_str(), Some("/etc/builderd/tls.key"));
    assert_eq!(files.authorities, None);
    let TlsSettings::Files(files) = production(&[&PAIR[..], &[AUTHORITIES]].concat()).unwrap().tls else {
        panic!("expected files");
    };
    assert_eq!(files.authorities, Some("/etc/builderd/ca.crt".into()));
    assert_eq!(
        production(&[SPIFFE]).unwrap().tls,
        TlsSettings::Spiffe("/run/spire/sockets/agent.sock".into())
    );
    assert_eq!(
        production(&[SPIFFE, ("SPIFFE_SOCKET", "/run/a.sock")])
            .unwrap()
            .tls,
        TlsSettings::Spiffe("/run/a.sock".into())
    );
}

#[test]
fn certificates_say_who_calls() {
    let ids = "spiffe://prod.example/metald, spiffe://prod.example/gateway";
    let all = [
        SPIFFE,
        MTLS,
        ("AUTH_SERVICE_IDS", ids),
        ("AUTH_TRUST_DOMAIN", "prod.example"),
    ];
    let AuthenticationConfig::Mtls {
        services,
        trust_domain,
    } = production(&all).unwrap().authentication
    else {
        panic!("expected certificates");
    };
    let services: Vec<_> = services.iter().map(ToString::to_string).collect();
    assert_eq!(
        services,
        ["spiffe://prod.example/metald", "spiffe://prod.example/gateway"]
    );
    assert_eq!(trust_domain.unwrap().as_str(), "prod.example");
    // With files, clients have to be asked for certificates.
    production(&[&PAIR[..], &[AUTHORITIES, MTLS]].concat()).unwrap();
}

#[test]
fn assetmanagerd_may_be_pinned() {
    let id = ("ASSETMANAGER_SPIFFE_ID", "spiffe://prod.example/assetmanagerd");
    let ServerId::Exactly(expected) = production(&[SPIFFE, id]).unwrap().asset_manager_id else {
        panic!("expected one ID");
    };
    assert_eq!(expected.to_string(), id.1);
    assert_eq!(
        production(&[SPIFFE]).unwrap().asset_manager_id,
        ServerId::OfTrustDomain
    );
}

#[test]
fn what_protects_nobody_is_refused() {
    type Case = (
        &'static str,
        &'static [(&'static str, &'static str)],
        &'static [&'static str],
    );
    let cases: &[Case] = &[
        (
            "no certificate",
            &[PAIR[0], PAIR[2]],
            &["UNKEY_BUILDERD_TLS_CERT_FILE=\"\": TLS_MODE=file needs it"],
        ),
        (
            "no key",
            &PAIR[..2],
            &["UNKEY_BUILDERD_TLS_KEY_FILE=\"\": TLS_MODE=file needs it"],
        ),
        (
            "a certificate for nothing",
            &PAIR[1..2],
            &["TLS_CERT_FILE=", "TLS_MODE=file, and that is disabled"],
        ),
        (
            "authorities for nothing",
            &[SPIFFE, AUTHORITIES],
            &["TLS_CA_FILE=", "TLS_MODE=file, and that is spiffe"],
        ),
        (
            "an agent for nothing",
            &[("SPIFFE_SOCKET", "/run/a.sock")],
            &["SPIFFE_SOCKET=", "TLS_MODE=spiffe, and that is disabled"],
        ),
        (
            "an agent beside files",
            &[PAIR[0], PAIR[1], PAIR[2], ("SPIFFE_SOCKET", "/run/a.sock")],
            &["SPIFFE_SOCKET=", "TLS_MODE=spiffe, and that is file"],
        ),
        (
            "a pin in plaintext",
            &[
                SPIFFE,
                ("ASSETMANAGER_ENABLED", "true"),
                ("ASSETMANAGER_ENDPOINT", "http://127.0.0.1:8083"),
                ("ASSETMANAGER_SPIFFE_ID", "spiffe://a/b"),
            ],
            &["ASSETMANAGER_SPIFFE_ID=", "to an https:// address"],
        ),
        (
            "mtls without TLS",
            &[MTLS],
            &[
                "UNKEY_BUILDERD_AUTH_MODE=\"mtls\"",
                "UNKEY_BUILDERD_TLS_MODE=spiffe",
            ],
        ),
        (
            "mtls that asks nobody",
            &[PAIR[0], PAIR[1], PAIR[2], MTLS],
            &["AUTH_MODE=\"mtls\"", "TLS_CA_FILE"],
        ),
        (
            "IDs for nothing",
            &[SPIFFE, ("AUTH_SERVICE_IDS", "spiffe://a/b")],
            &["AUTH_SERVICE_IDS=", "AUTH_MODE=mtls"],
        ),
        (
            "a domain for nothing",
            &[("AUTH_TRUST_DOMAIN", "a")],
            &["AUTH_TRUST_DOMAIN=", "AUTH_MODE=mtls"],
        ),
        (
            "no ID",
            &[SPIFFE, MTLS, ("AUTH_SERVICE_IDS", "spiffe://a/b,metald")],
            &["\"metald\"", "as spiffe://"],
        ),
        (
            "no domain",
            &[SPIFFE, MTLS, ("AUTH_TRUST_DOMAIN", "A B")],
            &["AUTH_TRUST_DOMAIN=\"A B\"", "as example.org"],
        ),
        (
            "a pin for nothing",
            &[("ASSETMANAGER_SPIFFE_ID", "spiffe://a/b")],
            &["TLS_MODE=spiffe, which is not set"],
        ),
        (
            "no pin",
            &[SPIFFE, ("ASSETMANAGER_SPIFFE_ID", "a")],
            &["ASSETMANAGER_SPIFFE_ID=\"a\"", "as spiffe://"],
        ),
        (
            "a mode",
            &[("TLS_MODE", "on")],
            &["TLS_MODE=\"on\"", "expected disabled, file or spiffe"],
        ),
    ];
    for (name, variables, expected) in cases {
        let refused = refusal(production(variables));
        for part in *expected {
            assert!(refused.contains(part), "{name}: {refused}");
        }
    }
}
