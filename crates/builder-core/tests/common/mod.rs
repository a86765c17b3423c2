//! What the integration tests share: a place to build in, requests, and what came of them.

#![allow(dead_code, unreachable_pub, reason = "each test program uses its own part")]

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    sync::{Arc, Mutex},
    time::Duration,
};

use builder_core::{
    BuildError, ImageCache, PackCache,
    build::BuildState,
    event::{self, Event, Level},
    pipeline::{self, BuildLimits, Outcome, PipelineConfig},
    request::{
        Backend, BuildRequest, DockerImageSource, ExtractOptions, InitStrategy, LayerMode, Optimization,
        Profile, RequestedLimits, RootfsTarget, RuntimeOverrides, TenantContext,
    },
    worker::{Launcher, ProcessLauncher, WorkerSpec},
};
use oci_fetch::{ClientConfig, Loopback, RetryPolicy};
use tempfile::TempDir;
use test_support::image::{Image, Layer};
use tokio_util::sync::CancellationToken;

pub const INIT: &[u8] = b"\x7fELF the init";

pub const PATIENCE: Duration = Duration::from_secs(60);

/// The host's architecture in OCI's words.
pub fn host_architecture() -> String {
    oci_fetch::Platform::host().architecture
}

pub fn worker_command(mode: &str) -> Vec<OsString> {
    vec![env!("CARGO_BIN_EXE_builder-core-test-worker").into(), mode.into()]
}

/// A directory with everything that a build needs.
pub struct Site {
    pub directory: TempDir,
    pub config: PipelineConfig,
    pub workers: Arc<Recorded>,
}

/// A launcher that remembers whom it launched.
#[derive(Debug)]
pub struct Recorded {
    launcher: ProcessLauncher,
    pub ids: Mutex<Vec<u32>>,
}

impl Launcher for Recorded {
    fn launch(&self, spec: WorkerSpec) -> Result<sandbox::Child, sandbox::LaunchError> {
        let child = self.launcher.launch(spec)?;
        self.ids.lock().unwrap().push(child.id());
        Ok(child)
    }
}

impl Recorded {
    pub fn none_left(&self) -> bool {
        self.ids.lock().unwrap().iter().all(|id| {
            let status = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            status.is_empty() || !status.contains("builder-core")
        })
    }
}

pub fn fetch_config(directory: &Path) -> ClientConfig {
    ClientConfig::new(directory.join("cache/blobs"))
        .with_loopback(Loopback::PlainHttp)
        .with_durable_cache(false)
        .with_retry(RetryPolicy {
            attempts: 2,
            first_pause: Duration::from_millis(1),
            longest_pause: Duration::from_millis(1),
            longest_retry_after: Duration::ZERO,
        })
}

impl Site {
    pub fn new() -> Self {
        Self::with_worker("worker")
    }

    /// One whose files are all below a directory of another file system.
    pub fn new_in(parent: &Path) -> Self {
        Self::with_worker_in("worker", tempfile::tempdir_in(parent).unwrap())
    }

    pub fn with_worker(mode: &str) -> Self {
        Self::with_worker_in(mode, tempfile::tempdir().unwrap())
    }

    fn with_worker_in(mode: &str, directory: TempDir) -> Self {
        let command = worker_command(mode);
        let workers = Arc::new(Recorded {
            launcher: ProcessLauncher::from_command(&command).unwrap(),
            ids: Mutex::default(),
        });
        let workspace = directory.path().join("workspace");
        fs::create_dir_all(workspace.join("staging")).unwrap();
        fs::create_dir(directory.path().join("output")).unwrap();
        let launcher: Arc<dyn Launcher> = Arc::<Recorded>::clone(&workers);
        let config = PipelineConfig {
            fetch: oci_fetch::Client::new(fetch_config(&workspace)).unwrap(),
            local_images: true,
            launcher,
            alarms: builder_core::worker::Alarms::default(),
            packs: PackCache::open(&workspace, Some(1 << 30)).unwrap(),
            // So that a second build is one; `reusing` is for tests of the other.
            images: None,
            staging_directory: workspace.join("staging"),
            guest_init: Arc::from(INIT),
            guest_architecture: host_architecture(),
            backend: Backend::Native,
            layers_in_parallel: 3,
            replace_existing: true,
            limits: BuildLimits::default(),
        };
        Self {
            directory,
            config,
            workers,
        }
    }

    /// Copies images that were made before instead of making them again.
    pub fn reusing() -> Self {
        let mut site = Self::new();
        let workspace = site.directory.path().join("workspace");
        site.config.images = Some(ImageCache::open(&workspace).unwrap());
        site
    }

    pub fn output(&self, name: &str) -> PathBuf {
        self.directory.path().join("output").join(name)
    }

