//! Docker's credential helpers: programs that keep secrets outside of `config.json`.
//!
//! Source: docker-credential-helpers, "Development" (the protocol on standard input and output).

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process_group};
use serde::Deserialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::credentials::Credentials;
use crate::error::{FetchError, FetchErrorKind};

/// What every helper's program begins with.
const PREFIX: &str = "docker-credential-";

/// Secrets have up to some kilobytes.
const MAX_ANSWER_BYTES: u64 = 64 * 1024;

/// A helper may wait for a cloud's token service; one that waits for a person is not for this crate.
const TIMEOUT: Duration = Duration::from_secs(30);

/// The user name under which a helper gives an identity token.
const TOKEN_USER: &str = "<token>";

/// What helpers print, with exit status 1, when they have nothing for a registry.
const NOTHING: [&str; 3] = [
    "credentials not found in native keychain",
    "no credentials server URL",
    "no credentials username",
];

/// A program that is asked for the credentials of one registry.
///
/// It runs with the rights and the environment of this process: only an operator's own configuration may name one.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Helper {
    /// Behind `docker-credential-`.
    name: String,
    /// How the registry is called when the helper is asked.
    server: String,
    /// Where the program is looked for; `None` for `PATH`.
    directory: Option<PathBuf>,
    timeout: Duration,
}

/// The process group of a program that runs; dropping it kills all of it.
struct Group(Option<Pid>);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

impl Helper {
    /// `None` when the name is not one of a program: letters, digits, `-`, `_` and `.`.
    pub(crate) fn new(name: &str, server: impl Into<String>) -> Option<Self> {
        let is_name = !name.is_empty()
            && name.len() <= 64
            && name
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.'));
        is_name.then(|| Self {
            name: name.to_owned(),
            server: server.into(),
            directory: None,
            timeout: TIMEOUT,
        })
    }

    /// Looks for the program in this directory instead of in those of `PATH`.
    pub(crate) fn in_directory(mut self, directory: PathBuf) -> Self {
        self.directory = Some(directory);
        self
    }

    /// Runs the program. `None` when it has no credentials for the registry.
    ///
    /// What it prints is never part of an error: it may be a secret. A dropped future ends the program.
    pub(crate) async fn ask(&self) -> Result<Option<Credentials>, FetchError> {
        let answer = tokio::time::timeout(self.timeout, self.run())
            .await
            .map_err(|_| self.failed(&format!("did not answer within {} s", self.timeout.as_secs())))?;
        let (is_success, output) = answer.map_err(|error| {
            let program = self.program();
            FetchError::with_source(
                FetchErrorKind::Io,
                format!("credential helper {program} cannot be run"),
                error,
            )
        })?;
        if output.len() as u64 > MAX_ANSWER_BYTES {
            return Err(self.failed(&format!("answers with more than {MAX_ANSWER_BYTES} bytes")));
        }
        if !is_success {
            let text = String::from_utf8_lossy(&output);
            return if NOTHING.contains(&text.trim()) {
                Ok(None)
            } else {
                Err(self.failed("failed"))
            };
        }
        // serde_json's message could quote the secret.
        let answer: Answer = serde_json::from_slice(&output)
            .map_err(|_| self.failed("does not answer in the helpers' protocol"))?;
        Ok(match (answer.username.as_str(), answer.secret.as_str()) {
            (_, "") => None,
            (TOKEN_USER, token) => Some(Credentials::identity_token(token)),
            (user, password) => Some(Credentials::basic(user, password)),
        })
    }

    async fn run(&self) -> io::Result<(bool, Vec<u8>)> {
        let program = match &self.directory {
            Some(directory) => directory.join(self.program()).into_os_string(),
            None => self.program().into(),
        };
        let mut child = Command::new(program)
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            // What a helper says there is for its own users, and may hold what must not be logged.
            .stderr(Stdio::null())
            .kill_on_drop(true)
            // One of its own, so that what it has started ends with it.
            .process_group(0)
            .spawn()?;
        // Dropped before the child is, while its number is certainly its own.
        let mut group = Group(child.id().and_then(|id| Pid::from_raw(id.try_into().ok()?)));
        if let Some(mut input) = child.stdin.take() {
            // A helper that does not read its input is told by its answer.
            let _ = input.write_all(self.server.as_bytes()).await;
        }
        let mut output = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            stdout.take(MAX_ANSWER_BYTES + 1).read_to_end(&mut output).await?;
        }
        if output.len() as u64 > MAX_ANSWER_BYTES {
            group.kill();
        }
        let status = child.wait().await?;
        // Reaped: the number may be another's from here on. What it left running has answered, or nobody waits for it.
        group.0 = None;
        Ok((status.success(), output))
    }

    fn program(&self) -> String {
        format!("{PREFIX}{}", self.name)
    }

    fn failed(&self, what: &str) -> FetchError {
        FetchError::new(
            FetchErrorKind::Unauthorized,
            format!("credential helper {} {what}", self.program()),
        )
    }
}

