//! What a build looks like to who started it.

use std::{
    io::{self, IsTerminal as _, Write as _},
    time::Duration,
};

use builder_core::{
    event::{Event, Level},
    pipeline::Outcome,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};

use crate::exit::Failure;

/// How often the bar moves while nothing happens.
const TICK: Duration = Duration::from_millis(100);

/// Shows a build in one of three ways.
pub(super) enum Show {
    /// A bar, with the log above it.
    Bar(ProgressBar),
    /// A line for everything.
    Lines {
        /// The step that was said last.
        step: String,
    },
    /// A JSON object for everything, on standard output.
    Json,
}

impl Show {
    pub(super) fn new(json: bool) -> Self {
        if json {
            return Self::Json;
        }
        if !io::stderr().is_terminal() {
            return Self::Lines { step: String::new() };
        }
        let bar = ProgressBar::new(100);
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} {elapsed_precise} [{bar:32}] {pos:>3}% {wide_msg}")
        {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        Self::Bar(bar)
    }

    pub(super) fn event(&mut self, event: Event) {
        match event {
            Event::Log {
                level,
                component,
                message,
                metadata,
            } => match self {
                Self::Json => object(&json!({
                    "event": "log",
                    "level": level.as_str(),
                    "component": component.as_str(),
                    "message": message,
                    "metadata": metadata,
                })),
                // Debug lines are for those who read JSON.
                _ if level == Level::Debug => {}
                _ => {
                    let mark = match level {
                        Level::Warn => "warning: ",
                        Level::Error => "error: ",
                        _ => "",
                    };
                    self.line(&format!("{:>9}  {mark}{message}", component.as_str()));
                }
            },
            Event::State(state) => {
                if let Self::Json = self {
                    object(&json!({"event": "state", "state": state.as_str()}));
                }
            }
            Event::Progress { percent, step } => match self {
                Self::Bar(bar) => {
                    bar.set_position(u64::from(percent));
                    bar.set_message(step);
                }
                Self::Lines { step: last } => {
                    // What stands behind the colon counts up; a log is told of the step once.
                    let name = step.split(':').next().unwrap_or_default();
                    if last != name {
                        name.clone_into(last);
                        let line = format!("{percent:>8}%  {name}");
                        self.line(&line);
                    }
                }
                Self::Json => object(&json!({"event": "progress", "percent": percent, "step": step})),
            },
            _ => {}
        }
    }

    pub(super) fn cancelling(&self) {
        self.line("interrupted: stopping");
    }

    pub(super) fn completed(&self, outcome: &Outcome) {
        match self {
            Self::Json => object(&json!({
                "event": "completed",
                "image": outcome.image_path,
                "metadata": outcome.metadata_path,
                "size_bytes": outcome.size_bytes,
                "sha256": outcome.checksum,
                "image_metadata": outcome.metadata,
                "metrics": outcome.metrics,
            })),
            Self::Bar(_) | Self::Lines { .. } => {
                if let Self::Bar(bar) = self {
                    bar.finish_and_clear();
                }
                self.line(&format!(
                    "{} bytes, sha256 {}",
                    outcome.size_bytes, outcome.checksum
                ));
                // Nobody reads it: the image is there all the same.
                drop(writeln!(io::stdout(), "{}", outcome.image_path.display()));
            }
        }
    }

    pub(super) fn failed(&self, failure: &Failure) {
        match self {
            Self::Json => object(&json!({
                "event": "failed",
                "exit_code": failure.exit.code(),
                "message": failure.message,
            })),
            Self::Bar(bar) => bar.finish_and_clear(),
            Self::Lines { .. } => {}
        }
    }

    fn line(&self, text: &str) {
        match self {
            Self::Bar(bar) if !bar.is_finished() => bar.println(text),
            // Where nobody listens, the exit code has to do.
            Self::Bar(_) | Self::Lines { .. } => drop(writeln!(io::stderr(), "{text}")),
            Self::Json => {}
        }
    }
}

fn object(value: &Value) {
    drop(writeln!(io::stdout(), "{value}"));
}
