//! Against a real server on loopback, under both names.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use tokio::{net::TcpListener, sync::Notify};
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Response, Streaming, transport::Server};

use super::*;
use crate::{asset::FinishedImage, config::ServiceName};

#[allow(
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    missing_docs,
    unreachable_pub,
    reason = "generated"
)]
mod asset_v1 {
    include!(concat!(env!("OUT_DIR"), "/services/asset.v1.rs"));
}

#[allow(
    unused_qualifications,
    clippy::all,
    clippy::pedantic,
    missing_docs,
    unreachable_pub,
    reason = "generated"
)]
mod deploy {
    include!(concat!(env!("OUT_DIR"), "/services/deploy.assetmanagerd.v1.rs"));
}

/// What the server answers.
#[derive(Clone, Debug)]
enum Answer {
    /// There is an asset `asset-7` that so many use.
    Count(i32),
    Id(&'static str),
    NoAsset,
    Status(Code, &'static str),
    Never,
}

/// The metadata of an upload, and the sizes of its chunks.
type Uploaded = (proto::UploadAssetMetadata, Vec<usize>);

/// One call as it arrived.
#[derive(Clone, Debug)]
struct Seen {
    service: ServiceName,
    headers: HashMap<String, String>,
    request: proto::RegisterAssetRequest,
}

#[derive(Clone, Debug)]
struct Fake {
    answer: Answer,
    seen: Arc<Mutex<Vec<Seen>>>,
    /// An upload that came to its end.
    uploaded: Arc<Mutex<Option<Uploaded>>>,
}

impl Fake {
    async fn answer(
        &self,
        service: ServiceName,
        request: Request<proto::RegisterAssetRequest>,
    ) -> Result<Response<proto::RegisterAssetResponse>, Status> {
        let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
        let headers = request.metadata().clone().into_headers();
        let headers = headers
            .iter()
            .map(|(name, value)| (name.to_string(), text(value)))
            .collect();
        self.seen.lock().unwrap().push(Seen {
            service,
            headers,
            request: request.into_inner(),
        });
        match self.answer {
            Answer::Id(id) => {
                let asset = proto::Asset {
                    id: id.to_owned(),
                    ..proto::Asset::default()
                };
                Ok(Response::new(proto::RegisterAssetResponse { asset: Some(asset) }))
            }
            Answer::NoAsset | Answer::Count(_) => {
                Ok(Response::new(proto::RegisterAssetResponse { asset: None }))
            }
            Answer::Status(code, message) => Err(Status::new(code, message)),
            Answer::Never => {
                Notify::new().notified().await;
                Err(Status::unknown("never"))
            }
        }
    }
}

impl Fake {
    async fn upload(
        &self,
        request: Request<Streaming<proto::UploadAssetRequest>>,
    ) -> Result<Response<proto::UploadAssetResponse>, Status> {
        use proto::upload_asset_request::Data;

        let mut parts = request.into_inner();
        let mut sizes = Vec::new();
        let mut metadata = None;
        while let Some(part) = parts.message().await? {
            match part.data {
                Some(Data::Metadata(first)) if metadata.is_none() => metadata = Some(first),
                Some(Data::Chunk(chunk)) => sizes.push(chunk.len()),
                other => return Err(Status::internal(format!("{other:?}"))),
            }
        }
        *self.uploaded.lock().unwrap() = Some((metadata.unwrap_or_default(), sizes));
        let asset = proto::Asset {
            id: "asset-7".to_owned(),
            ..proto::Asset::default()
        };
        Ok(Response::new(proto::UploadAssetResponse { asset: Some(asset) }))
    }

    fn get(&self, id: &str) -> Result<Response<proto::GetAssetResponse>, Status> {
        match self.answer {
            Answer::Count(reference_count) if id == "asset-7" => {
                let asset = proto::Asset {
                    id: id.to_owned(),
                    reference_count,
                    ..proto::Asset::default()
                };
                Ok(Response::new(proto::GetAssetResponse { asset: Some(asset) }))
            }
            Answer::Id(id) => {
                let asset = proto::Asset {
                    id: id.to_owned(),
                    ..proto::Asset::default()
                };
                Ok(Response::new(proto::GetAssetResponse { asset: Some(asset) }))
            }
            Answer::Status(code, message) => Err(Status::new(code, message)),
            _ => Err(Status::not_found("no such asset")),
        }
    }

    fn delete(
        &self,
        request: &proto::DeleteAssetRequest,
    ) -> Result<Response<proto::DeleteAssetResponse>, Status> {
        match self.answer {
            _ if request.force => Err(Status::internal("never by force")),
            Answer::Count(0) if request.id == "asset-7" => Ok(Response::new(proto::DeleteAssetResponse {})),
            Answer::Count(_) if request.id == "asset-7" => Err(Status::failed_precondition("in use")),
            Answer::Status(code, message) => Err(Status::new(code, message)),
            _ => Err(Status::not_found("no such asset")),
        }
    }
}

/// The same service under either name.
macro_rules! serve {
    ($module:ident, $name:expr) => {
        #[tonic::async_trait]
        impl $module::asset_manager_service_server::AssetManagerService for Fake {
            async fn register_asset(
                &self,
                request: Request<proto::RegisterAssetRequest>,
            ) -> Result<Response<proto::RegisterAssetResponse>, Status> {
                self.answer($name, request).await
            }

            async fn upload_asset(
                &self,
                request: Request<Streaming<proto::UploadAssetRequest>>,
            ) -> Result<Response<proto::UploadAssetResponse>, Status> {
                self.upload(request).await
            }

            async fn get_asset(
                &self,
                request: Request<proto::GetAssetRequest>,
            ) -> Result<Response<proto::GetAssetResponse>, Status> {
                self.get(&request.into_inner().id)
            }

            async fn delete_asset(
                &self,
                request: Request<proto::DeleteAssetRequest>,
            ) -> Result<Response<proto::DeleteAssetResponse>, Status> {
                self.delete(&request.into_inner())
            }
        }
    };
}

serve!(asset_v1, ServiceName::AssetV1);
serve!(deploy, ServiceName::DeployAssetmanagerdV1);

/// A server that ends with the test's runtime.
async fn start(answer: Answer) -> (SocketAddr, Arc<Mutex<Vec<Seen>>>) {
    let fake = Fake {
        answer,
        seen: Arc::default(),
        uploaded: Arc::default(),
    };
    let seen = Arc::clone(&fake.seen);
    let address = serve(fake).await;
    (address, seen)
}

async fn serve(fake: Fake) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = Server::builder()
        .add_service(asset_v1::asset_manager_service_server::AssetManagerServiceServer::new(fake.clone()))
        .add_service(deploy::asset_manager_service_server::AssetManagerServiceServer::new(fake))
        .serve_with_incoming(TcpListenerStream::new(listener));
    tokio::spawn(server);
    address
}

fn client(address: SocketAddr) -> AssetClient {
    AssetClient::connect_lazy(Config::new(format!("http://{address}"))).unwrap()
}

fn asset() -> RegisterAsset {
    RegisterAsset::of_image(FinishedImage {
        tenant_id: "acme".to_owned(),
        customer_id: "Müller & Söhne".to_owned(),
        build_id: "build-1".to_owned(),
        name: "web".to_owned(),
        source_image: "nginx:1.21-alpine".to_owned(),
        backend: StorageBackend::S3,
        location: "acme/build-1.ext4".to_owned(),
        size_bytes: 5_000_000_000,
        checksum: "abcd".to_owned(),
        suggested_id: "my-id".to_owned(),
    })
}

#[tokio::test]
async fn an_image_is_registered_under_either_name_of_the_service() {
    for service in [ServiceName::AssetV1, ServiceName::DeployAssetmanagerdV1] {
        let (address, seen) = start(Answer::Id("asset-7")).await;
        let config = Config {
            service,
            ..Config::new(format!("http://{address}"))
        };
        let client = AssetClient::connect_lazy(config).unwrap();
        assert_eq!(client.register(&asset()).await.unwrap().as_str(), "asset-7");

        let seen = seen.lock().unwrap();
        let [call] = &seen[..] else { panic!("{seen:?}") };
        assert_eq!(call.service, service);
        assert_eq!(call.headers["x-tenant-id"], "acme");
        assert_eq!(call.headers["x-customer-id"], "Müller & Söhne");
        assert_eq!(call.headers["grpc-timeout"], "10000000u");
        let labels = [
            ("source_type", "docker"),
            ("tenant_id", "acme"),
            ("customer_id", "Müller & Söhne"),
            ("docker_image", "nginx:1.21-alpine"),
            ("build_id", "build-1"),
            ("created_by", "builderd"),
        ];
        let expected = proto::RegisterAssetRequest {
            name: "web".into(),
            r#type: 2,
            backend: 2,
            location: "acme/build-1.ext4".into(),
            size_bytes: 5_000_000_000,
            checksum: "abcd".into(),
            labels: labels
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .into(),
            created_by: "builderd".into(),
            build_id: "build-1".into(),
            source_image: "nginx:1.21-alpine".into(),
            id: "my-id".into(),
        };
        assert_eq!(call.request, expected);
    }
}

#[tokio::test]
async fn what_is_not_given_is_not_sent() {
    let (address, seen) = start(Answer::Id("asset-7")).await;
    let image = FinishedImage {
        tenant_id: "acme".into(),
        build_id: "build-1".into(),
        ..FinishedImage::default()
    };
    client(address)
        .register(&RegisterAsset::of_image(image))
        .await
        .unwrap();
    let seen = seen.lock().unwrap();
    assert!(!seen[0].headers.contains_key("x-customer-id"));
    assert_eq!(
        (seen[0].request.id.as_str(), seen[0].request.name.as_str()),
        ("", "build-1")
    );
}

#[tokio::test]
async fn a_failure_says_whether_another_attempt_makes_sense() {
    let cases = [
        (
            Code::Unavailable,
            true,
            "assetmanagerd is not available: busy now",
        ),
        (
            Code::ResourceExhausted,
            true,
            "assetmanagerd failed with RESOURCE_EXHAUSTED: busy now",
        ),
        (
            Code::Internal,
            true,
            "assetmanagerd failed with INTERNAL: busy now",
        ),
        (Code::DeadlineExceeded, true, "no answer within 10s"),
        (Code::AlreadyExists, false, "the asset exists: busy now"),
        (
            Code::InvalidArgument,
            false,
            "assetmanagerd refused with INVALID_ARGUMENT: busy now",
        ),
        (
            Code::PermissionDenied,
            false,
            "assetmanagerd refused with PERMISSION_DENIED: busy now",
        ),
        (
            Code::Unimplemented,
            false,
            "assetmanagerd refused with UNIMPLEMENTED: busy now",
        ),
    ];
    for (code, retryable, expected) in cases {
        let (address, _) = start(Answer::Status(code, "busy\nnow")).await;
        let error = client(address).register(&asset()).await.unwrap_err();
        assert_eq!(error.to_string(), "RegisterAsset of assetmanagerd failed");
        assert_eq!(
            (error.kind().to_string().as_str(), error.is_retryable()),
            (expected, retryable)
        );
    }
}

#[tokio::test]
async fn an_answer_without_a_usable_id_is_an_error() {
    for answer in [Answer::NoAsset, Answer::Id(""), Answer::Id("a\nb")] {
        let (address, _) = start(answer.clone()).await;
        let error = client(address).register(&asset()).await.unwrap_err();
        assert!(
            matches!(error.kind(), AssetErrorKind::Protocol { .. }),
            "{answer:?}: {error:?}"
        );
    }
}

#[tokio::test]
async fn a_server_that_never_answers_is_given_up() {
    let (address, _) = start(Answer::Never).await;
    let timeout = Duration::from_millis(200);
    let config = Config {
        timeout,
        ..Config::new(format!("http://{address}"))
    };
    let error = AssetClient::connect_lazy(config)
        .unwrap()
        .register(&asset())
        .await
        .unwrap_err();
    assert_eq!(error.kind(), &AssetErrorKind::Timeout { timeout });
}

#[tokio::test]
async fn a_server_that_accepts_and_says_nothing_is_given_up() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let timeout = Duration::from_millis(200);
    let config = Config {
        timeout,
        ..Config::new(format!("http://{address}"))
    };
    let error = AssetClient::connect_lazy(config)
        .unwrap()
        .register(&asset())
        .await
        .unwrap_err();
    assert!(error.is_retryable(), "{error:?}");
}

