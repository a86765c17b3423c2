//! The methods of `builder.v1.BuilderService`.

use std::{pin::Pin, sync::Arc};

use builder_core::{
    build::BuildId,
    request::BuildRequest,
    service::{Builder, ListQuery},
};
use futures_util::{Stream, StreamExt as _, stream};
use tenant::TenantId;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Extensions, Request, Response, Status, metadata::MetadataMap};
use tracing::Span;

use crate::{
    audit::Trail,
    auth::Caller,
    convert::{self, FieldError, FieldPath},
    proto::{self, builder_service_server::BuilderService},
    status::{from_field_error, from_service_error, with_info},
};

/// Log lines that GetBuild shows; StreamBuildLogs has all of them.
const SHOWN_LOG_LINES: usize = 100;

/// The header that repeats the tenant; a gateway sets it.
const TENANT_HEADER: &str = "x-tenant-id";

/// The header that names a request so that it can be repeated.
const IDEMPOTENCY_HEADER: &str = "idempotency-key";

/// The service, over the builds of this machine.
#[derive(Clone, Debug)]
pub struct Service {
    builder: Builder,
    credentials_accepted: bool,
    drain: CancellationToken,
    conversions: Arc<Semaphore>,
}

impl Service {
    /// Serves `builder`. Requests with registry credentials are refused unless `credentials_accepted`. When `drain`
    /// is cancelled, followed logs end with UNAVAILABLE.
    #[must_use]
    pub fn new(builder: Builder, credentials_accepted: bool, drain: CancellationToken) -> Self {
        Self {
            builder,
            credentials_accepted,
            drain,
            conversions: Arc::new(Semaphore::new(1)),
        }
    }

    /// Reads a request. Patterns take milliseconds to compile, so that happens beside the threads that serve everybody,
    /// and for one request at a time.
    async fn converted(&self, message: proto::CreateBuildRequest) -> Result<BuildRequest, Status> {
        let turn = Arc::clone(&self.conversions).acquire_owned().await;
        let work = tokio::task::spawn_blocking(move || {
            let _turn = turn;
            BuildRequest::try_from(message)
        });
        match work.await {
            Ok(converted) => converted.map_err(from_field_error),
            Err(_) => Err(Status::internal("internal error")),
        }
    }

    /// The tenant that a request is for: the one of its body, for whom the caller may act, and which the header must
    /// repeat when it is there.
    fn tenant(
        metadata: &MetadataMap,
        extensions: &Extensions,
        value: &str,
        path: &FieldPath<'_>,
    ) -> Result<TenantId, Status> {
        let tenant = convert::tenant_id(value, path).map_err(from_field_error)?;
        Span::current().record("tenant.id", tenant.as_str());
        if let Some(trail) = extensions.get::<Trail>() {
            trail.names_tenant(tenant.as_str());
        }
        let refused = |reason: &str| {
            let message = format!("{path}: {reason}");
            with_info(Code::PermissionDenied, &message, "OTHER_TENANT", [])
        };
        // The guard puts a caller into every request; without one nobody has been asked.
        match extensions.get::<Caller>() {
            Some(caller) if caller.may_act_for(&tenant) => {}
            _ => return Err(refused("the caller may not act for this tenant")),
        }
        for header in metadata.get_all(TENANT_HEADER) {
            if header.as_bytes() != tenant.as_str().as_bytes() {
                return Err(refused(
                    "the header X-Tenant-ID names another tenant than the request",
                ));
            }
        }
        Ok(tenant)
    }

    /// The build that a request is about.
    fn build(extensions: &Extensions, value: &str) -> Result<BuildId, Status> {
        let id = convert::build_id(value).map_err(from_field_error)?;
        if let Some(trail) = extensions.get::<Trail>() {
            trail.names_build(id);
        }
        Ok(id)
    }
}

type LogStream = Pin<Box<dyn Stream<Item = Result<proto::StreamBuildLogsResponse, Status>> + Send>>;

