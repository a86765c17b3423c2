//! One group: a directory in every hierarchy.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    thread,
    time::Duration,
};

use super::{Controller, GroupError, Hierarchy, sweep};

/// Upper bounds for all processes of a group together. `None` is no limit but that of the group above.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupLimits {
    /// Bytes of memory, page cache and kernel memory included; no swap. Beyond it the kernel reclaims, then kills.
    pub memory_bytes: Option<u64>,
    /// Thousandths of a core, at least 10.
    pub cpu_millicores: Option<u32>,
    /// Processes and threads.
    pub processes: Option<u64>,
}

/// What the processes of a group have used, those that have ended included.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GroupUsage {
    /// User and system time.
    pub cpu_time: Duration,
    /// The most memory at any time, page cache included: a group that writes files comes near its limit. 0 where the
    /// kernel does not say (version 2 before Linux 5.19).
    pub peak_memory_bytes: u64,
    /// Processes that were killed because the limit was reached.
    pub oom_kills: u64,
}

/// A control group. Dropping it removes it, when nothing is in it any more.
#[derive(Debug)]
pub struct Group {
    name: String,
    /// From the launching process's own group on.
    own_path: PathBuf,
    places: Vec<Hierarchy>,
    is_memory_limited: bool,
    /// Keeps the group above alive.
    above: Option<Arc<Self>>,
    removed: bool,
}

/// The period in which CPU time is shared out, in microseconds.
const CPU_PERIOD: u64 = 100_000;

/// The kernel takes no quota below a hundredth of the period.
const LEAST_MILLICORES: u32 = 10;

/// `rmdir` of a group whose last process has just ended may say EBUSY for a moment: ten tries, from one millisecond
/// on, twice as long each time.
const REMOVALS: u32 = 10;

impl Group {
    /// Makes the directories, without limits.
    pub(super) fn create(above: &[Hierarchy], name: &str) -> Result<Self, GroupError> {
        let mut group = Self {
            name: name.to_owned(),
            own_path: PathBuf::from(name),
            places: Vec::new(),
            is_memory_limited: false,
            above: None,
            removed: false,
        };
        for hierarchy in above {
            let place = Hierarchy {
                directory: hierarchy.directory.join(name),
                ..hierarchy.clone()
            };
            fs::create_dir(&place.directory).map_err(GroupError::file("create", &place.directory))?;
            group.places.push(place);
        }
        Ok(group)
    }

    /// A group below this one. From now on this one can hold no process itself, in the unified hierarchy.
    ///
    /// # Errors
    /// When it exists, or a limit cannot be set; nothing is left then.
    pub fn child(self: &Arc<Self>, name: &str, limits: &GroupLimits) -> Result<Self, GroupError> {
        for place in self.places.iter().filter(|place| place.unified) {
            let enable = place.to_enable();
            if !enable.is_empty() {
                write(&place.directory.join("cgroup.subtree_control"), &enable)?;
            }
        }
        let mut group = Self::create(&self.places, name)?;
        group.above = Some(Arc::clone(self));
        group.is_memory_limited = limits.memory_bytes.is_some();
        group.own_path = self.own_path.join(name);
        for (path, value) in group.limit_files(limits) {
            write(&path, &value)?;
        }
        for place in group
            .places
            .iter()
            .filter(|place| place.unified && place.has(Controller::Memory))
        {
            // Either may be missing: a kernel without swap, one before 4.19.
            for (file, value) in [("memory.swap.max", "0"), ("memory.oom.group", "1")] {
                let path = place.directory.join(file);
                if path.exists() {
                    write(&path, value)?;
                }
            }
        }
        Ok(group)
    }

    /// The files that hold limits, and what is written to them, in this order.
    pub(super) fn limit_files(&self, limits: &GroupLimits) -> Vec<(PathBuf, String)> {
        let mut files = Vec::new();
        for place in &self.places {
            let mut add = |name: &str, value: String| files.push((place.directory.join(name), value));
            if let Some(bytes) = limits.memory_bytes.filter(|_| place.has(Controller::Memory)) {
                // The kernel counts in pages.
                let bytes = (bytes / 4096 * 4096).to_string();
                if place.unified {
                    add("memory.max", bytes);
                } else {
                    add("memory.limit_in_bytes", bytes.clone());
                    // Memory and swap together; it must not be below the other. Some kernels do not have it.
                    if place.directory.join("memory.memsw.limit_in_bytes").exists() {
                        add("memory.memsw.limit_in_bytes", bytes);
                    } else if place.directory.join("memory.swappiness").exists() {
                        // Without accounting of swap the limit would only move memory there.
                        add("memory.swappiness", "0".to_owned());
                    }
                }
            }
            if let Some(processes) = limits.processes.filter(|_| place.has(Controller::Processes)) {
                add("pids.max", processes.to_string());
            }
            if let Some(millicores) = limits.cpu_millicores.filter(|_| place.has(Controller::Cpu)) {
                let quota = u64::from(millicores.max(LEAST_MILLICORES)) * CPU_PERIOD / 1000;
                if place.unified {
                    add("cpu.max", format!("{quota} {CPU_PERIOD}"));
                } else {
                    add("cpu.cfs_period_us", CPU_PERIOD.to_string());
                    add("cpu.cfs_quota_us", quota.to_string());
                }
            }
        }
        files
    }

    /// Reads every limit back.
    pub(super) fn check_limits(&self, limits: &GroupLimits) -> Result<(), GroupError> {
        for (path, written) in self.limit_files(limits) {
            let found = fs::read_to_string(&path).map_err(GroupError::file("read", &path))?;
            if found.trim() != written {
                return Err(GroupError::NotKept {
                    path,
                    written,
                    found: found.trim().to_owned(),
                });
            }
        }
        Ok(())
    }

