//! Whether anything of a process group still lives.

use std::{
    fs, thread,
    time::{Duration, Instant},
};

use rustix::{
    io::Errno,
    process::{Pid, test_kill_process_group},
};

/// How long SIGKILL may take. It is immediate but for a process in uninterruptible sleep, and freeing gigabytes takes
/// tens of milliseconds.
pub(crate) const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Waits until no living process is in `group`, whose leader is already reaped and whose members were all sent SIGKILL.
///
/// Returns whether that came true within [`KILL_PATIENCE`]. Zombies do not count: they hold nothing, and whoever is
/// their parent now may never reap them.
pub(crate) fn wait_until_empty(group: Pid) -> bool {
    let deadline = Instant::now() + KILL_PATIENCE;
    let mut pause = Duration::from_micros(200);
    loop {
        // The usual case, without a look at every process of the machine. A number that is in use as a group is not
        // given to a new process, so what is found is the old group.
        if test_kill_process_group(group) == Err(Errno::SRCH) || !has_living_member(group) {
            return true;
        }
        if Instant::now() >= deadline {
            return false;
        }
        thread::sleep(pause);
        pause = (pause * 2).min(Duration::from_millis(50));
    }
}

/// Whether a process that is not a zombie is in `group`. An unreadable `/proc` counts as yes.
fn has_living_member(group: Pid) -> bool {
    let Ok(entries) = fs::read_dir("/proc") else {
        return true;
    };
    let wanted = group.as_raw_nonzero().get();
    entries
        .flatten()
        .filter(|entry| {
            entry
                .file_name()
                .as_encoded_bytes()
                .first()
                .is_some_and(u8::is_ascii_digit)
        })
        .filter_map(|entry| fs::read(entry.path().join("stat")).ok())
        .any(|stat| {
            state_and_group(&stat)
                .is_some_and(|(state, group)| group == wanted && !matches!(state, b'Z' | b'X'))
        })
}

/// State and process group of a line of `/proc/PID/stat` (`proc_pid_stat(5)`, fields 3 and 5).
///
/// Field 2 is the program's name in parentheses, which may itself hold spaces and parentheses: the last one counts.
fn state_and_group(stat: &[u8]) -> Option<(u8, i32)> {
    let end_of_name = stat.iter().rposition(|&byte| byte == b')')?;
    let rest = str::from_utf8(stat.get(end_of_name + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = fields.next()?.bytes().next()?;
    let group = fields.nth(1)?.parse().ok()?;
    Some((state, group))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_are_read_past_hostile_names() {
        type Case = (&'static str, &'static [u8], Option<(u8, i32)>);
        let cases: [Case; 4] = [
            ("plain", b"12 (sh) S 1 12 12 0 -1 4194304", Some((b'S', 12))),
            (
                "name with parentheses",
                b"12 (a) Z 9 99 (b) R 1 34 34 0",
                Some((b'R', 34)),
            ),
            ("name that is not text", b"12 (\xff\xfe) Z 1 7 7", Some((b'Z', 7))),
            ("cut short", b"12 (sh) S", None),
        ];
        for (name, stat, expected) in cases {
            assert_eq!(state_and_group(stat), expected, "{name}");
        }
    }

    #[test]
    fn this_test_lives() {
        assert!(has_living_member(rustix::process::getpgrp()));
    }
}
