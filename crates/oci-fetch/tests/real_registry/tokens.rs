//! Token authentication with a signer of our own.

use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use oci_fetch::{Client, FetchErrorKind};

use crate::common::docker_registry::{DockerRegistry, push};
use crate::common::*;
use crate::{client, image};

/// A token service for docker-registry: signs with a key of its own, by the openssl program.
///
/// Source: distribution, "Token Authentication Implementation".
fn sign_token(directory: &Path, account: &str, scope: Option<&str>) -> String {
    let encode = |bytes: &[u8]| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(bytes);
    let der = Command::new("openssl")
        .args(["x509", "-in", "token.pem", "-outform", "DER"])
        .current_dir(directory)
        .output()
        .unwrap()
        .stdout;
    let chain = base64::engine::general_purpose::STANDARD.encode(der);
    let header = serde_json::json!({"typ": "JWT", "alg": "RS256", "x5c": [chain]});
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)
        .unwrap()
        .as_secs();
    let access: Vec<_> = scope
        .and_then(|scope| scope.strip_prefix("repository:")?.rsplit_once(':'))
        .map(|(name, actions)| {
            serde_json::json!({"type": "repository", "name": name, "actions": actions.split(',').collect::<Vec<_>>()})
        })
        .into_iter()
        .collect();
    let claims = serde_json::json!({
        "iss": "test-issuer", "sub": account, "aud": "test-service", "jti": "1",
        "exp": now + 300, "nbf": now - 10, "iat": now - 10, "access": access,
    });
    let signed = format!(
        "{}.{}",
        encode(header.to_string().as_bytes()),
        encode(claims.to_string().as_bytes())
    );
    std::fs::write(directory.join("claims"), &signed).unwrap();
    let signature = Command::new("openssl")
        .args(["dgst", "-sha256", "-sign", "token.key", "claims"])
        .current_dir(directory)
        .output()
        .unwrap();
    assert!(
        signature.status.success(),
        "{}",
        String::from_utf8_lossy(&signature.stderr)
    );
    format!("{signed}.{}", encode(&signature.stdout))
}

#[tokio::test]
async fn token_authentication_with_an_own_signer() {
    let keys = tempfile::tempdir().unwrap();
    let made = Command::new("openssl")
        .args([
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "2",
            "-subj",
            "/CN=tokens",
        ])
        .args(["-keyout", "token.key", "-out", "token.pem"])
        .current_dir(keys.path())
        .output()
        .unwrap();
    assert!(made.status.success());
    let place = keys.path().to_owned();
    let service = Server::start(Store::default(), move |seen| {
        let query: std::collections::HashMap<String, String> =
            url::Url::parse(&format!("http://x{}", seen.path))
                .unwrap()
                .query_pairs()
                .into_owned()
                .collect();
        if query.get("service").map(String::as_str) != Some("test-service") {
            return Some(Reply::new(400));
        }
        let scope = query.get("scope").map(String::as_str);
        // `private` is alice's, everything else is anybody's.
        let is_alice = seen.authorization() == Some("Basic YWxpY2U6c2VjcmV0");
        let is_private = scope.is_some_and(|scope| scope.starts_with("repository:private:"));
        let granted = scope.filter(|_| is_alice || !is_private);
        let token = sign_token(&place, if is_alice { "alice" } else { "" }, granted);
        Some(Reply::ok(
            "application/json",
            serde_json::json!({"token": token, "expires_in": 300}).to_string(),
        ))
    })
    .await;
    let auth = format!(
        "auth: {{token: {{realm: 'http://{}/token', service: test-service, issuer: test-issuer, rootcertbundle: {}/token.pem}}}}",
        service.address,
        keys.path().display()
    );
    let Some(registry) = DockerRegistry::start(&["/usr/bin/openssl"], "", &auth, |_| ()) else {
        return;
    };
    let image = image();
    for repository in ["public", "private"] {
        let token = sign_token(
            keys.path(),
            "alice",
            Some(&format!("repository:{repository}:pull,push")),
        );
        let mut headers = http::HeaderMap::new();
        headers.insert("authorization", format!("Bearer {token}").parse().unwrap());
        let pusher = reqwest::Client::builder()
            .no_proxy()
            .default_headers(headers)
            .build()
            .unwrap();
        push(
            &pusher,
            &format!("http://{}", registry.address),
            None,
            repository,
            &image,
        )
        .await;
    }
    let cache = tempfile::tempdir().unwrap();
    let config = client(cache.path(), &registry.address)
        .with_plain_http(&service.address.to_string())
        .unwrap();
    let client = Client::new(config).unwrap();
    let source = |repository: &str| format!("{}/{repository}:1", registry.address).parse().unwrap();
    let pulled = pull_with(&client, &source("public"), &as_tenant("t")).await;
    assert_eq!(pulled.unwrap(), image.layers);
    let private = source("private");
    assert_eq!(
        kind(pull_with(&client, &private, &as_tenant("t")).await),
        FetchErrorKind::Unauthorized
    );
    let alice = as_user("t", "alice", "secret");
    assert_eq!(pull_with(&client, &private, &alice).await.unwrap(), image.layers);
    assert_eq!(
        kind(pull_with(&client, &private, &as_user("u", "bob", "x")).await),
        FetchErrorKind::Unauthorized
    );
}
