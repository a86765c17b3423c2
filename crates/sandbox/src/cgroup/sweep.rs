//! What dead processes left behind, and how a group is ended.

use std::{
    fs,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::{GroupError, group::remove_directory};

/// How long what is swept may take to end.
pub(super) const PATIENCE: Duration = Duration::from_secs(10);

/// Processes that are held open at a time to be signalled.
const DESCRIPTORS: usize = 64;

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

/// Processes of an earlier start that live on after SIGKILL, as one in uninterruptible sleep does. They keep their control
/// group with its limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Survivor {
    name: String,
    /// In each hierarchy where something lives, the group that this process's predecessor had made.
    bases: Vec<PathBuf>,
}

impl Survivor {
    /// The name that the group has, or the one that it is in, below its launching process's own.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Kills them once more, and says whether they are gone now; if so, their groups are removed.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        let all_gone = self.bases.iter().all(|base| {
            let ended = end(&base.join(&self.name), Instant::now());
            ended.is_ok_and(|living| living.is_empty())
        });
        for base in self.bases.iter().filter(|_| all_gone) {
            // Another survivor may be in it, who will do it then.
            let _ = fs::remove_dir(base);
        }
        all_gone
    }
}

/// Ends and removes the groups `NAME-IDENTITY` (see [`identity`]) anywhere below each of `tops` whose process is gone: the
/// next start need not be in the group that the last one was in. Those of another pid namespace are left alone: whether
/// their process lives cannot be seen from here.
///
/// What lives on `patience` after SIGKILL is given back. To refuse the start for it would help nobody.
pub(super) fn sweep(tops: &[&Path], name: &str, patience: Duration) -> Vec<Survivor> {
    let is_left_behind = |group: &Path| {
        let found = group.file_name().and_then(|found| found.to_str());
        let identity = found.and_then(|found| found.strip_prefix(name)?.strip_prefix('-'));
        identity.is_some_and(is_left_behind)
    };
    let deadline = Instant::now() + patience;
    let mut survivors: Vec<Survivor> = Vec::new();
    // The deepest first, so a group is looked at before the one that it is in.
    let groups = tops.iter().flat_map(|top| tree(top));
    let bases: Vec<PathBuf> = groups.filter(|group| is_left_behind(group)).collect();
    // All before any is waited for: who takes long must not take the others' time.
    for group in bases.iter().flat_map(|base| tree(base)) {
        kill(is_unified(&group), &group);
    }
    for base in bases {
        tracing::info!(group = %base.display(), "Removing the control groups of a process that is gone");
        let living = match end(&base, deadline) {
            Ok(living) => living,
            // As in a part of the hierarchy that this process may not write to.
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "Control groups of an earlier start stay"
                );
                continue;
            }
        };
        for group in living {
            tracing::error!(group = %group.display(), "Processes of an earlier start live on after SIGKILL");
            let below = group.strip_prefix(&base).ok().and_then(|path| path.iter().next());
            let name = below.unwrap_or_default().to_string_lossy();
            match survivors.iter_mut().find(|known| known.name == name) {
                Some(known) if known.bases.contains(&base) => {}
                Some(known) => known.bases.push(base.clone()),
                None => survivors.push(Survivor {
                    name: name.into_owned(),
                    bases: vec![base.clone()],
                }),
            }
        }
    }
    survivors
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

/// Whether a group is in the unified hierarchy.
fn is_unified(group: &Path) -> bool {
    group.join("cgroup.events").exists()
}

/// Kills everything in a tree of groups and removes it, deepest first. Gives the groups in which something lives at the
/// deadline; they stay, with those that they are in.
fn end(top: &Path, deadline: Instant) -> Result<Vec<PathBuf>, GroupError> {
    let mut living: Vec<PathBuf> = Vec::new();
    let mut first_error = None;
    for group in tree(top) {
        if living.iter().any(|below| below.starts_with(&group)) {
            continue;
        }
        let unified = is_unified(&group);
        while !is_empty(unified, &group) {
            kill(unified, &group);
            if Instant::now() >= deadline {
                living.push(group.clone());
                break;
            }
            thread::sleep(Duration::from_millis(1));
        }
        if living.last() != Some(&group)
            && let Err(error) = remove_directory(&group)
        {
            first_error.get_or_insert(error);
        }
    }
    // What lives is more important to know than what stays.
    match first_error {
        Some(error) if living.is_empty() => Err(error),
        _ => Ok(living),
    }
}

/// All groups of a tree, the deepest first.
pub(super) fn tree(top: &Path) -> Vec<PathBuf> {
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
    let members = || {
        let members = fs::read_to_string(directory.join("cgroup.procs")).unwrap_or_default();
        let numbers = members.lines().filter_map(|line| line.trim().parse().ok());
        numbers.filter_map(Pid::from_raw).collect::<Vec<_>>()
    };
    for numbers in members().chunks(DESCRIPTORS) {
        // A number can be somebody else's by the time a signal is sent to it. A descriptor is of one process, and that one
        // is in the group when its number is there after it was opened.
        let open = |number: &Pid| Some((*number, pidfd_open(*number, PidfdFlags::empty()).ok()?));
        let opened: Vec<_> = numbers.iter().filter_map(open).collect();
        let still: Vec<_> = members();
        for (_, process) in opened.iter().filter(|(number, _)| still.contains(number)) {
            // Gone since.
            let _ = pidfd_send_signal(process, Signal::KILL);
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
