//! What a signal to process 1 means for the command.
//!
//! ```text
//! Running ── SIGINT, SIGPWR: STOPSIGNAL to the command ──> Stopping ── again, or ten seconds: SIGKILL
//!    └─ SIGTERM, SIGHUP, …: the same to the command ─┐        │
//!                                                    └────────┴── the command ends: everything else is ended
//! ```

use std::time::{Duration, Instant};

use crate::signals::Signal;

/// How long the command may take to end once it was asked to, as with `docker stop`.
pub const GRACE: Duration = Duration::from_secs(10);

/// Signals that are passed on as they are.
const FORWARDED: [Signal; 7] = [
    Signal::TERMINATE,
    Signal::HANG_UP,
    Signal::QUIT,
    Signal::USER_1,
    Signal::USER_2,
    Signal::CONTINUE,
    Signal::WINDOW,
];

/// Whether the command was asked to end, and until when it may take its time.
#[derive(Clone, Debug)]
pub struct Stop {
    signal: Signal,
    deadline: Option<Instant>,
}

impl Stop {
    /// Nothing was asked yet; `signal` will be what asks.
    #[must_use]
    pub fn new(signal: Signal) -> Self {
        Self {
            signal,
            deadline: None,
        }
    }

    /// What to send to the command's process group because `signal` arrived at `now`.
    pub fn signal_arrived(&mut self, signal: Signal, now: Instant) -> Option<Signal> {
        match (signal, self.deadline) {
            (Signal::INTERRUPT | Signal::POWER, None) => {
                self.deadline = now.checked_add(GRACE);
                Some(self.signal)
            }
            // Whoever asks twice does not want to wait.
            (Signal::INTERRUPT | Signal::POWER, Some(_)) => Some(Signal::KILL),
            _ => FORWARDED.contains(&signal).then_some(signal),
        }
    }

    /// What to send because it is `now`: SIGKILL when the time is over.
    #[must_use]
    pub fn time_passed(&self, now: Instant) -> Option<Signal> {
        self.deadline
            .is_some_and(|deadline| now >= deadline)
            .then_some(Signal::KILL)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn control_alt_delete_asks_with_the_stop_signal_and_then_insists() {
        let start = Instant::now();
        let mut stop = Stop::new(Signal::QUIT);
        assert_eq!(stop.time_passed(start + 10 * GRACE), None);
        assert_eq!(stop.signal_arrived(Signal::INTERRUPT, start), Some(Signal::QUIT));
        assert_eq!(stop.time_passed(start + GRACE / 2), None);
        assert_eq!(stop.time_passed(start + GRACE), Some(Signal::KILL));
        assert_eq!(stop.signal_arrived(Signal::INTERRUPT, start), Some(Signal::KILL));
    }

    #[test]
    fn other_signals_pass_through_and_set_no_deadline() {
        let start = Instant::now();
        let mut stop = Stop::new(Signal::TERMINATE);
        for signal in FORWARDED {
            assert_eq!(stop.signal_arrived(signal, start), Some(signal));
        }
        assert_eq!(stop.signal_arrived(Signal::CHILD, start), None);
        assert_eq!(stop.time_passed(start + 2 * GRACE), None);
    }
}
