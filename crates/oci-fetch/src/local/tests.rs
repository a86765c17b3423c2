use std::path::Path;

use serde_json::{Value, json};
use tempfile::TempDir;

use super::*;

const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar";

/// Files of a layout, by name.
#[derive(Default, Clone)]
struct Files(Vec<(String, Vec<u8>)>);

impl Files {
    fn add(&mut self, name: &str, bytes: impl Into<Vec<u8>>) {
        self.0.push((name.to_owned(), bytes.into()));
    }

    fn blob(&mut self, media_type: &str, bytes: impl Into<Vec<u8>>) -> Value {
        let bytes = bytes.into();
        let digest = Digest::sha256(&bytes);
        let descriptor = json!({"mediaType": media_type, "digest": digest.to_string(), "size": bytes.len()});
        self.add(&format!("blobs/sha256/{}", digest.hex()), bytes);
        descriptor
    }

    fn image(&mut self, architecture: &str, layers: &[&[u8]]) -> Value {
        let config = self.blob(CONFIG, config(architecture, layers).to_string());
        let layers: Vec<Value> = layers.iter().map(|layer| self.blob(TAR, *layer)).collect();
        self.blob(
            MANIFEST,
            json!({"schemaVersion": 2, "config": config, "layers": layers}).to_string(),
        )
    }

