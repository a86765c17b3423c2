//! Debian's docker-registry on loopback, with the fixtures in it.

use std::{
    collections::BTreeSet,
    fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::mpsc,
    thread,
    time::Duration,
};

use anyhow::Context as _;

use crate::{fixture::Fixture, layout, process};

/// A running registry. Dropping it ends it; what it holds is kept for the next run.
pub(crate) struct Registry {
    group: process::Group,
    host: String,
    directory: PathBuf,
}

impl Registry {
    pub(crate) fn start(directory: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(directory)?;
        let config = directory.join("config.yml");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nhttp: {{addr: '127.0.0.1:0'}}\n\
             storage: {{filesystem: {{rootdirectory: '{}'}}}}\n",
            directory.join("storage").display()
        );
        fs::write(&config, text)?;
        let mut command = Command::new("docker-registry");
        command
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut group = process::Group::start(&mut command)?;
        let log = group.child().stderr.take().context("the log was asked for")?;
        let (found, host) = mpsc::channel();
        // Reads on to the end: a full pipe would stop the registry.
        thread::spawn(move || {
            for line in BufReader::new(log).lines().map_while(Result::ok) {
                if let Some((_, after)) = line.split_once("listening on ") {
                    let end = after.find(['"', ' ']).unwrap_or(after.len());
                    // Nobody waits any more when it says so a second time.
                    let _ = found.send(after[..end].to_owned());
                }
            }
        });
        let host = host
            .recv_timeout(Duration::from_secs(30))
            .context("docker-registry does not listen")?;
        Ok(Self {
            group,
            host,
            directory: directory.to_owned(),
        })
    }

    /// Its process, which no measurement counts.
    pub(crate) fn pids(&self) -> BTreeSet<i32> {
        BTreeSet::from([self.group.pid()])
    }

    /// The reference of a fixture's image.
    pub(crate) fn reference(&self, fixture: Fixture, tag: &str) -> String {
        format!("{}/bench/{fixture}:{tag}", self.host)
    }

    /// Where the registry has a blob.
    pub(crate) fn blob_url(&self, fixture: Fixture, digest: &str) -> String {
        format!("http://{}/v2/bench/{fixture}/blobs/{digest}", self.host)
    }

    /// Copies image 1 of a layout into the registry unless it is there, and reads it once, so that it is in the page cache.
    pub(crate) fn push(&self, fixture: Fixture, from: &Path) -> anyhow::Result<()> {
        let index = layout::digest(&fs::read(from.join("index.json"))?);
        let stamp = self.directory.join(format!("{fixture}.pushed"));
        if fs::read_to_string(&stamp).is_ok_and(|pushed| pushed == index) {
            return self.warm(from);
        }
        let mut skopeo = Command::new("skopeo");
        skopeo
            .args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"])
            // It would compress the layer of `large`, which is plain tar.
            .arg("--preserve-digests")
            .arg(format!("oci:{}:1", from.display()))
            .arg(format!("docker://{}", self.reference(fixture, "1")));
        process::output(&mut skopeo, Duration::from_secs(600))?;
        fs::write(&stamp, index)?;
        self.warm(from)
    }

    fn warm(&self, from: &Path) -> anyhow::Result<()> {
        for layer in layout::Image::open(from, "1")?.layers()? {
            let name = layer
                .path
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            // The layout of registry's storage: blobs/sha256/AB/ABCD…/data.
            let path = self
                .directory
                .join("storage/docker/registry/v2/blobs/sha256")
                .join(&name[..2])
                .join(&name)
                .join("data");
            let mut file = fs::File::open(&path)
                .with_context(|| format!("the registry has not kept {}", path.display()))?;
            std::io::copy(&mut file, &mut std::io::sink())?;
        }
        Ok(())
    }
}
