//! Downloads beside those of others.

use std::{collections::BTreeMap, fs, path::Path, process::Command};

use anyhow::Context as _;
use test_support::{
    image::{BuiltImage, Manifest},
    registry::{self, Misbehaviour},
};

use crate::{
    fetch::Pulled,
    fixture::Fixture,
    layout::{self, Image},
    ours::Bench,
    results::Results,
};

/// What a connection gets of the registry that one large blob comes from.
const BLOB_BYTES_PER_SECOND: u64 = 50_000_000;

/// What a connection gets of the registry that whole images come from: on this path a download takes about as long as making
/// the image, which is where overlapping the two shows most.
const IMAGE_BYTES_PER_SECOND: u64 = 8_000_000;

impl Bench<'_> {
    /// One pull into an empty cache. The time is that of the whole process.
    fn pull(
        &self,
        reference: &str,
        name: &str,
        options: &[&str],
        fixture: Fixture,
        results: &mut Results,
    ) -> anyhow::Result<()> {
        let directory = self.place.fresh("pull")?;
        let mut command = Command::new(std::env::current_exe()?);
        command
            .arg("pull")
            .arg(reference)
            .arg(directory.join("cache"))
            .args(options);
        let (stdout, mut sample) = self.measure(&mut command)?;
        let pulled: Pulled = serde_json::from_str(&stdout)?;
        sample.more.insert("transfer".into(), pulled.wall);
        results.add(fixture.name(), name, sample);
        Ok(())
    }

    /// An image fetched, beside `skopeo copy` to a directory. Ours is on the disk at the end, skopeo's need not be.
    pub(crate) fn pulls(&self, fixture: Fixture, results: &mut Results) -> anyhow::Result<()> {
        let reference = self.registry.reference(fixture, "1");
        self.pull(&reference, "pull", &[], fixture, results)?;
        self.pull(&reference, "pull-durable", &["--durable"], fixture, results)?;
        let directory = self.place.fresh("pull")?;
        let mut skopeo = Command::new("skopeo");
        skopeo
            .args(["--insecure-policy", "copy", "-q", "--src-tls-verify=false"])
            .arg(format!("docker://{reference}"))
            .arg(format!("oci:{}:1", directory.join("layout").display()));
        let (_, sample) = self.measure(&mut skopeo)?;
        results.add(fixture.name(), "skopeo", sample);
        Ok(())
    }

    /// One large blob, beside curl.
    pub(crate) fn blob(&self, fixture: Fixture, layout: &Path, results: &mut Results) -> anyhow::Result<()> {
        self.pull(
            &self.registry.reference(fixture, "1"),
            "pull",
            &[],
            fixture,
            results,
        )?;
        let layers = Image::open(layout, "1")?.layers()?;
        let name = layers
            .first()
            .and_then(|layer| layer.path.file_name())
            .context("no layer")?
            .to_string_lossy();
        let directory = self.place.fresh("pull")?;
        let mut curl = Command::new("curl");
        curl.args(["-fsS", "-o"])
            .arg(directory.join("blob"))
            .arg(self.registry.blob_url(fixture, &format!("sha256:{name}")));
        let (_, sample) = self.measure(&mut curl)?;
        results.add(fixture.name(), "curl", sample);
        Ok(())
    }

    /// One large blob from a registry that gives each connection 50 MB/s: over one and over four.
    pub(crate) fn throttled(
        &self,
        fixture: Fixture,
        layout: &Path,
        results: &mut Results,
    ) -> anyhow::Result<()> {
        let (_registry, reference) = slow_registry(layout, BLOB_BYTES_PER_SECOND)?;
        for (name, connections) in [("throttled-1", "1"), ("throttled-4", "4")] {
            self.pull(
                &reference,
                name,
                &["--connections", connections],
                fixture,
                results,
            )?;
        }
        Ok(())
    }

    /// Registry to image, and the download alone, from a registry that gives each connection 8 MB/s: on loopback the download
    /// takes the processor from the rest of a build, behind a real network it does not.
    pub(crate) fn slow(&self, fixture: Fixture, layout: &Path, results: &mut Results) -> anyhow::Result<()> {
        let (_registry, reference) = slow_registry(layout, IMAGE_BYTES_PER_SECOND)?;
        self.pull(&reference, "slow-pull-durable", &["--durable"], fixture, results)?;
        self.once(fixture, &reference, "slow-registry", &["--plain-http"], results)?;
        Ok(())
    }
}

/// A registry in this process, which no measurement counts, that holds image 1 of a layout and gives each connection so many
/// bytes a second; and the image's reference.
fn slow_registry(layout: &Path, bytes_per_second: u64) -> anyhow::Result<(registry::Registry, String)> {
    let registry = registry::Registry::start()?;
    let reference = registry.publish("bench/slow", "1", &published(layout)?);
    registry.misbehave("/blobs/", Misbehaviour::Throttle { bytes_per_second });
    Ok((registry, reference))
}

/// Image 1 of a layout as the test registry takes it.
fn published(layout: &Path) -> anyhow::Result<BuiltImage> {
    let image = Image::open(layout, "1")?;
    let (bytes, config_digest) = image.documents()?;
    let mut blobs = BTreeMap::new();
    for path in image
        .layers()?
        .into_iter()
        .map(|layer| layer.path)
        .chain([image.config_path()?])
    {
        let content = fs::read(&path)?;
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        blobs.insert(format!("sha256:{name}"), content.into());
    }
    let manifest_digest = layout::digest(&bytes);
    let manifest = Manifest {
        media_type: "application/vnd.oci.image.manifest.v1+json".to_owned(),
        bytes: bytes.into(),
    };
    Ok(BuiltImage {
        manifests: BTreeMap::from([(manifest_digest.clone(), manifest)]),
        manifest_digest,
        blobs,
        layers: Vec::new(),
        config_digest,
        platform: ("linux".into(), "amd64".into(), None),
    })
}
