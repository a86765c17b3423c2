//! The daemon over TLS with clients that others wrote: curl, openssl, grpcio, and our own client; certificates that are
//! renewed while requests go on.

#![expect(clippy::unwrap_used, reason = "a test program")]

use std::{
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
    time::{Duration, Instant},
};

use builderd_e2e::{
    api::{TENANT, seed_request},
    bench::Bench,
    parts,
};
use serde_json::Value;
use tempfile::TempDir;
use test_support::{
    lab::{self, Missing},
    pki::{Authority, Subject, replace},
};

/// A renewed certificate is shown within this time, on a very busy machine.
const RENEWAL: Duration = Duration::from_secs(120);

/// A daemon that knows its callers by certificates, and the files of it and of some callers.
struct Encrypted {
    bench: Bench,
    directory: TempDir,
    authority: Authority,
}

impl Encrypted {
    fn start() -> Result<Self, Missing> {
        let directory = tempfile::tempdir().unwrap();
        let authority = Authority::of_trust_domain("test.example");
        let host = Subject::host(&["localhost"]).and_uri("spiffe://test.example/builderd");
        drop(authority.issue(&host).write(directory.path(), "service"));
        replace(&directory.path().join("ca.crt"), &authority.pem());
        for (name, id) in [
            ("tenant", "spiffe://test.example/tenant/test-tenant"),
            ("other", "spiffe://test.example/tenant/other"),
            ("metald", "spiffe://test.example/metald"),
        ] {
            drop(
                authority
                    .issue(&Subject::spiffe(id))
                    .write(directory.path(), name),
            );
        }
        let expired = Subject::spiffe("spiffe://test.example/tenant/test-tenant").expired();
        drop(authority.issue(&expired).write(directory.path(), "expired"));
        let strangers = Authority::of_trust_domain("test.example");
        let stranger = strangers.issue(&Subject::spiffe("spiffe://test.example/tenant/test-tenant"));
        drop(stranger.write(directory.path(), "stranger"));
        let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        let bench = Bench::start(&[
            ("TLS_MODE", "file"),
            ("TLS_CERT_FILE", &path("service.crt")),
            ("TLS_KEY_FILE", &path("service.key")),
            ("TLS_CA_FILE", &path("ca.crt")),
            ("AUTH_MODE", "mtls"),
            ("AUTH_SERVICE_IDS", "spiffe://test.example/metald"),
        ])?;
        Ok(Self {
            bench,
            directory,
            authority,
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn url(&self) -> String {
        format!("https://localhost:{}", self.bench.daemon.address().port())
    }

    /// curl, as somebody or as nobody.
    fn curl(&self, who: Option<&str>, arguments: &[&str]) -> Output {
        let mut command = Command::new("curl");
        command
            .args([
                "--silent",
                "--show-error",
                "--noproxy",
                "*",
                "--max-time",
                "60",
                "--cacert",
            ])
            .arg(self.path("ca.crt"));
        if let Some(who) = who {
            command.arg("--cert").arg(self.path(&format!("{who}.crt")));
            command.arg("--key").arg(self.path(&format!("{who}.key")));
        }
        command.args(arguments).output().unwrap()
    }

    fn method(&self, name: &str) -> String {
        format!("{}/builder.v1.BuilderService/{name}", self.url())
    }

    /// The certificate that the daemon shows, in PEM.
    fn shown(&self) -> String {
        let output = Command::new("openssl")
            .args(["s_client", "-connect"])
            .arg(format!("localhost:{}", self.bench.daemon.address().port()))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let begin = text.find("-----BEGIN").unwrap_or_default();
        let end = text.find("-----END CERTIFICATE-----").unwrap_or(text.len());
        text[begin..end].to_owned()
    }
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("clients").join(name)
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

#[test]
fn privileged_curl_does_what_its_certificate_may() {
    let service = match Encrypted::start() {
        Ok(service) => service,
        Err(missing) => return lab::skip(missing),
    };
    let health = format!("{}/health", service.url());
    for version in ["--http1.1", "--http2", "--tls-max=1.2", "--tlsv1.3"] {
        let arguments: Vec<&str> = match version.split_once('=') {
            Some((flag, value)) => vec![flag, value, &health],
            None => vec![version, &health],
        };
        let output = service.curl(Some("tenant"), &arguments);
        assert_eq!(json(&output)["status"], "healthy", "{version}: {output:?}");
    }
    for (name, who) in [
        ("nobody", None),
        ("an expired certificate", Some("expired")),
        ("another authority's", Some("stranger")),
    ] {
        let output = service.curl(who, &[&health]);
        assert!(
            !output.status.success() && output.stdout.is_empty(),
            "{name}: {output:?}"
        );
    }
    let request = seed_request(&service.bench.reference);
    let create = |who| {
        let url = service.method("CreateBuild");
        let arguments = [
            "-H",
            "Content-Type: application/json",
            "-d",
            request.as_str(),
            &url,
        ];
        json(&service.curl(Some(who), &arguments))
    };
    for who in ["tenant", "metald"] {
        let created = create(who);
        assert!(
            created["buildId"].is_string(),
            "{who}: {created}\n{}",
            service.bench.daemon.log()
        );
    }
    assert_eq!(create("other")["code"], "permission_denied");
}

#[test]
fn privileged_versions_of_tls_below_1_2_are_refused() {
    let service = match Encrypted::start() {
        Ok(service) => service,
        Err(missing) => return lab::skip(missing),
    };
    for (version, accepted) in [("-tls1_1", false), ("-tls1_2", true), ("-tls1_3", true)] {
        let output = Command::new("openssl")
            // Level 0: openssl itself would refuse the old version otherwise.
            .args(["s_client", version, "-cipher", "DEFAULT@SECLEVEL=0", "-connect"])
            .arg(format!("localhost:{}", service.bench.daemon.address().port()))
            .stdin(Stdio::null())
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert_eq!(
            text.contains("BEGIN CERTIFICATE"),
            accepted,
            "{version}: {text}\n{errors}"
        );
        if !accepted {
            assert!(errors.contains("alert"), "{version}: {errors}");
        }
    }
}

#[test]
fn privileged_grpcio_creates_a_build_and_streams_its_log_over_tls() {
    let parts = parts::lab_part("python/bin/python3").and_then(|python| Ok((python, Encrypted::start()?)));
    let (python, service) = match parts {
        Ok(parts) => parts,
        Err(missing) => return lab::skip(missing),
    };
    let output = Command::new(python)
        .arg(script("grpc_client.py"))
        .arg(format!("localhost:{}", service.bench.daemon.address().port()))
        .arg(service.bench.descriptors())
        .args([&seed_request(&service.bench.reference), TENANT])
        .args([
            service.path("ca.crt"),
            service.path("tenant.crt"),
            service.path("tenant.key"),
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{output:?}\n{}",
        service.bench.daemon.log()
    );
    let saw = json(&output);
    assert_eq!(saw["state"], "BUILD_STATE_COMPLETED", "{saw}");
    assert_eq!(saw["refused"], "NOT_FOUND", "{saw}");
}

#[test]
fn privileged_our_own_client_follows_a_build_over_tls() {
    let parts = parts::builderd_cli().and_then(|client| Ok((client, Encrypted::start()?)));
    let (client, service) = match parts {
        Ok(parts) => parts,
        Err(missing) => return lab::skip(missing),
    };
    let run = |who: &str| {
        Command::new(&client)
            .env_clear()
            .args([
                "create-build",
                "--follow",
                "--tenant",
                TENANT,
                "--server",
                &service.url(),
            ])
            .arg("--tls-ca")
            .arg(service.path("ca.crt"))
            .arg("--tls-cert")
            .arg(service.path(&format!("{who}.crt")))
            .arg("--tls-key")
            .arg(service.path(&format!("{who}.key")))
            .arg(&service.bench.reference)
            .output()
            .unwrap()
    };
    let output = run("tenant");
    assert!(
        output.status.success(),
        "{output:?}\n{}",
        service.bench.daemon.log()
    );
    assert!(
        String::from_utf8_lossy(&output.stdout).contains("COMPLETED"),
        "{output:?}"
    );
    assert_eq!(run("other").status.code(), Some(77), "another tenant");
    assert_eq!(run("expired").status.code(), Some(64), "it is not even shown");
    let stranger = run("stranger");
    assert_eq!(stranger.status.code(), Some(69), "no way in: {stranger:?}");
    let said = String::from_utf8_lossy(&stranger.stderr);
    assert!(said.contains("refused the certificate of this client"), "{said}");
}

#[test]
fn privileged_certificates_are_renewed_while_requests_go_on() {
    let service = match Encrypted::start() {
        Ok(service) => service,
        Err(missing) => return lab::skip(missing),
    };
    let health = format!("{}/health", service.url());
    let ask = || {
        let output = service.curl(Some("tenant"), &[&health]);
        assert_eq!(json(&output)["status"], "healthy", "{output:?}");
    };
    let before = service.shown();
    let host = Subject::host(&["localhost"]).and_uri("spiffe://test.example/builderd");
    let pair = service.authority.issue(&host);
    // The certificate first: what is there now does not fit together, and the old pair goes on.
    replace(&service.path("service.crt"), &pair.certificate_pem);
    let refused = "Certificates have changed and cannot be used";
    let started = Instant::now();
    while !service.bench.daemon.log().contains(refused) {
        ask();
        assert!(started.elapsed() < RENEWAL, "{}", service.bench.daemon.log());
    }
    assert_eq!(service.shown(), before, "the old pair is kept");
    replace(&service.path("service.key"), &pair.key_pem);
    while !service
        .bench
        .daemon
        .log()
        .contains("Certificates were read again")
    {
        ask();
        assert!(started.elapsed() < RENEWAL, "{}", service.bench.daemon.log());
    }
    let after = service.shown();
    assert_ne!(after, before);
    assert!(
        pair.certificate_pem.replace('\r', "").contains(after.trim()),
        "{after}"
    );
    ask();
}
