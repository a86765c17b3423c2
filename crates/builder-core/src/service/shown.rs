//! How much of an image's metadata answers carry.
//!
//! The configuration of an image may have some megabytes, and clients of gRPC take four by default. What is stored with a
//! build, and shown, is bounded; the metadata file beside the image has everything.

use std::collections::BTreeMap;

use crate::{
    build::ImageMetadata,
    event::{Component, Level},
    store::NewLine,
};

/// Bytes that the image's own words may take in an answer, as JSON.
const MAX_BYTES: usize = 256 << 10;

/// The metadata as they are shown, and a line that says what was left out, if anything was.
///
/// Labels and variables are left out one by one, the last of them first; anything else as a whole, because half of a
/// command is another command.
pub(super) fn shown(mut metadata: ImageMetadata) -> (ImageMetadata, Option<NewLine>) {
    let mut room = Room {
        bytes: MAX_BYTES,
        left_out: Vec::new(),
    };
    // What says how the image starts comes first.
    room.text("working_dir", &mut metadata.working_dir);
    room.text("user", &mut metadata.user);
    room.text("stop_signal", &mut metadata.stop_signal);
    room.text("kernel_args", &mut metadata.kernel_args);
    room.text("verity_kernel_args", &mut metadata.verity_kernel_args);
    room.list("entrypoint", &mut metadata.entrypoint);
    room.list("command", &mut metadata.command);
    room.list("exposed_ports", &mut metadata.exposed_ports);
    room.list("volumes", &mut metadata.volumes);
    room.text("healthcheck_json", &mut metadata.healthcheck_json);
    room.map("env", &mut metadata.env);
    room.map("labels", &mut metadata.labels);
    let line = (!room.left_out.is_empty()).then(|| {
        let left_out = room.left_out.join(", ");
        NewLine::new(
            Level::Warn,
            Component::Builder,
            format!(
                "The image's configuration is larger than the {MAX_BYTES} bytes that answers carry of it: they leave out \
                 {left_out}. The metadata file beside the image has everything"
            ),
        )
    });
    (metadata, line)
}

/// What is left of the bytes.
struct Room {
    bytes: usize,
    left_out: Vec<String>,
}

impl Room {
    fn take(&mut self, bytes: usize) -> bool {
        let fits = bytes <= self.bytes;
        if fits {
            self.bytes -= bytes;
        }
        fits
    }

    fn text(&mut self, name: &str, text: &mut String) {
        if !self.take(json_bytes(text)) {
            text.clear();
            self.left_out.push(name.to_owned());
        }
    }

    fn list(&mut self, name: &str, values: &mut Vec<String>) {
        if !self.take(values.iter().map(|value| json_bytes(value)).sum()) {
            values.clear();
            self.left_out.push(name.to_owned());
        }
    }

    fn map(&mut self, name: &str, values: &mut BTreeMap<String, String>) {
        let before = values.len();
        let mut is_full = false;
        values.retain(|key, value| {
            is_full |= !self.take(json_bytes(key) + json_bytes(value));
            !is_full
        });
        if is_full {
            let gone = before - values.len();
            self.left_out.push(format!("{gone} of {before} {name}"));
        }
    }
}

/// Bytes of a text in JSON, with quotes and a comma.
fn json_bytes(text: &str) -> usize {
    let escaped = |byte: u8| match byte {
        b'"' | b'\\' | b'\n' | b'\r' | b'\t' => 2,
        0..0x20 => 6,
        _ => 1,
    };
    text.bytes().map(escaped).sum::<usize>() + 3
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_is_left_out_and_named() {
        let big = "x".repeat(1000);
        let labels = |count: usize| -> BTreeMap<_, _> {
            (0..count)
                .map(|number| (format!("label-{number:05}"), big.clone()))
                .collect()
        };
        let small = ImageMetadata {
            labels: labels(200),
            command: vec!["sh".to_owned()],
            ..ImageMetadata::default()
        };
        let (kept, line) = shown(small.clone());
        assert_eq!((kept, line.is_none()), (small.clone(), true));

        let (kept, line) = shown(ImageMetadata {
            labels: labels(3500),
            ..small.clone()
        });
        assert!((250..=262).contains(&kept.labels.len()), "{}", kept.labels.len());
        assert!(kept.labels.contains_key("label-00000"));
        assert_eq!(kept.command, ["sh"]);
        let message = line.unwrap().message;
        let gone = format!("{} of 3500 labels", 3500 - kept.labels.len());
        assert!(message.contains(&gone), "{message}");

        let (kept, line) = shown(ImageMetadata {
            command: vec![big.clone(); 400],
            ..small
        });
        assert_eq!((kept.command.len(), kept.labels.len()), (0, 200));
        assert!(line.unwrap().message.contains("leave out command."));
    }

    #[test]
    fn bytes_are_those_of_json() {
        for text in ["", "plain", "\"quoted\" \\ \n \t \r", "\u{1}\u{1f}", "ünïcode"] {
            let encoded = serde_json::to_string(text).unwrap();
            assert_eq!(json_bytes(text), encoded.len() + 1, "{text:?}");
        }
    }
}
