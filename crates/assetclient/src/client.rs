//! The calls.

use std::{error::Error as _, fmt, sync::Arc, time::Duration};

use http::{HeaderMap, HeaderName, HeaderValue, Uri, uri::PathAndQuery};
use prost::Message;
use tokio::time::{Instant, timeout};
use tonic::{
    Code, ConnectError, Extensions, Request, Response, Status, TimeoutExpired,
    client::Grpc,
    metadata::MetadataMap,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::{
    asset::{AssetId, AssetKind, AssetState, KnownAsset, Owner, RegisterAsset, StorageBackend},
    config::{Config, InvalidConfig, Tls},
    dial::{Ending, TlsEnd, dial},
    error::{AssetError, AssetErrorKind},
    observe::CallObserver,
    proto,
};

mod upload;

/// An asset with all its labels is far below this many bytes.
const LARGEST_ANSWER: usize = 1 << 20;
/// Longer ids would only be a nuisance in every log line.
const LONGEST_ID: usize = 256;
/// Of a message of the server.
const LONGEST_MESSAGE: usize = 500;

/// Calls assetmanagerd. Cheap to clone; clones share one connection, which is made anew when it breaks.
#[derive(Clone)]
pub struct AssetClient {
    config: Config,
    channel: Channel,
    /// Of the encrypted connection.
    ending: Ending,
    observer: Option<Arc<dyn CallObserver + Send + Sync>>,
}

impl AssetClient {
    /// A client that connects with its first call. Must be called within a tokio runtime.
    ///
    /// # Errors
    ///
    /// [`InvalidConfig`] for an endpoint that cannot be called, `https://` without [`Config::tls`] among them.
    pub fn connect_lazy(config: Config) -> Result<Self, InvalidConfig> {
        let uri = config.uri()?;
        let (channel, ending) = if config.is_encrypted() {
            let tls = config.tls.clone().ok_or_else(|| InvalidConfig::NoTls {
                endpoint: config.endpoint.clone(),
            })?;
            encrypted(&config, uri, tls)?
        } else {
            let endpoint = Endpoint::from(uri).connect_timeout(config.connect_timeout);
            (endpoint.connect_lazy(), Ending::default())
        };
        Ok(Self {
            config,
            channel,
            ending,
            observer: None,
        })
    }

    /// Tells `observer` of every call.
    #[must_use]
    pub fn with_observer(mut self, observer: Arc<dyn CallObserver + Send + Sync>) -> Self {
        self.observer = Some(observer);
        self
    }

    /// Says that what is done within `span`, just made and not entered yet, is done for that build.
    pub fn attempts(&self, build_id: &str, span: &tracing::Span) {
        if let Some(observer) = &self.observer {
            observer.attempts(build_id, span);
        }
    }

    /// As it was made.
    #[must_use]
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Makes a file known that is already in place; gives the id under which it is known from now on.
    ///
    /// One attempt. A dropped future leaves it open whether it was carried out.
    ///
    /// # Errors
    ///
    /// [`AssetError`], which knows whether another attempt makes sense.
    pub async fn register(&self, asset: &RegisterAsset) -> Result<AssetId, AssetError> {
        const CALL: &str = "RegisterAsset";
        let answer: proto::RegisterAssetResponse = self
            .call(
                CALL,
                &asset.tenant_id,
                &asset.customer_id,
                message(asset).map_err(|kind| AssetError::new(CALL, kind))?,
            )
            .await
            .map_err(|kind| AssetError::new(CALL, kind))?;
        let id = answer.asset.map(|asset| asset.id).unwrap_or_default();
        let id = asset_id(id).map_err(|kind| AssetError::new(CALL, kind))?;
        tracing::debug!(asset.id = %id, build.id = %asset.build_id, "Registered");
        Ok(id)
    }

    /// What assetmanagerd knows of an asset; `None` when it knows none of that id.
    ///
    /// # Errors
    ///
    /// [`AssetError`].
    pub async fn find(&self, owner: &Owner, id: &str) -> Result<Option<KnownAsset>, AssetError> {
        const CALL: &str = "GetAsset";
        let request = proto::GetAssetRequest { id: id.to_owned() };
        let answered = self
            .call::<_, proto::GetAssetResponse>(CALL, &owner.tenant_id, &owner.customer_id, request)
            .await;
        let asset = match answered {
            Ok(answer) => answer.asset,
            Err(AssetErrorKind::Refused { code, .. }) if code == name_of(Code::NotFound) => return Ok(None),
            Err(kind) => return Err(AssetError::new(CALL, kind)),
        };
        let wrong = |reason| AssetError::new(CALL, AssetErrorKind::Protocol { reason });
        let asset = asset.ok_or_else(|| wrong("there is no asset in the answer"))?;
        if asset.id != id {
            return Err(wrong("the answer is about another asset"));
        }
        let reference_count = u32::try_from(asset.reference_count)
            .map_err(|_| wrong("the asset's reference count is negative"))?;
        let state = match asset.status() {
            proto::AssetStatus::Unspecified | proto::AssetStatus::Available => AssetState::Available,
            proto::AssetStatus::Uploading => AssetState::Uploading,
            proto::AssetStatus::Deleting => AssetState::Deleting,
            proto::AssetStatus::Error => AssetState::Failed,
        };
        Ok(Some(KnownAsset {
            id: asset_id(asset.id).map_err(|kind| AssetError::new(CALL, kind))?,
            state,
            reference_count,
            build_id: asset.build_id,
            checksum: asset.checksum,
        }))
    }

    /// How many virtual machines use an asset; `None` when assetmanagerd knows no such asset.
    ///
    /// # Errors
    ///
    /// [`AssetError`]; who asks because of a deletion takes every error for "in use".
    pub async fn reference_count(&self, owner: &Owner, id: &str) -> Result<Option<u32>, AssetError> {
        let found = self.find(owner, id).await?;
        Ok(found.map(|asset| asset.reference_count))
    }

    /// Makes assetmanagerd forget an asset that nobody uses; says whether there was one. `Ok` also when there was none, so
    /// that the call can be repeated.
    ///
    /// # Errors
    ///
    /// [`AssetErrorKind::InUse`] when a virtual machine uses it, any other kind when it is not known whether it is
    /// forgotten.
    pub async fn delete(&self, owner: &Owner, id: &str) -> Result<bool, AssetError> {
        const CALL: &str = "DeleteAsset";
        let request = proto::DeleteAssetRequest {
            id: id.to_owned(),
            force: false,
        };
        let answered = self
            .call::<_, proto::DeleteAssetResponse>(CALL, &owner.tenant_id, &owner.customer_id, request)
            .await;
        match answered {
            Ok(proto::DeleteAssetResponse {}) => Ok(true),
            Err(AssetErrorKind::Refused { code, .. }) if code == name_of(Code::NotFound) => Ok(false),
            Err(AssetErrorKind::Refused { code, message }) if code == name_of(Code::FailedPrecondition) => {
                Err(AssetError::new(CALL, AssetErrorKind::InUse { message }))
            }
            Err(kind) => Err(AssetError::new(CALL, kind)),
        }
    }

    async fn call<M, R>(
        &self,
        method: &'static str,
        tenant_id: &str,
        customer_id: &str,
        message: M,
    ) -> Result<R, AssetErrorKind>
    where
        M: Message + 'static,
        R: Message + Default + 'static,
    {
        let path = self.path(method)?;
        let request = self.request(tenant_id, customer_id, message, self.config.timeout)?;
        let mut grpc = self.grpc();
        self.within(method, self.config.timeout, async move {
            grpc.ready().await.map_err(|error| unavailable(&error))?;
            let started = Instant::now();
            let answer = grpc.unary(request, path, ProstCodec::default()).await;
            self.answer(answer, started, self.config.timeout)
        })
        .await
    }

    fn path(&self, method: &str) -> Result<PathAndQuery, AssetErrorKind> {
        let path = format!("/{}/{method}", self.config.service);
        PathAndQuery::try_from(path).map_err(|_| AssetErrorKind::InvalidInput { field: "service" })
    }

    fn request<M>(
        &self,
        tenant_id: &str,
        customer_id: &str,
        message: M,
        limit: Duration,
    ) -> Result<Request<M>, AssetErrorKind> {
        let mut headers = headers(tenant_id, customer_id)?;
        if let Some(observer) = &self.observer {
            observer.calling(&mut headers);
        }
        let headers = MetadataMap::from_headers(headers);
        let mut request = Request::from_parts(headers, Extensions::default(), message);
        request.set_timeout(limit);
        Ok(request)
    }

    fn grpc(&self) -> Grpc<Channel> {
        Grpc::new(self.channel.clone()).max_decoding_message_size(LARGEST_ANSWER)
    }

    async fn within<R>(
        &self,
        method: &'static str,
        limit: Duration,
        call: impl Future<Output = Result<R, AssetErrorKind>>,
    ) -> Result<R, AssetErrorKind> {
        let answered = timeout(limit, call).await;
        let result = answered.unwrap_or(Err(AssetErrorKind::Timeout { timeout: limit }));
        if let Some(observer) = &self.observer {
            observer.answered(method, result.as_ref().err().map_or("OK", code_of));
        }
        result
    }

    fn answer<R>(
        &self,
        answer: Result<Response<R>, Status>,
        started: Instant,
        limit: Duration,
    ) -> Result<R, AssetErrorKind> {
        answer.map(Response::into_inner).map_err(|status| {
            // Client and server both watch the deadline that the request carries; tonic says CANCELLED then.
            let late = status.code() == Code::Cancelled && started.elapsed() >= limit;
            match status.code() {
                Code::DeadlineExceeded => AssetErrorKind::Timeout { timeout: limit },
                _ if late => AssetErrorKind::Timeout { timeout: limit },
                _ => kind_of(&status, self.ending.get()),
            }
        })
    }
}

fn kind_of(status: &Status, ending: Option<TlsEnd>) -> AssetErrorKind {
    let message = clean(status.message());
    // A status with a cause was made on this side, because there was no answer.
    if let Some(cause) = status.source().filter(|cause| !cause.is::<TimeoutExpired>()) {
        return lost(cause, ending);
    }
    match status.code() {
        Code::Unavailable => AssetErrorKind::Unavailable { message },
        Code::AlreadyExists => AssetErrorKind::AlreadyExists { message },
        code @ (Code::ResourceExhausted
        | Code::Aborted
        | Code::Internal
        | Code::Unknown
        | Code::Cancelled
        | Code::DataLoss
        | Code::Ok) => AssetErrorKind::Failed {
            code: name_of(code),
            message,
        },
        code => AssetErrorKind::Refused {
            code: name_of(code),
            message,
        },
    }
}

/// What became of a call whose connection broke, or never was.
fn lost(cause: &(dyn std::error::Error + 'static), ending: Option<TlsEnd>) -> AssetErrorKind {
    match ending {
        // Nothing is carried out for a client that was not let in.
        Some(end @ TlsEnd::CertificateRefused { .. }) => AssetErrorKind::Unreachable {
            message: clean(&end.to_string()),
        },
        Some(end) => match unavailable(cause) {
            AssetErrorKind::Unreachable { message } => AssetErrorKind::Unreachable { message },
            _ => AssetErrorKind::Unavailable {
                message: clean(&format!("{end}: {}", chain(cause))),
            },
        },
        None => unavailable(cause),
    }
}

/// Whether there was a connection at all decides whether the call may have been carried out.
fn unavailable(error: &(dyn std::error::Error + 'static)) -> AssetErrorKind {
    let message = chain(error);
    let mut next = Some(error);
    // Chains are a handful of errors long.
    for _ in 0..8 {
        let Some(error) = next else { break };
        if error.is::<ConnectError>() {
            return AssetErrorKind::Unreachable { message };
        }
        next = error.source();
    }
    AssetErrorKind::Unavailable { message }
}

impl fmt::Debug for AssetClient {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("AssetClient")
            .field("config", &self.config)
            .finish_non_exhaustive()
    }
}

/// A channel over TLS. tonic is told `http://`, with the true address as the origin of its requests, and the connector
/// knows better.
fn encrypted(config: &Config, uri: Uri, tls: Tls) -> Result<(Channel, Ending), InvalidConfig> {
    let authority = uri.authority().map_or("", |authority| authority.as_str());
    let dialled = Uri::try_from(format!("http://{authority}")).map_err(|_| InvalidConfig::Endpoint {
        endpoint: config.endpoint.clone(),
    })?;
    let endpoint = Endpoint::from(dialled)
        .origin(uri.clone())
        .connect_timeout(config.connect_timeout);
    let (connector, ending) = dial(uri, tls);
    Ok((endpoint.connect_with_connector_lazy(connector), ending))
}

fn message(asset: &RegisterAsset) -> Result<proto::RegisterAssetRequest, AssetErrorKind> {
    let backend = match asset.backend {
        StorageBackend::Local => proto::StorageBackend::Local,
        StorageBackend::S3 => proto::StorageBackend::S3,
        StorageBackend::Http => proto::StorageBackend::Http,
        StorageBackend::Nfs => proto::StorageBackend::Nfs,
    };
    Ok(proto::RegisterAssetRequest {
        name: asset.name.clone(),
        r#type: asset_type(asset.kind).into(),
        backend: backend.into(),
        location: asset.location.clone(),
        size_bytes: size(asset)?,
        checksum: asset.checksum.clone(),
        labels: asset.labels.clone().into_iter().collect(),
        created_by: asset.created_by.clone(),
        build_id: asset.build_id.clone(),
        source_image: asset.source_image.clone(),
        id: asset.suggested_id.clone().unwrap_or_default(),
    })
}

fn size(asset: &RegisterAsset) -> Result<i64, AssetErrorKind> {
    i64::try_from(asset.size_bytes).map_err(|_| AssetErrorKind::InvalidInput { field: "size_bytes" })
}

const fn asset_type(kind: AssetKind) -> proto::AssetType {
    match kind {
        AssetKind::Kernel => proto::AssetType::Kernel,
        AssetKind::Rootfs => proto::AssetType::Rootfs,
        AssetKind::Initrd => proto::AssetType::Initrd,
        AssetKind::DiskImage => proto::AssetType::DiskImage,
    }
}

/// A customer is free text: any UTF-8 goes into a header but control characters, which could end it.
fn headers(tenant_id: &str, customer_id: &str) -> Result<HeaderMap, AssetErrorKind> {
    let mut headers = HeaderMap::new();
    let pairs = [
        ("tenant_id", "x-tenant-id", tenant_id),
        ("customer_id", "x-customer-id", customer_id),
    ];
    for (field, name, value) in pairs {
        if !value.is_empty() {
            let value = HeaderValue::from_bytes(value.as_bytes());
            let value = value.map_err(|_| AssetErrorKind::InvalidInput { field })?;
            headers.insert(HeaderName::from_static(name), value);
        }
    }
    Ok(headers)
}

fn asset_id(id: String) -> Result<AssetId, AssetErrorKind> {
    let wrong = |reason| Err(AssetErrorKind::Protocol { reason });
    if id.is_empty() {
        return wrong("the asset has no id");
    }
    if id.len() > LONGEST_ID || id.chars().any(char::is_control) {
        return wrong("the asset's id is too long or holds control characters");
    }
    Ok(AssetId(id))
}

/// What a failed call was answered with, in gRPC's words.
const fn code_of(kind: &AssetErrorKind) -> &'static str {
    match kind {
        AssetErrorKind::InvalidInput { .. } => "INVALID_ARGUMENT",
        AssetErrorKind::Unreachable { .. } | AssetErrorKind::Unavailable { .. } => "UNAVAILABLE",
        AssetErrorKind::Timeout { .. } => "DEADLINE_EXCEEDED",
        AssetErrorKind::AlreadyExists { .. } => "ALREADY_EXISTS",
        AssetErrorKind::InUse { .. } => "FAILED_PRECONDITION",
        AssetErrorKind::Refused { code, .. } | AssetErrorKind::Failed { code, .. } => code,
        AssetErrorKind::Content { .. } | AssetErrorKind::Protocol { .. } => "INTERNAL",
    }
}

/// An error and its sources in one line.
fn chain(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = String::new();
    let mut next = Some(error);
    // Chains are a handful of errors long.
    for _ in 0..8 {
        let Some(error) = next else { break };
        let part = error.to_string();
        // Some errors repeat their source in their own text.
        if !text.ends_with(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        next = error.source();
    }
    clean(&text)
}

fn clean(message: &str) -> String {
    message
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .take(LONGEST_MESSAGE)
        .collect()
}

/// The code's name in gRPC.
fn name_of(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "CANCELLED",
        Code::Unknown => "UNKNOWN",
        Code::InvalidArgument => "INVALID_ARGUMENT",
        Code::DeadlineExceeded => "DEADLINE_EXCEEDED",
        Code::NotFound => "NOT_FOUND",
        Code::AlreadyExists => "ALREADY_EXISTS",
        Code::PermissionDenied => "PERMISSION_DENIED",
        Code::ResourceExhausted => "RESOURCE_EXHAUSTED",
        Code::FailedPrecondition => "FAILED_PRECONDITION",
        Code::Aborted => "ABORTED",
        Code::OutOfRange => "OUT_OF_RANGE",
        Code::Unimplemented => "UNIMPLEMENTED",
        Code::Internal => "INTERNAL",
        Code::Unavailable => "UNAVAILABLE",
        Code::DataLoss => "DATA_LOSS",
        Code::Unauthenticated => "UNAUTHENTICATED",
    }
}

#[cfg(test)]
mod tests;
