//! What the image says about its command: `/container.cmd` and `/container.env`.
//!
//! `/container.cmd` is a JSON array of strings, entrypoint and arguments. `/container.env` is a JSON object:
//!
//! | field | type | when absent or null |
//! |---|---|---|
//! | `working_dir` | string | `/` |
//! | `env` | object of name to value, both strings | nothing |
//! | `user` | string, as in Docker's USER | root |
//! | `exposed_ports` | (for others) | |
//! | `stop_signal` | string, as in Docker's STOPSIGNAL | `SIGTERM` |
//! | `init_strategy` | `direct` to become the command, `tini` to supervise it | `tini` |
//!
//! Unknown fields are ignored. PATH is always set.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fmt,
    path::{Component, Path, PathBuf},
};

use serde_json::{Map, Value};

use crate::{
    cmdline::KernelArguments,
    signals::{self, Signal},
};

/// Where the command is.
pub const COMMAND_FILE: &str = "/container.cmd";
/// Where the rest is.
pub const ENVIRONMENT_FILE: &str = "/container.env";
/// Larger files are refused: process 1 reads them into memory.
pub const LARGEST_FILE: u64 = 1 << 20;
/// PATH when the image sets none, the same as Docker's.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A command and what it is to find, complete but for what only the guest's files tell (numbers of users, PATH search).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// The command and its arguments; never empty.
    pub command: Vec<OsString>,
    /// The environment; PATH is always in it.
    pub environment: BTreeMap<OsString, OsString>,
    /// An absolute path.
    pub working_directory: PathBuf,
    /// As in Docker's USER: `user`, `user:group`, numbers or names; empty for root.
    pub user: String,
    /// What asks the command to end.
    pub stop_signal: Signal,
    /// A STOPSIGNAL of the image that is no signal; `SIGTERM` is sent then.
    pub unknown_stop_signal: Option<String>,
    /// Whether the init becomes the command, which is process 1 then, instead of supervising it.
    pub is_direct: bool,
}

/// A file of the image does not say what it should.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InvalidContainer {
    file: &'static str,
    reason: String,
}

impl Container {
    /// Puts together what the files and the kernel say; the kernel has the last word.
    ///
    /// A file that is `None` does not exist, and its defaults hold.
    ///
    /// # Errors
    ///
    /// [`InvalidContainer`] when a file is not of the form above: to run a command with half of its settings would be
    /// worse than not to run it.
    pub fn new(
        command_file: Option<&[u8]>,
        environment_file: Option<&[u8]>,
        kernel: &KernelArguments,
    ) -> Result<Self, InvalidContainer> {
        let from_kernel = kernel.command.clone().map(Ok);
        let command =
            from_kernel.unwrap_or_else(|| command_file.map_or_else(default_command, parse_command))?;

        let fields = environment_file.map_or_else(|| Ok(Map::new()), parse_fields)?;
        let mut environment = environment_of(&fields)?;
        environment.extend(kernel.environment.iter().cloned());
        environment
            .entry("PATH".into())
            .or_insert_with(|| DEFAULT_PATH.into());

        let named = text(&fields, "working_dir")?.unwrap_or_default();
        let working_directory = kernel
            .working_directory
            .clone()
            .unwrap_or_else(|| PathBuf::from(named));

        // A wrong one is no reason not to run what works until somebody stops it.
        let named = text(&fields, "stop_signal")?.filter(|name| !name.is_empty());
        let known = named.map(|name| signals::parse(name).ok_or_else(|| name.to_owned()));
        let (stop_signal, unknown_stop_signal) = match known {
            None => (Signal::TERMINATE, None),
            Some(Ok(signal)) => (signal, None),
            Some(Err(name)) => (Signal::TERMINATE, Some(name)),
        };
        let is_direct = match text(&fields, "init_strategy")? {
            None | Some("" | "tini") => false,
            Some("direct") => true,
            Some(other) => {
                let reason = format!("init_strategy {other:?} is neither tini nor direct");
                return Err(invalid(ENVIRONMENT_FILE, reason));
            }
        };
        Ok(Self {
            command,
            environment,
            is_direct,
            working_directory: normalized(&working_directory),
            user: text(&fields, "user")?.unwrap_or_default().to_owned(),
            stop_signal,
            unknown_stop_signal,
        })
    }
}