#[tonic::async_trait]
impl BuilderService for Service {
    async fn create_build(
        &self,
        request: Request<proto::CreateBuildRequest>,
    ) -> Result<Response<proto::CreateBuildResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let key = idempotency_key(&metadata)?;
        // Who asks comes first: what is costly is done for callers who may.
        let tenant = message.config.as_ref().and_then(|config| config.tenant.as_ref());
        if let Some(tenant) = tenant {
            let path = FieldPath::root("config.tenant.tenant_id");
            Self::tenant(&metadata, &extensions, &tenant.tenant_id, &path)?;
        }
        let request = self.converted(message).await?;
        if request.source.credentials.is_some() && !self.credentials_accepted {
            return Err(with_info(
                Code::FailedPrecondition,
                "config.source.docker_image.auth: this service accepts no registry credentials",
                "REGISTRY_AUTH_DISABLED",
                [],
            ));
        }
        let build = match &key {
            Some(key) => self.builder.create_once(request, key).await,
            None => self.builder.create(request).await,
        };
        let build = build.map_err(from_service_error)?;
        if let Some(trail) = extensions.get::<Trail>() {
            trail.names_build(build.id);
        }
        Ok(Response::new(proto::CreateBuildResponse {
            build_id: build.id.to_string(),
            state: convert::build_state(build.state).into(),
            created_at: Some(convert::timestamp(build.created_at)),
            rootfs_path: build.rootfs_path.to_string_lossy().into_owned(),
        }))
    }

    async fn get_build(
        &self,
        request: Request<proto::GetBuildRequest>,
    ) -> Result<Response<proto::GetBuildResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let tenant = Self::tenant(
            &metadata,
            &extensions,
            &message.tenant_id,
            &FieldPath::root("tenant_id"),
        )?;
        let id = Self::build(&extensions, &message.build_id)?;
        let build = self.builder.get(&tenant, &id).await.map_err(from_service_error)?;

        let lines = self.builder.last_lines(&tenant, id, SHOWN_LOG_LINES).await;
        let lines = lines.map_err(from_service_error)?;
        let messages = lines.into_iter().map(|line| line.message).collect();
        Ok(Response::new(proto::GetBuildResponse {
            build: Some(convert::build_job(build, messages)),
        }))
    }

    async fn list_builds(
        &self,
        request: Request<proto::ListBuildsRequest>,
    ) -> Result<Response<proto::ListBuildsResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let query = ListQuery {
            tenant: Self::tenant(
                &metadata,
                &extensions,
                &message.tenant_id,
                &FieldPath::root("tenant_id"),
            )?,
            states: convert::states(&message.state_filter).map_err(from_field_error)?,
            page_size: convert::page_size(message.page_size).map_err(from_field_error)?,
            page_token: message.page_token,
        };
        let page = self.builder.list(query).await.map_err(from_service_error)?;
        let builds = page
            .builds
            .into_iter()
            .map(|build| convert::build_job(build, Vec::new()));
        Ok(Response::new(proto::ListBuildsResponse {
            builds: builds.collect(),
            next_page_token: page.next_page_token,
            total_count: i32::try_from(page.total_count).unwrap_or(i32::MAX),
        }))
    }

    async fn cancel_build(
        &self,
        request: Request<proto::CancelBuildRequest>,
    ) -> Result<Response<proto::CancelBuildResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let tenant = Self::tenant(
            &metadata,
            &extensions,
            &message.tenant_id,
            &FieldPath::root("tenant_id"),
        )?;
        let id = Self::build(&extensions, &message.build_id)?;
        let build = self
            .builder
            .cancel(&tenant, &id)
            .await
            .map_err(from_service_error)?;
        Ok(Response::new(proto::CancelBuildResponse {
            success: build.state == builder_core::build::BuildState::Cancelled,
            state: convert::build_state(build.state).into(),
        }))
    }

    async fn delete_build(
        &self,
        request: Request<proto::DeleteBuildRequest>,
    ) -> Result<Response<proto::DeleteBuildResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let tenant = Self::tenant(
            &metadata,
            &extensions,
            &message.tenant_id,
            &FieldPath::root("tenant_id"),
        )?;
        let id = Self::build(&extensions, &message.build_id)?;
        self.builder
            .delete(&tenant, &id, message.force)
            .await
            .map_err(from_service_error)?;
        Ok(Response::new(proto::DeleteBuildResponse { success: true }))
    }

    type StreamBuildLogsStream = LogStream;

    async fn stream_build_logs(
        &self,
        request: Request<proto::StreamBuildLogsRequest>,
    ) -> Result<Response<LogStream>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let tenant = Self::tenant(
            &metadata,
            &extensions,
            &message.tenant_id,
            &FieldPath::root("tenant_id"),
        )?;
        let id = Self::build(&extensions, &message.build_id)?;
        let first = convert::log_start(message.from_sequence).map_err(from_field_error)?;
        // A build that does not exist is answered before the stream opens.
        let opened = self.builder.open_log(tenant, id, first, message.follow).await;
        let lines = opened
            .map_err(from_service_error)?
            .map(|line| line.map(convert::log_line).map_err(from_service_error));
        if !message.follow {
            return Ok(Response::new(Box::pin(lines)));
        }
        let followed = Some((Box::pin(lines), self.drain.clone()));
        let lines = stream::unfold(followed, async |followed| {
            let (mut lines, drain) = followed?;
            tokio::select! {
                biased;
                line = lines.next() => match line? {
                    Ok(line) => Some((Ok(line), Some((lines, drain)))),
                    Err(status) => Some((Err(status), None)),
                },
                () = drain.cancelled() => Some((Err(draining()), None)),
            }
        });
        Ok(Response::new(Box::pin(lines)))
    }

    async fn get_tenant_quotas(
        &self,
        request: Request<proto::GetTenantQuotasRequest>,
    ) -> Result<Response<proto::GetTenantQuotasResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let tenant = Self::tenant(
            &metadata,
            &extensions,
            &message.tenant_id,
            &FieldPath::root("tenant_id"),
        )?;
        let quotas = self.builder.quotas(&tenant).await.map_err(from_service_error)?;
        Ok(Response::new(convert::tenant_quotas(quotas)))
    }

    async fn get_build_stats(
        &self,
        request: Request<proto::GetBuildStatsRequest>,
    ) -> Result<Response<proto::GetBuildStatsResponse>, Status> {
        let (metadata, extensions, message) = request.into_parts();
        let tenant = Self::tenant(
            &metadata,
            &extensions,
            &message.tenant_id,
            &FieldPath::root("tenant_id"),
        )?;
        let window = convert::stats_window(message.start_time, message.end_time).map_err(from_field_error)?;
        let stats = self
            .builder
            .stats(&tenant, window)
            .await
            .map_err(from_service_error)?;
        Ok(Response::new(convert::build_stats(stats)))
    }
}

/// The key that the caller gave to its request, if it did.
fn idempotency_key(metadata: &MetadataMap) -> Result<Option<String>, Status> {
    let refused = |message: &str| {
        from_field_error(FieldError::Invalid {
            field: "Idempotency-Key".to_owned(),
            message: message.to_owned(),
        })
    };
    let mut keys = metadata.get_all(IDEMPOTENCY_HEADER).iter();
    let Some(key) = keys.next() else {
        return Ok(None);
    };
    if keys.next().is_some() {
        return Err(refused("expected one key, got more"));
    }
    let key = key
        .to_str()
        .map_err(|_| refused("expected 1 to 255 visible ASCII characters"))?;
    Ok(Some(key.to_owned()))
}

fn draining() -> Status {
    with_info(
        Code::Unavailable,
        "the service is shutting down: resume with the next from_sequence",
        "DRAINING",
        [],
    )
}
