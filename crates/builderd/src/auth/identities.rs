//! Whom a SPIFFE ID is (`AUTH_MODE=mtls`).

use std::collections::BTreeSet;

use ::spiffe::{SpiffeId, TrustDomain};
use tonic::{Code, Status};

use super::Caller;
use crate::status::with_info;

/// The path of a tenant's ID, before the tenant.
const TENANT: &str = "/tenant/";

/// The IDs that may call: `spiffe://TRUST-DOMAIN/tenant/ID` is the tenant ID, and listed ones act for any tenant.
#[derive(Clone, Debug)]
pub struct Identities {
    trust_domain: TrustDomain,
    services: BTreeSet<SpiffeId>,
}

/// The IDs that act for any tenant cannot be those.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{id} is not of the trust domain {trust_domain}, and callers of others are refused")]
pub struct IdentitiesError {
    id: SpiffeId,
    trust_domain: TrustDomain,
}

impl Identities {
    /// Callers are of this trust domain, and `services` act for any tenant.
    ///
    /// # Errors
    /// A service of another trust domain.
    pub fn new(
        trust_domain: TrustDomain,
        services: impl IntoIterator<Item = SpiffeId>,
    ) -> Result<Self, IdentitiesError> {
        let services: BTreeSet<_> = services.into_iter().collect();
        match services.iter().find(|id| *id.trust_domain() != trust_domain) {
            Some(id) => Err(IdentitiesError {
                id: id.clone(),
                trust_domain,
            }),
            None => Ok(Self {
                trust_domain,
                services,
            }),
        }
    }

    /// Whom this ID is.
    ///
    /// # Errors
    /// PERMISSION_DENIED when it is neither a tenant nor a listed service of the trust domain.
    pub fn caller(&self, id: &SpiffeId) -> Result<Caller, Status> {
        if self.services.contains(id) {
            return Ok(Caller::Service);
        }
        let tenant = id
            .path()
            .strip_prefix(TENANT)
            .filter(|_| *id.trust_domain() == self.trust_domain)
            .and_then(|tenant| tenant.parse().ok());
        tenant.map(Caller::Tenant).ok_or_else(|| {
            let message = format!(
                "{id} may act for no tenant: expected spiffe://{}/tenant/ID, or a service that the operator lists",
                self.trust_domain
            );
            with_info(Code::PermissionDenied, &message, "IDENTITY_NOT_ALLOWED", [])
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(text: &str) -> SpiffeId {
        SpiffeId::new(text).unwrap()
    }

    #[test]
    fn an_id_is_a_tenant_a_service_or_nobody() {
        let services = [
            id("spiffe://prod.example/metald"),
            id("spiffe://prod.example/tenant/ops"),
        ];
        let identities = Identities::new(TrustDomain::new("prod.example").unwrap(), services).unwrap();
        let tenant = |name: &str| Ok(Caller::Tenant(name.parse().unwrap()));
        for (name, given, expected) in [
            ("a tenant", "spiffe://prod.example/tenant/acme", tenant("acme")),
            (
                "a tenant with dots",
                "spiffe://prod.example/tenant/a.b_c-d",
                tenant("a.b_c-d"),
            ),
            ("a service", "spiffe://prod.example/metald", Ok(Caller::Service)),
            (
                "a listed tenant",
                "spiffe://prod.example/tenant/ops",
                Ok(Caller::Service),
            ),
            ("another service", "spiffe://prod.example/other", Err(())),
            ("below a service", "spiffe://prod.example/metald/x", Err(())),
            ("below a tenant", "spiffe://prod.example/tenant/acme/x", Err(())),
            ("no tenant", "spiffe://prod.example/tenant", Err(())),
            ("the domain", "spiffe://prod.example", Err(())),
            (
                "tenants elsewhere",
                "spiffe://prod.example/x/tenant/acme",
                Err(()),
            ),
            (
                "no name of a tenant",
                "spiffe://prod.example/tenant/-acme",
                Err(()),
            ),
            ("another domain", "spiffe://other.example/tenant/acme", Err(())),
            (
                "another domain's service",
                "spiffe://other.example/metald",
                Err(()),
            ),
            ("a domain below", "spiffe://sub.prod.example/tenant/acme", Err(())),
        ] {
            let seen = identities.caller(&id(given));
            if let Err(status) = &seen {
                assert_eq!(status.code(), Code::PermissionDenied, "{name}");
                assert!(
                    status.message().contains("spiffe://prod.example/tenant/ID"),
                    "{name}: {status}"
                );
            }
            assert_eq!(seen.map_err(drop), expected, "{name}");
        }
    }

    #[test]
    fn a_service_of_another_trust_domain_could_never_call() {
        let trust_domain = TrustDomain::new("prod.example").unwrap();
        let error = Identities::new(trust_domain, [id("spiffe://other.example/metald")]).unwrap_err();
        assert!(
            error.to_string().contains("spiffe://other.example/metald"),
            "{error}"
        );
    }
}
