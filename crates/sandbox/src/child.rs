//! A running child, the handle that ends it, and what is known afterwards.

use std::{
    fs,
    os::fd::{AsFd, OwnedFd},
    process::ExitStatus,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    process::{Pid, Signal, kill_process_group},
};

use crate::{
    error::WaitError,
    group::{KILL_PATIENCE, wait_until_empty},
    sys::{self, Reaped},
};

/// A running process group, named after its leader.
///
/// Dropping it without [`wait`](Self::wait) kills the group and reaps the leader.
#[derive(Debug)]
#[must_use = "dropping a child kills it"]
pub struct Child {
    shared: Arc<Shared>,
    /// Becomes readable when the leader has ended.
    pidfd: OwnedFd,
    deadline: Option<Instant>,
    /// See [`sys::Message::Baseline`].
    baseline_kib: u64,
    /// Peak memory just after the program began; 0 when it was gone already.
    first_sample_kib: u64,
}

/// Ends a child from anywhere: it can be cloned and sent to other threads, and outlives the child harmlessly.
#[derive(Clone, Debug)]
pub struct Killer {
    shared: Arc<Shared>,
}

/// How a child ended and what it used.
#[derive(Clone, Copy, Debug)]
#[non_exhaustive]
pub struct Outcome {
    /// Exit code or signal of the leader.
    pub status: ExitStatus,
    /// The time limit passed, and the group was killed for it.
    pub timed_out: bool,
    /// [`Killer::kill`] came while the leader was running. The status may still be a plain exit code, when the leader
    /// ended at the same moment.
    pub killed: bool,
    /// User and system time of the leader and of the descendants that it waited for.
    pub cpu_time: Duration,
    /// The largest resident set of the leader or of any descendant that it waited for, in bytes.
    ///
    /// Exact when it is clearly above the size that the launching process had at the launch, whose copied pages the
    /// kernel counts into the child; below that it is the leader's last sample, taken at the launch, every few
    /// milliseconds at first and four times a second later. 0 when the leader was gone before the first sample.
    pub peak_memory_bytes: u64,
}

#[derive(Debug)]
struct Shared {
    leader: Pid,
    /// Held while signalling and while reaping: as long as the leader is not reaped, not even as a zombie, its number
    /// belongs to it, and so does the group's.
    reaped: Mutex<bool>,
    killed: AtomicBool,
}

/// Memory is sampled after this long, then after twice as long each time, up to [`LONGEST_SAMPLE_INTERVAL`].
const FIRST_SAMPLE_INTERVAL: Duration = Duration::from_millis(4);
const LONGEST_SAMPLE_INTERVAL: Duration = Duration::from_millis(250);

impl Child {
    pub(crate) fn new(
        leader: Pid,
        pidfd: OwnedFd,
        launched_at: Instant,
        wall_time: Option<Duration>,
        baseline_kib: u64,
    ) -> Self {
        Self {
            shared: Arc::new(Shared {
                leader,
                reaped: Mutex::new(false),
                killed: AtomicBool::new(false),
            }),
            pidfd,
            // A limit beyond what the clock can express is none.
            deadline: wall_time.and_then(|limit| launched_at.checked_add(limit)),
            baseline_kib,
            first_sample_kib: sample_peak_kib(leader).unwrap_or(0),
        }
    }