    /// Its name: the last component of its path.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its path from the group on that the launching process was started in: nothing of the host's own.
    #[must_use]
    pub fn own_path(&self) -> &Path {
        &self.own_path
    }

    /// Its path from the root of the hierarchy that limits memory, as seen at that hierarchy's mount point.
    #[must_use]
    pub fn path(&self) -> &Path {
        let place = self
            .places
            .iter()
            .find(|place| place.has(Controller::Memory))
            .or(self.places.first());
        place.map_or(Path::new(""), |place| &place.directory)
    }

    /// Its `cgroup.procs` in each hierarchy, open for writing.
    pub(crate) fn entrances(&self) -> Result<Vec<fs::File>, GroupError> {
        let open = |place: &Hierarchy| {
            let path = place.directory.join("cgroup.procs");
            fs::File::options()
                .write(true)
                .open(&path)
                .map_err(GroupError::file("open", path))
        };
        self.places.iter().map(open).collect()
    }

    /// What was used so far.
    #[must_use]
    pub fn usage(&self) -> GroupUsage {
        let mut usage = GroupUsage::default();
        let mut cpu_time_known = false;
        for place in &self.places {
            let read = |name: &str| fs::read_to_string(place.directory.join(name)).ok();
            let number = |name: &str| read(name)?.trim().parse::<u64>().ok();
            if place.has(Controller::Memory) {
                let (peak, events) = if place.unified {
                    ("memory.peak", "memory.events")
                } else {
                    ("memory.max_usage_in_bytes", "memory.oom_control")
                };
                usage.peak_memory_bytes = number(peak).unwrap_or(0);
                usage.oom_kills = read(events)
                    .and_then(|text| field(&text, "oom_kill"))
                    .unwrap_or(0);
            }
            // Both may be there, on a hybrid host: they count the same.
            if !cpu_time_known && place.has(Controller::CpuTime) {
                let time = if place.unified {
                    read("cpu.stat")
                        .and_then(|text| field(&text, "usage_usec"))
                        .map(Duration::from_micros)
                } else {
                    number("cpuacct.usage").map(Duration::from_nanos)
                };
                if let Some(time) = time {
                    usage.cpu_time = time;
                    cpu_time_known = true;
                }
            }
        }
        usage
    }

    /// Whether the kernel has killed something in it because its limit of memory, or that of a group above, was reached.
    /// Without a limit the figure of the unified hierarchy says nothing: it counts all groups below.
    pub(crate) fn was_out_of_memory(&self) -> bool {
        let above = self.above.as_ref().filter(|above| above.is_memory_limited);
        self.usage().oom_kills > 0 && self.limit_was_reached()
            || above.is_some_and(|above| above.was_out_of_memory())
    }

    /// `oom_kill` counts also what the kernel kills when the whole machine has no memory left. The unified hierarchy tells
    /// whose limit was met (`oom` in `memory.events`, the kernel's `admin-guide/cgroup-v2.rst`); version 1 does not, where
    /// Linux 6.18 leaves `memory.failcnt` at 0.
    fn limit_was_reached(&self) -> bool {
        let was_reached = |place: &Hierarchy| {
            let events = fs::read_to_string(place.directory.join("memory.events")).unwrap_or_default();
            !place.unified || field(&events, "oom").is_some_and(|times| times > 0)
        };
        std::iter::successors(Some(self), |group| group.above.as_deref())
            .filter(|group| group.is_memory_limited)
            .flat_map(|group| &group.places)
            .any(|place| place.has(Controller::Memory) && was_reached(place))
    }

    /// Sends SIGKILL to everything in it. A process that is being forked meanwhile may escape where the kernel has no
    /// `cgroup.kill` (before Linux 5.14, or without the unified hierarchy): call it until [`is_empty`](Self::is_empty).
    pub fn kill(&self) {
        for place in &self.places {
            sweep::kill(place.unified, &place.directory);
        }
    }

    /// Whether no living process is in it.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.places
            .iter()
            .all(|place| sweep::is_empty(place.unified, &place.directory))
    }

    /// Removes it.
    ///
    /// # Errors
    /// [`GroupError::Unkillable`] when something in it does not end.
    pub fn remove(mut self) -> Result<(), GroupError> {
        self.remove_places()
    }

    fn remove_places(&mut self) -> Result<(), GroupError> {
        self.removed = true;
        let mut first_error = None;
        for place in &self.places {
            if let Err(error) = remove_directory(&place.directory) {
                first_error.get_or_insert(error);
            }
        }
        first_error.map_or(Ok(()), Err)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.removed
            && let Err(error) = self.remove_places()
        {
            tracing::warn!(group = %self.path().display(), error = &error as &dyn std::error::Error, "Failed to remove a control group");
        }
    }
}

/// `rmdir`, for a moment also of a group that says EBUSY. One that is gone is as good as removed.
pub(super) fn remove_directory(path: &Path) -> Result<(), GroupError> {
    let mut pause = Duration::from_millis(1);
    for _ in 0..REMOVALS {
        match fs::remove_dir(path) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                thread::sleep(pause);
                pause *= 2;
            }
            Err(error) => return Err(GroupError::file("remove", path)(error)),
        }
    }
    Err(GroupError::Unkillable {
        path: path.to_owned(),
    })
}

/// Writes to a file that is there already.
pub(super) fn write(path: &Path, value: &str) -> Result<(), GroupError> {
    let written = fs::File::options()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()));
    written.map_err(GroupError::file("write to", path))
}

/// The number after a name, in lines of `name number`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.trim().parse().ok()
}
