//! Certificate authorities, and certificates of every kind that a peer may show.
//!
//! ```
//! use test_support::pki::{Authority, Subject};
//!
//! let authority = Authority::of_trust_domain("test.example");
//! let tenant = authority.issue(&Subject::spiffe("spiffe://test.example/tenant/acme"));
//! let expired = authority.issue(&Subject::spiffe("spiffe://test.example/metald").expired());
//! assert!(tenant.certificate_pem.starts_with("-----BEGIN CERTIFICATE-----"));
//! assert_ne!(tenant.key_der, expired.key_der);
//! ```

use std::{
    fmt, fs,
    path::{Path, PathBuf},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, date_time_ymd,
};

/// An authority with a key of its own.
pub struct Authority(CertifiedIssuer<'static, KeyPair>);

/// Whom a certificate is for.
#[derive(Clone, Debug, Default)]
pub struct Subject {
    names: Vec<String>,
    uris: Vec<String>,
    expired: bool,
    not_yet: bool,
}

/// A certificate and its key.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate alone, without its authority's.
    pub certificate_pem: String,
    /// Its key, PKCS#8.
    pub key_pem: String,
    /// The same as DER.
    pub certificate_der: Vec<u8>,
    /// The same as DER.
    pub key_der: Vec<u8>,
}

impl Authority {
    /// An authority for names of hosts.
    #[must_use]
    pub fn new(name: &str) -> Self {
        Self::with(name, None)
    }

    /// The authority of a SPIFFE trust domain.
    #[must_use]
    pub fn of_trust_domain(trust_domain: &str) -> Self {
        Self::with(trust_domain, Some(format!("spiffe://{trust_domain}")))
    }

    fn with(name: &str, uri: Option<String>) -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.subject_alt_names = uri.into_iter().map(|uri| uri_name(&uri)).collect();
        let key = KeyPair::generate().expect("aws-lc-rs makes keys");
        Self(CertifiedIssuer::self_signed(params, key).expect("the parameters fit together"))
    }

    /// The authority's own certificate.
    #[must_use]
    pub fn pem(&self) -> String {
        self.0.pem()
    }

    /// The authority's own certificate.
    #[must_use]
    pub fn der(&self) -> Vec<u8> {
        self.0.der().to_vec()
    }

    /// A certificate, good for clients and servers.
    ///
    /// # Panics
    /// For names that can stand in no certificate.
    #[must_use]
    pub fn issue(&self, subject: &Subject) -> Issued {
        let mut params = CertificateParams::new(subject.names.clone()).expect("names of hosts, or addresses");
        params
            .subject_alt_names
            .extend(subject.uris.iter().map(|uri| uri_name(uri)));
        // What X.509-SVID asks for, section 4.
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        params.use_authority_key_identifier_extension = true;
        if subject.expired {
            params.not_before = date_time_ymd(2019, 1, 1);
            params.not_after = date_time_ymd(2020, 1, 1);
        }
        if subject.not_yet {
            params.not_before = date_time_ymd(2300, 1, 1);
        }
        let key = KeyPair::generate().expect("aws-lc-rs makes keys");
        let certificate = params
            .signed_by(&key, &self.0)
            .expect("the parameters fit together");
        Issued {
            certificate_pem: certificate.pem(),
            certificate_der: certificate.der().to_vec(),
            key_pem: key.serialize_pem(),
            key_der: key.serialize_der(),
        }
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Authority").finish_non_exhaustive()
    }
}

impl Subject {
    /// A host: names, or addresses.
    #[must_use]
    pub fn host(names: &[&str]) -> Self {
        Self {
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            ..Self::default()
        }
    }

    /// A workload.
    #[must_use]
    pub fn spiffe(id: &str) -> Self {
        Self::default().and_uri(id)
    }

    /// One more URI among the names.
    #[must_use]
    pub fn and_uri(mut self, uri: &str) -> Self {
        self.uris.push(uri.to_owned());
        self
    }

    /// It was valid in 2019.
    #[must_use]
    pub const fn expired(mut self) -> Self {
        self.expired = true;
        self
    }

    /// It will be valid in 2300.
    #[must_use]
    pub const fn not_yet(mut self) -> Self {
        self.not_yet = true;
        self
    }
}

impl Issued {
    /// Puts certificate and key into a directory, each by rename, as `NAME.crt` and `NAME.key`.
    ///
    /// # Panics
    /// When they cannot be written.
    #[must_use]
    pub fn write(&self, directory: &Path, name: &str) -> (PathBuf, PathBuf) {
        let files = [
            (directory.join(format!("{name}.crt")), &self.certificate_pem),
            (directory.join(format!("{name}.key")), &self.key_pem),
        ];
        for (path, content) in &files {
            replace(path, content);
        }
        let [(certificate, _), (key, _)] = files;
        (certificate, key)
    }
}

/// Replaces a file by rename, so that nobody reads half of it.
///
/// # Panics
/// When it cannot be written.
pub fn replace(path: &Path, content: &str) {
    let new = path.with_extension("new");
    fs::write(&new, content).expect("a directory of the test's own");
    fs::rename(&new, path).expect("a directory of the test's own");
}

fn uri_name(uri: &str) -> SanType {
    SanType::URI(uri.try_into().expect("a URI in ASCII"))
}
