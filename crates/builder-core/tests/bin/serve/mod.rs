//! A service in a process of its own, so that a test can kill it in the middle of a build.

use std::{
    ffi::OsString,
    io::Write,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use builder_core::{
    ServiceError,
    event::LogLine,
    request::{Backend, BuildRequest, RegistryCredentials, Secret},
    service::{Builder, BuilderConfig},
    worker::BoxLauncher,
};
use futures_util::{Stream, StreamExt};
use oci_fetch::{ClientConfig, Loopback};
use sandbox::{Sandbox, SealedProgram, Settings};
use tenant::{TenantDefaults, Tier, TierTable};

/// The beginning of a log line at which the service dies.
pub(crate) const DIE_AT: &str = "BUILDER_CORE_TEST_DIE_AT";

/// Where the static programs are with which workers run in boxes.
pub(crate) const BOXES: &str = "BUILDER_CORE_TEST_BOXES";

/// What the control groups of these boxes are called.
pub(crate) const BOXES_NAME: &str = "core-test-served";

/// Workers in boxes, in all layers of them.
pub(crate) fn boxes(programs: &Path, directory: &Path) -> std::io::Result<BoxLauncher> {
    let sandbox = Sandbox::start(&Settings {
        name: BOXES_NAME,
        helper: &std::fs::read(programs.join("sandbox-helper"))?,
        lease_directory: Some(directory.join("users")),
    })?;
    let worker = std::fs::read(programs.join("builder-core-holed-worker"))?;
    let program = SealedProgram::new("worker", &worker)?;
    Ok(BoxLauncher::new(sandbox, program, sandbox::Level::Strict, false))
}

/// `serve DIRECTORY REQUEST-JSON [PASSWORD]`: starts the service below the directory, submits the build, says its
/// name, and waits to be killed. An empty request only starts the service. With [`DIE_AT`] in its environment it kills
/// itself when the build's log has a line that begins so.
pub(crate) fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(2).collect();
    let [directory, request, rest @ ..] = arguments.as_slice() else {
        return ExitCode::FAILURE;
    };
    let Ok(runtime) = tokio::runtime::Builder::new_multi_thread().enable_all().build() else {
        return ExitCode::FAILURE;
    };
    runtime.block_on(async {
        let Ok(program) = std::env::current_exe() else {
            return ExitCode::FAILURE;
        };
        let command = vec![program.into_os_string(), OsString::from("worker")];
        let mut config = config(Path::new(directory), command);
        if let Some(programs) = std::env::var_os(BOXES) {
            let Ok(launcher) = boxes(Path::new(&programs), Path::new(directory)) else {
                return ExitCode::FAILURE;
            };
            config.launcher = Some(Arc::new(launcher));
        }
        let Ok(builder) = Builder::start(config).await else {
            return ExitCode::FAILURE;
        };
        let mut name = "none".to_owned();
        if !request.is_empty() {
            let Ok(mut request) = serde_json::from_str::<BuildRequest>(request) else {
                return ExitCode::FAILURE;
            };
            if let Some(password) = rest.first() {
                request.source.credentials = Some(RegistryCredentials {
                    username: "robot".to_owned(),
                    password: Secret::new(password.clone()),
                    ..RegistryCredentials::default()
                });
            }
            match builder.create(request).await {
                Ok(build) => {
                    name = build.id.to_string();
                    if let Ok(start) = std::env::var(DIE_AT) {
                        let lines = builder.logs(build.request.tenant.tenant_id, build.id, 0, true);
                        tokio::spawn(die_at(lines, start));
                    }
                }
                Err(_) => return ExitCode::FAILURE,
            }
        }
        if writeln!(std::io::stdout(), "{name}").is_err() {
            return ExitCode::FAILURE;
        }
        std::future::pending().await
    })
}

/// As `kill -9`: nothing is cleared up.
async fn die_at(lines: impl Stream<Item = Result<LogLine, ServiceError>>, start: String) {
    let mut lines = std::pin::pin!(lines);
    while let Some(Ok(line)) = lines.next().await {
        if line.message.starts_with(&start) {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
    }
}

/// A service below a directory: four directories in it, one build at a time.
pub(crate) fn config(directory: &Path, worker_command: Vec<OsString>) -> BuilderConfig {
    let workspace: PathBuf = directory.join("workspace");
    BuilderConfig {
        database_directory: directory.join("database"),
        output_directory: directory.join("output"),
        scratch_directory: directory.join("scratch"),
        node: tenant::NodeCapacity {
            queued_builds: 100,
            ..tenant::NodeCapacity::builds(1)
        },
        reserve_disk: false,
        quota_check_interval: Duration::from_secs(300),
        build_timeout: Duration::from_secs(120),
        worker_command,
        launcher: None,
        guest_init: Arc::from(&b"\x7fELF the init"[..]),
        guest_architecture: oci_fetch::Platform::host().architecture,
        backend: Backend::Native,
        cache_enabled: true,
        cache_max_bytes: 1 << 30,
        max_compressed_bytes: None,
        layers_in_parallel: 2,
        asset_manager: None,
        artifacts: builder_core::artifact::ArtifactConfig::Local,
        storage_max_bytes: None,
        audit: false,
        cleanup_interval: Duration::from_secs(3600),
        tenants: TierTable::new(Tier::Pro, &TenantDefaults::default()),
        fetch: ClientConfig::new(workspace.join("cache/blobs"))
            .with_loopback(Loopback::PlainHttp)
            .with_durable_cache(false),
        workspace_directory: workspace,
    }
}
