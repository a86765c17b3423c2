//! Certificate, key and authorities in files (`TLS_MODE=file`).

use std::{
    fmt, fs,
    io::{self, Read as _},
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, RwLock},
    time::Duration,
};

use ::spiffe::SpiffeId;
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use tokio_util::sync::CancellationToken;

use super::{
    TlsError,
    client::{client_config, system_authorities},
    peer, provider,
    server::server_config,
};
use crate::file_version::FileVersion;

/// How often the files are looked at.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// A larger file is none of certificates.
const MAX_FILE_BYTES: u64 = 1 << 20;

/// Files in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificate of the service, and those between it and its authority.
    pub certificate: PathBuf,
    /// Its key, not encrypted.
    pub key: PathBuf,
    /// The authorities of peers. For the port: every client has to show a certificate of theirs; without, clients show
    /// none. For calls: servers have a certificate of theirs; without, one of this system's authorities.
    pub authorities: Option<PathBuf>,
}

/// What a file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileRole {
    /// The certificate.
    Certificate,
    /// Its key.
    Key,
    /// The authorities.
    Authorities,
}

/// Why a file cannot be used. What it holds is never shown.
#[derive(Debug, thiserror::Error)]
#[error("{path}: {problem}")]
pub struct FileError {
    /// What the file is for.
    pub role: FileRole,
    /// The file.
    pub path: PathBuf,
    problem: String,
    #[source]
    source: Option<io::Error>,
}

/// Files that are read again when they change.
pub struct WatchedFiles {
    files: TlsFiles,
    /// Trusted in calls when the files name no authorities; empty when this system has none.
    system: RootCertStore,
    state: RwLock<State>,
}

struct State {
    material: Material,
    versions: Versions,
}

/// Everything that comes from one reading, so that no handshake sees the certificate of one and the key of another.
struct Material {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    identity: Option<SpiffeId>,
    not_after: Option<i64>,
}

type Versions = [Option<FileVersion>; 3];

impl WatchedFiles {
    /// Reads the files.
    ///
    /// # Errors
    /// [`TlsError::File`].
    pub(super) fn load(files: TlsFiles) -> Result<Self, TlsError> {
        let system = match &files.authorities {
            Some(_) => RootCertStore::empty(),
            None => system_authorities().unwrap_or_else(|_| RootCertStore::empty()),
        };
        let versions = versions(&files);
        let material = read_all(&files, &system)?;
        Ok(Self {
            files,
            system,
            state: RwLock::new(State { material, versions }),
        })
    }

    pub(super) fn server(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.read().material.server)
    }

    pub(super) fn client(&self) -> Arc<ClientConfig> {
        Arc::clone(&self.read().material.client)
    }

    pub(super) fn identity(&self) -> Option<SpiffeId> {
        self.read().material.identity.clone()
    }

    /// Says whether calls can be made, that is, whether anybody is trusted.
    pub(super) fn use_as_client(&self) -> Result<(), TlsError> {
        match self.files.authorities.is_none() && self.system.is_empty() {
            true => system_authorities().map(drop),
            false => Ok(()),
        }
    }

    /// Reads the files again if one of them has changed; `true` when one had. When what is there now cannot be used,
    /// the old state stays.
    ///
    /// # Errors
    /// [`TlsError`], once for each change.
    pub fn refresh(&self) -> Result<bool, TlsError> {
        // Before the contents: what changes while it is read is seen by the next look.
        let versions = versions(&self.files);
        {
            let mut state = self.state.write().unwrap_or_else(PoisonError::into_inner);
            if state.versions == versions {
                return Ok(false);
            }
            state.versions = versions;
        }
        let material = read_all(&self.files, &self.system)?;
        self.state
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .material = material;
        Ok(true)
    }

    /// Takes up changes until `stop` is cancelled.
    pub(super) async fn watch(&self, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK_INTERVAL) => {}
                () = stop.cancelled() => return,
            }
            // A look at three inodes, and small files when they have changed: not worth a thread.
            match self.refresh() {
                Ok(false) => {}
                Ok(true) => {
                    let state = self.read();
                    tracing::info!(
                        file = %self.files.certificate.display(),
                        not_after = state.material.not_after,
                        "Certificates were read again"
                    );
                }
                Err(error) => {
                    let error = crate::commands::chain(&error);
                    tracing::warn!(
                        error,
                        "Certificates have changed and cannot be used: the old ones stay"
                    );
                }
            }
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, State> {
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for WatchedFiles {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("WatchedFiles")
            .field("files", &self.files)
            .finish_non_exhaustive()
    }
}

