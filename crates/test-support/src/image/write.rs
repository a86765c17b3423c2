//! Images as directories and files: OCI layout, OCI archive, `docker save`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use serde_json::json;

use super::{BuiltImage, Layer, build::to_bytes};

impl BuiltImage {
    /// Writes an OCI image layout (image-layout.md of the image specification) with one image, under `tag` or, when
    /// that is empty, without a name. What is there already is kept, except for `index.json`.
    ///
    /// # Errors
    /// When a file cannot be written.
    pub fn write_oci_layout(&self, directory: impl AsRef<Path>, tag: &str) -> io::Result<()> {
        let directory = directory.as_ref();
        for (path, bytes) in self.layout_files(tag) {
            let path = directory.join(path);
            if let Some(parent) = path.parent() {
                fs::create_dir_all(parent)?;
            }
            fs::write(path, bytes)?;
        }
        Ok(())
    }

    /// Writes an OCI image layout as one tar file.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_oci_archive(&self, file: impl AsRef<Path>, tag: &str) -> io::Result<()> {
        let mut archive = Layer::new()
            .directory("blobs", 0o755)
            .directory("blobs/sha256", 0o755);
        for (path, bytes) in self.layout_files(tag) {
            archive = archive.file(path.to_string_lossy().as_bytes(), bytes);
        }
        fs::write(file, archive.to_tar())
    }

    /// Writes the archive that `docker save` made before it wrote OCI layouts: `manifest.json`, the configuration as
    /// `HEX.json`, each layer unpacked as `HEX/layer.tar`. `name` is the `NAME:TAG` it goes by, empty for none.
    ///
    /// # Errors
    /// When the file cannot be written, and for an index or a schema 1 image, which such an archive cannot hold.
    pub fn write_docker_archive(&self, file: impl AsRef<Path>, name: &str) -> io::Result<()> {
        let Some(config) = self.blobs.get(&self.config_digest) else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a docker archive needs one image with a config",
            ));
        };
        let config_name = format!("{}.json", hexadecimal(&self.config_digest));
        let mut archive = Layer::new();
        let mut layer_names = Vec::new();
        for (layer_idx, layer) in self.layers.iter().enumerate() {
            // Two equal layers are two entries in the list but may not be two in the archive.
            let directory = hexadecimal(&layer.diff_id);
            let name = format!("{directory}/layer.tar");
            let is_first = self.layers[..layer_idx]
                .iter()
                .all(|earlier| earlier.diff_id != layer.diff_id);
            if is_first {
                archive = archive.directory(directory, 0o755).file(&name, &layer.tar);
            }
            layer_names.push(name);
        }
        let names: Vec<&str> = if name.is_empty() { Vec::new() } else { vec![name] };
        let manifest = json!([{ "Config": config_name, "RepoTags": names, "Layers": layer_names }]);
        archive = archive
            .file(&config_name, config)
            .file("manifest.json", to_bytes(&manifest));
        fs::write(file, archive.to_tar())
    }

    fn layout_files(&self, tag: &str) -> Vec<(PathBuf, Vec<u8>)> {
        let manifest = self.manifest();
        let mut descriptor = json!({
            "mediaType": manifest.media_type,
            "digest": self.manifest_digest,
            "size": manifest.bytes.len(),
        });
        if !tag.is_empty() {
            descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": tag });
        }
        let index = json!({
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [descriptor],
        });
        let mut files = vec![
            (
                PathBuf::from("oci-layout"),
                to_bytes(&json!({ "imageLayoutVersion": "1.0.0" })),
            ),
            (PathBuf::from("index.json"), to_bytes(&index)),
        ];
        let manifests = self
            .manifests
            .iter()
            .map(|(digest, manifest)| (digest, &manifest.bytes));
        for (digest, bytes) in self.blobs.iter().chain(manifests) {
            files.push((
                Path::new("blobs/sha256").join(hexadecimal(digest)),
                bytes.to_vec(),
            ));
        }
        files
    }
}

fn hexadecimal(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}
