//! `builderd serve`.

use std::{io, net::SocketAddr, path::PathBuf, time::Duration};

use builder_core::{StartError, StartErrorKind};
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{chain, runtime};
use crate::{
    config::{AuthenticationConfig, Config, Effect, SETTINGS, Setting, VARIABLE_PREFIX, Values},
    daemon::{Daemon, DaemonError},
    exit::{Exit, Failure},
    isolation::Insistence,
    logging,
    telemetry::Traces,
    tls::{TlsError, TlsSettings},
};

/// Where `--dev` keeps its state.
pub(super) const DEFAULT_STATE_DIRECTORY: &str = "./builderd-data";

/// How long the collector may take for the last spans.
const LAST_SPANS: Duration = Duration::from_secs(3);

/// The command line of `serve`: one flag for every setting.
pub(super) fn command() -> Command {
    let command = Command::new("serve")
        .about("Serve the API (the default command)")
        .long_about(
            "Serve the API over gRPC, gRPC-Web and Connect on one port, and build what it is asked for.\n\n\
             Every flag is also a variable, UNKEY_BUILDERD_ and the flag in capitals with underscores, as \
             UNKEY_BUILDERD_BUILD_TIMEOUT=20m. A flag goes before a variable. Durations are spelt as 15m or 1h30m.",
        );
    with_settings(command)
}

/// Adds a flag for every setting, and those that choose the defaults.
pub(super) fn with_settings(command: Command) -> Command {
    let flags = SETTINGS
        .iter()
        .filter(|setting| !matches!(setting.effect, Effect::Client))
        .map(flag);
    command
        .arg(
            Arg::new("dev")
                .long("dev")
                .action(ArgAction::SetTrue)
                .help("Defaults for one's own machine: loopback only, no TLS, all state in one directory"),
        )
        .arg(
            Arg::new("state-dir")
                .long("state-dir")
                .value_name("DIR")
                .value_parser(value_parser!(PathBuf))
                .requires("dev")
                .help(format!(
                    "Where --dev keeps its state [default: {DEFAULT_STATE_DIRECTORY}]"
                )),
        )
        .args(flags)
}

fn flag(setting: &Setting) -> Arg {
    let default = match (setting.default, setting.development) {
        ("", _) => String::new(),
        (default, None) => format!(" [default: {default}]"),
        (default, Some(development)) => format!(" [default: {default}, with --dev: {development}]"),
    };
    Arg::new(setting.name)
        .long(setting.flag())
        .value_name("VALUE")
        .help(format!("{}{default}", setting.help))
        // What does nothing yet is accepted, so that it can be refused with its reason.
        .hide(matches!(setting.effect, Effect::NotYet(_)))
}

/// Serves until SIGTERM or SIGINT.
pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let (_, config) = settings(matches)?;
    let traces = Traces::start(config.telemetry.as_ref()).map_err(|error| {
        let message = format!("{VARIABLE_PREFIX}OTEL_ENDPOINT: {error}");
        Failure::new(Exit::Usage, message)
    })?;
    logging::start(&config.log, Some(traces.tracer()));
    let runtime = runtime()?;
    let result = runtime.block_on(serve(config));
    // On this thread, which may block: the spans of the last builds.
    traces.stop(LAST_SPANS);
    // A second signal must not wait for what the first one asked to stop.
    runtime.shutdown_background();
    result
}

/// The settings of this command line and this environment.
pub(super) fn settings(matches: &ArgMatches) -> Result<(Values, Config), Failure> {
    let development = matches.get_flag("dev");
    let state_directory = development.then(|| {
        let given = matches.get_one::<PathBuf>("state-dir").cloned();
        given.unwrap_or_else(|| PathBuf::from(DEFAULT_STATE_DIRECTORY))
    });
    let flag = |setting: &Setting| match setting.effect {
        Effect::Client => None,
        _ => matches.get_one::<String>(setting.name).cloned(),
    };
    Values::collect(std::env::vars_os(), flag, state_directory.as_deref())
        .and_then(|values| {
            let config = Config::from_values(&values, development)?;
            Ok((values, config))
        })
        .map_err(|errors| {
            let lines: Vec<_> = errors.iter().map(ToString::to_string).collect();
            Failure::new(Exit::Usage, lines.join("\n"))
        })
}

async fn serve(config: Config) -> Result<(), Failure> {
    // Before the port opens, so that no signal meets a process that would just die of it.
    let mut signals = Signals::new()?;
    for idle in &config.idle {
        tracing::warn!(
            variable = idle.variable,
            reason = idle.reason,
            "A setting has no effect"
        );
    }
    let daemon = Daemon::start(&config, super::worker_command())
        .await
        .map_err(|error| start_failure(&error))?;
    announce(&config, &daemon);

    let signal = signals.next().await;
    tracing::info!(signal, grace = ?config.shutdown_timeout, "Draining");
    tokio::select! {
        () = daemon.shutdown(config.shutdown_timeout) => tracing::info!("Stopped"),
        signal = signals.next() => {
            tracing::warn!(signal, "Stopped at once by a second signal; unfinished builds start over next time");
        }
    }
    Ok(())
}

