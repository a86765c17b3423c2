//! Every method of the service, over gRPC. The parts are quoted in `docs/api/README.md`.
//!
//! ```sh
//! builderd serve --dev &
//! cargo run -p builderd --example methods -- http://127.0.0.1:8082 nginx:1.21-alpine
//! ```

use anyhow::{Context as _, Result, bail};
use builderd::proto::{
    BuildConfig, BuildSource, BuildState, BuildTarget, CancelBuildRequest, CreateBuildRequest,
    DeleteBuildRequest, DockerImageSource, GetBuildRequest, GetBuildStatsRequest, GetTenantQuotasRequest,
    ListBuildsRequest, MicroVmRootfs, StreamBuildLogsRequest, TenantContext, build_source::SourceType,
    build_target::TargetType, builder_service_client::BuilderServiceClient,
};
use tonic::transport::Endpoint;

#[tokio::main]
#[expect(clippy::print_stdout, reason = "a program for people")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, image_uri] = &arguments[..] else {
        bail!("usage: methods http://HOST:PORT IMAGE");
    };
    let tenant_id = "test-tenant".to_owned();
    let channel = Endpoint::from_shared(address.clone())?.connect().await?;
    let mut client = BuilderServiceClient::new(channel);

    // CreateBuild: answers at once.
    let image = DockerImageSource {
        image_uri: image_uri.clone(),
        ..Default::default()
    };
    let config = BuildConfig {
        tenant: Some(TenantContext {
            tenant_id: tenant_id.clone(),
            ..Default::default()
        }),
        source: Some(BuildSource {
            source_type: Some(SourceType::DockerImage(image)),
        }),
        target: Some(BuildTarget {
            target_type: Some(TargetType::MicrovmRootfs(MicroVmRootfs::default())),
        }),
        ..Default::default()
    };
    let request = CreateBuildRequest { config: Some(config) };
    let build_id = client.create_build(request).await?.into_inner().build_id;

    // StreamBuildLogs: until the build has ended.
    let request = StreamBuildLogsRequest {
        build_id: build_id.clone(),
        tenant_id: tenant_id.clone(),
        follow: true,
        from_sequence: 1,
    };
    let mut lines = client.stream_build_logs(request).await?.into_inner();
    while let Some(line) = lines.message().await? {
        println!("{:>4} {}", line.sequence, line.message);
    }

    // GetBuild.
    let request = GetBuildRequest {
        build_id: build_id.clone(),
        tenant_id: tenant_id.clone(),
    };
    let build = client.get_build(request).await?.into_inner().build;
    let build = build.context("the answer holds no build")?;
    println!("{}: {}", build.state().as_str_name(), build.rootfs_path);

    // ListBuilds.
    let request = ListBuildsRequest {
        tenant_id: tenant_id.clone(),
        state_filter: vec![BuildState::Completed.into()],
        page_size: 20,
        ..Default::default()
    };
    let page = client.list_builds(request).await?.into_inner();
    println!("{} builds are completed", page.total_count);

    // CancelBuild: too late for this one, which the service says.
    let request = CancelBuildRequest {
        build_id: build_id.clone(),
        tenant_id: tenant_id.clone(),
    };
    let cancelled = client.cancel_build(request).await;
    println!("cancel: {cancelled:?}");

    // GetTenantQuotas.
    let request = GetTenantQuotasRequest {
        tenant_id: tenant_id.clone(),
    };
    let quotas = client.get_tenant_quotas(request).await;
    println!("quotas: {quotas:?}");

    // GetBuildStats.
    let request = GetBuildStatsRequest {
        tenant_id: tenant_id.clone(),
        ..Default::default()
    };
    let stats = client.get_build_stats(request).await;
    println!("stats: {stats:?}");

    // DeleteBuild.
    let request = DeleteBuildRequest {
        build_id: build_id.clone(),
        tenant_id: tenant_id.clone(),
        force: false,
    };
    let deleted = client.delete_build(request).await;
    println!("delete: {deleted:?}");
    Ok(())
}
