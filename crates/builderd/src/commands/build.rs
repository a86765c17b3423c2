//! `builderd build`: one image, without a service.

mod login;
mod request;
mod show;

use std::{
    collections::BTreeMap,
    env, fs, io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use builder_core::{
    BuildError, BuildErrorKind, ImageCache, PackCache,
    build::BuildId,
    event::{Component, Event, Level},
    pipeline::{self, BuildLimits, PipelineConfig},
    request::Backend,
    worker::{BuildBox, Launcher, ProcessLauncher},
};
use clap::{ArgMatches, Args as _, Command, FromArgMatches as _};
use oci_fetch::{Client, ClientConfig, ImageSource, Loopback, Proxies};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::{request::Arguments, show::Show};
use super::{chain, runtime, speaks_no_tls};
use crate::{
    exit::{Exit, Failure},
    guest,
    isolation::{self, Insistence},
};

/// Events between the build and what shows them.
const EVENT_CAPACITY: usize = 256;

/// Bytes of layers kept between builds, as they came and unpacked.
const MAX_BLOB_CACHE_BYTES: u64 = 10 << 30;
const MAX_PACK_CACHE_BYTES: u64 = 10 << 30;

/// Layers that are worked on at the same time.
const LAYERS_IN_PARALLEL: usize = 4;

const ABOUT: &str = "\
Turn an image into an ext4 root file system, here and now.

IMAGE is one of
  REGISTRY/NAME[:TAG|@DIGEST]   an image in a registry, as docker.io/library/nginx:1.21-alpine
  oci:DIR[:TAG]                 an OCI image layout
  oci-archive:FILE[:TAG]        the same in a tar file
  docker-archive:FILE[:REF]     what `docker save` writes, REF as NAME:TAG

Registries are reached through the proxies of HTTPS_PROXY, HTTP_PROXY and NO_PROXY, and with the credentials that \
`docker login` has stored (DOCKER_CONFIG/config.json, else ~/.docker/config.json, credential helpers included), unless \
others are given.

What happens is shown on standard error: as a bar on a terminal, as lines otherwise. Standard output gets the path of \
the image, or with --json one JSON object a line for everything that happens, the last of which is the result.

Beside the image, its metadata and a machine configuration for Firecracker are written: for rootfs.ext4 they are \
rootfs.metadata.json and rootfs.firecracker.json. All appear at once and complete, or not at all; files that are there already are replaced only with --force.";

/// The command line of `build`.
pub(super) fn command() -> Command {
    let command = Command::new("build")
        .about("Turn an image into an ext4 root file system, without a service")
        .long_about(ABOUT)
        .after_help(super::EXIT_CODES);
    Arguments::augment_args(command)
}

/// Builds an image, or says why not.
pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let arguments =
        Arguments::from_arg_matches(matches).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    let runtime = runtime()?;
    let result = runtime.block_on(build(&arguments));
    // A second interrupt must not wait for what the first one asked to stop.
    runtime.shutdown_background();
    result
}

async fn build(arguments: &Arguments) -> Result<(), Failure> {
    let mut show = Show::new(arguments.json);
    let outcome = attempt(arguments, &mut show).await;
    match outcome {
        Ok(outcome) => {
            show.completed(&outcome);
            match show.lost() {
                None => Ok(()),
                Some(error) => {
                    let image = outcome.image_path.display();
                    let message =
                        format!("{image} is complete, but standard output cannot be written to: {error}");
                    Err(Failure::new(Exit::CannotCreate, message))
                }
            }
        }
        Err(failure) => {
            show.failed(&failure);
            // With --json the failure has been said where the caller reads.
            let message = if arguments.json && show.lost().is_none() {
                String::new()
            } else {
                failure.message
            };
            Err(Failure::new(failure.exit, message))
        }
    }
}

