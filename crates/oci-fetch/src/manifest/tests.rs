use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::error::FetchErrorKind;

const SOME_DIGEST: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
const OTHER_DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn image() -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": SOME_DIGEST, "size": 2},
        "layers": [{"mediaType": LAYER, "digest": OTHER_DIGEST, "size": 3}],
    })
}

fn index() -> Value {
    json!({
        "schemaVersion": 2,
        "mediaType": OCI_INDEX,
        "manifests": [
            {"mediaType": OCI_MANIFEST, "digest": SOME_DIGEST, "size": 2, "platform": {"os": "linux", "architecture": "amd64"}},
            {"mediaType": OCI_MANIFEST, "digest": OTHER_DIGEST, "size": 2, "platform": {"os": "unknown", "architecture": "unknown"}},
        ],
    })
}

fn kind(document: &Value, content_type: Option<&str>) -> Result<(), FetchErrorKind> {
    parse(document.to_string().as_bytes(), content_type)
        .map(drop)
        .map_err(|error| error.kind().clone())
}

fn with(mut document: Value, pointer: &str, value: Value) -> Value {
    let (parent, key) = pointer.rsplit_once('/').unwrap();
    let parent = document.pointer_mut(parent).unwrap();
    match parent {
        Value::Array(items) => items[key.parse::<usize>().unwrap()] = value,
        parent => parent[key] = value,
    }
    document
}

#[test]
fn well_formed_documents_parse() {
    assert!(matches!(
        parse(image().to_string().as_bytes(), Some(OCI_MANIFEST)),
        Ok(Document::Manifest(_))
    ));
    let Ok(Document::Index(entries)) = parse(index().to_string().as_bytes(), Some(OCI_INDEX)) else {
        panic!("not an index")
    };
    assert_eq!(
        entries
            .iter()
            .map(|entry| entry.is_attestation)
            .collect::<Vec<_>>(),
        [false, true]
    );
    let docker = with(
        with(image(), "/mediaType", DOCKER_MANIFEST.into()),
        "/config/mediaType",
        "application/vnd.docker.container.image.v1+json".into(),
    );
    assert_eq!(kind(&docker, Some(DOCKER_MANIFEST)), Ok(()));
    assert_eq!(
        kind(
            &with(index(), "/mediaType", DOCKER_LIST.into()),
            Some(DOCKER_LIST)
        ),
        Ok(())
    );
}

