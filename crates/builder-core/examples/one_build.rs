//! One build without a service: `cargo run -p builder-core --example one_build -- oci:DIR[:TAG] rootfs.ext4`.
//!
//! The program is its own worker: whoever embeds this crate gives [`ProcessLauncher`] a command that ends in
//! [`builder_core::worker::main`].

use std::{collections::BTreeMap, path::Path, process::ExitCode, sync::Arc};

use anyhow::{Context as _, Result};
use builder_core::{
    PackCache,
    event::{self, Event},
    pipeline::{self, BuildLimits, PipelineConfig},
    request::{
        Backend, BuildRequest, DockerImageSource, ExtractOptions, InitStrategy, LayerMode, Optimization,
        Profile, RequestedLimits, RootfsTarget, RuntimeOverrides, TenantContext,
    },
    worker::ProcessLauncher,
};
use tokio_util::sync::CancellationToken;

fn main() -> Result<ExitCode> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["worker"] => Ok(builder_core::worker::main()),
        [image, output] => {
            let runtime = tokio::runtime::Runtime::new()?;
            runtime.block_on(build(image, Path::new(output)))?;
            Ok(ExitCode::SUCCESS)
        }
        _ => anyhow::bail!("usage: one_build IMAGE OUTPUT"),
    }
}

#[expect(clippy::print_stdout, reason = "a program for people")]
async fn build(image: &str, output: &Path) -> Result<()> {
    let workspace = tempfile::tempdir()?;
    let staging_directory = workspace.path().join("staging");
    std::fs::create_dir(&staging_directory)?;
    let config = PipelineConfig {
        fetch: oci_fetch::Client::new(oci_fetch::ClientConfig::new(workspace.path().join("cache")))?,
        local_images: true,
        launcher: Arc::new(ProcessLauncher::new("/proc/self/exe", ["worker".into()])),
        alarms: builder_core::worker::Alarms::default(),
        packs: PackCache::open(workspace.path(), None)?,
        images: None,
        staging_directory,
        // Without an init the image is exactly what its layers say.
        guest_init: Arc::from([]),
        guest_architecture: oci_fetch::Platform::host().architecture,
        backend: Backend::Native,
        layers_in_parallel: 4,
        replace_existing: true,
        limits: BuildLimits::default(),
    };
    let (events, mut received) = event::channel(64);
    let show = async {
        while let Some(event) = received.recv().await {
            if let Event::Log { message, .. } = event {
                println!("{message}");
            }
        }
    };
    let request = request(image)?;
    let run = pipeline::run(&config, &request, output, events, CancellationToken::new());
    let (built, ()) = futures_util::future::join(run, show).await;
    let built = built.context("the build failed")?;
    println!("{} {}", built.checksum, built.image_path.display());
    Ok(())
}

fn request(image: &str) -> Result<BuildRequest> {
    Ok(BuildRequest {
        tenant: TenantContext {
            tenant_id: "example".parse()?,
            customer_id: String::new(),
            organization_id: String::new(),
            claimed_tier: None,
            permissions: Vec::new(),
            metadata: BTreeMap::new(),
        },
        source: DockerImageSource {
            image_uri: image.to_owned(),
            platform: None,
            pull_tags: Vec::new(),
            credentials: None,
        },
        target: RootfsTarget {
            init: InitStrategy::Raw,
            runtime: RuntimeOverrides::default(),
            profile: Profile::ReadWrite,
            free_space_bytes: 64 << 20,
            free_inodes: 1024,
            layer_mode: LayerMode::Oci,
            optimization: Optimization::default(),
            preserve_paths: Vec::new(),
            verity: true,
        },
        flatten_filesystem: false,
        extract: ExtractOptions::default(),
        limits: RequestedLimits::default(),
        build_name: String::new(),
        labels: BTreeMap::new(),
        suggested_asset_id: String::new(),
    })
}
