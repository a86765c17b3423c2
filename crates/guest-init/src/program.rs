//! Which file a command means.

use std::{
    ffi::OsStr,
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

/// What a command means, by the rules of `execvp(3)`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lookup {
    /// This file; it may still turn out not to be executable.
    Found(PathBuf),
    /// No directory of PATH holds an executable file of that name.
    NotInPath,
}

/// Looks for `command` in the directories of `path`.
///
/// A command with a slash is no matter of PATH: it is taken as it is, relative to `working_directory`. So are relative
/// directories in PATH; an empty one is the working directory itself.
pub fn find(
    command: &OsStr,
    path: &OsStr,
    working_directory: &Path,
    is_executable: impl Fn(&Path) -> bool,
) -> Lookup {
    if command.as_bytes().contains(&b'/') {
        return Lookup::Found(working_directory.join(command));
    }
    let directories = path.as_bytes().split(|&byte| byte == b':');
    let mut candidates = directories
        .map(|directory| working_directory.join(OsStr::from_bytes(directory)).join(command))
        .filter(|candidate| is_executable(candidate));
    candidates.next().map_or(Lookup::NotInPath, Lookup::Found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commands_are_found_as_execvp_finds_them() {
        let files = ["/bin/sh", "/usr/bin/sh", "/srv/run", "/srv/tools/run2"];
        let found = |path: &str| Lookup::Found(path.into());
        let cases = [
            (
                "first directory wins",
                "sh",
                "/usr/bin:/bin",
                found("/usr/bin/sh"),
            ),
            ("later directory", "sh", "/opt:/bin", found("/bin/sh")),
            (
                "absolute path is not looked up",
                "/nothing",
                "/bin",
                found("/nothing"),
            ),
            (
                "path below the working directory",
                "./run",
                "/bin",
                found("/srv/./run"),
            ),
            (
                "empty directory is the working directory",
                "run",
                "/bin:",
                found("/srv/run"),
            ),
            ("relative directory", "run2", "tools", found("/srv/tools/run2")),
            ("nowhere", "run3", "/bin:/usr/bin", Lookup::NotInPath),
        ];
        for (name, command, path, expected) in cases {
            let is_executable = |candidate: &Path| files.iter().any(|file| Path::new(file) == candidate);
            let result = find(command.as_ref(), path.as_ref(), Path::new("/srv"), is_executable);
            assert_eq!(result, expected, "{name}");
        }
    }
}