#[test]
fn documents_that_can_be_taken_two_ways_are_refused() {
    use FetchErrorKind::{InvalidInput, Limit, Protocol, Unsupported};
    let layer = |media_type: &str| with(image(), "/layers/0/mediaType", media_type.into());
    let many: Vec<Value> = (0..129).map(|_| image()["layers"][0].clone()).collect();
    type Case = (
        &'static str,
        Value,
        Option<&'static str>,
        Result<(), FetchErrorKind>,
    );
    let cases: &[Case] = &[
        (
            "type from header only",
            with(image(), "/mediaType", Value::Null),
            Some(OCI_MANIFEST),
            Ok(()),
        ),
        ("type from body only", image(), None, Ok(())),
        (
            "generic header",
            image(),
            Some("application/json; charset=utf-8"),
            Ok(()),
        ),
        (
            "header with parameter",
            image(),
            Some("application/vnd.oci.image.manifest.v1+json; charset=utf-8"),
            Ok(()),
        ),
        (
            "no type at all",
            with(image(), "/mediaType", Value::Null),
            None,
            Err(Protocol),
        ),
        (
            "image announced as index",
            image(),
            Some(OCI_INDEX),
            Err(Protocol),
        ),
        (
            "index announced as image",
            index(),
            Some(OCI_MANIFEST),
            Err(Protocol),
        ),
        (
            "image with manifests",
            with(image(), "/manifests", json!([])),
            Some(OCI_MANIFEST),
            Err(Protocol),
        ),
        (
            "index with layers",
            with(index(), "/layers", json!([])),
            Some(OCI_INDEX),
            Err(Protocol),
        ),
        (
            "index with config",
            with(index(), "/config", image()["config"].clone()),
            Some(OCI_INDEX),
            Err(Protocol),
        ),
        (
            "schema 1 by header",
            image(),
            Some("application/vnd.docker.distribution.manifest.v1+prettyjws"),
            Err(Unsupported),
        ),
        (
            "schema 1 by version",
            with(image(), "/schemaVersion", 1.into()),
            Some(OCI_MANIFEST),
            Err(Unsupported),
        ),
        (
            "schema 1 by field",
            with(image(), "/fsLayers", json!([])),
            Some(OCI_MANIFEST),
            Err(Unsupported),
        ),
        (
            "schema 3",
            with(image(), "/schemaVersion", 3.into()),
            Some(OCI_MANIFEST),
            Err(Protocol),
        ),
        (
            "no schema version",
            with(image(), "/schemaVersion", Value::Null),
            Some(OCI_MANIFEST),
            Err(Protocol),
        ),
        (
            "foreign type",
            with(image(), "/mediaType", "text/html".into()),
            None,
            Err(Unsupported),
        ),
        (
            "digest with a path",
            with(image(), "/layers/0/digest", "sha256:../../x".into()),
            None,
            Err(InvalidInput),
        ),
        (
            "upper-case digest",
            with(image(), "/layers/0/digest", SOME_DIGEST.to_uppercase().into()),
            None,
            Err(Unsupported),
        ),
        (
            "negative size",
            with(image(), "/layers/0/size", (-1).into()),
            None,
            Err(Protocol),
        ),
        (
            "size over i64",
            with(image(), "/layers/0/size", u64::MAX.into()),
            None,
            Err(Protocol),
        ),
        (
            "fractional size",
            with(image(), "/layers/0/size", 1.5.into()),
            None,
            Err(Protocol),
        ),
        (
            "huge config",
            with(image(), "/config/size", (5 << 20).into()),
            None,
            Err(Limit),
        ),
        (
            "129 layers",
            with(image(), "/layers", Value::Array(many)),
            None,
            Err(Limit),
        ),
        (
            "helm chart",
            with(
                image(),
                "/config/mediaType",
                "application/vnd.cncf.helm.config.v1+json".into(),
            ),
            None,
            Err(Unsupported),
        ),
        (
            "artifact",
            with(image(), "/artifactType", "application/x".into()),
            None,
            Err(Unsupported),
        ),
        (
            "zstd layer",
            layer("application/vnd.oci.image.layer.v1.tar+zstd"),
            None,
            Ok(()),
        ),
        (
            "foreign layer",
            layer("application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
            None,
            Ok(()),
        ),
        (
            "encrypted layer",
            layer("application/vnd.oci.image.layer.v1.tar+gzip+encrypted"),
            None,
            Err(Unsupported),
        ),
        (
            "unknown layer type",
            layer("application/zip"),
            None,
            Err(Unsupported),
        ),
        (
            "layer without a type",
            with(image(), "/layers/0/mediaType", Value::Null),
            None,
            Err(Protocol),
        ),
        (
            "layers is an object",
            with(image(), "/layers", json!({})),
            None,
            Err(Protocol),
        ),
    ];
    for (name, document, content_type, expected) in cases {
        assert_eq!(&kind(document, *content_type), expected, "{name}");
    }
}

#[test]
fn one_layer_cannot_have_two_sizes() {
    let mut other = image()["layers"][0].clone();
    other["size"] = 4.into();
    let document = with(image(), "/layers", json!([image()["layers"][0], other]));
    assert_eq!(kind(&document, None), Err(FetchErrorKind::Protocol));
}

#[test]
fn a_repeated_key_is_refused() {
    let text = image()
        .to_string()
        .replacen("{\"config\"", "{\"schemaVersion\":2,\"config\"", 1);
    assert!(text.matches("\"schemaVersion\"").count() == 2, "{text}");
    assert_eq!(
        parse(text.as_bytes(), Some(OCI_MANIFEST)).unwrap_err().kind(),
        &FetchErrorKind::Protocol
    );
}

proptest! {
    #[test]
    fn arbitrary_bytes_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _ = parse(&bytes, Some(OCI_MANIFEST));
    }

    #[test]
    fn a_flipped_byte_never_panics(position in 0usize..400, value in any::<u8>(), is_index in any::<bool>()) {
        let mut bytes = if is_index { index() } else { image() }.to_string().into_bytes();
        let length = bytes.len();
        bytes[position % length] = value;
        let _ = parse(&bytes, None);
    }
}
