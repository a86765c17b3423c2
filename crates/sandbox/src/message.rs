//! What the child and its helper say over the status pipe.

use std::{os::unix::process::ExitStatusExt, process::ExitStatus, time::Duration};

/// A report, sent in one `write` (so few bytes are atomic, `pipe(7)`).
///
/// Without a helper, the end of the pipe without [`Message::Failed`] before it means that `execve` succeeded: the
/// descriptor is close-on-exec. A helper keeps the pipe and says [`Message::Started`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Message {
    /// The child's peak resident set before `execve`, in KiB. It is a copy of the launching process's memory that the
    /// kernel will later count into `ru_maxrss` of the child, although the program never used it.
    Baseline { peak_kib: u64 },
    /// The step with this index failed.
    Failed { step: u32, errno: i32 },
    /// The process id of init, in the launching process's namespace. When it has ended, so has everything in the box.
    Init { process: i32 },
    /// The program runs.
    Started,
    /// The program has ended; said by init, its parent.
    Ended(Ended),
}

/// How a program ended and what it used, with all descendants that were waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ended {
    /// As `waitpid` gives it.
    pub(crate) wait_status: i32,
    pub(crate) cpu_time: Duration,
    pub(crate) peak_kib: u64,
    pub(crate) blocks_read: u64,
    pub(crate) blocks_written: u64,
}

/// Size of a [`Message`] on the wire: six words.
pub(crate) const MESSAGE_SIZE: usize = 48;

impl Ended {
    pub(crate) fn status(&self) -> ExitStatus {
        ExitStatus::from_raw(self.wait_status)
    }
}

impl Message {
    pub(crate) fn from_bytes(bytes: [u8; MESSAGE_SIZE]) -> Option<Self> {
        let mut words = [0_u64; 6];
        for (word, bytes) in words.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        let [tag, a, b, c, d, e] = words;
        match tag {
            1 => Some(Self::Baseline { peak_kib: a }),
            2 => Some(Self::Failed {
                step: u32::try_from(a).ok()?,
                errno: i32::try_from(b).ok()?,
            }),
            3 => Some(Self::Init {
                process: i32::try_from(a).ok()?,
            }),
            4 => Some(Self::Started),
            5 => Some(Self::Ended(Ended {
                wait_status: i32::try_from(a).ok()?,
                cpu_time: Duration::from_micros(b),
                peak_kib: c,
                blocks_read: d,
                blocks_written: e,
            })),
            _ => None,
        }
    }

    /// Allocates nothing: it is also called between `fork` and `execve`.
    pub(crate) fn to_bytes(self) -> [u8; MESSAGE_SIZE] {
        let words = match self {
            Self::Baseline { peak_kib } => [1, peak_kib, 0, 0, 0, 0],
            Self::Failed { step, errno } => [2, u64::from(step), u64::from(errno.unsigned_abs()), 0, 0, 0],
            Self::Init { process } => [3, u64::from(process.unsigned_abs()), 0, 0, 0, 0],
            Self::Started => [4, 0, 0, 0, 0, 0],
            Self::Ended(ended) => [
                5,
                u64::from(ended.wait_status.unsigned_abs()),
                u64::try_from(ended.cpu_time.as_micros()).unwrap_or(u64::MAX),
                ended.peak_kib,
                ended.blocks_read,
                ended.blocks_written,
            ],
        };
        let mut bytes = [0; MESSAGE_SIZE];
        for (place, word) in bytes.chunks_exact_mut(8).zip(words) {
            place.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_survive_the_pipe() {
        let ended = Ended {
            wait_status: 9,
            cpu_time: Duration::from_micros(1_234_567),
            peak_kib: 7,
            blocks_read: 8,
            blocks_written: 9,
        };
        for message in [
            Message::Baseline { peak_kib: 70_000 },
            Message::Failed { step: 9, errno: 13 },
            Message::Init { process: 4711 },
            Message::Started,
            Message::Ended(ended),
        ] {
            assert_eq!(Message::from_bytes(message.to_bytes()), Some(message));
        }
        assert_eq!(Message::from_bytes([0; MESSAGE_SIZE]), None);
        assert_eq!(Message::from_bytes([255; MESSAGE_SIZE]), None);
    }
}