impl Group {
    fn kill(&mut self) {
        if let Some(group) = self.0.take() {
            // Fails only when all of it has ended, which is what is wanted.
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.kill();
    }
}

impl fmt::Debug for Helper {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("Helper")
            .field("program", &self.program())
            .field("server", &self.server)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Writes a shell script by another process: a file that this one has had open for writing cannot be run for as long
    /// as a child that another test starts at the same moment holds a copy of the descriptor.
    pub(in crate::auth) fn write_program(path: &std::path::Path, script: &str) {
        let status = std::process::Command::new("sh")
            .args(["-c", r#"printf '#!/bin/sh\n%s\n' "$1" > "$0" && chmod 700 "$0""#])
            .arg(path)
            .arg(script)
            .status();
        assert!(status.unwrap().success());
    }

    /// A helper that is this shell script.
    fn helper(directory: &std::path::Path, script: &str) -> Helper {
        write_program(&directory.join("docker-credential-test"), script);
        Helper::new("test", "registry.example:5000")
            .unwrap()
            .in_directory(directory.to_owned())
    }

    #[tokio::test]
    async fn answers_become_credentials_or_errors_without_their_words() {
        for (name, script, expected) in [
            (
                "password",
                r#"[ "$1" = get ] && read -r server; [ "$server" = registry.example:5000 ] && echo '{"ServerURL":"x","Username":"alice","Secret":"p:q"}'"#,
                Ok(Some(Credentials::basic("alice", "p:q"))),
            ),
            (
                "token",
                r#"echo '{"Username":"<token>","Secret":"t"}'"#,
                Ok(Some(Credentials::identity_token("t"))),
            ),
            (
                "nothing",
                "echo credentials not found in native keychain; exit 1",
                Ok(None),
            ),
            ("no secret", r#"echo '{"Username":"x","Secret":""}'"#, Ok(None)),
            ("failure", "echo hunter2; echo hunter2 >&2; exit 3", Err("failed")),
            ("no JSON", "echo hunter2", Err("protocol")),
            ("half of it", r#"echo '{"Secret":"hunter2"}'"#, Err("protocol")),
            (
                "too much",
                "while echo hunter2hunter2hunter2hunter2; do :; done",
                Err("more than 65536 bytes"),
            ),
        ] {
            let directory = tempfile::tempdir().unwrap();
            let found = helper(directory.path(), script).ask().await;
            match (found, expected) {
                (Ok(found), Ok(expected)) => assert_eq!(found, expected, "{name}"),
                (Err(error), Err(words)) => {
                    let text = format!("{error:?}");
                    assert!(
                        text.contains(words) && !text.contains("hunter2"),
                        "{name}: {text}"
                    );
                }
                (found, expected) => panic!("{name}: {found:?} instead of {expected:?}"),
            }
        }
    }

    #[tokio::test]
    async fn a_helper_that_hangs_or_is_missing_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let mut hanging = helper(directory.path(), "exec sleep 600");
        hanging.timeout = Duration::from_millis(200);
        let error = hanging.ask().await.unwrap_err();
        assert!(error.to_string().contains("did not answer"), "{error}");
        let missing = Helper::new("missing", "x")
            .unwrap()
            .in_directory(directory.path().to_owned());
        let error = missing.ask().await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "credential helper docker-credential-missing cannot be run"
        );
    }

    #[tokio::test]
    async fn what_a_hanging_helper_has_started_ends_with_it() {
        let directory = tempfile::tempdir().unwrap();
        let note = directory.path().join("child");
        let script = format!("sleep 600 & echo $! > '{}'; wait", note.display());
        let hanging = helper(directory.path(), &script);
        // Until its child runs; then it is dropped, as it is when the time is over.
        let asking = tokio::spawn(async move { hanging.ask().await });
        let deadline = std::time::Instant::now() + Duration::from_secs(25);
        let child: u32 = loop {
            let text = std::fs::read_to_string(&note).unwrap_or_default();
            if let Some(line) = text.strip_suffix('\n') {
                break line.parse().unwrap();
            }
            assert!(std::time::Instant::now() < deadline, "the helper does not run");
            tokio::time::sleep(Duration::from_millis(5)).await;
        };
        asking.abort();
        assert!(asking.await.unwrap_err().is_cancelled());
        // Its parent is gone, so that somebody else reaps it: a zombie has ended as well.
        let lives = || {
            let stat = std::fs::read_to_string(format!("/proc/{child}/stat")).unwrap_or_default();
            stat.rsplit(") ")
                .next()
                .is_some_and(|rest| rest.starts_with(['S', 'R', 'D']))
        };
        while lives() {
            assert!(std::time::Instant::now() < deadline, "{child} lives on");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    #[test]
    fn a_name_is_no_path() {
        for name in ["", "../x", "a/b", "a b", "x\0", "ä"] {
            assert!(Helper::new(name, "x").is_none(), "{name:?}");
        }
        assert!(Helper::new("ecr-login", "x").is_some());
    }
}
