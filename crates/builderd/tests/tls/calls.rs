//! Calls over TLS: gRPC on the port, and of assetmanagerd by the service.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use assetclient::{AssetClient, AssetError, AssetErrorKind, FinishedImage, RegisterAsset};
use builderd::{
    proto::{GetBuildRequest, StreamBuildLogsRequest, builder_service_client::BuilderServiceClient},
    tls::{ServerId, Tls, TlsFiles, TlsSettings},
};
use rustls::{
    DigitallySignedStruct, ServerConfig, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use test_support::{
    assetmanagerd::FakeAssetManager,
    pki::{Authority, Issued, Subject, replace},
    workload_api::Agent,
};
use tonic::transport::Endpoint;

use crate::{from_files, host, serve, support::tunnel};

/// Believes every server: for clients whose servers have to do all the checking.
#[derive(Debug)]
pub(crate) struct Credulous;

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}

#[tokio::test]
async fn grpc_works_over_tls_unary_and_streaming() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new("ours");
    let pair = authority.issue(&host());
    let server = serve(
        &from_files(directory.path(), &pair, Some(&authority))
            .await
            .unwrap(),
    )
    .await;
    let through = tunnel::tunnel(server.address, {
        let mut config = tunnel::client_config(&authority, Some(&pair));
        config.alpn_protocols = vec![b"h2".to_vec()];
        config
    })
    .await;
    let channel = Endpoint::from_shared(format!("http://{through}")).unwrap();
    let mut client = BuilderServiceClient::new(channel.connect().await.unwrap());
    let request = GetBuildRequest {
        build_id: "one".to_owned(),
        tenant_id: "acme".to_owned(),
    };
    let build = client
        .get_build(request)
        .await
        .unwrap()
        .into_inner()
        .build
        .unwrap();
    assert_eq!(build.build_id, "one");
    let request = StreamBuildLogsRequest {
        build_id: "one".to_owned(),
        ..Default::default()
    };
    let mut lines = client.stream_build_logs(request).await.unwrap().into_inner();
    for sequence in 1..=3 {
        assert_eq!(lines.message().await.unwrap().unwrap().sequence, sequence);
    }
}

/// An assetmanagerd that shows this certificate, and asks clients for one of this authority.
async fn assetmanagerd(assets: &FakeAssetManager, shown: &Issued, clients: &Authority) -> SocketAddr {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut roots = rustls::RootCertStore::empty();
    roots.add(clients.der().into()).unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(
            vec![shown.certificate_der.clone().into()],
            PrivateKeyDer::from_pem_slice(shown.key_pem.as_bytes()).unwrap(),
        )
        .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let plain = assets.endpoint();
    let plain = plain.strip_prefix("http://").unwrap();
    tunnel::terminate(plain.parse().unwrap(), config).await
}

async fn register(address: SocketAddr, tls: &Tls, server: ServerId) -> Result<(), AssetError> {
    let client = tls.client(server).unwrap();
    let mut config = assetclient::Config::new(format!("https://localhost:{}", address.port()));
    config.timeout = Duration::from_secs(60);
    config.connect_timeout = Duration::from_secs(60);
    config.tls = Some(assetclient::Tls::new(move || client.current()));
    let asset = RegisterAsset::of_image(FinishedImage {
        tenant_id: "acme".to_owned(),
        build_id: "build-1".to_owned(),
        ..FinishedImage::default()
    });
    let client = AssetClient::connect_lazy(config).unwrap();
    client.register(&asset).await.map(drop)
}

