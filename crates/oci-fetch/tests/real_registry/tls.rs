//! TLS with an own authority and client certificates.

use std::path::Path;
use std::process::Command;

use oci_fetch::{Client, ClientConfig, FetchErrorKind};

use crate::common::docker_registry::{DockerRegistry, push};
use crate::common::*;
use crate::image;

/// An authority, a server certificate for 127.0.0.1 and a client certificate, in PEM.
fn make_certificates(directory: &Path) {
    let script = r"
        set -e
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem
        printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE' > server.ext
        printf 'extendedKeyUsage=clientAuth\nbasicConstraints=CA:FALSE' > client.ext
        for name in server client; do
            openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=$name -keyout $name.key -out $name.csr
            openssl x509 -req -in $name.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile $name.ext -out $name.pem
        done
        cat client.pem client.key > identity.pem";
    let output = Command::new("sh")
        .args(["-c", script])
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
}

#[tokio::test]
async fn tls_with_an_own_authority_and_client_certificates() {
    let http = "  tls: {certificate: DIRECTORY/server.pem, key: DIRECTORY/server.key, clientcas: [DIRECTORY/ca.pem]}";
    let Some(registry) = DockerRegistry::start(&["/usr/bin/openssl"], http, "", make_certificates) else {
        return;
    };
    let read = |name: &str| std::fs::read(registry.directory.path().join(name)).unwrap();
    let pusher = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([reqwest::Certificate::from_pem(&read("ca.pem")).unwrap()])
        .identity(reqwest::Identity::from_pem(&read("identity.pem")).unwrap())
        .build()
        .unwrap();
    let image = image();
    push(
        &pusher,
        &format!("https://{}", registry.address),
        None,
        "app",
        &image,
    )
    .await;
    let source = format!("{}/app:1", registry.address).parse().unwrap();
    let cache = tempfile::tempdir().unwrap();
    let base = || {
        quick(ClientConfig::new(cache.path()))
            .with_private_registry(&registry.address)
            .unwrap()
    };
    let with_authority = || {
        base()
            .with_certificate_authorities(&registry.address, read("ca.pem"))
            .unwrap()
    };
    let with_both = with_authority()
        .with_client_certificate(&registry.address, read("identity.pem"))
        .unwrap();
    let pulled = pull_with(&Client::new(with_both).unwrap(), &source, &as_tenant("t")).await;
    assert_eq!(pulled.unwrap(), image.layers);
    // The same from a directory as Docker's.
    let directory = tempfile::tempdir().unwrap();
    let own = directory.path().join(&registry.address);
    std::fs::create_dir(&own).unwrap();
    for (from, to) in [
        ("ca.pem", "ca.crt"),
        ("client.pem", "client.cert"),
        ("client.key", "client.key"),
    ] {
        std::fs::write(own.join(to), read(from)).unwrap();
    }
    let by_directory = base().with_certificates_directory(directory.path()).unwrap();
    resolve(&Client::new(by_directory).unwrap(), &source)
        .await
        .unwrap();
    std::fs::write(own.join("ca.crt"), "no certificate").unwrap();
    let broken = base().with_certificates_directory(directory.path()).unwrap();
    assert_eq!(kind(Client::new(broken)), FetchErrorKind::InvalidInput);
    for (name, config) in [
        ("unknown authority", base()),
        ("no client certificate", with_authority()),
    ] {
        let result = resolve(&Client::new(config).unwrap(), &source).await;
        assert_eq!(kind(result), FetchErrorKind::Transient, "{name}");
    }
    let broken = base()
        .with_client_certificate(&registry.address, "not PEM")
        .unwrap();
    assert_eq!(kind(Client::new(broken)), FetchErrorKind::InvalidInput);
}
