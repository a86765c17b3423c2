//! Attacks that hit some reader, and failures of what is read from and written to.

use std::io::{self, Read, Write};

use super::super::{
    LayerErrorKind, LayerLimits, Limit, index_layer,
    testing::{Archive, Header, index, message},
};

fn file(name: &[u8]) -> Header {
    Header::ustar(b'0', name)
}

/// An archive inside a file, which a reader that loses step would list.
fn inner() -> Vec<u8> {
    Archive::new()
        .file(b"etc/cron.d/smuggled", b"* * * * * root true\n")
        .end()
}

/// CVE-2025-62518 (async-tar, tokio-tar): with a PAX size and a header size of 0, these readers went on inside the body.
#[test]
fn cve_2025_62518_the_body_of_an_entry_with_a_pax_size_is_no_archive() {
    let inner = inner();
    let archive = Archive::new()
        .pax(&[("size", inner.len().to_string().as_bytes())])
        .with_body(file(b"inner.tar").size(0), &inner)
        .file(b"after", b"")
        .end();
    let indexed = index(&archive).unwrap();
    assert_eq!(
        indexed.lines(),
        [
            format!("file inner.tar {} bytes", inner.len()),
            "file after ".to_owned()
        ]
    );
    assert_eq!(indexed.content(&indexed.index.entries[0]), inner);
}

/// CVE-2026-33055 (tar-rs): the PAX size was ignored where the header had a size that is not 0.
#[test]
fn cve_2026_33055_a_pax_size_counts_whatever_the_header_says() {
    let inner = inner();
    for header_size in [1, 512, inner.len() as u64 - 512, 1 << 30] {
        let archive = Archive::new()
            .pax(&[("size", inner.len().to_string().as_bytes())])
            .with_body(file(b"inner.tar").size(header_size), &inner)
            .file(b"after", b"")
            .end();
        let lines = index(&archive).unwrap().lines();
        assert_eq!(
            lines,
            [
                format!("file inner.tar {} bytes", inner.len()),
                "file after ".to_owned()
            ]
        );
    }
}

/// CVE-2026-32766 (astral-tokio-tar): malformed PAX records were dropped without a word, and with them a path or size
/// that other readers saw.
#[test]
fn cve_2026_32766_malformed_pax_records_are_never_dropped() {
    let inner = inner();
    let size = inner.len().to_string();
    let good = [b"size=", size.as_bytes(), b"\n"].concat();
    let record = |length: usize| [format!("{length} ").as_bytes(), &good].concat();
    // The right length is two digits, a space and the rest.
    let right = good.len() + 3;
    for (name, body) in [
        ("length one too short", record(right - 1)),
        ("length one too long", record(right + 1)),
        (
            "a broken record before a good one",
            [b"x\n".to_vec(), record(right)].concat(),
        ),
        (
            "a broken record behind a good one",
            [record(right), b"7 a=b".to_vec()].concat(),
        ),
    ] {
        let archive = Archive::new()
            .extension(b'x', &body)
            .with_body(file(b"inner.tar"), &inner)
            .end();
        let error = index(&archive).expect_err(name);
        assert_eq!(
            error.kind(),
            LayerErrorKind::Malformed,
            "{name}: {}",
            message(&error)
        );
    }
}

/// CVE-2025-58183 (Go's archive/tar): the map of a sparse file could take any amount of memory.
#[test]
fn cve_2025_58183_sparse_maps_are_bounded() {
    let pax: [(&str, &[u8]); 4] = [
        ("GNU.sparse.major", b"1"),
        ("GNU.sparse.minor", b"0"),
        ("GNU.sparse.name", b"sparse"),
        ("GNU.sparse.realsize", b"1099511627776"),
    ];
    let in_body = |map: &[u8]| {
        Archive::new()
            .pax(&pax)
            .with_body(file(b"x").size(1 << 30), map)
            .end()
    };
    let many = "0\n".repeat(140_000);
    let extension = {
        let mut block = Header([0; 512]);
        for at in 0..21 {
            block = block.octal(24 * at, 12, 0).octal(24 * at + 12, 12, 0);
        }
        block.bytes(504, &[1]).0
    };
    let mut header = Header::gnu(b'S', b"sparse")
        .base_256(483, 12, 1 << 40)
        .bytes(482, &[1]);
    for at in 0..4 {
        header = header.octal(386 + 24 * at, 12, 0).octal(398 + 24 * at, 12, 0);
    }
    let mut old = Archive::new().header(header);
    for _ in 0..3200 {
        old = old.raw(&extension);
    }
    for (name, archive, limit) in [
        (
            "a count of 10^18",
            in_body(b"1000000000000000000\n"),
            Limit::SparseSegments,
        ),
        (
            "a count that is within, and a map that goes on",
            in_body(format!("65537\n{many}").as_bytes()),
            Limit::SparseSegments,
        ),
        ("old GNU blocks without end", old.end(), Limit::SparseSegments),
        (
            "a map in a PAX header of 1 GiB",
            Archive::new()
                .header(Header::ustar(b'x', b"x").size(1 << 30))
                .raw(&[b'0'; 4096])
                .0,
            Limit::ExtendedHeaderBytes,
        ),
    ] {
        match index(&archive) {
            Err(super::super::LayerError::Limit { limit: found, .. }) => assert_eq!(found, limit, "{name}"),
            other => panic!("{name}: {:?}", other.map(|indexed| indexed.lines())),
        }
    }
}

