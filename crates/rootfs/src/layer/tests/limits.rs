//! Each limit, at it and one beyond.

use std::io::Write;

use super::super::{
    LayerError, LayerLimits, Limit,
    testing::{Archive, Header, index_with, message},
};

fn limits(set: impl FnOnce(&mut LayerLimits)) -> LayerLimits {
    let mut limits = LayerLimits::default();
    set(&mut limits);
    limits
}

fn file(name: &[u8]) -> Header {
    Header::ustar(b'0', name)
}

fn named(path: &[u8]) -> Vec<u8> {
    Archive::new().pax(&[("path", path)]).header(file(b"x")).end()
}

fn with_xattrs(records: &[(&str, &[u8])]) -> Vec<u8> {
    Archive::new().pax(records).header(file(b"f")).end()
}

/// What is within the limit, what is beyond, the limit, and what the error names.
struct Case {
    name: &'static str,
    limits: LayerLimits,
    within: Vec<u8>,
    beyond: Vec<u8>,
    limit: Limit,
    path: &'static [u8],
    attribute: Option<&'static [u8]>,
}

#[test]
fn limits_hold_to_the_byte() {
    let holes = |size: u64| {
        Archive::new()
            .header(
                Header::gnu(b'S', b"s")
                    .octal(483, 12, size)
                    .octal(386, 12, size)
                    .octal(398, 12, 0),
            )
            .end()
    };
    let gzip = |size: usize| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder
            .write_all(&Archive::new().file(b"f", &vec![0; size]).end())
            .unwrap();
        encoder.finish().unwrap()
    };
    let striped: Vec<u8> = (0..4096 * 20).map(|at| u8::from(at / 4096 % 2 == 0)).collect();
    let cases = vec![
        Case {
            name: "entries",
            limits: limits(|limits| limits.max_entries = 2),
            within: Archive::new().file(b"a", b"").file(b"b", b"").end(),
            beyond: Archive::new()
                .file(b"a", b"")
                .file(b"b", b"")
                .file(b"c", b"")
                .end(),
            limit: Limit::Entries,
            path: b"c",
            attribute: None,
        },
        Case {
            name: "a name",
            limits: limits(|_| ()),
            within: named(&[b'n'; 255]),
            beyond: named(&[b'n'; 256]),
            limit: Limit::NameBytes,
            path: &[b'n'; 256],
            attribute: None,
        },
        Case {
            name: "a path",
            limits: limits(|limits| limits.max_path_bytes = 10),
            within: named(b"123456789/"),
            beyond: named(b"123456789/1"),
            limit: Limit::PathBytes,
            path: b"123456789/1",
            attribute: None,
        },
        Case {
            name: "a link's target",
            limits: limits(|limits| limits.max_path_bytes = 10),
            within: Archive::new()
                .header(Header::ustar(b'2', b"s").link(b"1234567890"))
                .end(),
            beyond: Archive::new()
                .header(Header::ustar(b'2', b"s").link(b"12345678901"))
                .end(),
            limit: Limit::PathBytes,
            path: b"s",
            attribute: None,
        },
        Case {
            name: "depth, where empty and . do not count and .. does",
            limits: limits(|limits| limits.max_depth = 3),
            within: named(b"/a//./../c/"),
            beyond: named(b"/a//./../c/d"),
            limit: Limit::Depth,
            path: b"/a//./../c/d",
            attribute: None,
        },
        Case {
            name: "an attribute's name",
            limits: limits(|_| ()),
            within: with_xattrs(&[(&format!("SCHILY.xattr.{}", "n".repeat(255)), b"")]),
            beyond: with_xattrs(&[(&format!("SCHILY.xattr.{}", "n".repeat(256)), b"")]),
            limit: Limit::XattrNameBytes,
            path: b"f",
            attribute: Some(&[b'n'; 256]),
        },
        Case {
            name: "an attribute's value",
            limits: limits(|_| ()),
            within: with_xattrs(&[("SCHILY.xattr.user.a", &[b'v'; 65_536])]),
            beyond: with_xattrs(&[("SCHILY.xattr.user.a", &[b'v'; 65_537])]),
            limit: Limit::XattrValueBytes,
            path: b"f",
            attribute: Some(b"user.a"),
        },
        Case {
            name: "an entry's attributes together",
            limits: limits(|limits| limits.max_xattrs_bytes = 20),
            within: with_xattrs(&[("SCHILY.xattr.user.a", b"1234"), ("SCHILY.xattr.user.b", b"1234")]),
            beyond: with_xattrs(&[
                ("SCHILY.xattr.user.a", b"1234"),
                ("SCHILY.xattr.user.b", b"12345"),
            ]),
            limit: Limit::XattrsBytes,
            path: b"f",
            attribute: Some(b"user.b"),
        },
        Case {
            name: "an extended header",
            limits: limits(|limits| limits.max_extended_header_bytes = 9),
            within: with_xattrs(&[("a", b"1234")]),
            beyond: with_xattrs(&[("a", b"12345")]),
            limit: Limit::ExtendedHeaderBytes,
            path: b"extension",
            attribute: None,
        },
        Case {
            name: "segments of a sparse file",
            limits: limits(|limits| limits.max_sparse_segments = 1),
            within: holes(9),
            beyond: Archive::new()
                .pax(&[("GNU.sparse.size", b"9"), ("GNU.sparse.map", b"0,0,0,0")])
                .header(file(b"s"))
                .end(),
            limit: Limit::SparseSegments,
            path: b"s",
            attribute: None,
        },
        Case {
            name: "a file's size",
            limits: limits(|limits| limits.max_file_size_bytes = 1000),
            within: holes(1000),
            beyond: holes(1001),
            limit: Limit::FileSizeBytes,
            path: b"s",
            attribute: None,
        },
        Case {
            name: "decompressed bytes",
            limits: limits(|limits| limits.max_output_bytes = 8192),
            within: Archive::new().file(b"f", &[1; 4096]).raw(&[0; 3584]).0,
            beyond: Archive::new().file(b"f", &[1; 4096]).raw(&[0; 3585]).0,
            limit: Limit::OutputBytes,
            path: b"",
            attribute: None,
        },
        Case {
            name: "decompressed bytes, known from the header",
            limits: limits(|limits| limits.max_output_bytes = 8192),
            within: Archive::new().file(b"f", &[1; 7680]).0,
            beyond: Archive::new().header(file(b"f").size(7681)).0,
            limit: Limit::OutputBytes,
            path: b"f",
            attribute: None,
        },
        Case {
            name: "bytes of the pack",
            limits: limits(|limits| limits.max_output_bytes = 8192),
            within: Archive::new().file(b"a", b"1").file(b"b", b"2").end(),
            beyond: Archive::new()
                .file(b"a", b"1")
                .file(b"b", b"2")
                .file(b"c", b"3")
                .end(),
            limit: Limit::OutputBytes,
            path: b"c",
            attribute: None,
        },
        Case {
            name: "memory for entries",
            limits: limits(|limits| limits.max_index_bytes = 600),
            within: Archive::new().file(b"a", b"").file(b"b", b"").end(),
            beyond: Archive::new().file(b"a", b"").file(&[b'b'; 90], b"").end(),
            limit: Limit::IndexBytes,
            path: &[b'b'; 90],
            attribute: None,
        },
        Case {
            name: "memory for extents",
            limits: limits(|limits| limits.max_index_bytes = 256 + 1 + 5 * 24),
            within: Archive::new().file(b"f", &striped[..4096 * 10]).end(),
            beyond: Archive::new().file(b"f", &striped[..4096 * 11]).end(),
            limit: Limit::IndexBytes,
            path: b"f",
            attribute: None,
        },
        Case {
            name: "the ratio, after its grace",
            limits: limits(|limits| {
                limits.max_ratio = 50;
                limits.ratio_grace_bytes = 1 << 20;
            }),
            within: gzip((1 << 20) - 2048),
            beyond: gzip(2 << 20),
            limit: Limit::Ratio,
            path: b"",
            attribute: None,
        },
    ];
    for Case {
        name,
        limits,
        within,
        beyond,
        limit,
        path,
        attribute,
    } in cases
    {
        if let Err(error) = index_with(&within, &limits) {
            panic!("{name}: refused within the limit: {}", message(&error));
        }
        match index_with(&beyond, &limits) {
            Err(LayerError::Limit {
                limit: found,
                path: at,
                value,
                allowed,
                attribute: of,
            }) => {
                assert_eq!(found, limit, "{name}");
                assert_eq!((&at[..], of.as_deref()), (path, attribute), "{name}");
                assert!(value > allowed, "{name}: {value} {allowed}");
            }
            Err(error) => panic!("{name}: {}", message(&error)),
            Ok(_) => panic!("{name}: accepted beyond the limit"),
        }
    }
}

