//! Which entry of an index is the image for a platform.

use crate::error::FetchError;
use crate::manifest::IndexEntry;
use crate::platform::Platform;

/// An index may lead to one more index, as some build tools write it; deeper is refused.
pub(crate) const MAX_NESTED_INDEXES: usize = 1;

/// How well an entry fits: less is better, `None` does not fit.
///
/// An entry that names no platform fits after all that do; whether its image really fits is seen in its config.
pub(crate) fn rank(entry: &IndexEntry, platform: &Platform) -> Option<u32> {
    if entry.is_attestation {
        return None;
    }
    match &entry.platform {
        Some(offered) if offered.os.is_empty() && offered.architecture.is_empty() => Some(u32::MAX),
        Some(offered) => platform.distance(offered),
        None => Some(u32::MAX),
    }
}

/// The best entry for the platform, the first among equals, as containerd chooses.
pub(crate) fn best<'a>(
    entries: impl Iterator<Item = &'a IndexEntry> + Clone,
    platform: &Platform,
) -> Result<&'a IndexEntry, FetchError> {
    entries
        .clone()
        .filter_map(|entry| rank(entry, platform).map(|rank| (rank, entry)))
        // `min_by_key` takes the first of equals.
        .min_by_key(|(rank, _)| *rank)
        .map(|(_, entry)| entry)
        .ok_or_else(|| {
            no_platform(
                entries
                    .filter(|entry| !entry.is_attestation)
                    .filter_map(|e| e.platform.as_ref()),
                platform,
            )
        })
}

/// The config of the chosen image must be for the platform asked for: an index can lie.
pub(crate) fn check_platform(actual: &Platform, wanted: &Platform) -> Result<(), FetchError> {
    let offered = Platform {
        variant: None,
        ..actual.clone()
    };
    let wanted_without = Platform {
        variant: None,
        ..wanted.clone()
    };
    if wanted_without.distance(&offered).is_none() {
        return Err(no_platform([actual].into_iter(), wanted));
    }
    Ok(())
}

pub(crate) fn nested_too_deep() -> FetchError {
    FetchError::protocol("image indexes are nested more than one deep")
}

fn no_platform<'a>(offered: impl Iterator<Item = &'a Platform>, wanted: &Platform) -> FetchError {
    // The names come from the document: only well-formed ones are repeated, and not too many.
    let mut names: Vec<String> = offered
        .map(ToString::to_string)
        .filter(|name| name.parse::<Platform>().is_ok())
        .take(16)
        .collect();
    names.dedup();
    let names = if names.is_empty() {
        "no platform".to_owned()
    } else {
        names.join(", ")
    };
    FetchError::not_found(format!("image is not available for {wanted}; it is for {names}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::digest::Digest;
    use crate::manifest::Descriptor;

    fn entry(name: &str, platform: Option<&str>) -> IndexEntry {
        IndexEntry {
            descriptor: Descriptor {
                media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
                digest: Digest::sha256(name.as_bytes()),
                size_bytes: 1,
            },
            platform: platform.map(|platform| platform.parse().unwrap()),
            name: Some(name.to_owned()),
            is_attestation: platform == Some("unknown/unknown"),
        }
    }

    #[test]
    fn the_nearest_variant_wins_and_attestations_never_do() {
        let entries = [
            entry("attestation", Some("unknown/unknown")),
            entry("windows", Some("windows/amd64")),
            entry("v5", Some("linux/arm/v5")),
            entry("v7", Some("linux/arm/v7")),
            entry("v6", Some("linux/arm/v6")),
            entry("second v6", Some("linux/arm/v6")),
        ];
        let pick = |platform: &str| {
            best(entries.iter(), &platform.parse().unwrap()).map(|entry| entry.name.clone().unwrap())
        };
        assert_eq!(pick("linux/arm").unwrap(), "v7");
        assert_eq!(pick("linux/arm/v6").unwrap(), "v6");
        assert_eq!(pick("linux/arm/v8").unwrap(), "v7");
        let error = pick("linux/s390x").unwrap_err();
        assert_eq!(error.kind(), &crate::FetchErrorKind::NotFound);
        assert!(
            error.to_string().contains("linux/arm/v6") && !error.to_string().contains("unknown"),
            "{error}"
        );
        assert!(best([entry("plain", None)].iter(), &"linux/amd64".parse().unwrap()).is_ok());
    }
}