/// Apple containerization #927: a truncated layer made the reader spin.
#[test]
fn a_file_that_claims_more_than_there_is_ends_with_an_error() {
    let archive = Archive::new()
        .header(file(b"f").size(0o77_777_777))
        .raw(&[1; 4096])
        .0;
    assert_eq!(index(&archive).unwrap_err().kind(), LayerErrorKind::Truncated);
}

/// Errors name paths from layers, which may hold anything.
#[test]
fn messages_hold_no_control_characters_and_stay_short() {
    let long = [&b"evil\x1b[2J\n"[..], &b"/x".repeat(3000)].concat();
    let archive = Archive::new().pax(&[("path", &long)]).header(file(b"f")).end();
    let message = message(&index(&archive).unwrap_err());
    assert!(message.contains(r"evil\u{1b}[2J\n/x"), "{message}");
    assert!(
        message.len() < 1000 && message.chars().all(|letter| !letter.is_control()),
        "{message}"
    );
}

/// Fails at one of its calls, and at all later ones.
struct Failing<T> {
    inner: T,
    calls_left: usize,
}

impl<T> Failing<T> {
    fn call(&mut self) -> io::Result<()> {
        self.calls_left = self.calls_left.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
        Ok(())
    }
}

impl<T: Read> Read for Failing<T> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.call()?;
        // Small reads, so that there are many.
        let count = buffer.len().min(10_000);
        self.inner.read(&mut buffer[..count])
    }
}

impl<T: Write> Write for Failing<T> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.call()?;
        self.inner.write(&bytes[..bytes.len().min(10_000)])
    }

    fn flush(&mut self) -> io::Result<()> {
        self.call()?;
        self.inner.flush()
    }
}

fn sizeable() -> Vec<u8> {
    let mut archive = Archive::new();
    for size in [100_usize, 300_000, 5000, 600_000] {
        archive = archive.file(format!("f{size}").as_bytes(), &vec![3; size]);
    }
    archive.end()
}

#[test]
fn a_failing_pack_is_reported_as_such_wherever_it_fails() {
    let archive = sizeable();
    let limits = LayerLimits::default();
    let mut failures = 0;
    for calls_left in 0..10_000 {
        let mut pack = Failing {
            inner: Vec::new(),
            calls_left,
        };
        match index_layer(&archive[..], &mut pack, &limits) {
            Ok(_) => break,
            Err(error) => assert_eq!(error.kind(), LayerErrorKind::Pack, "call {calls_left}"),
        }
        failures += 1;
    }
    assert!(failures > 50, "only {failures} calls were made");
}

#[test]
fn a_failing_input_is_reported_as_such_wherever_it_fails() {
    let archive = sizeable();
    let limits = LayerLimits::default();
    for layer in [archive.clone(), zstd::encode_all(&archive[..], 1).unwrap()] {
        let mut failures = 0;
        for calls_left in 0..10_000 {
            let input = Failing {
                inner: &layer[..],
                calls_left,
            };
            match index_layer(input, &mut Vec::new(), &limits) {
                Ok(_) => break,
                Err(error) => assert_eq!(error.kind(), LayerErrorKind::Input, "call {calls_left}"),
            }
            failures += 1;
        }
        assert!(failures >= 2);
    }
}

#[test]
fn interrupted_reads_are_repeated() {
    struct Interrupted<'a>(&'a [u8], bool);
    impl Read for Interrupted<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                Err(io::ErrorKind::Interrupted.into())
            } else {
                self.0.read(buffer)
            }
        }
    }
    let archive = sizeable();
    let index = index_layer(
        Interrupted(&archive, false),
        &mut Vec::new(),
        &LayerLimits::default(),
    )
    .unwrap();
    assert_eq!(index.entries.len(), 4);
}
