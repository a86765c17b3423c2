//! Builds an image through a running service and shows its log, over gRPC.
//!
//! ```sh
//! builderd serve --dev &
//! cargo run -p builderd --example create_build -- http://127.0.0.1:8082 nginx:1.21-alpine
//! ```

use anyhow::{Context as _, Result, bail};
use builderd::proto::{
    BuildConfig, BuildSource, BuildState, BuildStrategy, BuildTarget, CreateBuildRequest,
    DockerExtractStrategy, DockerImageSource, GetBuildRequest, MicroVmRootfs, StreamBuildLogsRequest,
    TenantContext, build_source, build_strategy, build_target, builder_service_client::BuilderServiceClient,
};
use tonic::transport::Endpoint;

const TENANT: &str = "example";

#[tokio::main]
#[expect(clippy::print_stdout, reason = "a program for people")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, image] = &arguments[..] else {
        bail!("usage: create_build http://HOST:PORT IMAGE");
    };
    let channel = Endpoint::from_shared(address.clone())?.connect().await?;
    let mut client = BuilderServiceClient::new(channel);

    let request = CreateBuildRequest {
        config: Some(config(image)),
    };
    let build_id = client.create_build(request).await?.into_inner().build_id;
    println!("{build_id}");

    let mut log = client
        .stream_build_logs(StreamBuildLogsRequest {
            build_id: build_id.clone(),
            tenant_id: TENANT.to_owned(),
            follow: true,
            ..StreamBuildLogsRequest::default()
        })
        .await?
        .into_inner();
    while let Some(line) = log.message().await? {
        println!("{:>9} {:>5} {}", line.component, line.level, line.message);
    }

    let request = GetBuildRequest {
        build_id,
        tenant_id: TENANT.to_owned(),
    };
    let build = client.get_build(request).await?.into_inner().build;
    let build = build.context("the answer holds no build")?;
    if build.state() != BuildState::Completed {
        bail!(
            "the build ended as {}: {}",
            build.state().as_str_name(),
            build.error_message
        );
    }
    println!("{} {}", build.rootfs_checksum, build.rootfs_path);
    Ok(())
}

fn config(image: &str) -> BuildConfig {
    let image = DockerImageSource {
        image_uri: image.to_owned(),
        ..DockerImageSource::default()
    };
    BuildConfig {
        tenant: Some(TenantContext {
            tenant_id: TENANT.to_owned(),
            ..TenantContext::default()
        }),
        source: Some(BuildSource {
            source_type: Some(build_source::SourceType::DockerImage(image)),
        }),
        target: Some(BuildTarget {
            target_type: Some(build_target::TargetType::MicrovmRootfs(MicroVmRootfs::default())),
        }),
        strategy: Some(BuildStrategy {
            strategy_type: Some(build_strategy::StrategyType::DockerExtract(
                DockerExtractStrategy::default(),
            )),
        }),
        ..BuildConfig::default()
    }
}
