//! Just enough of an OCI image layout for the examples: `index.json`, a manifest, blobs by digest. It trusts the
//! directory; a program that must not should use `oci-fetch`.

use std::{
    fs::File,
    io::BufReader,
    path::{Path, PathBuf},
};

use anyhow::{Context as _, Result};
use rootfs::{
    layer::{LayerIndex, LayerLimits, index_layer},
    pack::Pack,
};
use serde_json::Value;
use test_support::image::{Image, Layer};

/// The layers of the first image in a layout, the bottom one first.
pub(crate) fn layers(layout: &Path) -> Result<Vec<PathBuf>> {
    let index = json(&layout.join("index.json"))?;
    let manifest = json(&blob(layout, &index["manifests"][0]["digest"])?)?;
    let layers = manifest["layers"]
        .as_array()
        .context("the first image of the layout has no layers")?;
    layers
        .iter()
        .map(|layer| blob(layout, &layer["digest"]))
        .collect()
}

/// Indexes one layer and puts its file bodies into a temporary file.
pub(crate) fn index(blob: &Path) -> Result<(LayerIndex, Pack)> {
    let input = BufReader::with_capacity(1 << 20, File::open(blob)?);
    let mut pack = tempfile::tempfile()?;
    let index = index_layer(input, &mut pack, &LayerLimits::default())
        .with_context(|| format!("failed to index {}", blob.display()))?;
    Ok((index, Pack::File(pack.into())))
}

/// A layout to try things out with: a base, and a layer that changes it in every way there is.
pub(crate) fn sample(directory: &Path) -> Result<PathBuf> {
    let base = Layer::new()
        .directory("etc", 0o755)
        .file("etc/motd", "welcome\n")
        .file("etc/old", "goes away\n")
        .directory("usr", 0o755)
        .directory("usr/bin", 0o755)
        .file("usr/bin/tool", vec![1; 100_000])
        .mode(0o755)
        .hard_link("usr/bin/alias", "usr/bin/tool")
        .symlink("bin", "usr/bin");
    let top = Layer::new()
        .whiteout("etc/old")
        .file("etc/motd", "welcome back\n")
        .file("bin/new", "below a link of the base\n")
        .whiteout("usr/bin/tool");
    let layout = directory.join("sample");
    Image::new()
        .layer(&base)
        .layer(&top)
        .build()
        .write_oci_layout(&layout, "latest")?;
    Ok(layout)
}

fn json(path: &Path) -> Result<Value> {
    let file = File::open(path).with_context(|| format!("failed to open {}", path.display()))?;
    serde_json::from_reader(BufReader::new(file)).with_context(|| format!("{} is not JSON", path.display()))
}

fn blob(layout: &Path, digest: &Value) -> Result<PathBuf> {
    let digest = digest.as_str().context("a descriptor has no digest")?;
    let hex = digest
        .strip_prefix("sha256:")
        .filter(|hex| hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()));
    Ok(layout
        .join("blobs/sha256")
        .join(hex.with_context(|| format!("{digest} is no SHA-256 digest"))?))
}