#[tokio::test]
async fn assetmanagerd_is_called_with_certificates_from_files() {
    let directory = tempfile::tempdir().unwrap();
    let (ours, theirs) = (Authority::new("ours"), Authority::new("theirs"));
    let assets = FakeAssetManager::start().unwrap();
    let address = assetmanagerd(&assets, &theirs.issue(&host()), &ours).await;
    let pair = ours.issue(&Subject::host(&["builderd"]));
    let tls = from_files(directory.path(), &pair, Some(&theirs)).await.unwrap();
    register(address, &tls, ServerId::OfTrustDomain).await.unwrap();
    assert_eq!(assets.calls().len(), 1);

    // Others are not told anything.
    let impostor = assetmanagerd(&assets, &Authority::new("theirs").issue(&host()), &ours).await;
    let elsewhere = assetmanagerd(&assets, &theirs.issue(&Subject::host(&["elsewhere"])), &ours).await;
    for other in [impostor, elsewhere] {
        let refused = register(other, &tls, ServerId::OfTrustDomain).await;
        let error = refused.unwrap_err();
        assert!(
            matches!(
                error.kind(),
                AssetErrorKind::Unavailable { .. } | AssetErrorKind::Unreachable { .. }
            ),
            "{error:?}"
        );
    }
    // A certificate that assetmanagerd does not accept, until it is replaced.
    let directory = tempfile::tempdir().unwrap();
    let wrong = Authority::new("wrong").issue(&host());
    let tls = from_files(directory.path(), &wrong, Some(&theirs)).await.unwrap();
    let refused = register(address, &tls, ServerId::OfTrustDomain)
        .await
        .unwrap_err();
    let kind = refused.kind();
    assert!(
        matches!(kind, AssetErrorKind::Unreachable { message } if message.contains("refused the certificate of this client")),
        "{kind:?}"
    );
    assert!(kind.is_retryable() && !kind.may_be_done(), "{kind:?}");
    assert_eq!(assets.calls().len(), 1);
    replace(&directory.path().join("tls.crt"), &pair.certificate_pem);
    replace(&directory.path().join("tls.key"), &pair.key_pem);
    let Tls::Files(files) = &tls else {
        panic!("expected files");
    };
    assert!(files.refresh().unwrap());
    register(address, &tls, ServerId::OfTrustDomain).await.unwrap();
    assert_eq!(assets.calls().len(), 2);
}

#[tokio::test]
async fn assetmanagerd_is_called_with_the_agents_identity() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::of_trust_domain("test.example");
    let socket = directory.path().join("agent.sock");
    let agent = Agent::start(&socket).unwrap();
    drop(agent.give("spiffe://test.example/builderd", &authority));
    let tls = Tls::start(&TlsSettings::Spiffe(socket)).await.unwrap();
    let assets = FakeAssetManager::start().unwrap();
    let of = |id: &'static str| authority.issue(&Subject::spiffe(id));
    let pinned = ServerId::Exactly("spiffe://test.example/assetmanagerd".parse().unwrap());
    for (name, shown, server, accepted) in [
        (
            "assetmanagerd",
            of("spiffe://test.example/assetmanagerd"),
            pinned.clone(),
            true,
        ),
        (
            "anybody of the domain",
            of("spiffe://test.example/other"),
            ServerId::OfTrustDomain,
            true,
        ),
        ("somebody else", of("spiffe://test.example/other"), pinned, false),
        (
            "a tenant",
            of("spiffe://test.example/tenant/acme"),
            ServerId::OfTrustDomain,
            false,
        ),
        (
            "no workload",
            authority.issue(&host()),
            ServerId::OfTrustDomain,
            false,
        ),
    ] {
        let address = assetmanagerd(&assets, &shown, &authority).await;
        let before = assets.calls().len();
        let answer = register(address, &tls, server).await;
        assert_eq!(answer.is_ok(), accepted, "{name}: {answer:?}");
        assert_eq!(assets.calls().len() - before, usize::from(accepted), "{name}");
    }
}

#[tokio::test]
async fn what_is_missing_for_calls_is_said() {
    // An endpoint that asks for TLS, and nothing to do it with.
    let config = assetclient::Config::new("https://localhost:1");
    let refused = AssetClient::connect_lazy(config).unwrap_err();
    assert!(refused.to_string().contains("asks for TLS"), "{refused}");
    let absent = TlsSettings::Files(TlsFiles {
        certificate: "/nonexistent".into(),
        key: "/nonexistent".into(),
        authorities: None,
    });
    Tls::start(&absent).await.unwrap_err();
}