async fn attempt(arguments: &Arguments, show: &mut Show) -> Result<pipeline::Outcome, Failure> {
    let mut request = arguments.request()?;
    let source: ImageSource = arguments
        .image
        .parse()
        .map_err(|error| Failure::new(Exit::Usage, format!("IMAGE: {}", chain(&error))))?;
    if !arguments.force {
        refuse_existing(&arguments.output)?;
    }
    if request.source.credentials.is_none()
        && let ImageSource::Registry(reference) = &source
    {
        request.source.credentials = login::stored(reference.registry(), show).await?;
    }
    let cache = cache_directory(arguments)?;
    let unusable = |error: io::Error| {
        let message = format!("the cache directory {} cannot be used: {error}", cache.display());
        Failure::new(Exit::CannotCreate, message)
    };
    let staging_directory = cache.join("staging");
    fs::create_dir_all(&staging_directory).map_err(unusable)?;
    let config = PipelineConfig {
        fetch: client(arguments, &source, &cache)?,
        local_images: true,
        launcher: launcher(arguments.backend(), &cache, show)?,
        alarms: builder_core::worker::Alarms::default(),
        packs: PackCache::open(&cache, Some(MAX_PACK_CACHE_BYTES)).map_err(unusable)?,
        images: (!arguments.no_reuse)
            .then(|| ImageCache::open(&cache))
            .transpose()
            .map_err(unusable)?,
        staging_directory,
        guest_init: guest::init(),
        guest_architecture: guest::ARCHITECTURE.to_owned(),
        backend: arguments.backend(),
        layers_in_parallel: LAYERS_IN_PARALLEL,
        replace_existing: arguments.force,
        limits: BuildLimits::default(),
    };

    let (events, mut received) = builder_core::event::channel(EVENT_CAPACITY);
    let cancel = CancellationToken::new();
    let mut running = std::pin::pin!(pipeline::run(
        &config,
        &request,
        &arguments.output,
        events,
        cancel.clone()
    ));
    let unhandled = |error| Failure::new(Exit::Internal, format!("cannot handle signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(unhandled)?;
    let mut hang_up = signal(SignalKind::hangup()).map_err(unhandled)?;
    let result = loop {
        tokio::select! {
            biased;
            () = async {
                tokio::select! {
                    _ = tokio::signal::ctrl_c() => {}
                    _ = terminate.recv() => {}
                    _ = hang_up.recv() => {}
                }
            } => {
                if cancel.is_cancelled() {
                    return Err(Failure::new(Exit::Interrupted, "interrupted twice: temporary files may be left behind"));
                }
                show.cancelling();
                cancel.cancel();
            }
            Some(event) = received.recv() => show.event(event),
            result = &mut running => break result,
        }
    };
    // What was said last may still be in the channel.
    while let Ok(event) = received.try_recv() {
        show.event(event);
    }
    result.map_err(|error| failure(&error, &arguments.output))
}

/// Boxes as good as the host offers them; what is missing is said.
fn launcher(backend: Backend, state: &Path, show: &mut Show) -> Result<Arc<dyn Launcher>, Failure> {
    let failed = |error: &(dyn std::error::Error + 'static)| Failure::new(Exit::Internal, chain(error));
    let prepared =
        isolation::launcher(Insistence::Lenient, backend, state).map_err(|error| failed(&error))?;
    for message in prepared.warnings {
        show.event(Event::Log {
            level: Level::Warn,
            component: Component::Builder,
            message,
            metadata: BTreeMap::new(),
        });
    }
    let Some(launcher) = prepared.launcher else {
        return Ok(Arc::new(ProcessLauncher::new(
            "/proc/self/exe",
            ["worker".into()],
        )));
    };
    let build = BuildBox {
        name: BuildId::generate().to_string(),
        ..BuildBox::default()
    };
    let own = launcher.for_build(&build).map_err(|error| failed(&error))?;
    Ok(own.unwrap_or(launcher))
}

fn client(arguments: &Arguments, source: &ImageSource, cache: &Path) -> Result<Client, Failure> {
    let failed = |error: oci_fetch::FetchError| Failure::new(Exit::CannotCreate, chain(&error));
    // Whoever runs this command may reach this machine's own registries anyway.
    let mut config = ClientConfig::new(cache.join("cache"))
        .with_cache_limit(MAX_BLOB_CACHE_BYTES)
        .with_loopback(Loopback::Tls)
        .with_proxies(proxies()?)
        .with_user_agent(concat!("builderd/", env!("CARGO_PKG_VERSION")));
    let wrong = |flag: &'static str| {
        move |error: oci_fetch::FetchError| Failure::new(Exit::Usage, format!("{flag}: {}", chain(&error)))
    };
    if let Some(directory) = &arguments.certs_dir {
        config = config
            .with_certificates_directory(directory)
            .map_err(wrong("--certs-dir"))?;
    }
    if let ImageSource::Registry(reference) = source {
        let registry = reference.registry();
        for mirror in &arguments.mirror {
            config = config.with_mirror(registry, mirror).map_err(wrong("--mirror"))?;
        }
        if arguments.no_mirror_fallback {
            config = config
                .without_mirror_fallback(registry)
                .map_err(wrong("--no-mirror-fallback"))?;
        }
        config = if arguments.plain_http {
            config.with_plain_http(registry).map_err(failed)?
        } else {
            config.with_private_registry(registry).map_err(failed)?
        };
    } else if arguments.plain_http {
        return Err(Failure::new(
            Exit::Usage,
            "--plain-http: only an image in a registry is fetched over HTTP",
        ));
    } else if !arguments.mirror.is_empty() {
        return Err(Failure::new(
            Exit::Usage,
            "--mirror: only an image in a registry has mirrors",
        ));
    }
    Client::new(config).map_err(failed)
}

/// Those of the environment: here the caller is the operator.
fn proxies() -> Result<Proxies, Failure> {
    Proxies::from_variables(|name| env::var(name).ok())
        .map_err(|error| Failure::new(Exit::Usage, chain(&error)))
}

/// `--cache-dir`, or where the user's caches are.
fn cache_directory(arguments: &Arguments) -> Result<PathBuf, Failure> {
    if let Some(directory) = &arguments.cache_dir {
        return Ok(directory.clone());
    }
    let absolute = |variable: &str| {
        env::var_os(variable)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".cache")))
        .map(|caches| caches.join("builderd"))
        .ok_or_else(|| {
            Failure::new(
                Exit::Usage,
                "neither XDG_CACHE_HOME nor HOME is set: give --cache-dir",
            )
        })
}