#[tokio::test]
async fn a_client_recovers_when_its_server_comes_back() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let client = client(address);
    let error = client.register(&asset()).await.unwrap_err();
    assert!(
        matches!(error.kind(), AssetErrorKind::Unreachable { .. }) && error.is_retryable(),
        "{error:?}"
    );
    assert!(!error.kind().may_be_done(), "nothing was sent");

    let Ok(listener) = TcpListener::bind(address).await else {
        let _ = std::io::Write::write_fmt(
            &mut std::io::stderr(),
            format_args!("skipped: the port was taken in the meantime\n"),
        );
        return;
    };
    let fake = Fake {
        answer: Answer::Id("asset-7"),
        seen: Arc::default(),
        uploaded: Arc::default(),
    };
    let service = asset_v1::asset_manager_service_server::AssetManagerServiceServer::new(fake);
    tokio::spawn(
        Server::builder()
            .add_service(service)
            .serve_with_incoming(TcpListenerStream::new(listener)),
    );
    assert_eq!(client.register(&asset()).await.unwrap().as_str(), "asset-7");
}

#[tokio::test]
async fn what_cannot_be_sent_is_refused_before_the_call() {
    let (address, seen) = start(Answer::Id("asset-7")).await;
    let cases = [
        (
            "tenant_id",
            RegisterAsset {
                tenant_id: "a\r\nx-admin: 1".into(),
                ..asset()
            },
        ),
        (
            "customer_id",
            RegisterAsset {
                customer_id: "a\0b".into(),
                ..asset()
            },
        ),
        (
            "size_bytes",
            RegisterAsset {
                size_bytes: u64::MAX,
                ..asset()
            },
        ),
    ];
    for (field, asset) in cases {
        let error = client(address).register(&asset).await.unwrap_err();
        assert_eq!(error.kind(), &AssetErrorKind::InvalidInput { field });
        assert!(!error.is_retryable());
    }
    assert!(seen.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_asset_in_use_is_told_from_one_that_is_not_and_from_one_that_is_not_there() {
    let owner = Owner {
        tenant_id: "acme".into(),
        customer_id: String::new(),
    };
    for (count, id, expected, deleted) in [
        (0, "asset-7", Some(0), true),
        (3, "asset-7", Some(3), false),
        (3, "asset-8", None, true),
    ] {
        let (address, _) = start(Answer::Count(count)).await;
        let client = client(address);
        assert_eq!(
            client.reference_count(&owner, id).await.unwrap(),
            expected,
            "{id}"
        );
        match client.delete(&owner, id).await {
            Ok(was_there) => assert_eq!((deleted, was_there), (true, id == "asset-7"), "{id} with {count}"),
            Err(error) => assert!(
                !deleted && matches!(error.kind(), AssetErrorKind::InUse { .. }),
                "{error:?}"
            ),
        }
    }
}

#[tokio::test]
async fn no_clear_answer_is_never_taken_for_an_unused_asset() {
    let owner = Owner::default();
    for answer in [
        Answer::Count(-1),
        Answer::Id("another"),
        Answer::Status(Code::Unavailable, "busy"),
        Answer::Status(Code::PermissionDenied, "not yours"),
    ] {
        let (address, _) = start(answer.clone()).await;
        assert!(
            client(address).reference_count(&owner, "asset-7").await.is_err(),
            "{answer:?}"
        );
    }
    let (address, _) = start(Answer::Status(Code::Unavailable, "busy")).await;
    assert!(client(address).delete(&owner, "asset-7").await.is_err());
}

#[tokio::test]
async fn an_upload_sends_the_metadata_and_then_the_bytes_in_chunks() {
    let fake = Fake {
        answer: Answer::NoAsset,
        seen: Arc::default(),
        uploaded: Arc::default(),
    };
    let uploaded = Arc::clone(&fake.uploaded);
    let client = client(serve(fake).await);
    let content = vec![7_u8; (256 << 10) + 5];
    let asset = RegisterAsset {
        size_bytes: content.len() as u64,
        ..asset()
    };
    let id = client
        .upload(&asset, std::io::Cursor::new(content))
        .await
        .unwrap();
    assert_eq!(id.as_str(), "asset-7");
    let (metadata, sizes) = uploaded.lock().unwrap().take().unwrap();
    assert_eq!(sizes, [256 << 10, 5]);
    assert_eq!(
        (
            metadata.id.as_str(),
            metadata.build_id.as_str(),
            metadata.r#type,
            metadata.size_bytes
        ),
        ("my-id", "build-1", 2, (256 << 10) + 5)
    );
    assert_eq!(metadata.labels["docker_image"], "nginx:1.21-alpine");
}

#[tokio::test]
async fn a_part_of_a_file_is_never_taken_for_the_whole() {
    let fake = Fake {
        answer: Answer::NoAsset,
        seen: Arc::default(),
        uploaded: Arc::default(),
    };
    let uploaded = Arc::clone(&fake.uploaded);
    let client = client(serve(fake).await);
    let asset = RegisterAsset {
        size_bytes: 1 << 20,
        ..asset()
    };
    let error = client.upload(&asset, &b"too short"[..]).await.unwrap_err();
    let kind = std::io::ErrorKind::UnexpectedEof;
    assert_eq!(error.kind(), &AssetErrorKind::Content { kind });
    assert!(uploaded.lock().unwrap().is_none());
}

#[tokio::test]
async fn what_is_known_of_an_asset_is_told() {
    let (address, _) = start(Answer::Count(2)).await;
    let found = client(address)
        .find(&Owner::default(), "asset-7")
        .await
        .unwrap()
        .unwrap();
    assert_eq!(
        (found.id.as_str(), found.reference_count, found.state),
        ("asset-7", 2, AssetState::Available)
    );
    assert_eq!(
        client(address).find(&Owner::default(), "asset-8").await.unwrap(),
        None
    );
}

#[test]
fn only_what_was_surely_not_carried_out_says_so() {
    let message = String::new;
    let cases = [
        (AssetErrorKind::Unreachable { message: message() }, false),
        (AssetErrorKind::Unavailable { message: message() }, true),
        (
            AssetErrorKind::Timeout {
                timeout: Duration::ZERO,
            },
            true,
        ),
        (
            AssetErrorKind::Failed {
                code: "INTERNAL",
                message: message(),
            },
            true,
        ),
        (AssetErrorKind::Protocol { reason: "" }, true),
        (
            AssetErrorKind::Refused {
                code: "PERMISSION_DENIED",
                message: message(),
            },
            false,
        ),
        (AssetErrorKind::AlreadyExists { message: message() }, false),
    ];
    for (kind, expected) in cases {
        assert_eq!(kind.may_be_done(), expected, "{kind:?}");
    }
}
