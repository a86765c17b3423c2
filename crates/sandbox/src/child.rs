//! A running child, the handle that ends it, and what is known afterwards.

use std::{
    fs::{self, File},
    io::Read,
    os::{
        fd::{AsFd, OwnedFd},
        unix::process::ExitStatusExt,
    },
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
    process::{Pid, Signal, kill_process, kill_process_group},
};

use crate::{
    cgroup::Group,
    error::{Failure, LaunchErrorKind, WaitError},
    group::{KILL_PATIENCE, wait_until_empty},
    lease::Lease,
    message::{MESSAGE_SIZE, Message},
    spec::Limits,
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
    deadlines: Deadlines,
    /// See [`Message::Baseline`]; `None` with a helper, which counts its program apart.
    baseline_kib: Option<u64>,
    inside: Option<Inside>,
    /// Peak memory just after the program began; 0 when it was gone already.
    first_sample_kib: u64,
    /// How the leader ended, once it is reaped: the kernel says it once.
    reaped: Option<Reaped>,
    /// Nothing of it lives any more.
    is_gone: bool,
}

/// What is known of a child in a box beside the helper, which is the leader.
#[derive(Debug)]
pub(crate) struct Inside {
    /// Where init says how the program ended.
    pub(crate) status: File,
    /// Becomes readable when process 1 of the box has ended, which it does last. `None` when it had ended at once.
    pub(crate) init: Option<OwnedFd>,
    pub(crate) group: Option<Arc<Group>>,
    /// The user ids of the box, free again when nothing of it is left.
    pub(crate) _lease: Option<Lease>,
}

/// Until when a child may live.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Deadlines {
    launched_at: Instant,
    /// A limit beyond what the clock can express is none.
    wall: Option<Instant>,
    idle: Option<Duration>,
}

/// Why the wait for the leader ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reason {
    Ended,
    WallTime,
    IdleTime,
}

/// Ends a child from anywhere: it can be cloned and sent to other threads, and outlives the child harmlessly. The empty
/// control group of a box is removed with the last of them.
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
    /// The limit of idle time passed, and the group was killed for it.
    pub idled_out: bool,
    /// The kernel killed something because the memory limit was reached, whatever the status says: read from the
    /// control group's counter. Without a control group it is always `false`.
    pub out_of_memory: bool,
    /// [`Killer::kill`] came while the leader was running. The status may still be a plain exit code, when the leader
    /// ended at the same moment.
    pub killed: bool,
    /// User and system time: of everything in the control group; without one, of the leader and of the descendants that
    /// it waited for.
    pub cpu_time: Duration,
    /// The largest resident set of the leader or of any descendant that it waited for, in bytes.
    ///
    /// Exact when it is clearly above the size that the launching process had at the launch, whose copied pages the
    /// kernel counts into the child; below that it is the leader's last sample, taken at the launch, every few
    /// milliseconds at first and four times a second later. 0 when the leader was gone before the first sample.
    ///
    /// In a box it is exact, and not less than what an idle program has; of a program that was killed it is the peak of
    /// the control group, page cache included.
    pub peak_memory_bytes: u64,
    /// Bytes that were read from storage, not from the page cache (`ru_inblock` of `getrusage(2)`).
    pub read_bytes: u64,
    /// Bytes that were written and had to go to storage at some time (`ru_oublock`).
    pub written_bytes: u64,
}

#[derive(Debug)]
struct Shared {
    leader: Pid,
    group: Option<Arc<Group>>,
    /// Held while signalling and while reaping: as long as the leader is not reaped, not even as a zombie, its number
    /// belongs to it, and so does the group's.
    reaped: Mutex<bool>,
    killed: AtomicBool,
}

/// How long it may take until a program begins. It is a matter of milliseconds of CPU time, of which a control group may
/// give one in a hundred.
const LAUNCH_PATIENCE: Duration = Duration::from_mins(1);

/// What `getrusage(2)` counts storage in.
const BLOCK_BYTES: u64 = 512;

/// Memory is sampled after this long, then after twice as long each time, up to [`LONGEST_SAMPLE_INTERVAL`].
const FIRST_SAMPLE_INTERVAL: Duration = Duration::from_millis(4);
const LONGEST_SAMPLE_INTERVAL: Duration = Duration::from_millis(250);

