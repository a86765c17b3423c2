//! What every command takes: where the service is, and who asks.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum, ValueHint};

use crate::{
    config::parse_duration,
    exit::{Exit, Failure},
};

/// The variable that holds a token itself. There is no flag for it: a command line is seen by everybody on the machine.
pub(super) const TOKEN_VARIABLE: &str = "UNKEY_BUILDERD_TOKEN";

#[derive(Debug, Args)]
#[command(next_help_heading = "Service")]
pub(super) struct Options {
    /// The service: http://HOST:PORT, or https://HOST:PORT for TLS
    #[arg(
        long,
        global = true,
        value_name = "URL",
        env = "UNKEY_BUILDERD_SERVER_ADDRESS",
        default_value = "https://localhost:8082",
        value_hint = ValueHint::Url
    )]
    pub(super) server: String,

    /// Whose builds
    #[arg(long, global = true, value_name = "ID", env = "UNKEY_BUILDERD_TENANT_ID")]
    tenant: Option<String>,

    /// Who asks, for the service's log; it decides nothing
    #[arg(long, global = true, value_name = "ID", env = "UNKEY_BUILDERD_USER_ID")]
    pub(super) user: Option<String>,

    /// How the connection is encrypted [default: by the URL; file when --tls-ca is given]
    #[arg(long, global = true, value_name = "MODE", env = "UNKEY_BUILDERD_TLS_MODE")]
    pub(super) tls_mode: Option<TlsMode>,

    /// Authorities that may vouch for the service, PEM
    #[arg(long, global = true, value_name = "FILE", env = "UNKEY_BUILDERD_TLS_CA_FILE", value_hint = ValueHint::FilePath)]
    pub(super) tls_ca: Option<PathBuf>,

    /// Certificate to show to the service, PEM
    #[arg(long, global = true, value_name = "FILE", env = "UNKEY_BUILDERD_TLS_CERT_FILE", value_hint = ValueHint::FilePath)]
    pub(super) tls_cert: Option<PathBuf>,

    /// Its key, PEM
    #[arg(long, global = true, value_name = "FILE", env = "UNKEY_BUILDERD_TLS_KEY_FILE", value_hint = ValueHint::FilePath)]
    pub(super) tls_key: Option<PathBuf>,

    /// Socket of the Workload API, for --tls-mode spiffe
    #[arg(
        long,
        global = true,
        value_name = "PATH",
        env = "UNKEY_BUILDERD_SPIFFE_SOCKET",
        default_value = "/run/spire/sockets/agent.sock",
        value_hint = ValueHint::FilePath
    )]
    pub(super) spiffe_socket: PathBuf,

    /// Who the service has to be, for --tls-mode spiffe [default: anybody of the trust domain who is no tenant]
    #[arg(
        long,
        global = true,
        value_name = "ID",
        env = "UNKEY_BUILDERD_SERVER_SPIFFE_ID"
    )]
    pub(super) server_spiffe_id: Option<String>,

    /// File with the token for AUTH_MODE=bearer; or set UNKEY_BUILDERD_TOKEN
    #[arg(long, global = true, value_name = "FILE", env = "UNKEY_BUILDERD_TOKEN_FILE", value_hint = ValueHint::FilePath)]
    pub(super) token_file: Option<PathBuf>,

    /// The longest that one call may take; followed logs have no limit
    #[arg(long, global = true, value_name = "DURATION", default_value = "30s", value_parser = duration)]
    pub(super) timeout: Duration,

    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum TlsMode {
    /// Plaintext
    Disabled,
    /// TLS, the service known by this system's authorities
    System,
    /// TLS, the service known by --tls-ca
    File,
    /// TLS, both sides known by their SPIFFE IDs
    Spiffe,
}

impl Options {
    /// The tenant, which every request names.
    pub(super) fn tenant(&self) -> Result<String, Failure> {
        self.tenant.clone().ok_or_else(|| {
            Failure::new(
                Exit::Usage,
                "--tenant: required: whose builds; or set UNKEY_BUILDERD_TENANT_ID",
            )
        })
    }
}

/// A duration above zero, in the spelling of the service's own settings.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    parse_duration(text)
        .filter(|duration| !duration.is_zero())
        .ok_or_else(|| "expected a duration above zero, as 30s, 15m or 1h30m".to_owned())
}
