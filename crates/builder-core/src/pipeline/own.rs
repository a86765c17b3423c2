//! What this process itself does for a build in its threads: it counts as what the workers use.

use std::{fs, time::Duration};

use rustix::time::{ClockId, clock_gettime};

use super::{Work, blocking};
use crate::{error::BuildError, worker::Usage};

/// What the calling thread has read from and written to disks so far, for itself. proc_pid_io(5).
const THREAD_IO: &str = "/proc/thread-self/io";

/// Does work on files in a thread for it, and counts what that takes as the build's.
pub(super) async fn counted<T: Send + 'static>(
    work: &Work<'_>,
    job: impl FnOnce() -> T + Send + 'static,
) -> Result<T, BuildError> {
    let (result, usage) = blocking(move || measured(job)).await?;
    work.add_usage(usage).await;
    Ok(result)
}

/// Runs `job`, and says what it took of this thread. Its memory is this process's and not counted.
fn measured<T>(job: impl FnOnce() -> T) -> (T, Usage) {
    let (cpu_before, io_before) = (cpu_time(), io());
    let result = job();
    let (read, written) = io();
    let usage = Usage {
        cpu_time: cpu_time().saturating_sub(cpu_before),
        peak_memory_bytes: 0,
        read_bytes: read.saturating_sub(io_before.0),
        written_bytes: written.saturating_sub(io_before.1),
    };
    (result, usage)
}

fn cpu_time() -> Duration {
    Duration::try_from(clock_gettime(ClockId::ThreadCPUTime)).unwrap_or_default()
}

/// Bytes read from disk and written to it; 0 where the kernel does not count them.
fn io() -> (u64, u64) {
    let text = fs::read_to_string(THREAD_IO).unwrap_or_default();
    let figure = |name: &str| {
        text.lines()
            .find_map(|line| line.strip_prefix(name)?.trim().parse().ok())
            .unwrap_or(0)
    };
    (figure("read_bytes:"), figure("write_bytes:"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_of_a_thread_is_counted_and_that_of_others_is_not() {
        let busy = || {
            let start = cpu_time();
            // Ends: each round takes time of the processor.
            while cpu_time() - start < Duration::from_millis(20) {
                std::hint::black_box(fs::read("/proc/self/stat").unwrap());
            }
        };
        let ((), own) = measured(busy);
        assert!(own.cpu_time >= Duration::from_millis(20));
        let ((), others) = measured(|| std::thread::spawn(busy).join().unwrap());
        assert!(others.cpu_time < own.cpu_time);
    }
}