impl Child {
    /// One that was forked, and whose program has not begun.
    pub(crate) fn new(leader: Pid, pidfd: OwnedFd, deadlines: Deadlines, inside: Option<Inside>) -> Self {
        Self {
            shared: Arc::new(Shared {
                leader,
                group: inside.as_ref().and_then(|inside| inside.group.clone()),
                reaped: Mutex::new(false),
                killed: AtomicBool::new(false),
            }),
            pidfd,
            deadlines,
            first_sample_kib: 0,
            baseline_kib: None,
            inside,
            reaped: None,
            is_gone: false,
        }
    }

    /// The program has begun.
    pub(crate) fn begin(&mut self, baseline_kib: Option<u64>, init: Option<OwnedFd>) {
        self.baseline_kib = baseline_kib;
        self.first_sample_kib = baseline_kib
            .and_then(|_| sample_peak_kib(self.shared.leader))
            .unwrap_or(0);
        if let Some(inside) = &mut self.inside {
            inside.init = init;
        }
    }

    /// Ends a child whose program has not begun, and says why not.
    pub(crate) fn abandon(mut self, kind: LaunchErrorKind) -> Failure {
        // Who waits for a survivor has not to wait for its end first.
        self.shared.killed.store(true, Ordering::Release);
        let ended = self
            .kill_and_reap()
            .map(drop)
            .and_then(|()| self.wait_until_empty());
        tracing::debug!(
            process = self.id(),
            ?ended,
            "Child ended before its program began"
        );
        let was_out_of_memory = self
            .shared
            .group
            .as_ref()
            .is_some_and(|group| group.was_out_of_memory());
        self.is_gone = ended.is_ok();
        Failure {
            kind: if was_out_of_memory {
                LaunchErrorKind::OutOfMemory
            } else {
                kind
            },
            survivor: (!self.is_gone).then(|| Box::new(self)),
        }
    }

