//! The way to the service.

use std::{fs, path::Path, time::Duration};

use http::Uri;
use tonic::{
    Request,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Certificate, Channel, ClientTlsConfig, Endpoint, Identity},
};

use super::options::{Options, TOKEN_VARIABLE, TlsMode};
use crate::{
    commands::chain,
    exit::{Exit, Failure},
    proto::builder_service_client::BuilderServiceClient,
};

/// How long opening a connection may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// In this interval a connection is asked for a sign of life, so that a followed log notices a machine that went away.
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// Larger answers are no answers of this service: a page of builds stays far below.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Longer tokens are a file given by mistake.
const MAX_TOKEN_BYTES: usize = 8 * 1024;

pub(super) type Client = BuilderServiceClient<InterceptedService<Channel, Headers>>;

/// A connection, and what goes with every call.
#[derive(Debug)]
pub(super) struct Connection {
    channel: Channel,
    headers: Headers,
    timeout: Duration,
}

impl Connection {
    /// Connects.
    pub(super) async fn open(options: &Options) -> Result<Self, Failure> {
        let headers = Headers::new(options)?;
        let endpoint = endpoint(options)?;
        if headers.authorization.is_some() && endpoint.uri().scheme_str() == Some("http") {
            warn_about_plaintext(endpoint.uri());
        }
        let channel = endpoint.connect().await.map_err(|error| {
            Failure::new(
                Exit::Unavailable,
                format!("{} cannot be reached: {}", options.server, chain(&error)),
            )
        })?;
        Ok(Self {
            channel,
            headers,
            timeout: options.timeout,
        })
    }

