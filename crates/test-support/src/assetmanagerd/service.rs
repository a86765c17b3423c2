//! The service under both of its names.

use std::sync::{Arc, Mutex};

use axum::Router;
use tonic::{Code, Response, Status, Streaming, metadata::MetadataMap};

use super::{
    Call, Misbehaviour, Request, State, lock,
    proto::{
        self, Asset, AssetStatus, DeleteAssetRequest, DeleteAssetResponse, GetAssetRequest, GetAssetResponse,
        RegisterAssetRequest, RegisterAssetResponse, StorageBackend, UploadAssetMetadata, UploadAssetRequest,
        UploadAssetResponse, upload_asset_request::Data,
    },
    second,
};

/// One name of the service.
struct Service {
    package: &'static str,
    state: Arc<Mutex<State>>,
}

pub(super) fn router(state: &Arc<Mutex<State>>) -> Router {
    let service = |package| Service {
        package,
        state: Arc::clone(state),
    };
    let first = proto::asset_manager_service_server::AssetManagerServiceServer::new(service("asset.v1"));
    let second = second::asset_manager_service_server::AssetManagerServiceServer::new(service(
        "deploy.assetmanagerd.v1",
    ));
    tonic::service::Routes::new(first)
        .add_service(second)
        .into_axum_router()
}

impl Service {
    /// Records the call; says how it is to go wrong when that was asked for.
    fn record(&self, metadata: &MetadataMap, request: Request) -> Option<Misbehaviour> {
        let header = |name: &str| Some(metadata.get(name)?.to_str().ok()?.to_owned());
        let call = Call {
            package: self.package,
            tenant_id: header("x-tenant-id"),
            customer_id: header("x-customer-id"),
            request,
        };
        let mut state = lock(&self.state);
        state.calls.push(call);
        state.trace_parents.extend(header("traceparent"));
        match state.misbehaviour {
            Some((times @ 1.., how)) => {
                state.misbehaviour = Some((times - 1, how));
                Some(how)
            }
            _ => None,
        }
    }

    /// Records the call and answers it, in the way that was asked for.
    async fn answer<R: Default>(
        &self,
        metadata: &MetadataMap,
        request: Request,
        work: impl FnOnce() -> Result<R, Status>,
    ) -> Result<Response<R>, Status> {
        match self.record(metadata, request) {
            None => work().map(Response::new),
            Some(Misbehaviour::Refuse(code)) => Err(Status::new(code, "asked for by the test")),
            Some(Misbehaviour::Hang) => std::future::pending().await,
            Some(Misbehaviour::LoseAnswer) => {
                drop(work());
                Err(Status::unavailable("the answer is lost"))
            }
            Some(Misbehaviour::Garbage) => Ok(Response::new(R::default())),
        }
    }

    fn add(&self, mut asset: Asset) -> Result<Asset, Status> {
        let mut state = lock(&self.state);
        if state.assets.contains_key(&asset.id) {
            return Err(Status::new(
                Code::AlreadyExists,
                format!("asset {} exists", asset.id),
            ));
        }
        state.n_registered += 1;
        if asset.id.is_empty() {
            asset.id = format!("asset-{}", state.n_registered);
        }
        asset.set_status(AssetStatus::Available);
        state.assets.insert(asset.id.clone(), asset.clone());
        Ok(asset)
    }

    async fn register(
        &self,
        request: tonic::Request<RegisterAssetRequest>,
    ) -> Result<Response<RegisterAssetResponse>, Status> {
        let (metadata, _, asked) = request.into_parts();
        self.answer(&metadata, Request::Register(asked.clone()), || {
            let asset = self.add(Asset {
                id: asked.id,
                name: asked.name,
                r#type: asked.r#type,
                backend: asked.backend,
                location: asked.location,
                size_bytes: asked.size_bytes,
                checksum: asked.checksum,
                labels: asked.labels,
                created_by: asked.created_by,
                build_id: asked.build_id,
                source_image: asked.source_image,
                ..Asset::default()
            })?;
            Ok(RegisterAssetResponse { asset: Some(asset) })
        })
        .await
    }