    /// Process id of the leader, which is also the number of the process group and of the session.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.shared.id()
    }

    /// The control group of a child in a box.
    #[must_use]
    pub fn group(&self) -> Option<&Group> {
        self.shared.group.as_deref()
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
        self.wait_until_gone(|_| false)
    }

    /// As [`wait`](Self::wait), but goes on for as long as `unkillable` says so: it is asked with a
    /// [`WaitError::Unkillable`] whenever the patience of ten seconds is over once more. Meanwhile everything that the
    /// child has stays its own: the control group with its limits, its user ids.
    ///
    /// # Errors
    /// As [`wait`](Self::wait).
    pub fn wait_until_gone(
        mut self,
        mut unkillable: impl FnMut(&WaitError) -> bool,
    ) -> Result<Outcome, WaitError> {
        let (reason, sampled_kib) = self.wait_for_leader()?;
        let reaped = insist(&mut unkillable, || self.kill_and_reap())?;
        insist(&mut unkillable, || self.wait_until_empty())?;
        self.is_gone = true;
        let mut outcome = Outcome {
            status: reaped.status,
            timed_out: reason == Reason::WallTime,
            idled_out: reason == Reason::IdleTime,
            out_of_memory: false,
            killed: self.shared.killed.load(Ordering::Acquire),
            cpu_time: reaped.cpu_time,
            peak_memory_bytes: 0,
            read_bytes: reaped.blocks.0.saturating_mul(BLOCK_BYTES),
            written_bytes: reaped.blocks.1.saturating_mul(BLOCK_BYTES),
        };
        match (&mut self.inside, self.baseline_kib) {
            (Some(inside), _) => inside.complete(&mut outcome),
            (None, baseline_kib) => {
                // The kernel counts pages per CPU and sums up lazily, so the same memory does not always give the same
                // figure.
                let baseline_kib = baseline_kib.unwrap_or(0);
                let inherited_kib = baseline_kib + baseline_kib / 16 + 4096;
                let exact = reaped.peak_kib > inherited_kib;
                let peak_kib = if exact { reaped.peak_kib } else { sampled_kib };
                outcome.peak_memory_bytes = peak_kib.saturating_mul(1024);
            }
        }
        tracing::debug!(process = self.id(), ?outcome, "Ended");
        Ok(outcome)
    }

    /// Waits until nothing lives any more: of the process group, of the pid namespace, of the control group.
    fn wait_until_empty(&self) -> Result<(), WaitError> {
        let unkillable = || WaitError::Unkillable {
            group: self.id(),
            waited: KILL_PATIENCE,
        };
        let Some(inside) = &self.inside else {
            return if wait_until_empty(self.shared.leader) {
                Ok(())
            } else {
                Err(unkillable())
            };
        };
        if let Some(init) = &inside.init
            && !self.is_readable_within_patience(init)?
        {
            return Err(unkillable());
        }
        if let Some(group) = &inside.group {
            let deadline = Instant::now() + KILL_PATIENCE;
            let mut pause = Duration::from_micros(100);
            while !group.is_empty() {
                // Where the kernel cannot kill a group at once, what was forked meanwhile is met the next time.
                group.kill();
                if Instant::now() >= deadline {
                    return Err(unkillable());
                }
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(20));
            }
        }
        Ok(())
    }

    /// Whether a process, of which this is the pidfd, ends before one loses patience.
    fn is_readable_within_patience(&self, pidfd: &OwnedFd) -> Result<bool, WaitError> {
        poll_until(pidfd, Instant::now() + KILL_PATIENCE)
            .map_err(|error| self.shared.failed("poll", error.into()))
    }

    /// Waits for the leader's end or a deadline. Gives which it was, and the last sample of the leader's peak memory in
    /// KiB, 0 for none.
    fn wait_for_leader(&self) -> Result<(Reason, u64), WaitError> {
        let mut sampled_kib = self.first_sample_kib;
        let mut interval = FIRST_SAMPLE_INTERVAL;
        let mut busy = (Duration::ZERO, Instant::now());
        loop {
            if self.baseline_kib.is_some() {
                sampled_kib = sample_peak_kib(self.shared.leader).unwrap_or(sampled_kib);
            }
            let left = self
                .deadlines
                .wall
                .map(|deadline| deadline.saturating_duration_since(Instant::now()));
            let pause = left.map_or(interval, |left| left.min(interval));
            let mut fds = [PollFd::from_borrowed_fd(self.pidfd.as_fd(), PollFlags::IN)];
            match poll(&mut fds, Timespec::try_from(pause).ok().as_ref()) {
                Ok(0) | Err(Errno::INTR) => {}
                Ok(_) => return Ok((Reason::Ended, sampled_kib)),
                Err(error) => return Err(self.shared.failed("poll", error.into())),
            }
            if self
                .deadlines
                .wall
                .is_some_and(|deadline| Instant::now() >= deadline)
            {
                return Ok((Reason::WallTime, sampled_kib));
            }
            // What was sent SIGKILL gets the patience of everything that is killed, or nobody would learn that it lives on.
            if self.shared.killed.load(Ordering::Acquire) {
                return Ok((Reason::Ended, sampled_kib));
            }
            if let (Some(limit), Some(group)) = (self.deadlines.idle, &self.shared.group) {
                let cpu_time = group.usage().cpu_time;
                if cpu_time > busy.0 {
                    busy = (cpu_time, Instant::now());
                } else if busy.1.elapsed() >= limit {
                    return Ok((Reason::IdleTime, sampled_kib));
                }
            }
            interval = (interval * 2).min(LONGEST_SAMPLE_INTERVAL);
        }
    }

    /// Kills the group while the leader's number is certainly its own, then reaps the leader.
    ///
    /// The kernel delivers a signal to a group before or after a `fork` of a member, never between parent and child,
    /// so no member escapes by forking.
    fn kill_and_reap(&mut self) -> Result<Reaped, WaitError> {
        if let Some(reaped) = self.reaped {
            return Ok(reaped);
        }
        self.shared.signal_group()?;
        // wait4 alone would block for ever on a leader in uninterruptible sleep, and every killer with it.
        if !self.is_readable_within_patience(&self.pidfd)? {
            return Err(WaitError::Unkillable {
                group: self.id(),
                waited: KILL_PATIENCE,
            });
        }
        let mut reaped = self.shared.lock();
        let result = sys::wait4(self.shared.leader.as_raw_nonzero().get());
        // Reaped by us or by someone else: in both cases the number is no longer ours to signal.
        *reaped = true;
        drop(reaped);
        let ended = result.map_err(|error| self.shared.failed("wait4", error))?;
        self.reaped = Some(ended);
        Ok(ended)
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.is_gone {
            return;
        }
        // The leader is the helper, which ends at once; what it has started may not.
        let is_reaped = *self.shared.lock();
        let ended = match (is_reaped, &self.inside) {
            (false, _) => self.kill_and_reap().map(drop),
            // The number of its group may be somebody else's by now.
            (true, None) => return,
            (true, Some(_)) => Ok(()),
        };
        if let Err(error) = ended.and_then(|()| self.wait_until_empty()) {
            tracing::error!(process = self.id(), %error, "A dropped child lives on: its control group and its user ids stay taken");
            // Never given back: another box must not get the user ids of a process that may still do something.
            Box::leak(Box::new(self.inside.take()));
        }
    }
}

