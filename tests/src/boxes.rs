//! What a daemon's boxes leave on this machine, seen from outside.

use std::path::{Path, PathBuf};

/// Control groups of the daemon that has or had this process id, in every hierarchy: `builderd-NAMESPACE-PROCESS-…`.
#[must_use]
pub fn control_groups_of(process: u32) -> Vec<PathBuf> {
    let mut pending = vec![PathBuf::from("/sys/fs/cgroup")];
    let mut found = Vec::new();
    while let Some(directory) = pending.pop() {
        for path in directories_in(&directory) {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            let identity = name.strip_prefix("builderd-");
            let owner = identity.and_then(|identity| identity.split('-').nth(1)?.parse().ok());
            if owner == Some(process) {
                found.push(path);
            } else {
                pending.push(path);
            }
        }
    }
    found
}

/// A directory and all below it, the deepest first.
#[must_use]
pub fn with_all_below(directory: &Path) -> Vec<PathBuf> {
    let mut found = vec![directory.to_owned()];
    let mut next = 0;
    while let Some(directory) = found.get(next).cloned() {
        found.extend(directories_in(&directory));
        next += 1;
    }
    found.reverse();
    found
}

fn directories_in(directory: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

/// Processes in the boxes of a daemon, as the host numbers them.
#[must_use]
pub fn processes_in_boxes(daemon: u32) -> Vec<u32> {
    let mut processes: Vec<u32> = control_groups_of(daemon)
        .iter()
        .flat_map(|group| with_all_below(group))
        .filter_map(|group| std::fs::read_to_string(group.join("cgroup.procs")).ok())
        .flat_map(|members| {
            members
                .lines()
                .filter_map(|line| line.parse().ok())
                .collect::<Vec<_>>()
        })
        .filter(|process| *process != daemon)
        .collect();
    processes.sort_unstable();
    processes.dedup();
    processes
}

/// The empty root of a box is a tmpfs with two inodes; in this mount namespace there must never be one.
///
/// # Errors
/// When the kernel does not tell its mounts.
pub fn mounts_of_boxes() -> std::io::Result<Vec<String>> {
    let all = std::fs::read_to_string("/proc/self/mountinfo")?;
    let roots = all.lines().filter(|line| line.contains("nr_inodes=2,"));
    Ok(roots.map(str::to_owned).collect())
}
