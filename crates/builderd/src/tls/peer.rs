//! Who showed a certificate.

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
}

impl PeerCertificate {
    pub(super) fn of(certificate: &CertificateDer<'_>) -> Self {
        Self {
            spiffe_id: spiffe_id(certificate),
        }
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