/// Waits until something can be read, or has ended; `false` when not by the deadline.
pub(crate) fn poll_until(descriptor: &impl AsFd, deadline: Instant) -> Result<bool, Errno> {
    let mut descriptors = [PollFd::from_borrowed_fd(descriptor.as_fd(), PollFlags::IN)];
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        match poll(&mut descriptors, Timespec::try_from(left).ok().as_ref()) {
            Ok(n_ready) => return Ok(n_ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error),
        }
    }
}

/// Tries again what fails by [`WaitError::Unkillable`], for as long as `unkillable` says so.
fn insist<T>(
    unkillable: &mut impl FnMut(&WaitError) -> bool,
    mut attempt: impl FnMut() -> Result<T, WaitError>,
) -> Result<T, WaitError> {
    loop {
        match attempt() {
            Err(error @ WaitError::Unkillable { .. }) if unkillable(&error) => {}
            result => return result,
        }
    }
}

impl Deadlines {
    pub(crate) fn new(limits: &Limits, launched_at: Instant) -> Self {
        Self {
            launched_at,
            wall: limits.wall_time.and_then(|limit| launched_at.checked_add(limit)),
            idle: limits.idle_time,
        }
    }

    /// Until when the program has to have begun. When the wall time is over sooner, the first wait finds that out.
    pub(crate) fn launch(&self) -> Instant {
        self.launched_at + LAUNCH_PATIENCE
    }
}

impl Inside {
    /// Fills in what init and the control group say. Everything has ended, so nothing blocks.
    fn complete(&mut self, outcome: &mut Outcome) {
        let mut bytes = [0; MESSAGE_SIZE];
        let mut ended = None;
        while ended.is_none() && self.status.read_exact(&mut bytes).is_ok() {
            if let Some(Message::Ended(message)) = Message::from_bytes(bytes) {
                ended = Some(message);
            }
        }
        if let Some(ended) = ended {
            outcome.status = ended.status();
            outcome.cpu_time = ended.cpu_time;
            outcome.peak_memory_bytes = ended.peak_kib.saturating_mul(1024);
            outcome.read_bytes = ended.blocks_read.saturating_mul(BLOCK_BYTES);
            outcome.written_bytes = ended.blocks_written.saturating_mul(BLOCK_BYTES);
        } else {
            // It was killed together with its helper and init, whatever code those still ended with.
            outcome.status = ExitStatus::from_raw(libc::SIGKILL);
        }
        if let Some(group) = &self.group {
            let usage = group.usage();
            outcome.out_of_memory = usage.oom_kills > 0;
            outcome.cpu_time = outcome.cpu_time.max(usage.cpu_time);
            if ended.is_none() {
                outcome.peak_memory_bytes = usage.peak_memory_bytes;
            }
        }
    }
}

impl Killer {
    /// Sends SIGKILL to the whole group. Without effect once the child was waited for.
    pub fn kill(&self) {
        let reaped = self.shared.lock();
        if !*reaped {
            self.shared.killed.store(true, Ordering::Release);
            if let Some(group) = &self.shared.group {
                group.kill();
            }
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
        if let Some(group) = &self.group {
            group.kill();
        }
        // It leads no group of its own yet when it has only just been forked.
        let _ = kill_process(self.leader, Signal::KILL);
        match kill_process_group(self.leader, Signal::KILL) {
            // Else ESRCH cannot be while the leader is not reaped; should someone else have reaped it, wait4 will say so.
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
