//! What calls of this process show and trust.

use std::{fmt, path::Path, sync::Arc};

use ::spiffe::SpiffeId;
use rustls::{
    ClientConfig, RootCertStore,
    sign::{CertifiedKey, SingleCertAndKey},
};

use super::{
    TlsError, VERSIONS,
    files::{FileError, WatchedFiles, read_authorities, read_pair},
    provider,
};

/// Below this path are the identities of tenants, which serve nothing.
const TENANTS: &str = "/tenant/";

/// Who may answer a call, where identities are SPIFFE's.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ServerId {
    /// Anybody of the own trust domain who is no tenant.
    #[default]
    OfTrustDomain,
    /// This one.
    Exactly(SpiffeId),
}

impl ServerId {
    /// Whether this ID is meant. The trust domain has been checked before.
    #[must_use]
    pub fn accepts(&self, id: &SpiffeId) -> bool {
        match self {
            Self::OfTrustDomain => !id.path().starts_with(TENANTS),
            Self::Exactly(expected) => id == expected,
        }
    }
}

/// What calls of this process show and trust, always the current state. Cheap to clone.
#[derive(Clone)]
pub struct ClientTls(Arc<dyn Fn() -> Arc<ClientConfig> + Send + Sync>);

impl ClientTls {
    /// Trusts this system's authorities, and shows the certificate and key in two files when they are named; read once.
    ///
    /// # Errors
    /// [`TlsError::SystemAuthorities`], [`TlsError::File`].
    pub fn of_system(pair: Option<(&Path, &Path)>) -> Result<Self, TlsError> {
        let config = Arc::new(client_config(read_key(pair)?, system_authorities()?)?);
        Ok(Self(Arc::new(move || Arc::clone(&config))))
    }

    /// Trusts the authorities in a file, and shows a certificate when there is one; read once.
    ///
    /// # Errors
    /// [`TlsError::File`].
    pub fn of_pem(authorities: &Path, pair: Option<(&Path, &Path)>) -> Result<Self, TlsError> {
        let config = Arc::new(client_config(read_key(pair)?, read_authorities(authorities)?)?);
        Ok(Self(Arc::new(move || Arc::clone(&config))))
    }

    pub(super) fn of_files(files: Arc<WatchedFiles>) -> Result<Self, TlsError> {
        // Said at the start, when authorities are missing altogether.
        files.use_as_client()?;
        Ok(Self(Arc::new(move || files.client())))
    }

    pub(super) fn of_spiffe(config: ClientConfig) -> Self {
        let config = Arc::new(config);
        Self(Arc::new(move || Arc::clone(&config)))
    }

    /// The current state.
    #[must_use]
    pub fn current(&self) -> Arc<ClientConfig> {
        (self.0)()
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ClientTls").finish_non_exhaustive()
    }
}

fn read_key(pair: Option<(&Path, &Path)>) -> Result<Option<CertifiedKey>, FileError> {
    pair.map(|(certificate, key)| read_pair(certificate, key))
        .transpose()
}

pub(super) fn client_config(
    key: Option<CertifiedKey>,
    authorities: RootCertStore,
) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(VERSIONS)?
        .with_root_certificates(authorities);
    // The connector brings the protocols.
    Ok(match key {
        None => builder.with_no_client_auth(),
        Some(key) => builder.with_client_cert_resolver(Arc::new(SingleCertAndKey::from(key))),
    })
}

pub(super) fn system_authorities() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let reason = found.errors.first().map_or_else(
            || "there are none (Debian: ca-certificates)".to_owned(),
            ToString::to_string,
        );
        return Err(TlsError::SystemAuthorities(reason));
    }
    Ok(roots)
}
