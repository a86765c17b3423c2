//! The image DSL says what it is told: checked with tools that others wrote, where this host has them.

#![expect(clippy::unwrap_used, reason = "a test program")]

use std::{io::Read as _, path::Path, process::Command};

use test_support::{
    image::{BuiltImage, Compression, Fault, Format, Image, ImageIndex, Layer, LongNames, digest},
    lab,
};

/// Runs a program and gives its standard output; `None` when the host does not have it.
fn run(program: &str, arguments: &[&str]) -> Option<String> {
    let program = lab::program(program, program).map_err(lab::skip).ok()?;
    let output = Command::new(&program).args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "{}: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr)
    );
    Some(String::from_utf8(output.stdout).unwrap())
}

fn tar_listing(layer: &Layer) -> Option<String> {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("layer.tar");
    std::fs::write(&path, layer.to_tar()).unwrap();
    run(
        "tar",
        &[
            "--numeric-owner",
            "--utc",
            "--full-time",
            "-tvf",
            path.to_str().unwrap(),
        ],
    )
}

#[test]
fn gnu_tar_reads_every_entry_type() {
    let layer = Layer::new()
        .directory("d", 0o1777)
        .file("d/file", b"hello")
        .owner(12345, 54321)
        .mtime(1_000_000_000, 0)
        .hard_link("d/hard", "d/file")
        .symlink("d/soft", "file")
        .character_device("d/char", 5, 1)
        .block_device("d/block", 8, 300)
        .fifo("d/pipe");
    let Some(listing) = tar_listing(&layer) else {
        return;
    };
    let expected = [
        "drwxrwxrwt 0/0 0 2020-01-01 00:00:00 d",
        "-rw-r--r-- 12345/54321 5 2001-09-09 01:46:40 d/file",
        "hrw-r--r-- 0/0 0 2020-01-01 00:00:00 d/hard link to d/file",
        "lrwxrwxrwx 0/0 0 2020-01-01 00:00:00 d/soft -> file",
        "crw------- 0/0 5,1 2020-01-01 00:00:00 d/char",
        "brw------- 0/0 8,300 2020-01-01 00:00:00 d/block",
        "prw-r--r-- 0/0 0 2020-01-01 00:00:00 d/pipe",
    ];
    let lines: Vec<String> = listing
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect();
    assert_eq!(lines, expected);
}

#[test]
fn gnu_tar_reads_long_names_large_owners_and_old_times() {
    let path = format!("{}/{}", "a".repeat(120), "b".repeat(90));
    for (name, long_names) in [
        ("pax", LongNames::Pax),
        ("gnu", LongNames::Gnu),
        ("ustar", LongNames::UstarPrefix),
    ] {
        let layer = Layer::new()
            .long_names(long_names)
            .file(&path, b"x")
            .owner(u32::MAX - 1, 4_000_000)
            .mtime(-2, 0)
            .symlink("link", &path);
        let Some(listing) = tar_listing(&layer) else {
            return;
        };
        assert!(listing.contains(&path), "{name}: {listing}");
        assert!(listing.contains("4294967294/4000000"), "{name}: {listing}");
        assert!(listing.contains("1969-12-31 23:59:58"), "{name}: {listing}");
        assert!(listing.contains(&format!("link -> {path}")), "{name}: {listing}");
    }
}

#[test]
fn gnu_tar_extracts_both_sparse_forms() {
    let runs: Vec<(u64, &[u8])> = (0..30).map(|index| (index * 8192, &[7; 512][..])).collect();
    let layer = Layer::new()
        .gnu_sparse_file("old", 300_000, &runs)
        .pax_sparse_file("new", 300_000, &runs)
        .file("after", b"end");
    let directory = tempfile::tempdir().unwrap();
    let archive = directory.path().join("layer.tar");
    std::fs::write(&archive, layer.to_tar()).unwrap();
    let root = directory.path().to_str().unwrap();
    if run("tar", &["-C", root, "-xf", archive.to_str().unwrap()]).is_none() {
        return;
    }
    let mut expected = vec![0; 300_000];
    for (offset, bytes) in runs {
        let offset = usize::try_from(offset).unwrap();
        expected[offset..offset + bytes.len()].copy_from_slice(bytes);
    }
    for name in ["old", "new"] {
        assert!(
            std::fs::read(directory.path().join(name)).unwrap() == expected,
            "content of {name}"
        );
    }
    assert_eq!(std::fs::read(directory.path().join("after")).unwrap(), b"end");
}

