//! What the fuzz targets in `fuzz/` call; `cargo test` runs the same over their corpora.
//!
//! A target must not panic, hang or allocate without bound, and what it accepts must keep the promises that it asserts.

use crate::auth::challenge;
use crate::config::ClientConfig;
use crate::manifest::{self, Document};
use crate::net::content_range;
use crate::net::route::Route;
use crate::reference::Reference;

/// An image reference, which must survive being printed and read again, and lead to a URL on its own registry.
pub fn reference(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    let Ok(reference) = text.parse::<Reference>() else {
        return;
    };
    let printed = reference.to_string();
    assert_eq!(
        printed.parse::<Reference>().ok(),
        Some(reference.clone()),
        "{printed}"
    );
    let route = Route::new(reference.registry(), &ClientConfig::new("unused"));
    if let Ok(route) = route {
        let path = format!(
            "{}/manifests/{}",
            reference.repository(),
            reference.manifest_selector()
        );
        let url = route.url(&path).expect("parts of a reference make a URL");
        assert!(route.is_home(&url), "{url}");
        assert!(url.path().starts_with("/v2/") && url.query().is_none(), "{url}");
    }
}

/// The first line is the `Content-Type`, the rest a manifest or an index.
pub fn manifest(bytes: &[u8]) {
    let end = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(0);
    let (content_type, document) = bytes.split_at(end);
    let content_type = std::str::from_utf8(content_type)
        .ok()
        .filter(|text| !text.is_empty());
    let document = document.strip_prefix(b"\n").unwrap_or(document);
    match manifest::parse(document, content_type) {
        Ok(Document::Manifest(manifest)) => assert!(manifest.layers.len() <= 128),
        Ok(Document::Index(_)) | Err(_) => {}
    }
}

/// A `WWW-Authenticate` header, and the check of the realm that it names.
pub fn challenge(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Some(challenge::Challenge::Bearer { realm, .. }) = challenge::parse(&[text.to_owned()]) {
        let Ok(route) = Route::new("ghcr.io", &ClientConfig::new("unused")) else {
            return;
        };
        if let Ok(url) = challenge::check_realm(&route, &realm, true) {
            assert_eq!(url.scheme(), "https", "{realm}");
            // A name with a final dot is the same name.
            let host = url.host_str().unwrap_or_default().trim_end_matches('.');
            assert!(host == "ghcr.io" || host.ends_with(".ghcr.io"), "{realm}");
        }
    }
}

/// A `Content-Range` header.
pub fn content_range(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else {
        return;
    };
    if let Some(range) = content_range::parse(text) {
        assert!(range.first <= range.last, "{text}");
        assert!(range.total.is_none_or(|total| range.last < total), "{text}");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_input_of_the_corpora_is_survived() {
        let corpora = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        for (name, target) in [
            ("reference", super::reference as fn(&[u8])),
            ("manifest", super::manifest),
            ("challenge", super::challenge),
            ("content_range", super::content_range),
        ] {
            let mut count = 0;
            for entry in std::fs::read_dir(corpora.join(name)).unwrap() {
                let bytes = std::fs::read(entry.unwrap().path()).unwrap();
                target(&bytes);
                // Every cut and every flipped byte besides: cheap, and near to what a fuzzer would try first.
                for at in 0..bytes.len() {
                    target(&bytes[..at]);
                    let mut changed = bytes.clone();
                    changed[at] ^= 1 << (at % 7);
                    target(&changed);
                }
                count += 1;
            }
            assert!(count > 3, "the corpus of {name} is nearly empty");
        }
    }
}
