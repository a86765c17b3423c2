//! TLS, and who may call.

use std::path::PathBuf;

use ::spiffe::{SpiffeId, TrustDomain};

use super::values::{ConfigError, Values};
use crate::tls::{ServerId, TlsFiles, TlsSettings};

/// How callers show who they are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AuthenticationConfig {
    /// They are not asked.
    None,
    /// By a token that is in this file.
    Bearer(PathBuf),
    /// By the SPIFFE ID of their certificate.
    Mtls {
        /// Those who act for any tenant.
        services: Vec<SpiffeId>,
        /// The trust domain that callers are of; `None` for that of the service's own certificate.
        trust_domain: Option<TrustDomain>,
    },
}

/// How connections are encrypted. Whether files and agent are there and can be used shows at the start.
pub(super) fn tls(values: &Values, errors: &mut Vec<ConfigError>) -> TlsSettings {
    const FILES: [&str; 3] = ["TLS_CERT_FILE", "TLS_KEY_FILE", "TLS_CA_FILE"];
    let given = |name: &str| !values.text(name).is_empty();
    let mode = values.text("TLS_MODE");
    if mode != "file" {
        // A file that is thought to protect and does not is a mistake.
        for name in FILES.into_iter().filter(|name| given(name)) {
            let problem = format!("it is for UNKEY_BUILDERD_TLS_MODE=file, and that is {mode}");
            errors.push(values.refuse(name, problem));
        }
    }
    if mode != "spiffe" && values.changed("SPIFFE_SOCKET").is_some() {
        let problem = format!("it is for UNKEY_BUILDERD_TLS_MODE=spiffe, and that is {mode}");
        errors.push(values.refuse("SPIFFE_SOCKET", problem));
    }
    match mode {
        "file" => {
            for (name, holds) in [(FILES[0], "a certificate and its chain"), (FILES[1], "its key")] {
                if !given(name) {
                    let problem = format!("TLS_MODE=file needs it: a file with {holds} in PEM");
                    errors.push(values.refuse(name, problem));
                }
            }
            TlsSettings::Files(TlsFiles {
                certificate: values.path(FILES[0]),
                key: values.path(FILES[1]),
                authorities: given(FILES[2]).then(|| values.path(FILES[2])),
            })
        }
        "spiffe" => TlsSettings::Spiffe(PathBuf::from(values.text("SPIFFE_SOCKET"))),
        _ => TlsSettings::Disabled,
    }
}

/// How callers show who they are, and what that needs of TLS.
pub(super) fn authentication(
    values: &Values,
    tls: &TlsSettings,
    errors: &mut Vec<ConfigError>,
) -> AuthenticationConfig {
    let given = |name: &str| !values.text(name).is_empty();
    let mode = values.text("AUTH_MODE");
    // A setting that is thought to protect and does not is a mistake.
    for (name, of_mode) in [
        ("AUTH_TOKENS_FILE", "bearer"),
        ("AUTH_SERVICE_IDS", "mtls"),
        ("AUTH_TRUST_DOMAIN", "mtls"),
    ] {
        if mode != of_mode && given(name) {
            let problem = format!("it is for UNKEY_BUILDERD_AUTH_MODE={of_mode}, and that is {mode}");
            errors.push(values.refuse(name, problem));
        }
    }
    match mode {
        "bearer" => {
            if !given("AUTH_TOKENS_FILE") {
                errors.push(values.refuse(
                    "AUTH_TOKENS_FILE",
                    "AUTH_MODE=bearer needs it: a file with lines of the SHA-256 of a token in hexadecimal and a \
                     tenant, or *",
                ));
            }
            AuthenticationConfig::Bearer(values.path("AUTH_TOKENS_FILE"))
        }
        "mtls" => {
            let asks = match tls {
                TlsSettings::Disabled => false,
                TlsSettings::Files(files) => files.authorities.is_some(),
                TlsSettings::Spiffe(_) => true,
            };
            if !asks {
                errors.push(values.refuse(
                    "AUTH_MODE",
                    "callers are known by their certificates only where they have to show one: set \
                     UNKEY_BUILDERD_TLS_MODE=spiffe, or file with UNKEY_BUILDERD_TLS_CA_FILE",
                ));
            }
            mtls(values, errors)
        }
        _ => AuthenticationConfig::None,
    }
}

fn mtls(values: &Values, errors: &mut Vec<ConfigError>) -> AuthenticationConfig {
    let mut services = Vec::new();
    for name in values.list("AUTH_SERVICE_IDS") {
        match SpiffeId::new(&name) {
            Ok(id) => services.push(id),
            Err(error) => {
                let problem =
                    format!("{name:?}: {error}: expected SPIFFE IDs, as spiffe://example.org/metald");
                errors.push(values.refuse("AUTH_SERVICE_IDS", problem));
            }
        }
    }
    let trust_domain = match values.text("AUTH_TRUST_DOMAIN") {
        "" => None,
        name => TrustDomain::new(name)
            .map_err(|error| {
                let problem = format!("{error}: expected a trust domain, as example.org");
                errors.push(values.refuse("AUTH_TRUST_DOMAIN", problem));
            })
            .ok(),
    };
    AuthenticationConfig::Mtls {
        services,
        trust_domain,
    }
}

/// Who may answer a call of the service's own.
pub(super) fn server_id(
    values: &Values,
    name: &'static str,
    tls: &TlsSettings,
    errors: &mut Vec<ConfigError>,
) -> ServerId {
    let id = match values.text(name) {
        "" => return ServerId::OfTrustDomain,
        id => SpiffeId::new(id),
    };
    if !matches!(tls, TlsSettings::Spiffe(_)) {
        errors.push(values.refuse(name, "it is for UNKEY_BUILDERD_TLS_MODE=spiffe, which is not set"));
    }
    match id {
        Ok(id) => ServerId::Exactly(id),
        Err(error) => {
            let problem = format!("{error}: expected a SPIFFE ID, as spiffe://example.org/assetmanagerd");
            errors.push(values.refuse(name, problem));
            ServerId::OfTrustDomain
        }
    }
}