    fn finish(&mut self, manifests: &[Value]) {
        self.add("oci-layout", r#"{"imageLayoutVersion":"1.0.0"}"#);
        self.add(
            "index.json",
            json!({"schemaVersion": 2, "manifests": manifests}).to_string(),
        );
    }

    fn directory(&self) -> TempDir {
        let directory = tempfile::tempdir().unwrap();
        for (name, bytes) in &self.0 {
            let path = directory.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        directory
    }

    fn archive(&self) -> tempfile::NamedTempFile {
        let mut builder = tar::Builder::new(tempfile::NamedTempFile::new().unwrap());
        for (name, bytes) in &self.0 {
            append(&mut builder, name, bytes);
        }
        builder.into_inner().unwrap()
    }
}

fn append(builder: &mut tar::Builder<tempfile::NamedTempFile>, name: &str, bytes: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_size(bytes.len() as u64);
    header.set_mode(0o644);
    builder.append_data(&mut header, name, bytes).unwrap();
}

fn append_link(
    builder: &mut tar::Builder<tempfile::NamedTempFile>,
    kind: EntryKind,
    name: &str,
    target: &str,
) {
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_entry_type(match kind {
        EntryKind::Symlink => tar::EntryType::Symlink,
        EntryKind::HardLink => tar::EntryType::Link,
    });
    builder.append_link(&mut header, name, target).unwrap();
}

#[derive(Clone, Copy)]
enum EntryKind {
    Symlink,
    HardLink,
}

fn config(architecture: &str, layers: &[&[u8]]) -> Value {
    let diff_ids: Vec<String> = layers
        .iter()
        .map(|layer| Digest::sha256(layer).to_string())
        .collect();
    json!({"os": "linux", "architecture": architecture, "config": {"Cmd": ["/hello"]}, "rootfs": {"type": "layers", "diff_ids": diff_ids}})
}

fn named(mut descriptor: Value, name: &str) -> Value {
    descriptor["annotations"] = json!({"org.opencontainers.image.ref.name": name});
    descriptor
}

fn on(mut descriptor: Value, architecture: &str) -> Value {
    descriptor["platform"] = json!({"os": "linux", "architecture": architecture});
    descriptor
}

fn resolve_text(text: &str, platform: &str) -> Result<Image, FetchError> {
    resolve(&text.parse().unwrap(), &platform.parse().unwrap())
}

fn in_directory(directory: &Path, selector: &str, platform: &str) -> Result<Image, FetchError> {
    resolve_text(&format!("oci:{}{selector}", directory.display()), platform)
}

#[test]
fn a_layout_resolves_from_directory_and_archive_alike() {
    let mut files = Files::default();
    let image = files.image("amd64", &[b"layer one", b"layer two"]);
    files.finish(&[image]);
    let directory = files.directory();
    let archive = files.archive();
    let from_directory = in_directory(directory.path(), "", "linux/amd64").unwrap();
    let from_archive = resolve_text(
        &format!("oci-archive:{}", archive.path().display()),
        "linux/amd64",
    )
    .unwrap();
    assert_eq!(from_directory.layers, from_archive.layers);
    assert_eq!(from_directory.manifest_digest, from_archive.manifest_digest);
    assert_eq!(from_directory.config.cmd, ["/hello"]);
    let crate::image::Origin::Local(blobs) = &from_archive.access.origin else {
        panic!("not local")
    };
    assert_eq!(blobs[1].read_all(100, "layer").unwrap(), b"layer two");
}

#[test]
fn tags_digests_and_platforms_choose() {
    let mut files = Files::default();
    let one = files.image("amd64", &[b"one"]);
    let arm = files.image("arm64", &[b"arm"]);
    let two = files.image("amd64", &[b"two"]);
    let index =
        json!({"schemaVersion": 2, "manifests": [on(arm.clone(), "arm64"), on(one.clone(), "amd64")]});
    let index = files.blob(INDEX, index.to_string());
    let digest = two["digest"].as_str().unwrap().to_owned();
    files.finish(&[named(index, "multi"), named(on(two, "amd64"), "two")]);
    let directory = files.directory();
    let first_layer = |selector: &str, platform: &str| {
        in_directory(directory.path(), selector, platform).map(|image| image.layers[0].digest.clone())
    };
    assert_eq!(
        first_layer(":multi", "linux/amd64").unwrap(),
        Digest::sha256(b"one")
    );
    assert_eq!(
        first_layer(":multi", "linux/arm64/v8").unwrap(),
        Digest::sha256(b"arm")
    );
    assert_eq!(
        first_layer(":two", "linux/amd64").unwrap(),
        Digest::sha256(b"two")
    );
    assert_eq!(
        first_layer(&format!("@{digest}"), "linux/amd64").unwrap(),
        Digest::sha256(b"two")
    );
    assert_eq!(
        first_layer(":multi", "linux/s390x").unwrap_err().kind(),
        &FetchErrorKind::NotFound
    );
    assert_eq!(
        first_layer(":three", "linux/amd64").unwrap_err().kind(),
        &FetchErrorKind::NotFound
    );
}

#[test]
fn several_images_without_a_selector_are_ambiguous() {
    let mut files = Files::default();
    let (one, two) = (files.image("amd64", &[b"one"]), files.image("amd64", &[b"two"]));
    files.finish(&[named(one, "one"), named(two, "two")]);
    let directory = files.directory();
    let error = in_directory(directory.path(), "", "linux/amd64").unwrap_err();
    assert_eq!(error.kind(), &FetchErrorKind::InvalidInput);
    assert!(in_directory(directory.path(), ":two", "linux/amd64").is_ok());
}

#[test]
fn an_image_for_another_architecture_is_not_found() {
    let mut files = Files::default();
    let image = files.image("arm64", &[b"x"]);
    // The index says amd64, the config the truth.
    files.finish(&[on(image, "amd64")]);
    let error = in_directory(files.directory().path(), "", "linux/amd64").unwrap_err();
    assert_eq!(error.kind(), &FetchErrorKind::NotFound);
    assert!(error.to_string().contains("linux/arm64"), "{error}");
}

#[test]
fn damaged_layouts_are_refused_by_kind() {
    use FetchErrorKind::{DigestMismatch, NotFound, Protocol};
    let mut files = Files::default();
    let image = files.image("amd64", &[b"layer"]);
    files.finish(&[image]);
    type Damage = fn(&mut Files);
    let cases: &[(&str, Damage, FetchErrorKind)] = &[
        (
            "no oci-layout",
            |files| files.0.retain(|(name, _)| name != "oci-layout"),
            NotFound,
        ),
        (
            "no index.json",
            |files| files.0.retain(|(name, _)| name != "index.json"),
            NotFound,
        ),
        (
            "layer missing",
            |files| files.0.retain(|(_, bytes)| bytes != b"layer"),
            NotFound,
        ),
        (
            "layer of another size",
            |files| {
                files
                    .0
                    .iter_mut()
                    .filter(|(_, bytes)| bytes == b"layer")
                    .for_each(|(_, bytes)| bytes.push(b'!'))
            },
            DigestMismatch,
        ),
        (
            "manifest changed",
            |files| {
                for (_, bytes) in files
                    .0
                    .iter_mut()
                    .filter(|(_, bytes)| bytes.starts_with(b"{\"config\":{\"digest"))
                {
                    let last = bytes.len() - 1;
                    bytes[last] = b' ';
                }
            },
            DigestMismatch,
        ),
        (
            "index.json is a list",
            |files| {
                files
                    .0
                    .iter_mut()
                    .filter(|(name, _)| name == "index.json")
                    .for_each(|(_, bytes)| *bytes = b"[]".into())
            },
            Protocol,
        ),
    ];
    for (name, damage, kind) in cases {
        let mut damaged = files.clone();
        damage(&mut damaged);
        let directory = in_directory(damaged.directory().path(), "", "linux/amd64");
        assert_eq!(directory.unwrap_err().kind(), kind, "{name} (directory)");
        let archive = damaged.archive();
        let archive = resolve_text(
            &format!("oci-archive:{}", archive.path().display()),
            "linux/amd64",
        );
        assert_eq!(archive.unwrap_err().kind(), kind, "{name} (archive)");
    }
}

#[test]
fn indexes_nest_once_and_not_twice() {
    let mut files = Files::default();
    let image = files.image("amd64", &[b"x"]);
    let mut wrap = |inner: Value| {
        files.blob(
            INDEX,
            json!({"schemaVersion": 2, "manifests": [inner]}).to_string(),
        )
    };
    let once = wrap(image);
    let twice = wrap(once);
    let thrice = wrap(twice.clone());
    files.finish(&[named(twice, "twice"), named(thrice, "thrice")]);
    let directory = files.directory();
    assert!(in_directory(directory.path(), ":twice", "linux/amd64").is_ok());
    let error = in_directory(directory.path(), ":thrice", "linux/amd64").unwrap_err();
    assert_eq!(error.kind(), &FetchErrorKind::Protocol);
}

#[test]
fn a_fifo_in_a_layout_neither_blocks_nor_passes() {
    let mut files = Files::default();
    files.finish(&[]);
    let directory = files.directory();
    std::fs::remove_file(directory.path().join("index.json")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        directory.path().join("index.json"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR,
        0,
    )
    .unwrap();
    let error = in_directory(directory.path(), "", "linux/amd64").unwrap_err();
    assert_eq!(error.kind(), &FetchErrorKind::InvalidInput);
}

/// An archive as Docker before version 25 writes it; a repeated layer is a symbolic link.
fn docker_archive() -> tempfile::NamedTempFile {
    let layers: &[&[u8]] = &[b"base", b"top", b"base"];
    let config = config("amd64", layers).to_string();
    let id = Digest::sha256(config.as_bytes());
    let mut builder = tar::Builder::new(tempfile::NamedTempFile::new().unwrap());
    append(&mut builder, "aaa/layer.tar", b"base");
    append(&mut builder, "bbb/layer.tar", b"top");
    append_link(
        &mut builder,
        EntryKind::Symlink,
        "ccc/layer.tar",
        "../aaa/layer.tar",
    );
    append(&mut builder, &format!("{}.json", id.hex()), config.as_bytes());
    let manifest = json!([{
        "Config": format!("{}.json", id.hex()),
        "RepoTags": ["app:1", "registry.example/team/app:2"],
        "Layers": ["aaa/layer.tar", "bbb/layer.tar", "ccc/layer.tar"],
    }]);
    append(&mut builder, "manifest.json", manifest.to_string().as_bytes());
    builder.into_inner().unwrap()
}

#[test]
fn docker_archives_resolve_by_tag_or_alone() {
    let archive = docker_archive();
    let open = |selector: &str| {
        resolve_text(
            &format!("docker-archive:{}{selector}", archive.path().display()),
            "linux/amd64",
        )
    };
    let image = open("").unwrap();
    assert_eq!(image.layers[0].digest, image.layers[0].diff_id);
    assert_eq!(image.layers[0].digest, image.layers[2].digest);
    assert_eq!(image.layers[1].digest, Digest::sha256(b"top"));
    assert!(open(":app:1").is_ok());
    assert!(open(":docker.io/library/app:1").is_ok());
    assert!(open(":registry.example/team/app:2").is_ok());
    assert_eq!(open(":app:3").unwrap_err().kind(), &FetchErrorKind::NotFound);
}

#[test]
fn a_docker_archive_with_compressed_layers_in_the_new_layout_resolves() {
    let mut compressed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut compressed, b"plain tar").unwrap();
    let compressed = compressed.finish().unwrap();
    let mut files = Files::default();
    let config = files.blob(CONFIG, config("amd64", &[b"plain tar"]).to_string());
    let layer = files.blob(TAR, compressed.clone());
    let path = |descriptor: &Value| {
        descriptor["digest"]
            .as_str()
            .unwrap()
            .replace("sha256:", "blobs/sha256/")
    };
    let manifest = json!([{"Config": path(&config), "RepoTags": null, "Layers": [path(&layer)]}]);
    files.add("manifest.json", manifest.to_string());
    let archive = files.archive();
    let image = resolve_text(
        &format!("docker-archive:{}", archive.path().display()),
        "linux/amd64",
    )
    .unwrap();
    assert_eq!(image.layers[0].digest, Digest::sha256(&compressed));
    assert_eq!(image.layers[0].diff_id, Digest::sha256(b"plain tar"));
    assert!(image.layers[0].media_type.ends_with("gzip"));
}

#[test]
fn hostile_archive_names_only_ever_meet_other_names() {
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), b"host secret").unwrap();
    let config = config("amd64", &[b"host secret"]).to_string();
    let secret_path = secret.path().to_str().unwrap();
    for (name, target) in [
        ("absolute link", secret_path),
        ("climbing link", "../../../../../../etc/passwd"),
        ("loop", "layer.tar"),
    ] {
        let mut builder = tar::Builder::new(tempfile::NamedTempFile::new().unwrap());
        append(&mut builder, "config", config.as_bytes());
        append_link(&mut builder, EntryKind::Symlink, "layer.tar", target);
        append_link(&mut builder, EntryKind::HardLink, "hard.tar", "layer.tar");
        for layer in ["layer.tar", "hard.tar", secret_path, "../../etc/passwd"] {
            let mut files = builder;
            append(
                &mut files,
                "manifest.json",
                json!([{"Config": "config", "Layers": [layer]}])
                    .to_string()
                    .as_bytes(),
            );
            let archive = files.into_inner().unwrap();
            let error = resolve_text(
                &format!("docker-archive:{}", archive.path().display()),
                "linux/amd64",
            )
            .unwrap_err();
            assert_eq!(error.kind(), &FetchErrorKind::NotFound, "{name} {layer}");
            builder = tar::Builder::new(archive);
            append(&mut builder, "config", config.as_bytes());
            append_link(&mut builder, EntryKind::Symlink, "layer.tar", target);
            append_link(&mut builder, EntryKind::HardLink, "hard.tar", "layer.tar");
        }
    }
}

