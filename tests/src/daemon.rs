//! The daemon as a process of its own.

use std::{
    fmt,
    io::{BufRead as _, BufReader},
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError, mpsc},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// A start and a stop may take so long on a busy machine.
const LIMIT: Duration = Duration::from_secs(60);

/// `builderd serve --dev` on a port that the system chose. Dropping it kills it.
pub struct Daemon {
    child: Child,
    address: SocketAddr,
    log: Arc<Mutex<Vec<String>>>,
    reader: Option<JoinHandle<()>>,
    state_directory: PathBuf,
    binary: PathBuf,
    settings: Vec<(String, String)>,
}

impl fmt::Debug for Daemon {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Daemon")
            .field("address", &self.address)
            .finish_non_exhaustive()
    }
}

impl Daemon {
    /// Starts the daemon and waits until it listens. `settings` are variables without `UNKEY_BUILDERD_`.
    ///
    /// # Errors
    /// When it ends or does not listen within a minute; the error has its log.
    pub fn start(binary: &Path, state_directory: &Path, settings: &[(&str, &str)]) -> anyhow::Result<Self> {
        Self::start_at(0, binary, state_directory, settings)
    }

    fn start_at(
        port: u16,
        binary: &Path,
        state_directory: &Path,
        settings: &[(&str, &str)],
    ) -> anyhow::Result<Self> {
        let mut command = Command::new(binary);
        command
            .args(["serve", "--dev", "--port", &port.to_string(), "--state-dir"])
            .arg(state_directory);
        // What the caller's own shell has set for a daemon of its own is not meant for this one.
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("UNKEY_BUILDERD_") {
                command.env_remove(name);
            }
        }
        for (name, value) in settings {
            command.env(format!("UNKEY_BUILDERD_{name}"), value);
        }
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut child = command
            .spawn()
            .with_context(|| format!("cannot start {}", binary.display()))?;
        let output = child.stderr.take().context("the log was asked for")?;
        let log = Arc::new(Mutex::new(Vec::new()));
        let (found, address) = mpsc::channel();
        let reader = std::thread::spawn({
            let log = Arc::clone(&log);
            move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    if let Some(address) = serving(&line) {
                        // Nobody waits any more once the first address was read.
                        let _ = found.send(address);
                    }
                    log.lock().unwrap_or_else(PoisonError::into_inner).push(line);
                }
            }
        });
        let mut daemon = Self {
            child,
            address: SocketAddr::from(([127, 0, 0, 1], 0)),
            log,
            reader: Some(reader),
            state_directory: state_directory.to_owned(),
            binary: binary.to_owned(),
            settings: settings
                .iter()
                .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
                .collect(),
        };
        // A daemon that ends closes its log, and with it the channel.
        match address.recv_timeout(LIMIT) {
            Ok(address) => daemon.address = address,
            Err(_) => bail!("the daemon does not serve; its log:\n{}", daemon.log()),
        }
        Ok(daemon)
    }

    /// Where it listens.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Below which it keeps everything.
    #[must_use]
    pub fn state_directory(&self) -> &Path {
        &self.state_directory
    }

    /// Its log so far.
    #[must_use]
    pub fn log(&self) -> String {
        self.log.lock().unwrap_or_else(PoisonError::into_inner).join("\n")
    }

    /// Its process.
    #[must_use]
    pub fn process_id(&self) -> u32 {
        self.child.id()
    }

    /// Asks it to end, as a service manager does, and comes back at once.
    ///
    /// # Errors
    /// When it has ended already.
    pub fn terminate(&self) -> anyhow::Result<()> {
        kill(Pid::from_raw(self.child.id().try_into()?), Signal::SIGTERM).context("cannot end the daemon")
    }

    /// Waits until it has ended, and starts it again with the same state and address.
    ///
    /// # Errors
    /// When it does not end, or does not serve again, within a minute.
    pub fn restart_when_ended(&mut self) -> anyhow::Result<ExitStatus> {
        let status = self.ended()?;
        self.start_again()?;
        Ok(status)
    }

    /// Ends it as a power cut does, with SIGKILL, and starts it again with the same state and address.
    ///
    /// # Errors
    /// When it does not serve again within a minute.
    pub fn crash_and_restart(&mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        self.start_again()
    }

    fn start_again(&mut self) -> anyhow::Result<()> {
        let settings: Vec<(&str, &str)> = self
            .settings
            .iter()
            .map(|(name, value)| (name.as_str(), value.as_str()))
            .collect();
        *self = Self::start_at(
            self.address.port(),
            &self.binary,
            &self.state_directory,
            &settings,
        )?;
        Ok(())
    }

    /// Ends it as a service manager does, with SIGTERM.
    ///
    /// # Errors
    /// When it does not end within a minute.
    pub fn stop(mut self) -> anyhow::Result<ExitStatus> {
        self.terminate()?;
        self.ended()
    }

    fn ended(&mut self) -> anyhow::Result<ExitStatus> {
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait()? {
                if let Some(reader) = self.reader.take() {
                    let _ = reader.join();
                }
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!("the daemon did not end after SIGTERM; its log:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Fails only when it has ended, which is what is wanted.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The address in the line that says that the daemon serves, in either log format.
fn serving(line: &str) -> Option<SocketAddr> {
    let (_, after) = line
        .split_once("server.address")
        .filter(|_| line.contains("Serving"))?;
    let start = after.find(|character: char| character.is_ascii_digit() || character == '[')?;
    let address = after[start..].split([' ', '"', ',', '\u{1b}']).next()?;
    address.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::serving;

    #[test]
    fn the_address_is_found_in_both_log_formats() {
        let json = r#"{"level":"INFO","message":"Serving","server.address":"127.0.0.1:4711","version":"1"}"#;
        let pretty = "INFO builderd: Serving version=\"0.1.0\" server.address=127.0.0.1:4711 database=/x";
        for line in [json, pretty] {
            assert_eq!(serving(line), "127.0.0.1:4711".parse().ok(), "{line}");
        }
        assert_eq!(serving("Stopped server.address=127.0.0.1:4711"), None);
    }
}
