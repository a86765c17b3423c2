//! Results as tables and as JSON.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
    time::{Duration, SystemTime},
};

use prost::Message;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use prost_types::Timestamp;
use serde_json::Value;

use crate::{
    exit::{Exit, Failure},
    proto,
};

/// A message as proto-JSON; `name` is its name in `builder.v1`. Fields with their default values are there, so that a
/// script finds what it looks for; messages that are not there are absent. Builds are as the service sends them: there a
/// default means that something is not known.
pub(super) fn json(name: &str, message: &impl Message) -> Result<Value, Failure> {
    let fault = |error: String| Failure::new(Exit::Internal, format!("the answer has no JSON form: {error}"));
    let pool =
        DescriptorPool::decode(proto::FILE_DESCRIPTOR_SET).map_err(|error| fault(error.to_string()))?;
    let descriptor = pool
        .get_message_by_name(&format!("builder.v1.{name}"))
        .ok_or_else(|| fault(format!("{name} is not described")))?;
    let message = DynamicMessage::decode(descriptor, message.encode_to_vec().as_slice())
        .map_err(|error| fault(error.to_string()))?;
    let render = |leaves_out_defaults| {
        let options = SerializeOptions::new().skip_default_fields(leaves_out_defaults);
        message
            .serialize_with_options(serde_json::value::Serializer, &options)
            .map_err(|error| fault(error.to_string()))
    };
    let as_sent = render(true)?;
    if name == "BuildJob" {
        return Ok(as_sent);
    }
    let mut whole = render(false)?;
    for builds in ["build", "builds", "recentBuilds"] {
        if let (Some(whole), Some(as_sent)) = (whole.get_mut(builds), as_sent.get(builds)) {
            *whole = as_sent.clone();
        }
    }
    Ok(whole)
}

/// Prints a result over several lines.
pub(crate) fn print_json(value: &Value) -> Result<(), Failure> {
    print(&format!("{value:#}"))
}

/// Prints one of many results, in a line of its own.
pub(crate) fn print_json_line(value: &Value) -> Result<(), Failure> {
    print(&value.to_string())
}

/// Prints a line of the result.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut output = io::stdout().lock();
    writeln!(output, "{text}")
        .and_then(|()| output.flush())
        .map_err(|error| match error.kind() {
            // Whoever read it has enough, as `head` does.
            io::ErrorKind::BrokenPipe => Failure::new(Exit::CannotCreate, ""),
            _ => Failure::new(
                Exit::CannotCreate,
                format!("standard output cannot be written: {error}"),
            ),
        })
}

/// Says something that is no part of the result. Where nobody listens, the exit code has to do.
pub(crate) fn note(text: &str) {
    drop(writeln!(io::stderr(), "{text}"));
}

/// Text of others, without what a terminal would obey: control characters, and those that turn the direction of text.
pub(crate) fn printable(text: &str) -> String {
    let turns = |character: char| matches!(character, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars()
        .map(|character| {
            if character.is_control() || turns(character) {
                '\u{fffd}'
            } else {
                character
            }
        })
        .collect()
}

/// Names with values under each other; those without a value are left out.
pub(crate) fn record(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, value) in rows.iter().filter(|(_, value)| !value.is_empty()) {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:width$}  {}", printable(value));
    }
    text.truncate(text.trim_end().len());
    text
}

/// Columns under their headings.
pub(crate) fn table<const N: usize>(headings: [&str; N], rows: &[[String; N]]) -> String {
    let rows: Vec<[String; N]> = std::iter::once(headings.map(str::to_owned))
        .chain(rows.iter().map(|row| row.each_ref().map(|cell| printable(cell))))
        .collect();
    let widths: [usize; N] = std::array::from_fn(|column| {
        let width = |row: &[String; N]| row[column].chars().count();
        rows.iter().map(width).max().unwrap_or(0)
    });
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<_> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        let _ = writeln!(text, "{}", cells.join("  ").trim_end());
    }
    text.truncate(text.trim_end().len());
    text
}