    async fn upload(
        &self,
        request: tonic::Request<Streaming<UploadAssetRequest>>,
    ) -> Result<Response<UploadAssetResponse>, Status> {
        let (metadata, _, mut parts) = request.into_parts();
        let (mut asked, mut content): (Option<UploadAssetMetadata>, Vec<u8>) = (None, Vec::new());
        while let Some(part) = parts.message().await? {
            match part.data {
                Some(Data::Metadata(metadata)) if asked.is_none() && content.is_empty() => {
                    asked = Some(metadata)
                }
                Some(Data::Chunk(chunk)) if asked.is_some() => content.extend(chunk),
                _ => return Err(Status::invalid_argument("first the metadata, then chunks")),
            }
        }
        let asked = asked.ok_or_else(|| Status::invalid_argument("no metadata"))?;
        let seen = Request::Upload(asked.clone(), content.clone());
        self.answer(&metadata, seen, || {
            if i64::try_from(content.len()) != Ok(asked.size_bytes) {
                return Err(Status::invalid_argument("the size is not that of the content"));
            }
            let asset = self.add(Asset {
                id: asked.id,
                name: asked.name.clone(),
                r#type: asked.r#type,
                backend: StorageBackend::Local.into(),
                location: asked.name,
                size_bytes: asked.size_bytes,
                checksum: crate::image::digest(&content).replace("sha256:", ""),
                labels: asked.labels,
                created_by: asked.created_by,
                build_id: asked.build_id,
                source_image: asked.source_image,
                ..Asset::default()
            })?;
            Ok(UploadAssetResponse { asset: Some(asset) })
        })
        .await
    }

    async fn get(
        &self,
        request: tonic::Request<GetAssetRequest>,
    ) -> Result<Response<GetAssetResponse>, Status> {
        let (metadata, _, asked) = request.into_parts();
        self.answer(&metadata, Request::Get(asked.clone()), || {
            let asset = lock(&self.state).assets.get(&asked.id).cloned();
            let asset = asset.ok_or_else(|| Status::not_found(format!("no asset {}", asked.id)))?;
            Ok(GetAssetResponse { asset: Some(asset) })
        })
        .await
    }

    async fn delete(
        &self,
        request: tonic::Request<DeleteAssetRequest>,
    ) -> Result<Response<DeleteAssetResponse>, Status> {
        let (metadata, _, asked) = request.into_parts();
        self.answer(&metadata, Request::Delete(asked.clone()), || {
            let mut state = lock(&self.state);
            match state.assets.get(&asked.id) {
                None => return Err(Status::not_found(format!("no asset {}", asked.id))),
                Some(asset) if asset.reference_count > 0 && !asked.force => {
                    return Err(Status::failed_precondition(format!(
                        "asset {} is in use",
                        asked.id
                    )));
                }
                Some(_) => state.assets.remove(&asked.id),
            };
            Ok(DeleteAssetResponse {})
        })
        .await
    }
}

/// The two generated traits have the same methods and nothing else in common.
macro_rules! serve_as {
    ($service:path) => {
        #[tonic::async_trait]
        impl $service for Service {
            async fn register_asset(
                &self,
                request: tonic::Request<RegisterAssetRequest>,
            ) -> Result<Response<RegisterAssetResponse>, Status> {
                self.register(request).await
            }

            async fn upload_asset(
                &self,
                request: tonic::Request<Streaming<UploadAssetRequest>>,
            ) -> Result<Response<UploadAssetResponse>, Status> {
                self.upload(request).await
            }

            async fn get_asset(
                &self,
                request: tonic::Request<GetAssetRequest>,
            ) -> Result<Response<GetAssetResponse>, Status> {
                self.get(request).await
            }

            async fn delete_asset(
                &self,
                request: tonic::Request<DeleteAssetRequest>,
            ) -> Result<Response<DeleteAssetResponse>, Status> {
                self.delete(request).await
            }
        }
    };
}

serve_as!(proto::asset_manager_service_server::AssetManagerService);
serve_as!(second::asset_manager_service_server::AssetManagerService);