#[test]
fn whiteouts_have_the_names_of_the_specification() {
    let tar = Layer::new()
        .whiteout("etc/old")
        .whiteout("top")
        .opaque("var/log")
        .opaque("")
        .to_tar();
    for name in [
        "etc/.wh.old\0",
        ".wh.top\0",
        "var/log/.wh..wh..opq\0",
        ".wh..wh..opq\0",
    ] {
        assert!(
            tar.chunks(512).any(|block| block.starts_with(name.as_bytes())),
            "{name}"
        );
    }
}

#[test]
fn every_compression_unpacks_to_the_archive() {
    let layer = Layer::new().file("f", vec![7; 100_000]);
    let tar = layer.to_tar();
    for compression in [
        Compression::None,
        Compression::Gzip,
        Compression::GzipMembers(1000),
        Compression::Zstd,
    ] {
        let packed = layer.compress(compression);
        let mut unpacked = Vec::new();
        match compression {
            Compression::None => unpacked = packed,
            Compression::Gzip | Compression::GzipMembers(_) => {
                flate2::read::MultiGzDecoder::new(&*packed)
                    .read_to_end(&mut unpacked)
                    .map(drop)
                    .unwrap();
            }
            Compression::Zstd => unpacked = zstd::decode_all(&*packed).unwrap(),
        }
        assert!(unpacked == tar, "{compression:?}");
    }
}

fn sample() -> Image {
    let base = Layer::new().directory("etc", 0o755).file("etc/motd", b"hello");
    Image::new()
        .layer(&base)
        .layer_as(&Layer::new().file("top", b"t"), Compression::Zstd)
        .cmd(&["/bin/sh"])
}

/// Checks digests and sizes of all that a manifest refers to and says what does not hold.
fn problems(image: &BuiltImage) -> Vec<String> {
    let manifest: serde_json::Value = serde_json::from_slice(&image.manifest().bytes).unwrap();
    let mut problems = Vec::new();
    for layer in manifest["layers"].as_array().unwrap() {
        let name = layer["digest"].as_str().unwrap();
        match image.blobs.get(name) {
            None => problems.push("missing".to_owned()),
            Some(blob) if digest(blob) != name => problems.push("digest".to_owned()),
            Some(blob) if layer["size"] != blob.len() => problems.push("size".to_owned()),
            Some(blob) => {
                let mut tar = Vec::new();
                let unpacked = flate2::read::MultiGzDecoder::new(&**blob).read_to_end(&mut tar);
                if layer["mediaType"].as_str().unwrap().ends_with("gzip") && unpacked.is_err() {
                    problems.push("stream".to_owned());
                }
            }
        }
    }
    let config: serde_json::Value = serde_json::from_slice(&image.blobs[&image.config_digest]).unwrap();
    let diff_ids: Vec<&str> = image.layers.iter().map(|layer| layer.diff_id.as_str()).collect();
    if config["rootfs"]["diff_ids"] != serde_json::json!(diff_ids) {
        problems.push("diff_id".to_owned());
    }
    problems
}

#[test]
fn a_fault_makes_exactly_one_thing_wrong() {
    assert_eq!(problems(&sample().build()), [""; 0]);
    for (fault, problem) in [
        (Fault::WrongDigest, "digest"),
        (Fault::WrongSize, "size"),
        (Fault::TruncatedStream, "stream"),
        (Fault::CorruptStream, "stream"),
        (Fault::WrongDiffId, "diff_id"),
        (Fault::MissingBlob, "missing"),
    ] {
        assert_eq!(
            problems(&sample().fault(0, fault).build()),
            [problem],
            "{fault:?}"
        );
    }
}

#[test]
fn skopeo_reads_layouts_and_archives() {
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
    let oci = sample().build();
    let docker = sample().format(Format::Docker).build();
    let index = ImageIndex::new()
        .image(&sample().platform("linux", "arm64", "v8").build())
        .image(&oci)
        .build();
    oci.write_oci_layout(path("layout"), "1").unwrap();
    index.write_oci_layout(path("index"), "").unwrap();
    oci.write_oci_archive(path("oci.tar"), "1").unwrap();
    docker
        .write_docker_archive(path("docker.tar"), "example/sample:1")
        .unwrap();
    for source in [
        format!("oci:{}:1", path("layout")),
        format!("oci:{}", path("index")),
        format!("oci-archive:{}:1", path("oci.tar")),
        format!("docker-archive:{}", path("docker.tar")),
    ] {
        let Some(config) = run("skopeo", &["inspect", "--config", &source]) else {
            return;
        };
        let config: serde_json::Value = serde_json::from_str(&config).unwrap();
        assert_eq!(
            config["config"]["Cmd"],
            serde_json::json!(["/bin/sh"]),
            "{source}"
        );
        let copy = format!("dir:{}", path("copy"));
        assert!(run("skopeo", &["copy", "--insecure-policy", &source, &copy]).is_some());
        assert!(Path::new(&path("copy/manifest.json")).exists());
    }
}
