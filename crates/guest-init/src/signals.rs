//! Signals by name and number.

use std::fmt;

/// A signal that can be sent to a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Signal(i32);

/// Names as in `signal(7)`, numbers of x86-64 and aarch64, which agree.
const NAMES: [(&str, i32); 31] = [
    ("HUP", 1),
    ("INT", 2),
    ("QUIT", 3),
    ("ILL", 4),
    ("TRAP", 5),
    ("ABRT", 6),
    ("BUS", 7),
    ("FPE", 8),
    ("KILL", 9),
    ("USR1", 10),
    ("SEGV", 11),
    ("USR2", 12),
    ("PIPE", 13),
    ("ALRM", 14),
    ("TERM", 15),
    ("STKFLT", 16),
    ("CHLD", 17),
    ("CONT", 18),
    ("STOP", 19),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("XCPU", 24),
    ("XFSZ", 25),
    ("VTALRM", 26),
    ("PROF", 27),
    ("WINCH", 28),
    ("IO", 29),
    ("PWR", 30),
    ("SYS", 31),
];

/// First and last real-time signal as the C library numbers them; it keeps 32 and 33 for itself.
const REAL_TIME: (i32, i32) = (34, 64);

impl Signal {
    /// SIGHUP.
    pub const HANG_UP: Self = Self(1);
    /// SIGINT: what Ctrl-Alt-Del becomes for process 1.
    pub const INTERRUPT: Self = Self(2);
    /// SIGQUIT.
    pub const QUIT: Self = Self(3);
    /// SIGKILL.
    pub const KILL: Self = Self(9);
    /// SIGUSR1.
    pub const USER_1: Self = Self(10);
    /// SIGUSR2.
    pub const USER_2: Self = Self(12);
    /// SIGTERM.
    pub const TERMINATE: Self = Self(15);
    /// SIGCHLD.
    pub const CHILD: Self = Self(17);
    /// SIGCONT.
    pub const CONTINUE: Self = Self(18);
    /// SIGWINCH.
    pub const WINDOW: Self = Self(28);
    /// SIGPWR: what some machines send when their power fails.
    pub const POWER: Self = Self(30);

    /// The signal with this number, 1 to 64.
    #[must_use]
    pub fn from_number(number: i32) -> Option<Self> {
        (1..=REAL_TIME.1).contains(&number).then_some(Self(number))
    }

    /// Its number.
    #[must_use]
    pub const fn number(self) -> i32 {
        self.0
    }
}

/// Reads a signal as Docker's STOPSIGNAL writes it: a number, or a name with or without `SIG`, in any case, such as
/// `SIGQUIT`, `term`, `9`, `SIGRTMIN+3`, `RTMAX-1`.
#[must_use]
pub fn parse(text: &str) -> Option<Signal> {
    if let Ok(number) = text.parse() {
        return Signal::from_number(number);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = NAMES.iter().find(|(known, _)| *known == name) {
        return Some(Signal(*number));
    }
    let (first, last) = REAL_TIME;
    let number = if let Some(offset) = name.strip_prefix("RTMIN") {
        first.checked_add(offset_of(offset, "+")?)?
    } else {
        last.checked_sub(offset_of(name.strip_prefix("RTMAX")?, "-")?)?
    };
    (first..=last).contains(&number).then_some(Signal(number))
}

/// The number after a sign; nothing is zero.
fn offset_of(text: &str, sign: &str) -> Option<i32> {
    if text.is_empty() {
        return Some(0);
    }
    let digits = text.strip_prefix(sign)?;
    digits
        .bytes()
        .all(|byte| byte.is_ascii_digit())
        .then(|| digits.parse().ok())?
}

impl fmt::Display for Signal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_are_read_as_docker_reads_them() {
        let cases = [
            ("SIGTERM", Some(15)),
            ("TERM", Some(15)),
            ("sigquit", Some(3)),
            ("9", Some(9)),
            ("64", Some(64)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("rtmax", Some(64)),
            ("RTMAX-1", Some(63)),
            ("0", None),
            ("65", None),
            ("-1", None),
            ("", None),
            ("SIG", None),
            ("SIGNOT", None),
            ("RTMIN-1", None),
            ("RTMIN+-1", None),
            ("RTMIN+31", None),
            ("RTMAX-99999999999", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse(text).map(Signal::number), expected, "{text}");
        }
    }

    #[test]
    fn numbers_are_those_of_this_architecture() {
        let cases = [
            ("CHLD", libc::SIGCHLD),
            ("USR1", libc::SIGUSR1),
            ("PWR", libc::SIGPWR),
            ("WINCH", libc::SIGWINCH),
            ("RTMIN", libc::SIGRTMIN()),
            ("RTMAX", libc::SIGRTMAX()),
        ];
        for (name, expected) in cases {
            assert_eq!(parse(name).map(Signal::number), Some(expected), "{name}");
        }
    }
}
