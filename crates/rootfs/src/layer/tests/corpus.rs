//! The fuzz targets over their seeds and their corpus.

use std::io::Write;

use super::super::{
    fuzzing,
    testing::{Archive, Header, index},
};
use crate::corpus::{self, Seed};

/// Layers that between them have every feature, small enough for a fuzzer.
fn layer_seeds() -> Vec<Seed> {
    let file = |name: &[u8]| Header::ustar(b'0', name);
    let types = Archive::new()
        .header(Header::ustar(b'5', b"d/"))
        .file(b"d/f", b"hello")
        .header(Header::ustar(b'2', b"s").link(b"../up"))
        .header(Header::ustar(b'1', b"h").link(b"d/f"))
        .header(Header::ustar(b'3', b"c").device(8, 300))
        .header(Header::ustar(b'6', b"p"))
        .header(Header::v7(0, b"old/"))
        .end();
    let pax = Archive::new()
        .extension(b'g', b"13 comment=x\n")
        .pax(&[
            ("path", b"some/path"),
            ("size", b"3"),
            ("uid", b"70000"),
            ("mtime", b"-1.5"),
            ("SCHILY.xattr.user.a", b"b"),
            ("LIBARCHIVE.xattr.user.%62", b"YQ"),
        ])
        .with_body(file(b"f"), b"abc")
        .end();
    let long = Archive::new()
        .extension(b'L', b"long/name\0")
        .extension(b'K', b"long/target\0")
        .header(Header::gnu(b'2', b"long").link(b"long").base_256(136, 12, -5))
        .end();
    let sparse = Archive::new()
        .pax(&[
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"s"),
            ("GNU.sparse.realsize", b"9000"),
        ])
        .with_body(
            file(b"x").size(514),
            &[&b"1\n8000\n2\n"[..], &[0; 503], b"ab"].concat(),
        )
        .pax(&[("GNU.sparse.size", b"9000"), ("GNU.sparse.map", b"4096,2")])
        .with_body(file(b"y").size(2), b"ab")
        .with_body(
            Header::gnu(b'S', b"z")
                .size(2)
                .octal(386, 12, 4096)
                .octal(398, 12, 2)
                .octal(483, 12, 9000),
            b"ab",
        )
        .end();
    let gzip = {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(&types).unwrap();
        encoder.finish().unwrap()
    };
    let zstd = [
        &[0x50, 0x2a, 0x4d, 0x18, 1, 0, 0, 0, 9][..],
        &zstd::encode_all(&pax[..], 1).unwrap(),
    ]
    .concat();
    vec![
        ("types", types),
        ("pax", pax),
        ("long", long),
        ("sparse", sparse),
        ("gzip", gzip),
        ("zstd", zstd),
    ]
}

/// The indexes of the layer seeds, without the digest that the target adds.
fn index_seeds() -> Vec<Seed> {
    let indexes = layer_seeds().into_iter().map(|(name, layer)| {
        let mut bytes = Vec::new();
        index(&layer).unwrap().index.write_to(&mut bytes).unwrap();
        bytes.truncate(bytes.len() - 32);
        (name, bytes)
    });
    indexes.collect()
}

#[test]
fn layers() {
    corpus::replay("layer", &layer_seeds(), fuzzing::layer);
}

#[test]
fn indexes() {
    corpus::replay("index", &index_seeds(), fuzzing::index);
}

#[test]
#[ignore = "writes into the source tree"]
fn write_seeds() {
    corpus::write("layer", &layer_seeds());
    corpus::write("index", &index_seeds());
}