fn versions(files: &TlsFiles) -> Versions {
    [
        FileVersion::of(&files.certificate),
        FileVersion::of(&files.key),
        files.authorities.as_deref().and_then(FileVersion::of),
    ]
}

fn read_all(files: &TlsFiles, system: &RootCertStore) -> Result<Material, TlsError> {
    let key = read_pair(&files.certificate, &files.key)?;
    let leaf = key.cert.first();
    let identity = leaf.and_then(peer::spiffe_id);
    let not_after = leaf.and_then(peer::not_after);
    let authorities = files.authorities.as_deref().map(read_authorities).transpose()?;
    let trusted = authorities.clone().unwrap_or_else(|| system.clone());
    Ok(Material {
        client: Arc::new(client_config(Some(key.clone()), trusted)?),
        server: Arc::new(server_config(key, authorities)?),
        identity,
        not_after,
    })
}

/// Reads a certificate with its chain, and the key that belongs to it.
pub(super) fn read_pair(certificate: &Path, key: &Path) -> Result<CertifiedKey, FileError> {
    let of_certificate = |problem: &str| FileError::new(FileRole::Certificate, certificate, problem);
    let of_key = |problem: &str| FileError::new(FileRole::Key, key, problem);
    let chain = read_certificates(FileRole::Certificate, certificate)?;
    if let Some(not_after) = chain.first().and_then(peer::not_after)
        && not_after < peer::now()
    {
        return Err(of_certificate("the certificate has expired"));
    }
    let pem = read(FileRole::Key, key)?;
    let der = PrivateKeyDer::from_pem_slice(&pem)
        .map_err(|_| of_key("expected a private key in PEM, PKCS#8, SEC1 or PKCS#1, not encrypted"))?;
    CertifiedKey::from_der(chain, der, &provider()).map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => of_key(&format!(
            "the key does not belong to the certificate in {}",
            certificate.display()
        )),
        rustls::Error::InvalidCertificate(error) => {
            of_certificate(&format!("the certificate is invalid: {error}"))
        }
        error => of_key(&error.to_string()),
    })
}

/// Reads certificates that are trusted as authorities.
pub(super) fn read_authorities(path: &Path) -> Result<RootCertStore, FileError> {
    let mut roots = RootCertStore::empty();
    for certificate in read_certificates(FileRole::Authorities, path)? {
        roots.add(certificate).map_err(|error| {
            FileError::new(
                FileRole::Authorities,
                path,
                &format!("a certificate cannot be an authority: {error}"),
            )
        })?;
    }
    Ok(roots)
}

fn read_certificates(role: FileRole, path: &Path) -> Result<Vec<CertificateDer<'static>>, FileError> {
    let pem = read(role, path)?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    match certificates {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(FileError::new(
            role,
            path,
            "expected certificates in PEM, from -----BEGIN CERTIFICATE----- to the end",
        )),
    }
}

fn read(role: FileRole, path: &Path) -> Result<Vec<u8>, FileError> {
    let failed = |source: io::Error| FileError {
        role,
        path: path.to_owned(),
        problem: "cannot be read".to_owned(),
        source: Some(source),
    };
    let file = fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    file.take(MAX_FILE_BYTES + 1)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(FileError::new(role, path, "expected a file of at most 1 MiB"));
    }
    Ok(bytes)
}

impl FileError {
    fn new(role: FileRole, path: &Path, problem: &str) -> Self {
        Self {
            role,
            path: path.to_owned(),
            problem: problem.to_owned(),
            source: None,
        }
    }
}