/// A state without the prefix of its enum, as `COMPLETED`.
pub(super) fn state(number: i32) -> String {
    match proto::BuildState::try_from(number) {
        Ok(state) => state.as_str_name().trim_start_matches("BUILD_STATE_").to_owned(),
        // A later version's.
        Err(_) => number.to_string(),
    }
}

/// A moment to the second, in UTC; empty when it is not there.
pub(super) fn moment(timestamp: Option<Timestamp>) -> String {
    timestamp.map_or_else(String::new, |timestamp| {
        Timestamp {
            nanos: 0,
            ..timestamp
        }
        .to_string()
    })
}

/// How long ago a moment was, in one unit.
pub(super) fn age(timestamp: Option<Timestamp>) -> String {
    let moment = timestamp.and_then(|timestamp| SystemTime::try_from(timestamp).ok());
    // A clock that differs from the service's makes no age below zero.
    moment.map_or_else(String::new, |moment| {
        rounded(SystemTime::now().duration_since(moment).unwrap_or_default())
    })
}

fn rounded(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// Milliseconds as seconds; empty for 0, which is "not known".
pub(super) fn seconds(milliseconds: i64) -> String {
    match milliseconds {
        ..=0 => String::new(),
        _ => format!("{}.{:03} s", milliseconds / 1000, milliseconds % 1000),
    }
}

/// Bytes, and the same in the largest unit of 1024 that leaves a whole digit; empty for 0.
pub(super) fn bytes(count: i64) -> String {
    const UNITS: [(u32, &str); 4] = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    if count <= 0 {
        return String::new();
    }
    match UNITS.iter().find(|(shift, _)| count >> shift > 0) {
        Some((shift, unit)) => {
            let tenths = (count >> (shift - 4)) * 10 / 16;
            format!("{}.{} {unit} ({count} bytes)", tenths / 10, tenths % 10)
        }
        None => format!("{count} bytes"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_not_printed() {
        assert_eq!(
            printable("a\u{1b}[2Jb\r\n\u{202e}ü"),
            "a\u{fffd}[2Jb\u{fffd}\u{fffd}\u{fffd}ü"
        );
    }

    #[test]
    fn sizes_are_readable() {
        for (count, expected) in [
            (0, ""),
            (1023, "1023 bytes"),
            (1024, "1.0 KiB (1024 bytes)"),
            (1536, "1.5 KiB (1536 bytes)"),
            (5 << 30, "5.0 GiB (5368709120 bytes)"),
            (i64::MAX, "8388607.9 TiB (9223372036854775807 bytes)"),
        ] {
            assert_eq!(bytes(count), expected);
        }
    }

    #[test]
    fn columns_line_up() {
        let rows = [
            ["a".to_owned(), "bb".to_owned()],
            ["ccc".to_owned(), String::new()],
        ];
        assert_eq!(table(["X", "Y"], &rows), "X    Y\na    bb\nccc");
    }

    #[test]
    fn scripts_find_fields_that_have_their_default() {
        let value = json("ListBuildsResponse", &proto::ListBuildsResponse::default()).unwrap();
        assert_eq!(value["builds"], serde_json::json!([]));
        assert_eq!(value["totalCount"], 0);
    }

    #[test]
    fn what_is_not_known_of_a_build_is_absent() {
        let job = proto::BuildJob {
            build_id: "build-1".to_owned(),
            ..Default::default()
        };
        let expected = serde_json::json!({"buildId": "build-1"});
        assert_eq!(json("BuildJob", &job).unwrap(), expected);
        let answer = proto::GetBuildResponse { build: Some(job) };
        assert_eq!(json("GetBuildResponse", &answer).unwrap()["build"], expected);
        let answer = proto::ListBuildsResponse {
            builds: answer.build.into_iter().collect(),
            ..Default::default()
        };
        assert_eq!(
            json("ListBuildsResponse", &answer).unwrap()["builds"][0],
            expected
        );
    }
}
