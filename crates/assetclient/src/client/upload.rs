//! `UploadAsset`: the metadata, then the bytes in order.

use std::{io, time::Duration};

use futures_util::{Stream, stream};
use tokio::{
    io::{AsyncRead, AsyncReadExt as _},
    sync::oneshot,
    time::Instant,
};
use tonic_prost::ProstCodec;

use super::{AssetClient, asset_id, asset_type, size, unavailable};
use crate::{
    asset::{AssetId, RegisterAsset},
    error::{AssetError, AssetErrorKind},
    proto::{UploadAssetMetadata, UploadAssetRequest, UploadAssetResponse, upload_asset_request::Data},
};

/// Of one message. Far below the 4 MiB that a server takes when nobody has said otherwise.
const CHUNK: usize = 256 << 10;

/// An upload that is slower than this is given up in the end.
const SLOWEST_BYTES_PER_SECOND: u64 = 1 << 20;

impl AssetClient {
    /// Sends a file to assetmanagerd, which keeps it itself: [`RegisterAsset::backend`] and [`RegisterAsset::location`]
    /// are not sent. `content` is read to [`RegisterAsset::size_bytes`], as fast as it is taken; at most two chunks of
    /// 256 KiB are in memory.
    ///
    /// One attempt, within [`Config::timeout`](crate::Config::timeout) and a second for each MiB. A dropped future ends the
    /// upload; whether assetmanagerd has an asset then is open.
    ///
    /// # Errors
    ///
    /// [`AssetErrorKind::Content`] when the content cannot be read or is too short: then the call is broken off, so that
    /// assetmanagerd never takes a part for the whole. Others as for [`register`](Self::register).
    pub async fn upload<C>(&self, asset: &RegisterAsset, content: C) -> Result<AssetId, AssetError>
    where
        C: AsyncRead + Send + Unpin + 'static,
    {
        const CALL: &str = "UploadAsset";
        let id = self
            .send(asset, content, CALL)
            .await
            .map_err(|kind| AssetError::new(CALL, kind))?;
        tracing::debug!(asset.id = %id, build.id = %asset.build_id, "Uploaded");
        Ok(id)
    }

    async fn send<C>(
        &self,
        asset: &RegisterAsset,
        content: C,
        call: &'static str,
    ) -> Result<AssetId, AssetErrorKind>
    where
        C: AsyncRead + Send + Unpin + 'static,
    {
        let metadata = UploadAssetMetadata {
            name: asset.name.clone(),
            r#type: asset_type(asset.kind).into(),
            size_bytes: size(asset)?,
            labels: asset.labels.clone().into_iter().collect(),
            created_by: asset.created_by.clone(),
            build_id: asset.build_id.clone(),
            source_image: asset.source_image.clone(),
            id: asset.suggested_id.clone().unwrap_or_default(),
        };
        let limit =
            self.config.timeout + Duration::from_secs(asset.size_bytes.div_ceil(SLOWEST_BYTES_PER_SECOND));
        let path = self.path(call)?;
        let (failed, failure) = oneshot::channel();
        let parts = parts(metadata, content, asset.size_bytes, failed);
        let request = self.request(&asset.tenant_id, &asset.customer_id, parts, limit)?;
        let mut grpc = self.grpc();
        let answer: UploadAssetResponse = self
            .within(call, limit, async move {
                grpc.ready().await.map_err(|error| unavailable(&error))?;
                let started = Instant::now();
                let sent = grpc.client_streaming(request, path, ProstCodec::default());
                tokio::select! {
                    biased;
                    // The sender is dropped when everything was read; then this branch is off.
                    Ok(kind) = failure => Err(AssetErrorKind::Content { kind }),
                    answer = sent => self.answer(answer, started, limit),
                }
            })
            .await?;
        asset_id(answer.asset.map(|asset| asset.id).unwrap_or_default())
    }
}

/// The messages of an upload. One that fails to read says why, and then never ends: an end would be the end of the file.
fn parts<C>(
    metadata: UploadAssetMetadata,
    content: C,
    size_bytes: u64,
    failed: oneshot::Sender<io::ErrorKind>,
) -> impl Stream<Item = UploadAssetRequest> + Send + 'static
where
    C: AsyncRead + Send + Unpin + 'static,
{
    let first = UploadAssetRequest {
        data: Some(Data::Metadata(metadata)),
    };
    let rest = stream::unfold(Some((content, size_bytes, failed)), async |state| {
        let (mut content, left, failed) = state?;
        let wanted = left.min(CHUNK as u64);
        if wanted == 0 {
            return None;
        }
        let mut chunk = Vec::with_capacity(usize::try_from(wanted).unwrap_or(CHUNK));
        // Whole chunks: a message for each short read would be many.
        let read = (&mut content).take(wanted).read_to_end(&mut chunk).await;
        let kind = match read {
            Ok(read) if read as u64 == wanted => {
                let part = UploadAssetRequest {
                    data: Some(Data::Chunk(chunk)),
                };
                return Some((part, Some((content, left - wanted, failed))));
            }
            Ok(_) => io::ErrorKind::UnexpectedEof,
            Err(error) => error.kind(),
        };
        // Nobody listens when the call has ended already.
        let _ = failed.send(kind);
        std::future::pending().await
    });
    futures_util::StreamExt::chain(stream::iter([first]), rest)
}
