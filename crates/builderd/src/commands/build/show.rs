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

/// Shows a build, and keeps in mind whether standard output took what it was to get.
pub(super) struct Show {
    way: Way,
    /// The first error of standard output.
    lost: Option<io::Error>,
}

/// One of three ways to show a build.
enum Way {
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

impl Way {
    fn new(json: bool) -> Self {
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
}

impl Show {
    pub(super) fn new(json: bool) -> Self {
        Self {
            way: Way::new(json),
            lost: None,
        }
    }

    /// What standard output did not take. A build goes on without an audience, but whoever waits for its last line must
    /// not take silence for success.
    pub(super) fn lost(&mut self) -> Option<io::Error> {
        self.lost.take()
    }

    pub(super) fn event(&mut self, event: Event) {
        match event {
            Event::Log {
                level,
                component,
                message,
                metadata,
            } => match &mut self.way {
                Way::Json => self.object(&json!({
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
                if let Way::Json = self.way {
                    self.object(&json!({"event": "state", "state": state.as_str()}));
                }
            }
            Event::Progress { percent, step } => match &mut self.way {
                Way::Bar(bar) => {
                    bar.set_position(u64::from(percent));
                    bar.set_message(step);
                }
                Way::Lines { step: last } => {
                    // What stands behind the colon counts up; a log is told of the step once.
                    let name = step.split(':').next().unwrap_or_default();
                    if last != name {
                        name.clone_into(last);
                        let line = format!("{percent:>8}%  {name}");
                        self.line(&line);
                    }
                }
                Way::Json => self.object(&json!({"event": "progress", "percent": percent, "step": step})),
            },
            _ => {}
        }
    }

    pub(super) fn cancelling(&self) {
        self.line("interrupted: stopping");
    }

    pub(super) fn completed(&mut self, outcome: &Outcome) {
        match &mut self.way {
            Way::Json => self.object(&json!({
                "event": "completed",
                "image": outcome.image_path,
                "metadata": outcome.metadata_path,
                "size_bytes": outcome.size_bytes,
                "sha256": outcome.checksum,
                "image_metadata": outcome.metadata,
                "metrics": outcome.metrics,
            })),
            Way::Bar(_) | Way::Lines { .. } => {
                if let Way::Bar(bar) = &self.way {
                    bar.finish_and_clear();
                }
                self.line(&format!(
                    "{} bytes, sha256 {}",
                    outcome.size_bytes, outcome.checksum
                ));
                if !outcome.metadata.verity_root_hash.is_empty() {
                    self.line(&format!(
                        "dm-verity: root hash {}, salt {}, hash offset {}",
                        outcome.metadata.verity_root_hash,
                        outcome.metadata.verity_salt,
                        outcome.metadata.verity_hash_offset
                    ));
                    if !outcome.metadata.verity_kernel_args.is_empty() {
                        self.line(&format!(
                            "kernel arguments with dm-verity: {}",
                            outcome.metadata.verity_kernel_args
                        ));
                    }
                }
                let path = outcome.image_path.display().to_string();
                self.print(&path);
            }
        }
    }

    pub(super) fn failed(&mut self, failure: &Failure) {
        match &mut self.way {
            Way::Json => self.object(&json!({
                "event": "failed",
                "exit_code": failure.exit.code(),
                "message": failure.message,
            })),
            Way::Bar(bar) => bar.finish_and_clear(),
            Way::Lines { .. } => {}
        }
    }

    fn line(&self, text: &str) {
        match &self.way {
            Way::Bar(bar) if !bar.is_finished() => bar.println(text),
            // Where nobody listens, the exit code has to do.
            Way::Bar(_) | Way::Lines { .. } => drop(writeln!(io::stderr(), "{text}")),
            Way::Json => {}
        }
    }

    fn object(&mut self, value: &Value) {
        self.print(&value.to_string());
    }

    fn print(&mut self, line: &str) {
        let mut output = io::stdout().lock();
        if self.lost.is_none()
            && let Err(error) = writeln!(output, "{line}").and_then(|()| output.flush())
        {
            self.lost = Some(error);
        }
    }
}
