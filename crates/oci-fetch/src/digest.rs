//! Content digests, validated before they come near a URL or a path.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use sha2::Digest as _;

use crate::error::FetchError;

/// The digest of a manifest, a config or a blob: `sha256:` or `sha512:` and lower-case hexadecimal of the exact length.
///
/// A value of this type holds no character that means anything in a path or a URL.
/// Source: OCI image-spec 1.1, descriptor.md, "Digests".
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest {
    algorithm: Algorithm,
    hex: Arc<str>,
}

/// A hash function that a [`Digest`] may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Algorithm {
    /// SHA-256, 64 hexadecimal digits; what every registry uses.
    Sha256,
    /// SHA-512, 128 hexadecimal digits.
    Sha512,
}

/// Computes a [`Digest`] over bytes as they come.
#[derive(Clone)]
pub(crate) enum Hasher {
    Sha256(sha2::Sha256),
    Sha512(Box<sha2::Sha512>),
}

impl Digest {
    /// The digest of these bytes.
    #[must_use]
    pub fn of(algorithm: Algorithm, bytes: &[u8]) -> Self {
        let mut hasher = Hasher::new(algorithm);
        hasher.update(bytes);
        hasher.finish()
    }

    /// The SHA-256 digest of these bytes.
    #[must_use]
    pub fn sha256(bytes: &[u8]) -> Self {
        Self::of(Algorithm::Sha256, bytes)
    }

    /// The hash function.
    #[must_use]
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    /// The lower-case hexadecimal digits, without the algorithm.
    #[must_use]
    pub fn hex(&self) -> &str {
        &self.hex
    }
}

impl Algorithm {
    /// The name in front of the colon.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    fn hex_length(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}", self.algorithm, self.hex)
    }
}

impl FromStr for Digest {
    type Err = FetchError;

    /// # Errors
    /// `Unsupported` for another algorithm, `InvalidInput` for a wrong length or a character other than `0-9a-f`.
    fn from_str(text: &str) -> Result<Self, FetchError> {
        let (name, hex) = text
            .split_once(':')
            .ok_or_else(|| FetchError::invalid("digest is not of the form algorithm:hex"))?;
        let algorithm = match name {
            "sha256" => Algorithm::Sha256,
            "sha512" => Algorithm::Sha512,
            _ => {
                return Err(FetchError::unsupported(
                    "digest algorithm is neither sha256 nor sha512",
                ));
            }
        };
        let well_formed = hex.len() == algorithm.hex_length()
            && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        if !well_formed {
            return Err(FetchError::invalid(format!(
                "{algorithm} digest is not {} lower-case hexadecimal digits",
                algorithm.hex_length()
            )));
        }
        Ok(Self {
            algorithm,
            hex: Arc::from(hex),
        })
    }
}

impl Hasher {
    pub(crate) fn new(algorithm: Algorithm) -> Self {
        match algorithm {
            Algorithm::Sha256 => Self::Sha256(sha2::Sha256::new()),
            Algorithm::Sha512 => Self::Sha512(Box::new(sha2::Sha512::new())),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Digest {
        let (algorithm, hex) = match self {
            Self::Sha256(hasher) => (Algorithm::Sha256, hex::encode(hasher.finalize())),
            Self::Sha512(hasher) => (Algorithm::Sha512, hex::encode(hasher.finalize())),
        };
        Digest {
            algorithm,
            hex: Arc::from(hex),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::FetchErrorKind;

    #[test]
    fn only_exact_digests_parse() {
        let good = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(good.parse::<Digest>().unwrap().to_string(), good);
        assert_eq!(Digest::sha256(b"").to_string(), good);
        let long = format!("sha512:{}", "ab".repeat(64));
        assert_eq!(long.parse::<Digest>().unwrap().algorithm(), Algorithm::Sha512);

        let cases: &[(&str, &str, FetchErrorKind)] = &[
            (
                "upper case",
                &good.to_uppercase().replace("SHA256", "sha256"),
                FetchErrorKind::InvalidInput,
            ),
            ("too short", &good[..good.len() - 1], FetchErrorKind::InvalidInput),
            ("too long", &format!("{good}0"), FetchErrorKind::InvalidInput),
            ("no algorithm", &good[7..], FetchErrorKind::InvalidInput),
            (
                "path in the digits",
                "sha256:../../../../etc/passwd",
                FetchErrorKind::InvalidInput,
            ),
            (
                "sha256 digits under sha512",
                &good.replace("256", "512"),
                FetchErrorKind::InvalidInput,
            ),
            (
                "md5",
                "md5:d41d8cd98f00b204e9800998ecf8427e",
                FetchErrorKind::Unsupported,
            ),
            ("path as algorithm", "../sha256:00", FetchErrorKind::Unsupported),
            ("empty", "", FetchErrorKind::InvalidInput),
        ];
        for (name, text, kind) in cases {
            assert_eq!(text.parse::<Digest>().unwrap_err().kind(), kind, "{name}");
        }
    }

    #[test]
    fn sha512_is_computed() {
        let digest = Digest::of(Algorithm::Sha512, b"abc");
        assert!(
            digest
                .to_string()
                .starts_with("sha512:ddaf35a193617abacc417349ae204131")
        );
    }
}