pub(super) fn start_failure(error: &DaemonError) -> Failure {
    let cause = chain(error);
    let is_anothers = |source: &StartError| {
        matches!(
            source.kind,
            StartErrorKind::DatabaseInUse | StartErrorKind::DatabaseTooNew
        )
    };
    match error {
        DaemonError::Setting { setting, source } if source.downcast_ref().is_some_and(is_anothers) => {
            let message = format!("{VARIABLE_PREFIX}{setting}: {}", chain(source.as_ref()));
            Failure::new(Exit::Unavailable, message)
        }
        DaemonError::Setting { setting, source } if source.is::<StartError>() => {
            let message = format!(
                "{VARIABLE_PREFIX}{setting}: {}: set it to a directory that this user can write to, or start with \
                 --dev",
                chain(source.as_ref())
            );
            Failure::new(Exit::CannotCreate, message)
        }
        DaemonError::Setting { setting, source } if source.is::<TlsError>() => Failure::new(
            Exit::Usage,
            format!(
                "{VARIABLE_PREFIX}{setting}: {}{}",
                chain(source.as_ref()),
                without_certificates(setting)
            ),
        ),
        DaemonError::Setting { setting, source } => Failure::new(
            Exit::Usage,
            format!("{VARIABLE_PREFIX}{setting}: {}", chain(source.as_ref())),
        ),
        DaemonError::Listen { source, .. } => {
            let exit = match source.kind() {
                io::ErrorKind::PermissionDenied => Exit::Permission,
                _ => Exit::Unavailable,
            };
            Failure::new(
                exit,
                format!("{VARIABLE_PREFIX}ADDRESS, {VARIABLE_PREFIX}PORT: {cause}"),
            )
        }
        DaemonError::Builder(error) if error.kind == StartErrorKind::Configuration => {
            Failure::new(Exit::Usage, cause)
        }
        DaemonError::Builder(error) if error.kind == StartErrorKind::AssetManager => Failure::new(
            Exit::Usage,
            format!("{VARIABLE_PREFIX}ASSETMANAGER_ENDPOINT: {cause}"),
        ),
        DaemonError::Builder(_) => Failure::new(Exit::Unavailable, cause),
        DaemonError::Edge(_) => Failure::new(Exit::Internal, cause),
    }
}

/// The ways out for who has no agent.
fn without_certificates(setting: &str) -> &'static str {
    match setting {
        "SPIFFE_SOCKET" => {
            ": set it to the agent's socket; without an agent, set UNKEY_BUILDERD_TLS_MODE=file with certificates of \
             your own, or disabled behind a proxy that terminates TLS; or start with --dev"
        }
        _ => "",
    }
}

/// One line with what an operator looks for first, and warnings about what is open.
fn announce(config: &Config, daemon: &Daemon) {
    let address = daemon.address();
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        server.address = %address,
        database = %config.database_directory.display(),
        images = %config.output_directory.display(),
        workspace = %config.workspace_directory.display(),
        backend = ?config.backend,
        tls = config.tls.mode(),
        development = config.development,
        "Serving"
    );
    if let Some(metrics) = daemon.metrics_address() {
        tracing::info!(metrics.address = %metrics, "Metrics for Prometheus");
    }
    if config.isolation == Insistence::Off {
        tracing::warn!(
            "Workers are in no box (TENANT_ISOLATION_ENABLED=false): build only images that you trust this host with"
        );
    }
    warn_about_callers(config, address);
}

/// Says who can do what they should not.
fn warn_about_callers(config: &Config, address: SocketAddr) {
    if address.ip().is_loopback() {
        return;
    }
    let asks = match &config.tls {
        TlsSettings::Disabled => false,
        TlsSettings::Files(files) => files.authorities.is_some(),
        TlsSettings::Spiffe(_) => true,
    };
    let plaintext = config.tls == TlsSettings::Disabled;
    match &config.authentication {
        AuthenticationConfig::None if asks => tracing::warn!(
            server.address = %address,
            "Every client whose certificate is accepted can act for any tenant: AUTH_MODE is none"
        ),
        AuthenticationConfig::None => tracing::warn!(
            server.address = %address,
            encrypted = !plaintext,
            "Anyone who reaches this address can act for any tenant: AUTH_MODE is none and no client shows a \
             certificate"
        ),
        AuthenticationConfig::Bearer(_) if plaintext => tracing::warn!(
            server.address = %address,
            "Tokens cross the network readable: set TLS_MODE, or put a proxy that terminates TLS in front of this \
             address"
        ),
        AuthenticationConfig::Bearer(_) | AuthenticationConfig::Mtls { .. } => {}
    }
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        let failed = |error| Failure::new(Exit::Internal, format!("cannot listen to signals: {error}"));
        Ok(Self {
            terminate: signal(SignalKind::terminate()).map_err(failed)?,
            interrupt: signal(SignalKind::interrupt()).map_err(failed)?,
        })
    }

    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
