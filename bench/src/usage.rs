//! What all processes below this one use: CPU time and memory, from proc(5).
//!
//! The CPU time of a tool with a daemon is the client's and the daemon's. Both are below this process, which adopts
//! orphans (`PR_SET_CHILD_SUBREAPER`), so the sum over what was waited for and what still runs is all of it.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use nix::sys::resource::{UsageWho, getrusage};

/// How often memory is looked at. A peak that is shorter may go unseen.
const INTERVAL: Duration = Duration::from_millis(50);

/// Of `/proc/PID/stat`, a tick is 10 ms (`sysconf(_SC_CLK_TCK)` is 100 on every Linux).
const TICK_SECONDS: f64 = 0.01;

/// What is said about one process.
struct Process {
    parent: i32,
    is_zombie: bool,
    /// CPU ticks of it and of the children it has waited for.
    ticks: u64,
}

/// CPU seconds of everything below this process so far, without the processes in `except` and what is below them.
pub(crate) fn cpu_seconds(except: &BTreeSet<i32>) -> f64 {
    let waited_for = getrusage(UsageWho::RUSAGE_CHILDREN).map_or(0.0, |usage| {
        [usage.user_time(), usage.system_time()]
            .iter()
            .map(|time| {
                Duration::from_micros(u64::try_from(time.tv_sec() * 1_000_000 + time.tv_usec()).unwrap_or(0))
            })
            .sum::<Duration>()
            .as_secs_f64()
    });
    let processes = processes();
    let ticks: u64 = below(&processes, except)
        .iter()
        .filter_map(|pid| processes.get(pid))
        .map(|process| process.ticks)
        .sum();
    #[expect(clippy::cast_precision_loss, reason = "no process has 2^53 ticks")]
    let running = ticks as f64 * TICK_SECONDS;
    waited_for + running
}

/// The processes below this one that still run, without those in `except` and what is below them.
pub(crate) fn running(except: &BTreeSet<i32>) -> Vec<i32> {
    let processes = processes();
    below(&processes, except)
        .into_iter()
        .filter(|pid| processes.get(pid).is_some_and(|process| !process.is_zombie))
        .collect()
}

/// Looks at the memory of everything below this process until it is dropped.
pub(crate) struct Watch {
    stop: Arc<AtomicBool>,
    peak: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// Starts to look. Anonymous and shared memory is counted, and file pages that are mapped; each page once, however many
    /// processes have it (`Pss`). The page cache is not.
    pub(crate) fn start(except: BTreeSet<i32>) -> Self {
        let (stop, peak) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let (stopped, highest) = (Arc::clone(&stop), Arc::clone(&peak));
        let thread = thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let processes = processes();
                let now: u64 = below(&processes, &except).iter().map(|pid| memory(*pid)).sum();
                highest.fetch_max(now, Ordering::Relaxed);
                thread::park_timeout(INTERVAL);
            }
        });
        Self {
            stop,
            peak,
            thread: Some(thread),
        }
    }

    /// The most bytes that were seen at one time.
    pub(crate) fn finish(mut self) -> u64 {
        self.end();
        self.peak.load(Ordering::Relaxed)
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.thread().unpark();
            // It cannot panic; if it did, the peak is what was seen so far.
            let _ = thread.join();
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.end();
    }
}

/// Everything that runs on this machine, by process id.
fn processes() -> BTreeMap<i32, Process> {
    let Ok(entries) = fs::read_dir("/proc") else {
        return BTreeMap::new();
    };
    entries
        .filter_map(|entry| {
            let name = entry.ok()?.file_name();
            let pid = name.to_str()?.parse().ok()?;
            // Gone meanwhile: not there.
            Some((
                pid,
                parse(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?,
            ))
        })
        .collect()
}

/// Reads `/proc/PID/stat`. The second field, the program's name, ends with the last parenthesis.
fn parse(stat: &str) -> Option<Process> {
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    Some(Process {
        parent: fields.get(1)?.parse().ok()?,
        is_zombie: *fields.first()? == "Z",
        // utime, stime, cutime, cstime are fields 14 to 17.
        ticks: fields
            .get(11..15)?
            .iter()
            .map(|ticks| ticks.parse::<u64>().unwrap_or(0))
            .sum(),
    })
}

fn below(processes: &BTreeMap<i32, Process>, except: &BTreeSet<i32>) -> Vec<i32> {
    let mut children: BTreeMap<i32, Vec<i32>> = BTreeMap::new();
    for (pid, process) in processes {
        children.entry(process.parent).or_default().push(*pid);
    }
    let own = i32::try_from(std::process::id()).unwrap_or(0);
    let (mut found, mut next) = (BTreeSet::new(), vec![own]);
    while let Some(parent) = next.pop() {
        for child in children.remove(&parent).unwrap_or_default() {
            if !except.contains(&child) && found.insert(child) {
                next.push(child);
            }
        }
    }
    found.into_iter().collect()
}

/// Bytes of one process, 0 when it has ended.
fn memory(pid: i32) -> u64 {
    let Ok(text) = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else {
        return 0;
    };
    let kib: u64 = text
        .lines()
        .find_map(|line| line.strip_prefix("Pss:"))
        .and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse().ok())
        .unwrap_or(0);
    kib * 1024
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_parentheses_and_spaces_does_not_shift_the_fields() {
        let stat = "7 (a) b (c) S 3 7 7 0 -1 4194560 1 2 3 4 50 60 70 80 20 0 1 0 9 0 0";
        let process = parse(stat).unwrap();
        assert_eq!(
            (process.parent, process.is_zombie, process.ticks),
            (3, false, 260)
        );
    }

    #[test]
    fn a_child_is_found_counted_and_left_out_when_told_so() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pid = i32::try_from(child.id()).unwrap();
        let found = running(&BTreeSet::new());
        let left_out = running(&BTreeSet::from([pid]));
        // Between fork and exec it has hardly any memory of its own, but some.
        let watch = Watch::start(BTreeSet::new());
        let deadline = std::time::Instant::now() + Duration::from_secs(60);
        while watch.peak.load(Ordering::Relaxed) == 0 && std::time::Instant::now() < deadline {
            thread::yield_now();
        }
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(found.contains(&pid));
        assert!(!left_out.contains(&pid));
        assert!(watch.finish() > 0);
    }

    #[test]
    fn cpu_time_of_a_child_that_was_waited_for_counts() {
        let before = cpu_seconds(&BTreeSet::new());
        let script = "i=0; while [ $i -lt 300000 ]; do i=$((i+1)); done";
        std::process::Command::new("sh")
            .args(["-c", script])
            .status()
            .unwrap();
        assert!(cpu_seconds(&BTreeSet::new()) > before);
    }
}