    /// Process id of the leader, which is also the number of the process group and of the session.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.shared.id()
    }

    /// A handle that can end the group from elsewhere.
    #[must_use]
    pub fn killer(&self) -> Killer {
        Killer {
            shared: Arc::clone(&self.shared),
        }
    }

    /// Blocks until the leader has ended or its time is over; then kills what is left of the group, reaps the leader,
    /// and returns when no living process is in the group.
    ///
    /// Any thread may wait; it is not tied to the one that launched.
    ///
    /// # Errors
    ///
    /// [`WaitError::Unkillable`] when a process outlives SIGKILL by ten seconds; [`WaitError::Call`] when a system
    /// call fails, which happens when someone else reaped the child (SIGCHLD ignored in this process, `waitpid(-1)`).
    pub fn wait(self) -> Result<Outcome, WaitError> {
        let (timed_out, sampled_kib) = self.wait_for_leader()?;
        let reaped = self.kill_and_reap()?;
        if !wait_until_empty(self.shared.leader) {
            return Err(WaitError::Unkillable {
                group: self.id(),
                waited: KILL_PATIENCE,
            });
        }
        // The kernel counts pages per CPU and sums up lazily, so the same memory does not always give the same figure.
        let inherited_kib = self.baseline_kib + self.baseline_kib / 16 + 4096;
        let exact = reaped.peak_kib > inherited_kib;
        let peak_kib = if exact { reaped.peak_kib } else { sampled_kib };
        let outcome = Outcome {
            status: reaped.status,
            timed_out,
            killed: self.shared.killed.load(Ordering::Acquire),
            cpu_time: reaped.cpu_time,
            peak_memory_bytes: peak_kib.saturating_mul(1024),
        };
        tracing::debug!(process = self.id(), ?outcome, "Ended");
        Ok(outcome)
    }

    /// Waits for the leader's end or the deadline. Gives whether it was the deadline, and the last sample of the
    /// leader's peak memory in KiB, 0 for none.
    fn wait_for_leader(&self) -> Result<(bool, u64), WaitError> {
        let mut sampled_kib = self.first_sample_kib;
        let mut interval = FIRST_SAMPLE_INTERVAL;
        loop {
            sampled_kib = sample_peak_kib(self.shared.leader).unwrap_or(sampled_kib);
            let left = self
                .deadline
                .map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let pause = left.map_or(interval, |left| left.min(interval));
            let mut fds = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
            match poll(&mut fds, Timespec::try_from(pause).ok().as_ref()) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok((false, sampled_kib)),
                Err(error) => return Err(self.shared.failed("poll", error.into())),
            }
            if self.deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                return Ok((true, sampled_kib));
            }
            interval = (interval * 2).min(LONGEST_SAMPLE_INTERVAL);
        }
    }

    /// Kills the group while the leader's number is certainly its own, then reaps the leader.
    ///
    /// The kernel delivers a signal to a group before or after a `fork` of a member, never between parent and child,
    /// so no member escapes by forking.
    fn kill_and_reap(&self) -> Result<Reaped, WaitError> {
        self.shared.signal_group()?;
        // wait4 alone would block for ever on a leader in uninterruptible sleep, and every killer with it.
        let mut fds = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
        let deadline = Instant::now() + KILL_PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match poll(&mut fds, Timespec::try_from(left).ok().as_ref()) {
                Ok(0) => {
                    return Err(WaitError::Unkillable {
                        group: self.id(),
                        waited: KILL_PATIENCE,
                    });
                }
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(error) => return Err(self.shared.failed("poll", error.into())),
            }
        }
        let mut reaped = self.shared.lock();
        let result = sys::wait4(self.shared.leader.as_raw_nonzero().get());
        // Reaped by us or by someone else: in both cases the number is no longer ours to signal.
        *reaped = true;
        result.map_err(|error| self.shared.failed("wait4", error))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        // After `wait` this finds the leader reaped and does nothing.
        if *self.shared.lock() {
            return;
        }
        if let Err(error) = self.kill_and_reap() {
            tracing::warn!(process = self.id(), %error, "Failed to reap a dropped child");
        }
    }
}

impl Killer {
    /// Sends SIGKILL to the whole group. Without effect once the child was waited for.
    pub fn kill(&self) {
        let reaped = self.shared.lock();
        if !*reaped {
            self.shared.killed.store(true, Ordering::Release);
            // The leader, at least as a zombie, is in the group: the call cannot fail while it is not reaped.
            let _ = kill_process_group(self.shared.leader, Signal::KILL);
        }
    }
}

impl Shared {
    fn id(&self) -> u32 {
        self.leader.as_raw_nonzero().get().unsigned_abs()
    }

    fn lock(&self) -> MutexGuard<'_, bool> {
        // The flag is written in one go, so a panic elsewhere cannot have left it half done.
        self.reaped.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sends SIGKILL to the group, unless its number is no longer ours.
    fn signal_group(&self) -> Result<(), WaitError> {
        let reaped = self.lock();
        if *reaped {
            return Ok(());
        }
        match kill_process_group(self.leader, Signal::KILL) {
            // ESRCH cannot be while the leader is not reaped; should someone else have reaped it, wait4 will say so.
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(self.failed("kill", error.into())),
        }
    }

    fn failed(&self, call: &'static str, source: std::io::Error) -> WaitError {
        WaitError::Call {
            call,
            process: self.id(),
            source,
        }
    }
}

/// Peak resident set of a process since its `execve`, in KiB (`VmHWM` of `proc_pid_status(5)`).
fn sample_peak_kib(process: Pid) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.as_raw_nonzero())).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}