    pub fn pack_entries(&self) -> Vec<PathBuf> {
        let packs = self.directory.path().join("workspace/cache/packs");
        files_below(&packs)
            .into_iter()
            .filter(|path| path.ends_with("layer"))
            .collect()
    }

    /// Runs a build to its end, with what it told.
    pub async fn build(&self, request: &BuildRequest, name: &str) -> Ended {
        self.build_until(request, name, CancellationToken::new()).await
    }

    pub async fn build_until(&self, request: &BuildRequest, name: &str, cancel: CancellationToken) -> Ended {
        let (events, mut received) = event::channel(16);
        let output = self.output(name);
        let listen = async {
            let mut all = Vec::new();
            while let Some(event) = received.recv().await {
                all.push(event);
            }
            all
        };
        let run = pipeline::run(&self.config, request, &output, events, cancel);
        let (result, events) = futures_util::future::join(run, listen).await;
        Ended { result, events }
    }

    /// Nothing of a failed build is left: no file in the output directory, nothing unfinished in the workspace, no
    /// worker.
    pub fn assert_clean(&self, case: &str) {
        assert_eq!(
            files_below(&self.directory.path().join("output")),
            Vec::<PathBuf>::new(),
            "{case}"
        );
        for place in ["workspace/cache/packs/tmp", "workspace/staging"] {
            let left = fs::read_dir(self.directory.path().join(place)).unwrap().count();
            assert_eq!(left, 0, "{case}: {place}");
        }
        assert!(self.workers.none_left(), "{case}: a worker lives");
    }
}

/// How a build ended.
pub struct Ended {
    pub result: Result<Outcome, BuildError>,
    pub events: Vec<Event>,
}

impl Ended {
    pub fn states(&self) -> Vec<BuildState> {
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::State(state) => Some(*state),
                _ => None,
            })
            .collect()
    }

    pub fn percentages(&self) -> Vec<u8> {
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::Progress { percent, .. } => Some(*percent),
                _ => None,
            })
            .collect()
    }

    pub fn lines(&self, at_least: Level) -> Vec<&str> {
        self.events
            .iter()
            .filter_map(|event| match event {
                Event::Log { level, message, .. } if *level >= at_least => Some(message.as_str()),
                _ => None,
            })
            .collect()
    }

    /// How many layers were indexed, and how many were taken from the cache.
    pub fn indexed_and_cached(&self) -> (usize, usize) {
        let count = |start: &str| {
            self.lines(Level::Info)
                .iter()
                .filter(|line| line.starts_with(start))
                .count()
        };
        (count("Indexed layer"), count("Took layer"))
    }

    #[track_caller]
    pub fn outcome(&self) -> &Outcome {
        self.result
            .as_ref()
            .unwrap_or_else(|error| panic!("{error} {error:?}"))
    }

    #[track_caller]
    pub fn error(&self) -> &BuildError {
        self.result.as_ref().expect_err("the build should fail")
    }
}

pub fn request(image: &str) -> BuildRequest {
    BuildRequest {
        tenant: TenantContext {
            tenant_id: "alice".parse().unwrap(),
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
            init: InitStrategy::Tini,
            runtime: RuntimeOverrides::default(),
            profile: Profile::ReadWrite,
            free_space_bytes: 4 << 20,
            free_inodes: 64,
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
    }
}

/// Bytes that do not compress, different for each seed.
pub fn noise(length: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()[3]
        })
        .collect()
}

/// Three layers: a base, something on top, something taken away.
pub fn sample() -> Image {
    let base = Layer::new()
        .directory("etc", 0o755)
        .file("etc/motd", b"hello\n")
        .file("etc/old", b"old")
        .directory("usr", 0o755)
        .directory("usr/bin", 0o755)
        .file("usr/bin/tool", noise(300_000, 1))
        .mode(0o755)
        .symlink("bin", "usr/bin");
    let middle = Layer::new()
        .file("etc/motd", b"changed\n")
        .owner(1000, 1000)
        .hard_link("etc/motd2", "etc/motd");
    let top = Layer::new().whiteout("etc/old");
    Image::new()
        .layer(&base)
        .layer(&middle)
        .layer(&top)
        .platform("linux", &host_architecture(), "")
        .entrypoint(&["/usr/bin/tool"])
        .cmd(&["--serve"])
        .env(&["MODE=test"])
}

pub fn files_below(directory: &Path) -> Vec<PathBuf> {
    let mut files = Vec::new();
    let mut pending = vec![directory.to_owned()];
    while let Some(directory) = pending.pop() {
        let Ok(entries) = fs::read_dir(&directory) else {
            continue;
        };
        for entry in entries {
            let path = entry.unwrap().path();
            if path.is_dir() {
                pending.push(path);
            } else {
                files.push(path);
            }
        }
    }
    files
}
