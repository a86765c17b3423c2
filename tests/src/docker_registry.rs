//! Debian's docker-registry, the one that most private registries run.

use std::{
    ffi::OsString,
    fmt, fs,
    io::{BufRead as _, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc,
    time::Duration,
};

use anyhow::{Context as _, bail};
use tempfile::TempDir;
use test_support::lab;

/// Below the registry's directory.
const STORAGE: &str = "storage";

/// An authority, a certificate of it for 127.0.0.1 and one for a client.
const CERTIFICATES: &str = r"
    set -e
    new='-newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes'
    $OPENSSL req -x509 $new -days 2 -subj /CN=authority -keyout ca.key -out ca.crt
    printf 'subjectAltName=IP:127.0.0.1\nextendedKeyUsage=serverAuth\nbasicConstraints=CA:FALSE' > server.ext
    printf 'extendedKeyUsage=clientAuth\nbasicConstraints=CA:FALSE' > client.ext
    for name in server client; do
        $OPENSSL req $new -subj /CN=$name -keyout $name.key -out $name.csr
        $OPENSSL x509 -req -in $name.csr -CA ca.crt -CAkey ca.key -CAcreateserial -days 2 -extfile $name.ext -out $name.pem
    done
    mv client.pem client.cert";

/// A registry on a port of loopback. Dropping it kills it and removes what it holds.
pub struct DockerRegistry {
    child: Child,
    host: String,
    /// Of skopeo, for the way to the registry.
    push_arguments: Vec<OsString>,
    /// What it shows to clients, if it speaks TLS.
    keys: Option<TempDir>,
    directory: TempDir,
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
        let mut registry = Self::start_with("", None)?;
        registry.push_arguments = vec!["--dest-tls-verify=false".into()];
        Ok(registry)
    }

    /// Starts one that speaks TLS and asks for a client certificate, and puts what clients need into
    /// `certificates/HOST:PORT/`, as Docker and skopeo have it.
    ///
    /// # Errors
    /// When it or openssl is not there, or it does not listen.
    pub fn start_with_tls(certificates: &Path) -> anyhow::Result<Self> {
        let openssl = lab::program("openssl", "openssl")?;
        let keys = tempfile::Builder::new().prefix("keys-").tempdir()?;
        let made = Command::new("sh")
            .args(["-c", CERTIFICATES])
            .env("OPENSSL", openssl)
            .current_dir(keys.path())
            .output()?;
        if !made.status.success() {
            bail!("openssl failed: {}", String::from_utf8_lossy(&made.stderr));
        }
        let place = keys.path().display();
        let tls = format!(
            ", tls: {{certificate: '{place}/server.pem', key: '{place}/server.key', clientcas: ['{place}/ca.crt']}}"
        );
        let mut registry = Self::start_with(&tls, Some(keys))?;
        let own = certificates.join(&registry.host);
        fs::create_dir_all(&own)?;
        let keys = registry.keys.as_ref().context("they were just made")?;
        for name in ["ca.crt", "client.cert", "client.key"] {
            fs::copy(keys.path().join(name), own.join(name))?;
        }
        registry.push_arguments = vec!["--dest-cert-dir".into(), own.into()];
        Ok(registry)
    }

    fn start_with(http: &str, keys: Option<TempDir>) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("registry-").tempdir()?;
        let config = directory.path().join("config.yml");
        let storage = directory.path().join(STORAGE);
        let text = format!(
            "version: 0.1\nlog: {{level: info}}\nhttp: {{addr: '127.0.0.1:0'{http}}}\n\
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
                    let end = after.find(['"', ' ', ',']);
                    let _ = found.send(after[..end.unwrap_or(after.len())].to_owned());
                }
            }
        });
        let mut registry = Self {
            child,
            host: String::new(),
            push_arguments: Vec::new(),
            keys,
            directory,
        };
        match host.recv_timeout(Duration::from_secs(30)) {
            Ok(host) => registry.host = host,
            Err(_) => bail!("docker-registry does not listen"),
        }
        Ok(registry)
    }

    /// Where it keeps what was pushed, for another registry to serve.
    #[must_use]
    pub fn storage(&self) -> PathBuf {
        self.directory.path().join(STORAGE)
    }

    /// Copies the image `1` of an OCI layout, every platform of it, and gives its reference.
    ///
    /// # Errors
    /// When skopeo is not there or fails.
    pub fn push(&self, layout: &Path, repository: &str, format: &str) -> anyhow::Result<String> {
        self.push_as(layout, &format!("{repository}:1"), format)
    }

    /// The same under another tag: `name` is `REPOSITORY:TAG`.
    ///
    /// # Errors
    /// When skopeo is not there or fails.
    pub fn push_as(&self, layout: &Path, name: &str, format: &str) -> anyhow::Result<String> {
        let reference = format!("{}/{name}", self.host);
        let output = Command::new(lab::program("skopeo", "skopeo")?)
            .args([
                "--insecure-policy",
                "copy",
                "--all",
                "--quiet",
                "--format",
                format,
            ])
            .args(&self.push_arguments)
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
