//! Who showed a certificate.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use ::spiffe::SpiffeId;
use rustls::pki_types::CertificateDer;
use x509_parser::{
    certificate::X509Certificate,
    extensions::GeneralName,
    prelude::{FromDer as _, ParsedExtension},
};

/// The certificate that the other end of a connection showed, once the handshake has verified it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PeerCertificate {
    /// Its SPIFFE ID; `None` when it has none, or more than one name of that kind.
    pub spiffe_id: Option<SpiffeId>,
    not_after: Option<i64>,
}

impl PeerCertificate {
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Self {
        Self {
            spiffe_id: spiffe_id(certificate),
            not_after: not_after(certificate),
        }
    }

    /// How long it is still valid, zero when it has expired; `None` when it does not say so.
    #[must_use]
    pub fn remaining(&self) -> Option<Duration> {
        let seconds = self.not_after?.saturating_sub(now()).max(0);
        Some(Duration::from_secs(seconds.unsigned_abs()))
    }
}

/// The SPIFFE ID of a certificate: it has exactly one URI among its names, and that is the ID (X.509-SVID, section 2).
pub(super) fn spiffe_id(certificate: &CertificateDer<'_>) -> Option<SpiffeId> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let mut names = certificate
        .extensions()
        .iter()
        .filter_map(|extension| match extension.parsed_extension() {
            ParsedExtension::SubjectAlternativeName(names) => Some(&names.general_names),
            _ => None,
        })
        .flatten()
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        });
    let (Some(only), None) = (names.next(), names.next()) else {
        return None;
    };
    SpiffeId::new(only).ok()
}

/// The last second in which a certificate is valid, since 1970; `None` when it cannot be read.
pub(super) fn not_after(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    Some(certificate.validity().not_after.timestamp())
}

/// Seconds since 1970.
pub(super) fn now() -> i64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