#[test]
fn broken_archives_are_refused_by_kind() {
    let good = std::fs::read(docker_archive().path()).unwrap();
    let mut huge_name = good.clone();
    // A long-name header that claims 1 GiB.
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::GNULongName);
    header.set_size(1 << 30);
    header.set_cksum();
    huge_name.splice(0..0, header.as_bytes().iter().copied());
    for (name, bytes, kind) in [
        ("empty", Vec::new(), FetchErrorKind::NotFound),
        ("gzip", vec![0x1f, 0x8b, 8, 0, 0, 0], FetchErrorKind::Unsupported),
        (
            "zstd",
            vec![0x28, 0xb5, 0x2f, 0xfd, 0, 0],
            FetchErrorKind::Unsupported,
        ),
        ("garbage", vec![0x55; 4096], FetchErrorKind::Protocol),
        ("cut", good[..700].to_vec(), FetchErrorKind::NotFound),
        ("cut in an entry", good[..513].to_vec(), FetchErrorKind::Protocol),
        ("huge name", huge_name, FetchErrorKind::Protocol),
    ] {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let error = resolve_text(
            &format!("docker-archive:{}", file.path().display()),
            "linux/amd64",
        )
        .unwrap_err();
        assert_eq!(error.kind(), &kind, "{name}: {error}");
    }
    let error = resolve_text("docker-archive:/nonexistent/file", "linux/amd64").unwrap_err();
    assert_eq!(error.kind(), &FetchErrorKind::NotFound);
}

