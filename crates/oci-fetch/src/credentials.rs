//! Secrets for a registry, which cannot be printed.

use std::fmt;

use sha2::Digest as _;

/// What proves to a registry who is asking.
///
/// Neither `Debug` nor an error ever shows a secret. The crate sends a credential only to the registry that the reference
/// names and to that registry's token service.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    secret: Secret,
}

/// The three kinds; matched on by the authentication code only.
#[derive(Clone, PartialEq, Eq)]
pub(crate) enum Secret {
    Basic {
        user: String,
        password: String,
    },
    IdentityToken {
        token: String,
    },
    Bearer {
        token: String,
    },
    /// Of the two kinds above the one that the registry takes.
    AnyToken {
        token: String,
    },
}

/// A credential in the open, see [`Credentials::reveal`].
#[derive(Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RevealedCredentials<'a> {
    /// User name and password.
    Basic {
        /// The user name.
        user: &'a str,
        /// The password.
        password: &'a str,
    },
    /// A token of whatever kind.
    Token(&'a str),
}

/// Who is asking, for whom: the key under which tokens and access proofs are kept apart.
#[derive(Debug, Clone, Default)]
pub struct PullContext {
    /// An opaque name of the party on whose behalf the image is pulled. Two parties with different keys share no token and
    /// no access proof, even with equal credentials.
    pub isolation_key: String,
    /// `None` pulls anonymously.
    pub credentials: Option<Credentials>,
}

/// A one-way fingerprint of a credential, for cache keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct CredentialIdentity([u8; 32]);

impl Credentials {
    /// User name and password, or user name and access token.
    #[must_use]
    pub fn basic(user: impl Into<String>, password: impl Into<String>) -> Self {
        Self {
            secret: Secret::Basic {
                user: user.into(),
                password: password.into(),
            },
        }
    }

    /// An OAuth2 refresh token, which `docker login` stores as `identitytoken`; exchanged at the registry's token service.
    #[must_use]
    pub fn identity_token(token: impl Into<String>) -> Self {
        Self {
            secret: Secret::IdentityToken { token: token.into() },
        }
    }

    /// A ready access token (`registrytoken`), sent to the registry as it is.
    #[must_use]
    pub fn bearer(token: impl Into<String>) -> Self {
        Self {
            secret: Secret::Bearer { token: token.into() },
        }
    }

    /// A token of which the caller does not know whether it is an identity token or a ready access token, as in requests
    /// that have one field for both. The registry's token service is offered it as an identity token first; when that
    /// refuses it, or the registry has none, it is sent to the registry as it is.
    #[must_use]
    pub fn token(token: impl Into<String>) -> Self {
        Self {
            secret: Secret::AnyToken { token: token.into() },
        }
    }

    /// The secret itself, for who has to hand it on. The result cannot be printed either.
    #[must_use]
    pub fn reveal(&self) -> RevealedCredentials<'_> {
        match &self.secret {
            Secret::Basic { user, password } => RevealedCredentials::Basic { user, password },
            Secret::IdentityToken { token } | Secret::Bearer { token } | Secret::AnyToken { token } => {
                RevealedCredentials::Token(token)
            }
        }
    }

    pub(crate) fn secret(&self) -> &Secret {
        &self.secret
    }
}

impl fmt::Debug for RevealedCredentials<'_> {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Basic { .. } => "RevealedCredentials(basic)",
            Self::Token(_) => "RevealedCredentials(token)",
        })
    }
}

impl CredentialIdentity {
    pub(crate) fn of(credentials: Option<&Credentials>) -> Self {
        let mut hasher = sha2::Sha256::new();
        // Each part is framed by its length, so that no two different credentials hash the same bytes.
        let mut part = |bytes: &[u8]| {
            hasher.update(bytes.len().to_le_bytes());
            hasher.update(bytes);
        };
        match credentials.map(Credentials::secret) {
            None => part(b"anonymous"),
            Some(Secret::Basic { user, password }) => {
                part(b"basic");
                part(user.as_bytes());
                part(password.as_bytes());
            }
            Some(Secret::IdentityToken { token }) => {
                part(b"identity");
                part(token.as_bytes());
            }
            Some(Secret::Bearer { token }) => {
                part(b"bearer");
                part(token.as_bytes());
            }
            Some(Secret::AnyToken { token }) => {
                part(b"token");
                part(token.as_bytes());
            }
        }
        Self(hasher.finalize().into())
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self.secret {
            Secret::Basic { .. } => "Credentials(basic)",
            Secret::IdentityToken { .. } => "Credentials(identity token)",
            Secret::Bearer { .. } => "Credentials(bearer)",
            Secret::AnyToken { .. } => "Credentials(token)",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_secret_is_printed() {
        for credentials in [
            Credentials::basic("alice", "hunter2"),
            Credentials::identity_token("hunter2"),
            Credentials::bearer("hunter2"),
            Credentials::token("hunter2"),
        ] {
            let context = PullContext {
                isolation_key: "tenant".into(),
                credentials: Some(credentials),
            };
            let text = format!("{context:?}");
            assert!(!text.contains("hunter2") && !text.contains("alice"), "{text}");
        }
    }

    #[test]
    fn different_credentials_have_different_identities() {
        let all = [
            CredentialIdentity::of(None),
            CredentialIdentity::of(Some(&Credentials::basic("a", "bc"))),
            CredentialIdentity::of(Some(&Credentials::basic("ab", "c"))),
            CredentialIdentity::of(Some(&Credentials::identity_token("a"))),
            CredentialIdentity::of(Some(&Credentials::bearer("a"))),
            CredentialIdentity::of(Some(&Credentials::token("a"))),
        ];
        for (index, one) in all.iter().enumerate() {
            assert!(all.iter().skip(index + 1).all(|other| other != one));
        }
    }
}
