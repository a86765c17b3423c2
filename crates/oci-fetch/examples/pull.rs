//! Pulls an image into an OCI image layout directory and shows the progress.
//!
//! ```text
//! cargo run -p oci-fetch --example pull -- docker.io/library/alpine target/alpine
//! cargo run -p oci-fetch --example pull -- 127.0.0.1:5000/app:1 target/app linux/arm64
//! ```
//!
//! Registries on this machine are spoken to without TLS. Credentials come from Docker's `config.json`.
#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a program for the terminal"
)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail};
use futures_util::future::{join_all, try_join_all};
use oci_fetch::{
    Blob, Client, ClientConfig, Digest, DockerConfig, ImageSource, Loopback, Platform, PullContext,
};

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let (source, directory, platform) = match arguments.as_slice() {
        [source, directory] => (source, directory, Platform::host()),
        [source, directory, platform] => (source, directory, platform.parse()?),
        _ => bail!("usage: pull SOURCE DIRECTORY [OS/ARCHITECTURE]"),
    };
    let source: ImageSource = source.parse()?;
    let directory = PathBuf::from(directory);
    let config = ClientConfig::new(directory.with_extension("cache")).with_loopback(Loopback::PlainHttp);
    let client = Client::new(config)?;
    let context = PullContext {
        isolation_key: "me".to_owned(),
        credentials: credentials(&source).await?,
    };

    let image = client.resolve(&source, &platform, &context).await?;
    println!(
        "{} is {}, {} layers, {} bytes",
        image.reference,
        image.manifest_digest,
        image.layers.len(),
        image.total_size_bytes()
    );

    let opened = (0..image.layers.len()).map(|index| client.open_layer(&image, index));
    let blobs: Vec<Blob> = try_join_all(opened).await?;
    let progress = tokio::spawn(show_progress(blobs.clone()));
    let blob_directory = directory.join("blobs").join("sha256");
    std::fs::create_dir_all(&blob_directory)?;
    let written = join_all(blobs.iter().map(|blob| write_blob(&directory, blob))).await;
    progress.abort();
    written.into_iter().collect::<anyhow::Result<Vec<()>>>()?;

    if image.manifest_bytes.is_empty() {
        bail!("a docker-archive has no manifest, so it does not make an OCI layout");
    }
    write_document(&directory, &image.config_digest, &image.config_bytes)?;
    write_document(&directory, &image.manifest_digest, &image.manifest_bytes)?;
    std::fs::write(directory.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let manifest: serde_json::Value = serde_json::from_slice(&image.manifest_bytes)?;
    let media_type = manifest["mediaType"]
        .as_str()
        .unwrap_or("application/vnd.oci.image.manifest.v1+json");
    let index = serde_json::json!({
        "schemaVersion": 2,
        "manifests": [{
            "mediaType": media_type,
            "digest": image.manifest_digest.to_string(),
            "size": image.manifest_bytes.len(),
            "platform": {"os": image.platform.os, "architecture": image.platform.architecture},
        }],
    });
    std::fs::write(directory.join("index.json"), index.to_string())?;
    println!("layout: {}", directory.display());
    Ok(())
}

async fn credentials(source: &ImageSource) -> anyhow::Result<Option<oci_fetch::Credentials>> {
    let ImageSource::Registry(reference) = source else {
        return Ok(None);
    };
    let variable = |name| std::env::var_os(name).map(PathBuf::from);
    let path = DockerConfig::default_path(variable("DOCKER_CONFIG").as_deref(), variable("HOME").as_deref());
    let Some(path) = path else { return Ok(None) };
    Ok(DockerConfig::load(&path)?.find(reference.registry()).await?)
}

async fn write_blob(directory: &Path, blob: &Blob) -> anyhow::Result<()> {
    let path = blob_path(directory, blob.digest())?;
    let mut file = tokio::fs::File::create(&path).await?;
    let copied = tokio::io::copy(&mut blob.reader(), &mut file).await;
    file.sync_all().await?;
    // The check decides, not the end of the stream.
    let verified = blob.verified().await;
    if copied.is_err() || verified.is_err() {
        tokio::fs::remove_file(&path).await?;
    }
    verified.with_context(|| format!("layer {}", blob.digest()))?;
    copied?;
    Ok(())
}

fn write_document(directory: &Path, digest: &Digest, bytes: &[u8]) -> anyhow::Result<()> {
    std::fs::write(blob_path(directory, digest)?, bytes)?;
    Ok(())
}

fn blob_path(directory: &Path, digest: &Digest) -> anyhow::Result<PathBuf> {
    let parent = directory.join("blobs").join(digest.algorithm().as_str());
    std::fs::create_dir_all(&parent)?;
    Ok(parent.join(digest.hex()))
}

async fn show_progress(blobs: Vec<Blob>) {
    let total: u64 = blobs.iter().map(Blob::size_bytes).sum();
    let counters: Vec<_> = blobs.iter().map(Blob::downloaded).collect();
    // The counters must not keep the downloads alive.
    drop(blobs);
    loop {
        let arrived: u64 = counters.iter().map(|counter| *counter.borrow()).sum();
        eprintln!("{arrived} of {total} bytes");
        if arrived >= total {
            return;
        }
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}
