//! TLS with an own authority and client certificates, directly and through a proxy.

use std::io;
use std::net::IpAddr;
use std::path::Path;
use std::pin::Pin;
use std::process::Command;
use std::sync::{Arc, Mutex};

use oci_fetch::{Client, ClientConfig, FetchErrorKind, Proxies, Resolver};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::common::docker_registry::{DockerRegistry, push};
use crate::common::*;
use crate::{client, image};

const CLIENTS_WITH_CERTIFICATES: &str =
    "  tls: {certificate: DIRECTORY/server.pem, key: DIRECTORY/server.key, clientcas: [DIRECTORY/ca.pem]}";

/// An authority, a server certificate for 127.0.0.1 and `registry.example`, and a client certificate, in PEM.
fn make_certificates(directory: &Path) {
    let script = r"
        set -e
        openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=authority -keyout ca.key -out ca.pem
        printf 'subjectAltName=IP:127.0.0.1,DNS:registry.example\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE' > server.ext
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

fn start() -> Option<DockerRegistry> {
    DockerRegistry::start(
        &["/usr/bin/openssl"],
        CLIENTS_WITH_CERTIFICATES,
        "",
        make_certificates,
    )
}

async fn push_with_certificate(registry: &DockerRegistry, image: &TestImage) {
    let read = |name: &str| std::fs::read(registry.directory.path().join(name)).unwrap();
    let pusher = reqwest::Client::builder()
        .no_proxy()
        .tls_certs_only([reqwest::Certificate::from_pem(&read("ca.pem")).unwrap()])
        .identity(reqwest::Identity::from_pem(&read("identity.pem")).unwrap())
        .build()
        .unwrap();
    let base = format!("https://{}", registry.address);
    push(&pusher, &base, None, "app", image).await;
}

#[tokio::test]
async fn tls_with_an_own_authority_and_client_certificates() {
    let Some(registry) = start() else { return };
    let read = |name: &str| std::fs::read(registry.directory.path().join(name)).unwrap();
    let image = image();
    push_with_certificate(&registry, &image).await;
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

/// Knows where the proxy is, and no registry.
struct Names;

impl Resolver for Names {
    fn resolve(&self, host: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        Box::pin(async move {
            if host == "proxy.inside" {
                Ok(vec![IpAddr::from([127, 0, 0, 1])])
            } else {
                Err(io::Error::other("the proxy resolves names, not the client"))
            }
        })
    }
}

/// A proxy that leads every `CONNECT` to `upstream`; where it listens, and the heads of what it was asked.
async fn tunnel(upstream: String) -> (u16, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heads = Arc::clone(&asked);
    // Ends with the test's runtime.
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let (upstream, heads) = (upstream.clone(), Arc::clone(&heads));
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") && head.len() < 8192 {
                    head.push(client.read_u8().await?);
                }
                heads
                    .lock()
                    .unwrap()
                    .push(String::from_utf8_lossy(&head).into_owned());
                let mut server = TcpStream::connect(upstream).await?;
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await?;
                tokio::io::copy_bidirectional(&mut client, &mut server).await
            });
        }
    });
    (port, asked)
}

#[tokio::test]
async fn through_a_proxy_tls_and_the_client_certificate_reach_to_the_registry() {
    let Some(registry) = start() else { return };
    let read = |name: &str| std::fs::read(registry.directory.path().join(name)).unwrap();
    let image = image();
    push_with_certificate(&registry, &image).await;
    let (port, asked) = tunnel(registry.address.clone()).await;
    let cache = tempfile::tempdir().unwrap();
    let proxies = Proxies::none()
        .with_https(&format!("http://alice:hunter2@proxy.inside:{port}"))
        .unwrap();
    let with_authority = || {
        client(cache.path(), &registry.address)
            .with_resolver(Arc::new(Names))
            .with_proxies(proxies.clone())
            .with_certificate_authorities("registry.example", read("ca.pem"))
            .unwrap()
    };
    let with_both = with_authority()
        .with_client_certificate("registry.example", read("identity.pem"))
        .unwrap();
    let source = "registry.example/app:1".parse().unwrap();
    let pulled = pull_with(&Client::new(with_both).unwrap(), &source, &as_tenant("t")).await;
    assert_eq!(pulled.unwrap(), image.layers);
    let heads = std::mem::take(&mut *asked.lock().unwrap());
    assert!(!heads.is_empty());
    for head in &heads {
        assert!(
            head.starts_with("CONNECT registry.example:443 HTTP/1.1\r\n"),
            "{head}"
        );
        // User name and password from the proxy's URL, and nothing of the image.
        assert!(
            head.to_lowercase().contains("proxy-authorization: basic "),
            "{head}"
        );
        assert!(!head.contains("/v2/"), "{head}");
    }
    // Without the certificate the registry refuses, not the proxy.
    let refused = resolve(&Client::new(with_authority()).unwrap(), &source).await;
    assert_eq!(kind(refused), FetchErrorKind::Transient);
    assert!(!asked.lock().unwrap().is_empty());
}