#[test]
fn a_config_of_another_digest_than_its_name_is_refused() {
    let mut builder = tar::Builder::new(tempfile::NamedTempFile::new().unwrap());
    let name = format!("{}.json", Digest::sha256(b"other").hex());
    append(&mut builder, &name, config("amd64", &[]).to_string().as_bytes());
    append(
        &mut builder,
        "manifest.json",
        json!([{"Config": name, "Layers": []}]).to_string().as_bytes(),
    );
    let archive = builder.into_inner().unwrap();
    let error = resolve_text(
        &format!("docker-archive:{}", archive.path().display()),
        "linux/amd64",
    )
    .unwrap_err();
    assert_eq!(error.kind(), &FetchErrorKind::DigestMismatch);
}

proptest::proptest! {
    #[test]
    fn a_damaged_archive_never_panics(position in 0usize..6000, value in proptest::prelude::any::<u8>()) {
        let mut bytes = std::fs::read(docker_archive().path()).unwrap();
        let length = bytes.len();
        bytes[position % length] = value;
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), bytes).unwrap();
        let _ = resolve_text(&format!("docker-archive:{}", file.path().display()), "linux/amd64");
    }
}

#[test]
fn what_is_not_a_regular_file_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let place = directory.path().to_str().unwrap();
    for path in ["/dev/zero", place] {
        for kind in ["oci-archive", "docker-archive"] {
            let source: ImageSource = format!("{kind}:{path}").parse().unwrap();
            let error = super::resolve(&source, &Platform::host()).unwrap_err();
            assert_eq!(error.kind(), &FetchErrorKind::InvalidInput, "{path}");
            assert_eq!(error.to_string(), format!("{path} is not a regular file"));
        }
    }
}

