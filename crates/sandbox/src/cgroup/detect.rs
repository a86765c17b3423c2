//! Which hierarchies the host has, and where this process is in each: text in, paths out.

use std::{
    fmt,
    path::{Path, PathBuf},
};

use super::Controller;

/// How a host has its control groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Version {
    /// One hierarchy for each controller.
    V1,
    /// Version 1 for the limits, and the unified hierarchy without controllers beside it.
    Hybrid,
    /// The unified hierarchy alone.
    V2,
}

/// One hierarchy that is of use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Hierarchy {
    /// The directory of the group that this process is in.
    pub(crate) directory: PathBuf,
    /// The topmost group that is seen here.
    pub(crate) top: PathBuf,
    pub(crate) unified: bool,
    pub(crate) controllers: Vec<Controller>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Host {
    pub(crate) version: Version,
    pub(crate) hierarchies: Vec<Hierarchy>,
}

/// A mounted hierarchy. `proc_pid_mountinfo(5)`.
struct Mount {
    /// The group that is seen at the mount point.
    root: String,
    point: PathBuf,
    unified: bool,
    /// Options of the file system: the controllers, in version 1.
    options: Vec<String>,
}

impl Hierarchy {
    pub(crate) fn has(&self, controller: Controller) -> bool {
        self.controllers.contains(&controller)
    }

    /// What `cgroup.subtree_control` is to be told.
    pub(crate) fn to_enable(&self) -> String {
        let names: Vec<_> = self
            .controllers
            .iter()
            .filter(|&&controller| controller != Controller::CpuTime)
            .map(|controller| format!("+{controller}"))
            .collect();
        names.join(" ")
    }
}

impl Version {
    /// The word for it: `v1`, `hybrid` or `v2`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::Hybrid => "hybrid",
            Self::V2 => "v2",
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

/// Reads `/proc/self/mountinfo` and `/proc/self/cgroup`; `read` gives a file's text.
pub(crate) fn detect(mountinfo: &str, own_groups: &str, read: impl Fn(&Path) -> Option<String>) -> Host {
    const ALL: [Controller; 4] = [
        Controller::Memory,
        Controller::Processes,
        Controller::Cpu,
        Controller::CpuTime,
    ];
    let mounts: Vec<Mount> = mountinfo.lines().filter_map(mount).collect();
    let mut hierarchies: Vec<Hierarchy> = Vec::new();
    // Lines `number:controllers:path`; the unified hierarchy is number 0 and names no controller. cgroups(7).
    for line in own_groups.lines() {
        let mut fields = line.splitn(3, ':');
        let (Some(number), Some(names), Some(path)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let unified = number == "0" && names.is_empty();
        let named: Vec<&str> = names.split(',').collect();
        let found = mounts.iter().find(|mount| {
            mount.unified == unified
                && (unified
                    || named
                        .iter()
                        .all(|name| mount.options.iter().any(|option| option == name)))
        });
        let Some((top, directory)) = found.and_then(|mount| Some((&mount.point, directory(mount, path)?)))
        else {
            continue;
        };
        let controllers: Vec<Controller> = if unified {
            let there = read(&directory.join("cgroup.controllers")).unwrap_or_default();
            let there: Vec<&str> = there.split_ascii_whitespace().collect();
            // CPU time is counted without any controller.
            ALL.into_iter()
                .filter(|&controller| controller == Controller::CpuTime || there.contains(&controller.name()))
                .collect()
        } else {
            ALL.into_iter()
                .filter(|controller| named.contains(&controller.name()))
                .collect()
        };
        if unified || !controllers.is_empty() {
            hierarchies.push(Hierarchy {
                directory,
                top: top.clone(),
                unified,
                controllers,
            });
        }
    }
    let limits_unified = hierarchies
        .iter()
        .any(|hierarchy| hierarchy.unified && hierarchy.has(Controller::Memory));
    let version = match hierarchies.iter().any(|hierarchy| hierarchy.unified) {
        true if limits_unified => Version::V2,
        true => Version::Hybrid,
        false => Version::V1,
    };
    Host { version, hierarchies }
}

/// `36 35 98:0 /root /point rw,noatime master:1 - cgroup2 source rw,options`.
fn mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut left = left.split(' ').skip(3);
    let (root, point) = (left.next()?, left.next()?);
    let mut right = right.split(' ');
    let kind = right.next()?;
    let options = right.nth(1)?;
    let unified = match kind {
        "cgroup" => false,
        "cgroup2" => true,
        _ => return None,
    };
    Some(Mount {
        root: root.to_owned(),
        point: PathBuf::from(unescape(point)),
        unified,
        options: options.split(',').map(str::to_owned).collect(),
    })
}

/// A group's directory: what is below the mount's own root. `None` for a group that is not seen at the mount.
fn directory(mount: &Mount, group: &str) -> Option<PathBuf> {
    let below = Path::new(group).strip_prefix(&mount.root).ok()?;
    // Outside of this process's control group namespace paths begin with `/..`.
    if below
        .components()
        .any(|component| component == std::path::Component::ParentDir)
    {
        return None;
    }
    Some(mount.point.join(below))
}

/// Spaces and the like stand in octal: `\040`.
fn unescape(text: &str) -> String {
    let mut plain = String::new();
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('\\') {
        plain.push_str(before);
        let digits = after
            .get(..3)
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match digits {
            Some(byte) => {
                plain.push(char::from(byte));
                rest = &after[3..];
            }
            None => {
                plain.push('\\');
                rest = after;
            }
        }
    }
    plain + rest
}
