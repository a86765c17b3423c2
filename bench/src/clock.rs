//! Wall clock and CPU time of a piece of this program's own work.

use std::time::Instant;

use rustix::time::{ClockId, clock_gettime};

/// Seconds that something took.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Taken {
    /// On the wall.
    pub(crate) wall: f64,
    /// Of a processor.
    pub(crate) cpu: f64,
}

impl std::ops::AddAssign for Taken {
    fn add_assign(&mut self, other: Self) {
        self.wall += other.wall;
        self.cpu += other.cpu;
    }
}

/// Measures work of the calling thread alone.
pub(crate) fn of_thread<T>(work: impl FnOnce() -> T) -> (T, Taken) {
    measured(ClockId::ThreadCPUTime, work)
}

/// Measures work in which all threads of the process take part.
pub(crate) fn of_process<T>(work: impl FnOnce() -> T) -> (T, Taken) {
    measured(ClockId::ProcessCPUTime, work)
}

fn measured<T>(clock: ClockId, work: impl FnOnce() -> T) -> (T, Taken) {
    let (start, cpu) = (Instant::now(), seconds(clock));
    let result = work();
    let taken = Taken {
        wall: start.elapsed().as_secs_f64(),
        cpu: seconds(clock) - cpu,
    };
    (result, taken)
}

#[expect(clippy::cast_precision_loss, reason = "no program runs for 2^53 seconds")]
fn seconds(clock: ClockId) -> f64 {
    let now = clock_gettime(clock);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}