#[test]
fn a_refused_permission_is_found_in_the_error() {
    let error = open_error(
        Path::new("images/index.json"),
        io::Error::from_raw_os_error(rustix::io::Errno::ACCESS.raw_os_error()),
    );
    assert_eq!(error.kind(), &FetchErrorKind::Io);
    assert_eq!(error.to_string(), "failed to open images/index.json");
    let cause = std::error::Error::source(&error).unwrap();
    let cause = cause.downcast_ref::<io::Error>().unwrap();
    assert_eq!(cause.kind(), io::ErrorKind::PermissionDenied);
}

#[test]
fn a_file_that_is_no_archive_is_not_quoted() {
    let line = b"root:x:0:0:secret words\x1b[2J:/bin/sh\n";
    for length in [37, 512, 4096] {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        let content: Vec<u8> = line.iter().copied().cycle().take(length).collect();
        std::io::Write::write_all(&mut file, &content).unwrap();
        let source: ImageSource = format!("oci-archive:{}", file.path().display()).parse().unwrap();
        let error = super::resolve(&source, &Platform::host()).unwrap_err();
        assert_eq!(error.kind(), &FetchErrorKind::Protocol, "{length}");
        let mut text = format!("{error:?}");
        let mut cause = std::error::Error::source(&error);
        while let Some(error) = cause {
            text.push_str(&error.to_string());
            cause = error.source();
        }
        for word in ["secret", "root", "bin", "\x1b"] {
            assert!(!text.contains(word), "{length}: {text}");
        }
    }
}
