//! The way to the service.

use std::{fs, path::Path, time::Duration};

use ::spiffe::SpiffeId;
use assetclient::{Connector, Ending, TlsEnd};
use http::Uri;
use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::{Interceptor, interceptor::InterceptedService},
    transport::{Channel, Endpoint},
};

use super::{
    failure,
    options::{Options, TOKEN_VARIABLE, TlsMode},
};
use crate::{
    commands::{chain, speaks_no_tls},
    exit::{Exit, Failure},
    proto::builder_service_client::BuilderServiceClient,
    tls::{ClientTls, FileRole, ServerId, Tls, TlsError, TlsSettings},
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
    /// What the service said in TLS.
    ending: Ending,
}

impl Connection {
    /// Connects.
    pub(super) async fn open(options: &Options) -> Result<Self, Failure> {
        let headers = Headers::new(options)?;
        let (endpoint, tls) = endpoint(options).await?;
        if headers.authorization.is_some() && tls.is_none() {
            warn_about_plaintext(endpoint.uri());
        }
        let (connected, ending) = match tls {
            None => (endpoint.connect().await, Ending::default()),
            Some((connector, ending)) => (endpoint.connect_with_connector(connector).await, ending),
        };
        let channel = connected.map_err(|error| {
            let cause = chain(&error);
            let hint = match speaks_no_tls(&cause) {
                true => ": it does not speak TLS; a service without TLS is reached by an http:// address",
                false => "",
            };
            let end = ending.get().map_or_else(String::new, |end| format!("{end}: "));
            Failure::new(
                Exit::Unavailable,
                format!("{} cannot be reached: {end}{cause}{hint}", options.server),
            )
        })?;
        Ok(Self {
            channel,
            headers,
            timeout: options.timeout,
            ending,
        })
    }

    /// Why a call failed, in words and as an exit code.
    pub(super) fn failure(&self, status: &Status) -> Failure {
        failure::from_status(status, self.ending.get().as_ref())
    }

    /// Whether the service does not take the certificate that is shown: it will not take it later either.
    pub(super) fn is_refused(&self) -> bool {
        matches!(self.ending.get(), Some(TlsEnd::CertificateRefused { .. }))
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

/// Where the service is, and how a connection to it is encrypted; `None` for not at all.
async fn endpoint(options: &Options) -> Result<(Endpoint, Option<(Connector, Ending)>), Failure> {
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
    let authority = uri.authority().ok_or_else(expected)?.as_str();
    if authority.contains('@') || !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(usage(
            "--server: expected http://HOST:PORT or https://HOST:PORT with nothing before or behind it"
                .to_owned(),
        ));
    }
    // With a connector of its own, tonic is told of a plaintext address, and of the true one as the origin.
    let dialled = Uri::try_from(format!("http://{authority}")).map_err(|_| expected())?;
    let endpoint = Endpoint::from(dialled)
        .origin(uri.clone())
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(KEEP_ALIVE)
        .keep_alive_timeout(KEEP_ALIVE)
        .user_agent(concat!("builderd-cli/", env!("CARGO_PKG_VERSION")))
        .map_err(|error| Failure::new(Exit::Internal, chain(&error)))?;
    let tls = tls(options, encrypted).await?;
    let dial = |tls: ClientTls| assetclient::dial(uri, assetclient::Tls::new(move || tls.current()));
    Ok((endpoint, tls.map(dial)))
}

/// What the connection shows and trusts, by `--tls-mode` or what follows from the address.
async fn tls(options: &Options, encrypted: bool) -> Result<Option<ClientTls>, Failure> {
    let mode = options.tls_mode.unwrap_or(match encrypted {
        false => TlsMode::Disabled,
        true if options.tls_ca.is_some() => TlsMode::File,
        true => TlsMode::System,
    });
    let server = &options.server;
    match (mode, encrypted) {
        (TlsMode::Disabled, true) => {
            return Err(usage(format!(
                "--tls-mode: disabled needs an http:// address, got {server}"
            )));
        }
        (TlsMode::System | TlsMode::File | TlsMode::Spiffe, false) => {
            return Err(usage(format!(
                "--tls-mode: TLS needs an https:// address, got {server}"
            )));
        }
        _ => {}
    }
    let files = options.tls_ca.is_some() || options.tls_cert.is_some() || options.tls_key.is_some();
    let pair = match (&options.tls_cert, &options.tls_key) {
        (None, None) => None,
        (Some(certificate), Some(key)) => Some((certificate.as_path(), key.as_path())),
        _ => {
            return Err(usage(
                "--tls-cert, --tls-key: expected both or neither".to_owned(),
            ));
        }
    };
    if mode != TlsMode::Spiffe && options.server_spiffe_id.is_some() {
        return Err(usage(
            "--server-spiffe-id: only with --tls-mode spiffe".to_owned(),
        ));
    }
    let tls = match (mode, &options.tls_ca) {
        (TlsMode::Disabled, _) if files => {
            return Err(usage(format!(
                "--tls-ca, --tls-cert, --tls-key: nothing is encrypted with {server}"
            )));
        }
        (TlsMode::Disabled, _) => return Ok(None),
        (TlsMode::System, Some(_)) => {
            return Err(usage(
                "--tls-ca: only with --tls-mode file; system trusts this system's own authorities".to_owned(),
            ));
        }
        (TlsMode::System, None) => ClientTls::of_system(pair),
        (TlsMode::File, Some(authorities)) => ClientTls::of_pem(authorities, pair),
        (TlsMode::File, None) => return Err(usage("--tls-ca: required with --tls-mode file".to_owned())),
        (TlsMode::Spiffe, _) if files => {
            return Err(usage(
                "--tls-ca, --tls-cert, --tls-key: not with --tls-mode spiffe, where the agent gives them"
                    .to_owned(),
            ));
        }
        (TlsMode::Spiffe, _) => {
            let settings = TlsSettings::Spiffe(options.spiffe_socket.clone());
            let server = match &options.server_spiffe_id {
                None => ServerId::OfTrustDomain,
                Some(id) => ServerId::Exactly(SpiffeId::new(id).map_err(|error| {
                    usage(format!(
                        "--server-spiffe-id: {error}: expected a SPIFFE ID, as spiffe://example.org/builderd"
                    ))
                })?),
            };
            Tls::start(&settings).await.and_then(|tls| tls.client(server))
        }
    };
    tls.map(Some).map_err(|error| tls_failure(&error))
}

/// Names the flag that is behind missing certificates.
fn tls_failure(error: &TlsError) -> Failure {
    let (flag, exit) = match error {
        TlsError::File(error) => match error.role {
            FileRole::Certificate => ("--tls-cert", Exit::Usage),
            FileRole::Key => ("--tls-key", Exit::Usage),
            FileRole::Authorities => ("--tls-ca", Exit::Usage),
        },
        TlsError::Spiffe(_) => ("--spiffe-socket", Exit::Unavailable),
        _ => ("--tls-mode", Exit::Usage),
    };
    Failure::new(exit, format!("{flag}: {}", chain(error)))
}

fn usage(message: String) -> Failure {
    Failure::new(Exit::Usage, message)
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