#[test]
fn a_bomb_of_zeros_is_caught_while_it_streams() {
    /// Zeros without end, compressed as zstd and gzip do at their best: the reader must stop by itself.
    fn bomb(compress: impl Fn(&[u8]) -> Vec<u8>) -> LayerError {
        let member = compress(&vec![0; 8 << 20]);
        let header = compress(
            &Archive::new()
                .header(file(b"zeros").bytes(124, b"\x80\0\0\0\0\0\0\x10\0\0\0\0"))
                .0,
        );
        let endless = std::iter::repeat_n(&member[..], 1 << 20);
        let mut parts = std::iter::once(&header[..]).chain(endless);
        let mut current: &[u8] = &[];
        let input = std::io::BufReader::new(Parts {
            next: || parts.next(),
            current: &mut current,
        });
        super::super::index_layer(input, &mut std::io::sink(), &LayerLimits::default()).unwrap_err()
    }

    struct Parts<'a, 'b, F> {
        next: F,
        current: &'b mut &'a [u8],
    }

    impl<'a, F: FnMut() -> Option<&'a [u8]>> std::io::Read for Parts<'a, '_, F> {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            while self.current.is_empty() {
                match (self.next)() {
                    Some(part) => *self.current = part,
                    None => return Ok(0),
                }
            }
            self.current.read(buffer)
        }
    }

    let gzip = bomb(|bytes| {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    });
    let zstd = bomb(|bytes| zstd::encode_all(bytes, 19).unwrap());
    for error in [gzip, zstd] {
        let LayerError::Limit {
            limit: Limit::Ratio,
            value,
            allowed: 200,
            ..
        } = error
        else {
            panic!("{}", message(&error))
        };
        assert!(value > 200);
    }
}
