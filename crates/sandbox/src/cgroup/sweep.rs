//! What dead processes left behind, and how a group is ended.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};

use super::{GroupError, group::remove_directory};

/// How long what is swept may take to end.
const PATIENCE: Duration = Duration::from_secs(10);

/// Groups below one another that are looked at: service managers and orchestrators nest some five, a launching process
/// makes three.
const MAX_DEPTH: usize = 16;

/// A name that no other ever has: the pid namespace, number and time of start of this process, and a running number.
pub(super) fn identity() -> String {
    identity_of(std::process::id())
}

pub(super) fn identity_of(process: u32) -> String {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    format!(
        "{}-{process}-{}-{number}",
        namespace(),
        start_time(process).unwrap_or(0)
    )
}

fn namespace() -> u64 {
    fs::metadata("/proc/self/ns/pid").map_or(0, |namespace| namespace.ino())
}

/// In clock ticks since boot. Field 22 of `proc_pid_stat(5)`, the twentieth after the name.
///
/// A zombie has none: it does nothing any more, and who is to wait for it may not do so for long.
fn start_time(process: u32) -> Option<u64> {
    let stat = fs::read(format!("/proc/{process}/stat")).ok()?;
    let end_of_name = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = str::from_utf8(stat.get(end_of_name + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    match fields.next()? {
        "Z" | "X" => None,
        _ => fields.nth(18)?.parse().ok(),
    }
}

/// Ends and removes the groups `NAME-IDENTITY` (see [`identity`]) anywhere below `top` whose process is gone: the next
/// start need not be in the group that the last one was in. Those of another pid namespace are left alone: whether their
/// process lives cannot be seen from here.
pub(super) fn sweep(top: &Path, name: &str) {
    let is_left_behind = |group: &Path| {
        let found = group.file_name().and_then(|found| found.to_str());
        let identity = found.and_then(|found| found.strip_prefix(name)?.strip_prefix('-'));
        identity.is_some_and(is_left_behind)
    };
    // The deepest first, so a group is looked at before the one that it is in.
    for group in tree(top).into_iter().filter(|group| is_left_behind(group)) {
        tracing::info!(group = %group.display(), "Removing the control groups of a process that is gone");
        match end(&group) {
            // What cannot be killed keeps its group with its limits. To refuse the start for it would help nobody.
            Err(error @ GroupError::Unkillable { .. }) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "Processes of an earlier start live on"
                );
            }
            // As in a part of the hierarchy that this process may not write to.
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "Control groups of an earlier start stay"
                );
            }
            Ok(()) => {}
        }
    }
}

/// Whether an identity is that of a process of this pid namespace that is gone.
pub(super) fn is_left_behind(identity: &str) -> bool {
    owner(identity).is_some_and(|(process, started)| start_time(process) != Some(started))
}

/// The process and start time of `NAMESPACE-PROCESS-START-NUMBER`, when the namespace is ours.
fn owner(identity: &str) -> Option<(u32, u64)> {
    let mut parts = identity.split('-');
    let (namespace_there, process, started) = (parts.next()?, parts.next()?, parts.next()?);
    let _number: u64 = parts.next()?.parse().ok()?;
    if parts.next().is_some() || namespace_there.parse() != Ok(namespace()) {
        return None;
    }
    Some((process.parse().ok()?, started.parse().ok()?))
}

/// Kills everything in a tree of groups and removes it, deepest first.
fn end(top: &Path) -> Result<(), GroupError> {
    let unified = top.join("cgroup.events").exists();
    let deadline = Instant::now() + PATIENCE;
    for group in tree(top) {
        while !is_empty(unified, &group) {
            kill(unified, &group);
            if Instant::now() >= deadline {
                return Err(GroupError::Unkillable { path: group });
            }
            thread::sleep(Duration::from_millis(1));
        }
        remove_directory(&group)?;
    }
    Ok(())
}

/// All groups of a tree, the deepest first.
fn tree(top: &Path) -> Vec<PathBuf> {
    let mut groups = vec![(top.to_owned(), 0)];
    let mut next = 0;
    while let Some((group, depth)) = groups.get(next).cloned() {
        next += 1;
        let Ok(entries) = fs::read_dir(&group) else {
            continue;
        };
        for entry in entries.flatten() {
            if depth < MAX_DEPTH && entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                groups.push((entry.path(), depth + 1));
            }
        }
    }
    groups.into_iter().rev().map(|(group, _)| group).collect()
}

/// Sends SIGKILL to all in one group; in the unified hierarchy also to those below it.
pub(super) fn kill(unified: bool, directory: &Path) {
    if unified && fs::write(directory.join("cgroup.kill"), "1").is_ok() {
        return;
    }
    let members = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
    for process in members.lines().filter_map(|line| line.trim().parse().ok()) {
        if let Some(process) = Pid::from_raw(process) {
            // Gone since, or a number that is somebody else's by now: it would have had to leave the group between two
            // system calls, which only a process that has ended does, and numbers are given anew in turn.
            let _ = kill_process(process, Signal::KILL);
        }
    }
}

/// Whether nothing lives in a group. One that cannot be read is gone.
pub(super) fn is_empty(unified: bool, directory: &Path) -> bool {
    if unified && let Ok(events) = fs::read_to_string(directory.join("cgroup.events")) {
        return !events.lines().any(|line| line == "populated 1");
    }
    fs::read_to_string(directory.join("cgroup.procs")).is_ok_and(|members| members.trim().is_empty())
        || !directory.exists()
}
