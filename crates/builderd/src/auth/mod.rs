//! Who calls (`AUTH_MODE`).
//!
//! A call of `builder.v1` is authenticated once, in front of the methods, whatever protocol it came by; the methods find
//! the [`Caller`] among the request's extensions and hold the request's tenant against it.

mod identities;
mod tokens;

use std::sync::Arc;

use http::{HeaderMap, header};
use tenant::TenantId;
use tonic::{Code, Status};

pub use self::{
    identities::{Identities, IdentitiesError},
    tokens::{TokenSubject, Tokens, TokensError},
};
use crate::{status::with_info, tls::PeerCertificate};

/// Who calls, and for whom it may act.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Nobody was asked: the request's own word for its tenant holds.
    Unchecked,
    /// Acts for one tenant.
    Tenant(TenantId),
    /// A service that acts for any tenant.
    Service,
}

impl Caller {
    /// Whether the caller may act for a tenant.
    #[must_use]
    pub fn may_act_for(&self, tenant: &TenantId) -> bool {
        match self {
            Self::Unchecked | Self::Service => true,
            Self::Tenant(own) => own == tenant,
        }
    }
}

/// How callers show who they are.
#[derive(Clone, Debug)]
pub enum Authentication {
    /// They do not.
    None,
    /// `Authorization: Bearer TOKEN`.
    Bearer(Arc<Tokens>),
    /// The certificate of the connection.
    Certificate(Arc<Identities>),
}

impl Authentication {
    /// Who sent these headers over a connection with this certificate.
    ///
    /// # Errors
    /// UNAUTHENTICATED when they do not show it: the message says what is missing, and nothing of what was sent.
    /// PERMISSION_DENIED when they show somebody who may act for nobody.
    pub fn caller(
        &self,
        headers: &HeaderMap,
        certificate: Option<&PeerCertificate>,
    ) -> Result<Caller, Status> {
        match self {
            Self::None => Ok(Caller::Unchecked),
            Self::Bearer(tokens) => Self::token(tokens, headers),
            Self::Certificate(identities) => {
                let certificate =
                    certificate.ok_or_else(|| refused("expected a client certificate with a SPIFFE ID"))?;
                let id = certificate.spiffe_id.as_ref().ok_or_else(|| {
                    refused("the client certificate: expected one URI among its names, a SPIFFE ID")
                })?;
                identities.caller(id)
            }
        }
    }

    fn token(tokens: &Tokens, headers: &HeaderMap) -> Result<Caller, Status> {
        let mut sent = headers.get_all(header::AUTHORIZATION).iter();
        let (Some(value), None) = (sent.next(), sent.next()) else {
            return Err(refused("expected one header Authorization: Bearer TOKEN"));
        };
        let token = bearer(value.as_bytes())
            .ok_or_else(|| refused("the header Authorization: expected Bearer and a token"))?;
        match tokens.subject(token) {
            Some(TokenSubject::Tenant(tenant)) => Ok(Caller::Tenant(tenant)),
            Some(TokenSubject::Any) => Ok(Caller::Service),
            None => Err(refused("the token is not known")),
        }
    }
}

/// The token behind `Bearer`, which may be spelt in any case (RFC 9110, section 11.1).
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, rest) = value.split_at_checked(6)?;
    if !scheme.eq_ignore_ascii_case(b"bearer") || !rest.starts_with(b" ") {
        return None;
    }
    Some(rest.trim_ascii()).filter(|token| !token.is_empty())
}

fn refused(message: &str) -> Status {
    with_info(Code::Unauthenticated, message, "UNAUTHENTICATED", [])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_scheme_is_bearer_in_any_case() {
        for (value, expected) in [
            ("Bearer abc", Some("abc")),
            ("bearer   abc ", Some("abc")),
            ("BEARER a.b-c", Some("a.b-c")),
            ("Bearer ", None),
            ("Bearer", None),
            ("Bearerabc", None),
            ("Basic abc", None),
            ("", None),
        ] {
            assert_eq!(bearer(value.as_bytes()), expected.map(str::as_bytes), "{value:?}");
        }
    }
}
