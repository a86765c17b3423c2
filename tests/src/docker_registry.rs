//! Debian's docker-registry, the one that most private registries run.

use std::{
    fmt, fs,
    io::{BufRead as _, BufReader},
    path::Path,
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use test_support::lab;

/// A registry on a port of loopback. Dropping it kills it and removes what it holds.
pub struct DockerRegistry {
    child: Child,
    host: String,
    _directory: TempDir,
}

impl fmt::Debug for DockerRegistry {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("DockerRegistry")
            .field("host", &self.host)
            .finish_non_exhaustive()
    }
}

impl DockerRegistry {
    /// Starts one.
    ///
    /// # Errors
    /// When it is not there or does not listen.
    pub fn start() -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("registry-").tempdir()?;
        let config = directory.path().join("config.yml");
        let storage = directory.path().join("storage");
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nhttp: {{addr: '127.0.0.1:0'}}\n\
             storage: {{filesystem: {{rootdirectory: '{}'}}}}\n",
            storage.display()
        );
        fs::write(&config, text)?;
        let mut child = Command::new(lab::program("docker-registry", "docker-registry")?)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let output = child.stderr.take().context("the log was asked for")?;
        let (found, host) = mpsc::channel();
        // Reads on to the end: a full pipe would stop the registry.
        std::thread::spawn(move || {
            for line in BufReader::new(output).lines().map_while(Result::ok) {
                if let Some((_, after)) = line.split_once("listening on ") {
                    let end = after.find(['"', ' ']);
                    let _ = found.send(after[..end.unwrap_or(after.len())].to_owned());
                }
            }
        });
        let mut registry = Self {
            child,
            host: String::new(),
            _directory: directory,
        };
        match host.recv_timeout(Duration::from_secs(30)) {
            Ok(host) => registry.host = host,
            Err(_) => bail!("docker-registry does not listen"),
        }
        Ok(registry)
    }

    /// Copies the image `1` of an OCI layout, every platform of it, and gives its reference.
    ///
    /// # Errors
    /// When skopeo is not there or fails.
    pub fn push(&self, layout: &Path, repository: &str, format: &str) -> anyhow::Result<String> {
        let reference = format!("{}/{repository}:1", self.host);
        let output = Command::new(lab::program("skopeo", "skopeo")?)
            .args([
                "--insecure-policy",
                "copy",
                "--all",
                "--quiet",
                "--dest-tls-verify=false",
                "--format",
                format,
            ])
            .arg(format!("oci:{}:1", layout.display()))
            .arg(format!("docker://{reference}"))
            .output()?;
        if !output.status.success() {
            bail!("skopeo copy failed: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(reference)
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        // Fails only when it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