fn refuse_existing(output: &Path) -> Result<(), Failure> {
    let [metadata, machine] = pipeline::sidecar_paths(output);
    for path in [output, &metadata, &machine] {
        match fs::symlink_metadata(path) {
            Ok(_) => {
                let message = format!("{} is there already: give --force to replace it", path.display());
                return Err(Failure::new(Exit::CannotCreate, message));
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let message = format!("cannot look at {}: {error}", path.display());
                return Err(Failure::new(Exit::CannotCreate, message));
            }
        }
    }
    Ok(())
}

fn failure(error: &BuildError, output: &Path) -> Failure {
    let exit = match error.kind() {
        BuildErrorKind::InvalidArgument { .. } => Exit::Usage,
        BuildErrorKind::ImageNotFound
        | BuildErrorKind::RegistryUnreachable
        | BuildErrorKind::RateLimited
        | BuildErrorKind::TimedOut => Exit::Unavailable,
        BuildErrorKind::Unauthorized => Exit::Permission,
        BuildErrorKind::DigestMismatch
        | BuildErrorKind::UnsupportedImage
        | BuildErrorKind::CorruptLayer
        | BuildErrorKind::LimitExceeded => Exit::Data,
        BuildErrorKind::OutputNotWritable | BuildErrorKind::DiskFull => Exit::CannotCreate,
        // The writer that stages files needs root, and tools: without root, that is what is said first.
        BuildErrorKind::BackendUnavailable if !is_root() => Exit::Permission,
        BuildErrorKind::BackendUnavailable => Exit::Unavailable,
        BuildErrorKind::Cancelled => Exit::Interrupted,
        _ => Exit::Internal,
    };
    // On the command line the tenant and the operator are one: what lies behind is said as well.
    let message = match error.kind() {
        BuildErrorKind::OutputNotWritable => format!("{}: {}", output.display(), chain(error)),
        _ if speaks_no_tls(&chain(error)) => format!(
            "{}: the registry does not speak TLS; give --plain-http if that is as it should be",
            chain(error)
        ),
        _ => chain(error),
    };
    Failure::new(exit, message)
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}
