//! Running programs of e2fsprogs.

use std::{
    ffi::OsString,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
};

use crate::{image::ImageError, text::printable};

/// The image's name for the program: its standard input, whatever it is called on disk, if it has a name at all.
pub(super) const IMAGE: &str = "/proc/self/fd/0";

/// The time that the program takes for now, in seconds: any constant, but 0 would mean the real time.
const NOW: &str = "1";

/// How much of what the program says is kept, in bytes.
const MAX_MESSAGE_BYTES: usize = 4096;

/// Finds a program in the system's directories. The caller's search path is not asked: it may be anybody's.
pub(super) fn find(name: &str) -> Option<PathBuf> {
    ["/usr/sbin", "/sbin", "/usr/bin", "/bin", "/usr/local/sbin"]
        .into_iter()
        .map(|directory| Path::new(directory).join(name))
        .find(|path| path.is_file())
}

/// Runs a program in `directory`, waits for its end and returns the last of what it said on standard error.
pub(super) fn run(
    name: &'static str,
    program: &Path,
    arguments: &[String],
    directory: &Path,
    image: &File,
) -> Result<String, ImageError> {
    let failed = |source| ImageError::Io {
        action: "run a program of e2fsprogs",
        source,
    };
    let (program, first_arguments): (_, Vec<OsString>) = match find("setpriv") {
        Some(setpriv) => (
            setpriv,
            vec![
                "--pdeathsig".into(),
                "KILL".into(),
                "--".into(),
                program.as_os_str().to_owned(),
            ],
        ),
        None => (program.to_owned(), Vec::new()),
    };
    let mut command = Command::new(program);
    command
        .args(first_arguments)
        .args(arguments)
        .current_dir(directory)
        .env_clear()
        .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LC_ALL", "C")
        .env("TZ", "UTC")
        // No defaults of the host.
        .env("MKE2FS_CONFIG", "/dev/null")
        .env("MKE2FS_SKIP_CHECK_MSG", "1")
        .env("MKE2FS_SKIP_PROGRESS", "1")
        .env("E2FSPROGS_FAKE_TIME", NOW)
        .stdin(image.try_clone().map_err(failed)?)
        .stdout(Stdio::null())
        .stderr(Stdio::piped());
    let mut running = Running(command.spawn().map_err(failed)?);
    let message = running
        .0
        .stderr
        .take()
        .map(|mut errors| read_tail(&mut errors))
        .unwrap_or_default();
    let status = running.0.wait().map_err(failed)?;
    if status.success() {
        return Ok(message);
    }
    Err(ImageError::Program {
        program: name,
        status: status.to_string(),
        message,
    })
}

/// A process that does not outlive its guard.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // After an orderly end both do nothing; otherwise there is nobody left to tell.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Reads to the end and keeps the last lines, without control characters: names of a layer can be in them.
fn read_tail(errors: &mut impl Read) -> String {
    let mut tail = Vec::new();
    let mut buffer = [0; 1024];
    // A read that fails ends the message, not the run: the exit status says what happened.
    while let Ok(length @ 1..) = errors.read(&mut buffer) {
        tail.extend_from_slice(&buffer[..length]);
        let excess = tail.len().saturating_sub(MAX_MESSAGE_BYTES);
        tail.drain(..excess);
    }
    let lines: Vec<String> = tail
        .split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(printable)
        .collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests {
    use super::{MAX_MESSAGE_BYTES, read_tail};

    #[test]
    fn the_end_of_a_long_message_is_kept_and_cannot_drive_a_terminal() {
        let message = [&b"x".repeat(10_000)[..], b"\nlast \x1b[2Jwords\n"].concat();
        let tail = read_tail(&mut &message[..]);
        assert!(tail.ends_with("; last \\u{1b}[2Jwords"), "{tail}");
        assert!(tail.len() < MAX_MESSAGE_BYTES + 20);
    }
}
