//! Which of an index's images is meant: operating system, architecture and variant.

use std::fmt;
use std::str::FromStr;

use crate::error::FetchError;

/// An operating system, a processor architecture and, for some, its variant, in Go's names (`linux/arm64/v8`).
///
/// Parsing normalises the usual other spellings (`x86_64`, `aarch64`, `armhf`, …), so that two spellings of one platform
/// are equal. The default variant is left out: `arm64` is v8, `amd64` is v1, `arm` is v7.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    /// Operating system, for example `linux`.
    pub os: String,
    /// Architecture, for example `amd64` or `arm64`.
    pub architecture: String,
    /// Variant of the architecture, for example `v6` of `arm`; `None` means the architecture's default.
    pub variant: Option<String>,
}

impl Platform {
    /// The platform this program runs on.
    #[must_use]
    pub fn host() -> Self {
        Self::normalised(std::env::consts::OS, std::env::consts::ARCH, None)
    }

    /// A platform in canonical spelling, from its three parts in any usual spelling.
    #[must_use]
    pub fn normalised(os: &str, architecture: &str, variant: Option<&str>) -> Self {
        let os = match os.to_ascii_lowercase().as_str() {
            "macos" => "darwin".to_owned(),
            other => other.to_owned(),
        };
        let architecture = architecture.to_ascii_lowercase();
        let variant = variant.unwrap_or_default().to_ascii_lowercase();
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386" | "x86", _) => ("386", String::new()),
            ("amd64" | "x86_64" | "x86-64", "v1") => ("amd64", String::new()),
            ("x86_64" | "x86-64", _) => ("amd64", variant),
            ("arm64" | "aarch64", "8" | "v8") => ("arm64", String::new()),
            ("aarch64", _) => ("arm64", variant),
            ("armhf", _) | ("arm", "7" | "v7") => ("arm", String::new()),
            ("armel", _) | ("arm", "6") => ("arm", "v6".to_owned()),
            ("arm", "5") => ("arm", "v5".to_owned()),
            ("arm", "8") => ("arm", "v8".to_owned()),
            ("riscv64gc", _) => ("riscv64", variant),
            (other, _) => (other, variant),
        };
        Self {
            os,
            architecture: architecture.to_owned(),
            variant: if variant.is_empty() { None } else { Some(variant) },
        }
    }

    /// How well an image for `offered` runs on this platform: 0 is exact, each step down in variant costs one,
    /// `None` does not run.
    ///
    /// Variants follow containerd's order: an `arm` v7 machine takes v7, v6, v5 in that order; an `amd64` v3 machine v3,
    /// v2, v1. Unlike containerd this never crosses the architecture (no `386` for `amd64`, no `arm` for `arm64`): an
    /// image that is built for one guest must not depend on the compatibility mode of another kernel.
    #[must_use]
    pub fn distance(&self, offered: &Self) -> Option<u32> {
        let wanted = Self::normalised(&self.os, &self.architecture, self.variant.as_deref());
        let offered = Self::normalised(&offered.os, &offered.architecture, offered.variant.as_deref());
        if wanted.os != offered.os || wanted.architecture != offered.architecture {
            return None;
        }
        if wanted.variant == offered.variant {
            return Some(0);
        }
        let level = |platform: &Self| match (platform.architecture.as_str(), platform.variant.as_deref()) {
            ("arm", None) => Some(70),
            ("amd64", None) => Some(10),
            ("arm64", None) => Some(80),
            ("arm" | "amd64" | "arm64", Some(variant)) => variant_level(variant),
            _ => None,
        };
        let (wanted_level, offered_level) = (level(&wanted)?, level(&offered)?);
        wanted_level.checked_sub(offered_level)
    }
}

/// `v8` is 80 and `v8.2` is 82, so that levels compare as numbers.
fn variant_level(variant: &str) -> Option<u32> {
    let (major, minor) = variant
        .strip_prefix('v')?
        .split_once('.')
        .unwrap_or((variant.strip_prefix('v')?, "0"));
    let digit = |text: &str| {
        if text.len() == 1 {
            text.parse::<u32>().ok()
        } else {
            None
        }
    };
    Some(digit(major)? * 10 + digit(minor)?)
}

impl fmt::Display for Platform {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.os, self.architecture)?;
        if let Some(variant) = &self.variant {
            write!(formatter, "/{variant}")?;
        }
        Ok(())
    }
}

impl FromStr for Platform {
    type Err = FetchError;

    /// Parses `os/architecture` or `os/architecture/variant`.
    ///
    /// # Errors
    /// `InvalidInput` for any other shape, or a part with a character outside `A-Za-z0-9_.-`.
    fn from_str(text: &str) -> Result<Self, FetchError> {
        let parts: Vec<&str> = text.split('/').collect();
        let well_formed = |part: &&str| {
            part.starts_with(|first: char| first.is_ascii_alphanumeric())
                && part.len() <= 32
                && part
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
        };
        match parts.as_slice() {
            [os, architecture] if parts.iter().all(well_formed) => {
                Ok(Self::normalised(os, architecture, None))
            }
            [os, architecture, variant] if parts.iter().all(well_formed) => {
                Ok(Self::normalised(os, architecture, Some(variant)))
            }
            _ => Err(FetchError::invalid(
                "platform is not of the form os/architecture[/variant], for example linux/arm64",
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spellings_normalise() {
        for (input, expected) in [
            ("linux/x86_64", "linux/amd64"),
            ("linux/amd64/v1", "linux/amd64"),
            ("Linux/AMD64", "linux/amd64"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/8", "linux/arm64"),
            ("linux/armhf", "linux/arm"),
            ("linux/arm/v7", "linux/arm"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/arm/5", "linux/arm/v5"),
            ("linux/i386", "linux/386"),
            ("macos/aarch64", "darwin/arm64"),
        ] {
            assert_eq!(
                input.parse::<Platform>().unwrap().to_string(),
                expected,
                "{input}"
            );
        }
        for input in [
            "",
            "linux",
            "linux/",
            "/amd64",
            "linux/amd64/v1/x",
            "linux/am d64",
            "linux/../x",
        ] {
            assert!(input.parse::<Platform>().is_err(), "{input}");
        }
    }

    #[test]
    fn variants_fall_back_in_containerds_order() {
        let distance = |wanted: &str, offered: &str| {
            wanted
                .parse::<Platform>()
                .unwrap()
                .distance(&offered.parse().unwrap())
        };
        assert_eq!(distance("linux/arm64", "linux/arm64/v8"), Some(0));
        assert_eq!(distance("linux/arm/v7", "linux/arm"), Some(0));
        assert!(distance("linux/arm/v7", "linux/arm/v6") < distance("linux/arm/v7", "linux/arm/v5"));
        assert_eq!(distance("linux/arm/v6", "linux/arm/v7"), None);
        assert!(distance("linux/amd64/v3", "linux/amd64/v2") < distance("linux/amd64/v3", "linux/amd64"));
        assert_eq!(distance("linux/amd64", "linux/amd64/v2"), None);
        assert_eq!(distance("linux/arm64", "linux/arm64/v9"), None);
        assert!(distance("linux/arm64/v9", "linux/arm64").is_some());
        assert_eq!(distance("linux/amd64", "linux/386"), None);
        assert_eq!(distance("linux/arm64", "linux/arm/v7"), None);
        assert_eq!(distance("linux/amd64", "windows/amd64"), None);
        assert_eq!(distance("linux/s390x", "linux/s390x"), Some(0));
    }
}