    /// A client. All clients share the connection, which is opened again when it broke.
    pub(super) fn client(&self) -> Client {
        BuilderServiceClient::with_interceptor(self.channel.clone(), self.headers.clone())
            .max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// A request that has to be answered within `--timeout`.
    pub(super) fn request<M>(&self, message: M) -> Request<M> {
        let mut request = Request::new(message);
        request.set_timeout(self.timeout);
        request
    }
}

fn endpoint(options: &Options) -> Result<Endpoint, Failure> {
    let usage = |message: String| Failure::new(Exit::Usage, message);
    let server = &options.server;
    let expected = || {
        usage(format!(
            "--server: expected http://HOST:PORT or https://HOST:PORT, got {server:?}"
        ))
    };
    let uri: Uri = server.parse().map_err(|_| expected())?;
    let encrypted = match uri.scheme_str() {
        Some("http") => false,
        Some("https") => true,
        _ => return Err(expected()),
    };
    let userinfo = uri
        .authority()
        .is_some_and(|authority| authority.as_str().contains('@'));
    if userinfo || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(usage(
            "--server: expected http://HOST:PORT or https://HOST:PORT with nothing before or behind it"
                .to_owned(),
        ));
    }
    let files = options.tls_ca.is_some() || options.tls_cert.is_some() || options.tls_key.is_some();
    let mode = options.tls_mode.unwrap_or(match encrypted {
        false => TlsMode::Disabled,
        true if options.tls_ca.is_some() => TlsMode::File,
        true => TlsMode::System,
    });
    let endpoint = Endpoint::from(uri)
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .user_agent(concat!("builderd-cli/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| Failure::new(Exit::Internal, chain(&error)))?;
    match (mode, encrypted) {
        (TlsMode::Spiffe, _) => Err(usage(
            "--tls-mode: SPIFFE is not implemented yet: use file with --tls-ca, --tls-cert and --tls-key, or system; \
             or disabled and an http:// address"
                .to_owned(),
        )),
        (TlsMode::Disabled, true) => Err(usage(format!(
            "--tls-mode: disabled needs an http:// address, got {server}"
        ))),
        (TlsMode::System | TlsMode::File, false) => Err(usage(format!(
            "--tls-mode: TLS needs an https:// address, got {server}"
        ))),
        (TlsMode::Disabled, false) if files => Err(usage(format!(
            "--tls-ca, --tls-cert, --tls-key: nothing is encrypted with {server}"
        ))),
        (TlsMode::System, true) if options.tls_ca.is_some() => Err(usage(
            "--tls-ca: only with --tls-mode file; system trusts this system's own authorities".to_owned(),
        )),
        (TlsMode::File, true) if options.tls_ca.is_none() => {
            Err(usage("--tls-ca: required with --tls-mode file".to_owned()))
        }
        (TlsMode::Disabled, false) => Ok(endpoint),
        (TlsMode::System | TlsMode::File, true) => endpoint
            .tls_config(tls(options)?)
            .map_err(|error| usage(format!("--tls-ca, --tls-cert, --tls-key: {}", chain(&error)))),
    }
}

fn tls(options: &Options) -> Result<ClientTlsConfig, Failure> {
    let mut tls = ClientTlsConfig::new();
    tls = match &options.tls_ca {
        Some(file) => tls.ca_certificate(Certificate::from_pem(read("--tls-ca", file)?)),
        None => tls.with_native_roots(),
    };
    match (&options.tls_cert, &options.tls_key) {
        (None, None) => Ok(tls),
        (Some(certificate), Some(key)) => {
            let certificate = read("--tls-cert", certificate)?;
            Ok(tls.identity(Identity::from_pem(certificate, read("--tls-key", key)?)))
        }
        _ => Err(Failure::new(
            Exit::Usage,
            "--tls-cert, --tls-key: expected both or neither",
        )),
    }
}

/// Reads a file that a flag names.
pub(super) fn read(flag: &str, file: &Path) -> Result<Vec<u8>, Failure> {
    fs::read(file).map_err(|error| Failure::new(Exit::Usage, format!("{flag}: {}: {error}", file.display())))
}

fn warn_about_plaintext(uri: &Uri) {
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let loopback = host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    if !loopback {
        super::output::note("warning: the token goes over the network unencrypted: use an https:// address");
    }
}

/// What goes with every call.
#[derive(Clone)]
pub(super) struct Headers {
    authorization: Option<MetadataValue<Ascii>>,
    tenant: Option<MetadataValue<Ascii>>,
    user: Option<MetadataValue<Ascii>>,
}

impl std::fmt::Debug for Headers {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Headers").finish_non_exhaustive()
    }
}

impl Headers {
    fn new(options: &Options) -> Result<Self, Failure> {
        let header = |flag: &str, value: &str| {
            MetadataValue::try_from(value)
                .map_err(|_| Failure::new(Exit::Usage, format!("{flag}: expected visible ASCII characters")))
        };
        let tenant = options.tenant().ok();
        let token = token(options)?;
        let authorization = token
            .map(|token| header("the token", &format!("Bearer {token}")))
            .transpose()?
            .map(|mut value| {
                value.set_sensitive(true);
                value
            });
        Ok(Self {
            authorization,
            tenant: tenant.map(|tenant| header("--tenant", &tenant)).transpose()?,
            user: options
                .user
                .as_deref()
                .map(|user| header("--user", user))
                .transpose()?,
        })
    }
}

impl Interceptor for Headers {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, tonic::Status> {
        let headers = [
            ("authorization", &self.authorization),
            ("x-tenant-id", &self.tenant),
            ("x-user-id", &self.user),
        ];
        for (name, value) in headers {
            if let Some(value) = value {
                request.metadata_mut().insert(name, value.clone());
            }
        }
        Ok(request)
    }
}

fn token(options: &Options) -> Result<Option<String>, Failure> {
    let usage = |message: &str| Failure::new(Exit::Usage, message);
    let variable = std::env::var(TOKEN_VARIABLE)
        .ok()
        .filter(|token| !token.is_empty());
    let token = match (variable, &options.token_file) {
        (Some(_), Some(_)) => {
            return Err(usage(
                "UNKEY_BUILDERD_TOKEN, --token-file: expected one of them, got both",
            ));
        }
        (Some(token), None) => token,
        (None, Some(file)) => String::from_utf8(read("--token-file", file)?)
            .map_err(|_| usage("--token-file: expected text"))?,
        (None, None) => return Ok(None),
    };
    let token = token.trim();
    if token.is_empty() || token.len() > MAX_TOKEN_BYTES {
        return Err(usage(
            "--token-file, UNKEY_BUILDERD_TOKEN: expected a token of at most 8 KiB",
        ));
    }
    Ok(Some(token.to_owned()))
}