/// An absolute path without `.` and `..`, which are taken by their letters as Docker takes them, never above the root.
fn normalized(path: &Path) -> PathBuf {
    let mut result = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::Normal(name) => result.push(name),
            Component::ParentDir => {
                result.pop();
            }
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    result
}

fn default_command() -> Result<Vec<OsString>, InvalidContainer> {
    Ok(vec!["/bin/sh".into()])
}

fn parse_command(bytes: &[u8]) -> Result<Vec<OsString>, InvalidContainer> {
    let command: Vec<String> =
        serde_json::from_slice(bytes).map_err(|error| not_json(COMMAND_FILE, &error))?;
    if command.first().is_none_or(String::is_empty) {
        return Err(invalid(COMMAND_FILE, "the command is empty"));
    }
    Ok(command.into_iter().map(OsString::from).collect())
}

fn parse_fields(bytes: &[u8]) -> Result<Map<String, Value>, InvalidContainer> {
    serde_json::from_slice(bytes).map_err(|error| not_json(ENVIRONMENT_FILE, &error))
}

fn environment_of(fields: &Map<String, Value>) -> Result<BTreeMap<OsString, OsString>, InvalidContainer> {
    let variables = match fields.get("env") {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Object(variables)) => variables,
        Some(_) => return Err(invalid(ENVIRONMENT_FILE, "env is not an object")),
    };
    let mut environment = BTreeMap::new();
    for (name, value) in variables {
        if name.is_empty() || name.contains('=') {
            return Err(invalid(ENVIRONMENT_FILE, format!("env has the name {name:?}")));
        }
        let value = value.as_str();
        let value = value.ok_or_else(|| invalid(ENVIRONMENT_FILE, format!("env.{name} is not a string")))?;
        environment.insert(name.into(), value.into());
    }
    Ok(environment)
}

fn text<'fields>(
    fields: &'fields Map<String, Value>,
    name: &str,
) -> Result<Option<&'fields str>, InvalidContainer> {
    match fields.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(value)) => Ok(Some(value)),
        Some(_) => Err(invalid(ENVIRONMENT_FILE, format!("{name} is not a string"))),
    }
}

fn not_json(file: &'static str, error: &serde_json::Error) -> InvalidContainer {
    invalid(file, error.to_string())
}

fn invalid(file: &'static str, reason: impl Into<String>) -> InvalidContainer {
    InvalidContainer {
        file,
        reason: reason.into(),
    }
}

impl fmt::Display for InvalidContainer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.file, self.reason)
    }
}

impl std::error::Error for InvalidContainer {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn container(command: Option<&str>, environment: Option<&str>, line: &str) -> Result<Container, String> {
        let (command, environment) = (command.map(str::as_bytes), environment.map(str::as_bytes));
        Container::new(command, environment, &KernelArguments::parse(line.as_bytes()))
            .map_err(|error| error.to_string())
    }

    fn variables(container: &Container) -> Vec<String> {
        let pair = |(name, value): (&OsString, &OsString)| format!("{}={}", name.display(), value.display());
        container.environment.iter().map(pair).collect()
    }

    #[test]
    fn without_files_there_is_a_shell_in_the_root() {
        let container = container(None, None, "").unwrap();
        assert_eq!(container.command, ["/bin/sh"]);
        assert_eq!(variables(&container), [format!("PATH={DEFAULT_PATH}")]);
        assert_eq!(container.working_directory, PathBuf::from("/"));
        assert_eq!(container.user, "");
        assert_eq!(container.stop_signal, Signal::TERMINATE);
    }

    #[test]
    fn the_files_say_how() {
        let container = container(
            Some(r#"["nginx", "-g", "daemon off;"]"#),
            Some(
                r#"{"working_dir": "/srv", "env": {"PATH": "/bin", "B": ""}, "user": "www-data",
                    "exposed_ports": ["80/tcp"], "stop_signal": "SIGQUIT", "unknown": 1}"#,
            ),
            "",
        )
        .unwrap();
        assert_eq!(container.command, ["nginx", "-g", "daemon off;"]);
        assert_eq!(variables(&container), ["B=", "PATH=/bin"]);
        assert_eq!(container.working_directory, PathBuf::from("/srv"));
        assert_eq!(container.user, "www-data");
        assert_eq!(container.stop_signal, signals::parse("QUIT").unwrap());
    }

