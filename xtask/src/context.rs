//! Where things are, and how programs are run.

use std::{
    env,
    ffi::OsStr,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

/// What went wrong, in words for the one who typed the command.
pub(crate) type Result<T, E = String> = std::result::Result<T, E>;

/// Where the workspace and its target directory are.
pub(crate) struct Context {
    pub(crate) root: PathBuf,
    pub(crate) target: PathBuf,
}

impl Context {
    pub(crate) fn new() -> Self {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"))
            .parent()
            .unwrap_or(Path::new("."))
            .to_owned();
        let target = match env::var_os("CARGO_TARGET_DIR") {
            // Relative to where the command was typed, as cargo has it.
            Some(directory) if !directory.is_empty() => {
                std::path::absolute(&directory).unwrap_or_else(|_| root.join(directory))
            }
            _ => root.join("target"),
        };
        Self { root, target }
    }

    /// The directory for what is fetched or made once.
    pub(crate) fn lab(&self) -> PathBuf {
        self.target.join("lab")
    }

    /// Cargo, with the workspace as its working directory and one target directory for all.
    pub(crate) fn cargo(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        command
            .args(arguments)
            .current_dir(&self.root)
            .env("CARGO_TARGET_DIR", &self.target);
        command
    }

    /// Tells the end-to-end package and the demo where the programs are that they run.
    pub(crate) fn with_programs<'a>(&self, command: &'a mut Command) -> Result<&'a mut Command> {
        Ok(command
            .env("CARGO_TARGET_DIR", &self.target)
            .env("BUILDERD_BINARY", self.target.join("debug/builderd"))
            .env("BUILDERD_CLI_BINARY", self.target.join("debug/builderd-cli"))
            .env(
                "BUILDERD_METHODS_EXAMPLE",
                self.target.join("debug/examples/methods"),
            )
            .env("BUILDERD_DEMO_BINARY", self.target.join("debug/demo"))
            .env("BUILDERD_GUEST_HELLO", self.guest_program("guest-hello")?))
    }

    /// Builds a static program of the `guest-init` package, as it runs inside a virtual machine, and says where it is.
    fn guest_program(&self, name: &str) -> Result<PathBuf> {
        let version = output(Command::new("rustc").arg("-vV"))?;
        let host = version
            .lines()
            .find_map(|line| line.strip_prefix("host: "))
            .ok_or("rustc does not say its host")?;
        let target = self.target.join("guest");
        let mut cargo = self.cargo(&[
            "build",
            "--quiet",
            "--release",
            "--package",
            "guest-init",
            "--bin",
            name,
        ]);
        // A target of its own and its name on the command line keep the flags away from build scripts.
        cargo.args(["--target", host]).env("CARGO_TARGET_DIR", &target);
        cargo.env("RUSTFLAGS", "-C target-feature=+crt-static");
        cargo.env_remove("CARGO_ENCODED_RUSTFLAGS");
        run(&mut cargo)?;
        Ok(target.join(host).join("release").join(name))
    }
}

/// Runs a program that shows what it does; an error names the command.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command
        .status()
        .map_err(|error| format!("cannot run {}: {error}", describe(command)))?;
    if status.success() {
        Ok(())
    } else {
        Err(format!("{} ended with {status}", describe(command)))
    }
}

/// Runs a program for its standard output.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output = command
        .stderr(Stdio::inherit())
        .output()
        .map_err(|error| format!("cannot run {}: {error}", describe(command)))?;
    if !output.status.success() {
        return Err(format!("{} ended with {}", describe(command), output.status));
    }
    String::from_utf8(output.stdout).map_err(|_| format!("{} printed no UTF-8", describe(command)))
}

fn describe(command: &Command) -> String {
    let words: Vec<_> = std::iter::once(command.get_program())
        .chain(command.get_args())
        .map(OsStr::to_string_lossy)
        .collect();
    let line = words.join(" ");
    match line.char_indices().nth(200) {
        Some((end, _)) => format!("`{}…`", &line[..end]),
        None => format!("`{line}`"),
    }
}

/// Whether a program is in `PATH` or in the directories for administrators.
pub(crate) fn has_program(name: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .any(|directory| directory.join(name).is_file())
}

/// Whether this process may do everything.
pub(crate) fn is_root() -> bool {
    output(Command::new("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

/// Turns an error of the file system into words with the path.
pub(crate) fn at<T>(path: &Path, result: std::io::Result<T>) -> Result<T> {
    result.map_err(|error| format!("{}: {error}", path.display()))
}
