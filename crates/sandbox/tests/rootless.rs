//! Boxes for who is not root: with control groups that are delegated every layer is there, without them one is missing.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

use std::{
    fs,
    os::unix::fs::{PermissionsExt, chown},
    path::{Path, PathBuf},
    process::Command,
};

use test_support::lab;

/// A user that nobody is.
const USER: u32 = 54_321;

/// A group in each hierarchy, below those of this process, that belongs to [`USER`]; removed with this.
struct Delegated {
    groups: Vec<PathBuf>,
}

impl Delegated {
    fn new() -> std::io::Result<Self> {
        let mut delegated = Self { groups: Vec::new() };
        for own in own_groups() {
            // Where the unified hierarchy has the controllers, who has started boxes has moved there: its group holds no
            // process then, and gives the controllers to those below.
            let own = match own.ends_with("sandbox-test-daemon") {
                true => own.parent().unwrap_or(&own),
                false => &own,
            };
            let group = own.join(format!("sandbox-rootless-{}", std::process::id()));
            fs::create_dir(&group)?;
            delegated.groups.push(group.clone());
            // What `Delegate=` of systemd.resource-control(5) gives away; version 1 has not all of it.
            for name in [
                "",
                "cgroup.procs",
                "cgroup.threads",
                "cgroup.subtree_control",
                "tasks",
            ] {
                let file = group.join(name);
                if file.exists() {
                    chown(file, Some(USER), Some(USER))?;
                }
            }
        }
        let limits = ["memory.max", "memory.limit_in_bytes"];
        let has_limits = |group: &PathBuf| limits.iter().any(|name| group.join(name).exists());
        if !delegated.groups.iter().any(has_limits) {
            return Err(std::io::Error::other("no group gets the memory controller"));
        }
        Ok(delegated)
    }

    /// Groups that are left in it, but for the one that a process in the unified hierarchy moves itself to.
    fn left(&self) -> Vec<PathBuf> {
        let below = self.groups.iter().flat_map(|group| fs::read_dir(group).unwrap());
        let paths = below.map(|entry| entry.unwrap().path());
        paths
            .filter(|path| path.is_dir() && !path.ends_with("box-check-daemon"))
            .collect()
    }
}

impl Drop for Delegated {
    fn drop(&mut self) {
        for group in &self.groups {
            let _ = fs::remove_dir(group.join("box-check-daemon"));
            let _ = fs::remove_dir(group);
        }
    }
}

/// The directories of the groups that this process is in. `proc_pid_mountinfo(5)`, `cgroups(7)`.
fn own_groups() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let memberships = fs::read_to_string("/proc/self/cgroup").unwrap();
    let mounted = |controllers: &str| {
        let line = mounts.lines().find(|line| {
            let Some((_, kind)) = line.split_once(" - ") else {
                return false;
            };
            match controllers {
                "" => kind.starts_with("cgroup2 "),
                names => kind.starts_with("cgroup ") && names.split(',').all(|name| has_option(kind, name)),
            }
        })?;
        let mut fields = line.split(' ').skip(3);
        Some((fields.next()?, fields.next()?))
    };
    let group_of = |line: &str| {
        let mut parts = line.splitn(3, ':').skip(1);
        let controllers = parts.next()?;
        // Others take no process before they are set up, as cpuset.
        let is_used = |name| matches!(name, "" | "memory" | "pids" | "cpu" | "cpuacct");
        let (root, mount_point) = mounted(controllers.split(',').any(is_used).then_some(controllers)?)?;
        let path = Path::new(parts.next()?).strip_prefix(root).ok()?;
        Some(Path::new(mount_point).join(path))
    };
    memberships.lines().filter_map(group_of).collect()
}

fn has_option(kind: &str, name: &str) -> bool {
    let options = kind.rsplit(' ').next().unwrap_or_default();
    options.split(',').any(|option| option == name)
}

/// What `box-check` says as [`USER`], in these groups.
fn check(programs: &Path, groups: &[PathBuf]) -> String {
    const SCRIPT: &str = r#"
        for group in "$@"; do echo $$ > "$group/cgroup.procs" || exit 1; done
        exec setpriv --reuid "$USER_ID" --regid "$USER_ID" --clear-groups \
            "$PROGRAMS/box-check" "$PROGRAMS/sandbox-helper" "$PROGRAMS/escape-probe"
    "#;
    let output = Command::new("sh")
        .args(["-c", SCRIPT, "sh"])
        .args(groups)
        .env("USER_ID", USER.to_string())
        .env("PROGRAMS", programs)
        .current_dir("/")
        .output()
        .unwrap();
    format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    )
}

#[test]
fn privileged_who_is_not_root_has_every_layer_with_delegated_groups_and_not_without() {
    // Root gives them away; the boxes are made without it.
    if common::full_sandbox().is_none() {
        return;
    }
    let delegated = match Delegated::new() {
        Ok(delegated) => delegated,
        Err(error) => return lab::skip(format!("no control groups can be given away here: {error}")),
    };
    let directory = tempfile::tempdir().unwrap();
    let open = fs::Permissions::from_mode(0o755);
    fs::set_permissions(directory.path(), open.clone()).unwrap();
    for name in ["box-check", "sandbox-helper", "escape-probe"] {
        let path = directory.path().join(name);
        fs::write(&path, common::static_programs::program(name)).unwrap();
        fs::set_permissions(path, open.clone()).unwrap();
    }

    let said = check(directory.path(), &delegated.groups);
    assert_eq!(said.matches(": ok\n").count(), 9, "{said}");
    assert!(!said.contains("FAILED"), "{said}");
    assert_eq!(delegated.left(), Vec::<PathBuf>::new());

    let said = check(directory.path(), &[]);
    let layers = said.lines().find(|line| line.starts_with("check layers: FAILED"));
    assert!(
        layers.is_some_and(|line| line.contains("ControlGroups")),
        "{said}"
    );
    // And what was asked for is refused, not run with less.
    assert!(
        said.lines()
            .any(|line| line.starts_with("check exit code: FAILED")),
        "{said}"
    );
    assert!(!said.contains(": ok"), "{said}");
}