    #[test]
    fn working_directories_are_taken_as_docker_takes_them() {
        for (given, expected) in [
            ("", "/"),
            ("srv", "/srv"),
            ("../../..", "/"),
            ("/srv/../data/./x/", "/data/x"),
            ("/../../etc", "/etc"),
            ("//a//b", "/a/b"),
        ] {
            let file = format!(r#"{{"working_dir": "{given}"}}"#);
            let container = container(None, Some(&file), "").unwrap();
            assert_eq!(container.working_directory, PathBuf::from(expected), "{given}");
        }
        let kernel = container(None, None, "workdir=/a/../../b").unwrap();
        assert_eq!(kernel.working_directory, PathBuf::from("/b"));
    }

    #[test]
    fn the_strategy_is_to_supervise_unless_the_image_says_otherwise() {
        for (text, expected) in [
            ("{}", Ok(false)),
            (r#"{"init_strategy": "tini"}"#, Ok(false)),
            (r#"{"init_strategy": "direct"}"#, Ok(true)),
            (r#"{"init_strategy": "other"}"#, Err(())),
        ] {
            let result = container(None, Some(text), "").map(|container| container.is_direct);
            assert_eq!(result.map_err(drop), expected, "{text}");
        }
    }

    #[test]
    fn the_kernel_has_the_last_word() {
        let line = "env.A=kernel env.C=new workdir=data -- /bin/other arg";
        let environment = r#"{"working_dir": "/srv", "env": {"A": "image", "B": "image"}}"#;
        let container = container(Some(r#"["x"]"#), Some(environment), line).unwrap();
        assert_eq!(container.command, ["/bin/other", "arg"]);
        assert_eq!(variables(&container)[..3], ["A=kernel", "B=image", "C=new"]);
        assert_eq!(
            container.working_directory,
            PathBuf::from("/data"),
            "relative to the root"
        );
    }

    #[test]
    fn files_of_another_form_are_refused() {
        let cases = [
            ("no json", Some("/bin/sh"), None, "/container.cmd: "),
            ("no array", Some("{}"), None, "/container.cmd: "),
            ("number in the command", Some("[1]"), None, "/container.cmd: "),
            (
                "empty command",
                Some("[]"),
                None,
                "/container.cmd: the command is empty",
            ),
            (
                "empty program",
                Some(r#"["", "a"]"#),
                None,
                "/container.cmd: the command is empty",
            ),
            ("empty file", None, Some(""), "/container.env: "),
            (
                "env is a list",
                None,
                Some(r#"{"env": ["A=1"]}"#),
                "/container.env: env is not an object",
            ),
            (
                "env without name",
                None,
                Some(r#"{"env": {"": "1"}}"#),
                "/container.env: env has the name \"\"",
            ),
            (
                "number in env",
                None,
                Some(r#"{"env": {"A": 1}}"#),
                "/container.env: env.A is not a string",
            ),
            (
                "user is a number",
                None,
                Some(r#"{"user": 0}"#),
                "/container.env: user is not a string",
            ),
        ];
        for (name, command, environment, expected) in cases {
            let error = container(command, environment, "").unwrap_err();
            assert!(error.starts_with(expected), "{name}: {error}");
        }
    }

    #[test]
    fn a_stop_signal_that_is_none_is_told_and_replaced() {
        let container = container(None, Some(r#"{"stop_signal": "SIGNOT"}"#), "").unwrap();
        assert_eq!(container.stop_signal, Signal::TERMINATE);
        assert_eq!(container.unknown_stop_signal.as_deref(), Some("SIGNOT"));
    }

    #[test]
    fn absent_and_null_are_the_same() {
        let nulls = r#"{"working_dir": null, "env": null, "user": null, "stop_signal": null}"#;
        assert_eq!(container(None, Some(nulls), ""), container(None, None, ""));
    }

    proptest! {
        #[test]
        fn random_files_are_understood_or_refused(
            command in prop::collection::vec(any::<u8>(), 0..100),
            environment in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let kernel = KernelArguments::default();
            if let Ok(container) = Container::new(Some(&command), Some(&environment), &kernel) {
                prop_assert!(!container.command.is_empty() && container.working_directory.is_absolute());
            }
        }

        #[test]
        fn deeply_nested_files_are_refused(depth in 1..2000_usize) {
            let file = [r#"{"env":"#, &"[".repeat(depth)].concat();
            prop_assert!(container(None, Some(&file), "").is_err());
        }
    }
}
