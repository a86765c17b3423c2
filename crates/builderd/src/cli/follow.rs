//! A build's log to its end, over connections that break.

use std::{
    io::{self, IsTerminal as _},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::time::Instant;
use tonic::{Code, Status};

use super::{
    connection::{Client, Connection},
    output::{json, note, print, print_json_line, printable, state},
};
use crate::{
    exit::{Exit, Failure},
    proto::{BuildJob, BuildState, GetBuildRequest, StreamBuildLogsRequest, StreamBuildLogsResponse},
};

/// How often the bar asks how far the build is.
const POLL: Duration = Duration::from_millis(500);

/// The first and the longest pause before a broken connection is tried again.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How a log is shown.
pub(super) enum Show {
    /// A bar on standard error, with the log above it.
    Bar(ProgressBar),
    /// Lines on standard error: the result is something else.
    Notes,
    /// Lines on standard output: they are the result.
    Result,
    /// JSON on standard output, one object a line; in an object `{"log": …}` when other things come as well.
    Json {
        /// Whether other things come as well.
        wrapped: bool,
    },
}

impl Show {
    /// For a build whose log goes along with something else.
    pub(super) fn beside(json: bool) -> Self {
        if json {
            return Self::Json { wrapped: true };
        }
        if !io::stderr().is_terminal() {
            return Self::Notes;
        }
        let bar = ProgressBar::new(100);
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} {elapsed_precise} [{bar:32}] {pos:>3}% {wide_msg}")
        {
            bar.set_style(style);
        }
        Self::Bar(bar)
    }

    pub(super) fn line(&self, line: &StreamBuildLogsResponse) -> Result<(), Failure> {
        if let Self::Json { wrapped } = self {
            let value = json("StreamBuildLogsResponse", line)?;
            return print_json_line(&if *wrapped { json!({ "log": value }) } else { value });
        }
        let mark = match line.level.as_str() {
            // Debug lines are for those who read JSON.
            "debug" => return Ok(()),
            "warn" => "warning: ",
            "error" => "error: ",
            _ => "",
        };
        let text = format!(
            "{:>9}  {mark}{}",
            printable(&line.component),
            printable(&line.message)
        );
        match self {
            Self::Bar(bar) => bar.println(text),
            Self::Result => print(&text)?,
            Self::Notes | Self::Json { .. } => note(&text),
        }
        Ok(())
    }

    fn progress(&self, build: &BuildJob) {
        if let Self::Bar(bar) = self {
            bar.set_position(u64::try_from(build.progress_percent).unwrap_or(0));
            let step = if build.current_step.is_empty() {
                state(build.state).to_lowercase()
            } else {
                printable(&build.current_step)
            };
            bar.set_message(match build.queue_position {
                0 => step,
                position => format!("waits, {position} before it"),
            });
            bar.tick();
        }
    }

    fn say(&self, text: &str) {
        match self {
            Self::Bar(bar) => bar.println(text),
            _ => note(text),
        }
    }

    fn clear(&self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}

/// A log that is followed.
pub(super) struct Follower<'a> {
    pub(super) connection: &'a Connection,
    pub(super) tenant_id: String,
    pub(super) build_id: String,
    pub(super) show: Show,
    /// How long to try again when the service cannot be reached.
    pub(super) reconnect_for: Duration,
    /// The line that comes next.
    pub(super) next_sequence: i64,
}

impl Follower<'_> {
    /// Shows the log until the build has ended, and gives the build. Ctrl-C ends only the following, and says how to go
    /// on.
    pub(super) async fn run(&mut self) -> Result<BuildJob, Failure> {
        let interrupted = async {
            // Without a handler the signal ends the program, which is right as well.
            if tokio::signal::ctrl_c().await.is_err() {
                std::future::pending::<()>().await;
            }
        };
        let ended = tokio::select! {
            ended = self.follow() => Some(ended),
            () = interrupted => None,
        };
        self.show.clear();
        ended.unwrap_or_else(|| {
            let (id, next) = (&self.build_id, self.next_sequence);
            Err(Failure::new(
                Exit::Interrupted,
                format!(
                    "interrupted: the build goes on\n  follow it: builderd-cli stream-logs --follow --from-sequence \
                     {next} {id}\n  end it:    builderd-cli cancel-build {id}"
                ),
            ))
        })
    }

    async fn follow(&mut self) -> Result<BuildJob, Failure> {
        let mut outage = Outage::new(self.reconnect_for);
        loop {
            let before = self.next_sequence;
            let outcome = self.stream().await?;
            if self.next_sequence > before {
                outage.over();
            }
            let status = match outcome {
                // The log is complete when the build has ended.
                Ok(()) => match self.build().await {
                    Ok(build) if is_end(build.state()) => return Ok(build),
                    Ok(_) => Status::unavailable("the log ended before the build"),
                    Err(status) => status,
                },
                Err(status) => status,
            };
            if self.connection.is_refused() {
                return Err(self.connection.failure(&status));
            }
            let pause = outage
                .pause(&status)
                .ok_or_else(|| self.connection.failure(&status))?;
            if outage.attempts == 1 {
                self.show.say(&format!(
                    "{}: {}; going on with line {} as soon as the service answers",
                    crate::status::code_name(status.code()),
                    printable(status.message()),
                    self.next_sequence
                ));
            }
            tokio::time::sleep(pause).await;
        }
    }

    /// Shows what one stream brings. The outer error is one of this side.
    async fn stream(&mut self) -> Result<Result<(), Status>, Failure> {
        let request = StreamBuildLogsRequest {
            build_id: self.build_id.clone(),
            tenant_id: self.tenant_id.clone(),
            follow: true,
            from_sequence: self.next_sequence,
        };
        let mut client = self.connection.client();
        let mut lines = match client.stream_build_logs(request).await {
            Ok(response) => response.into_inner(),
            Err(status) => return Ok(Err(status)),
        };
        let mut poll = tokio::time::interval(POLL);
        poll.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let with_bar = matches!(self.show, Show::Bar(_));
        loop {
            let line = tokio::select! {
                line = lines.message() => line,
                _ = poll.tick(), if with_bar => {
                    // Only the bar loses when this fails; the stream itself tells what is wrong.
                    if let Ok(build) = self.build().await {
                        self.show.progress(&build);
                    }
                    continue;
                }
            };
            match line {
                Ok(Some(line)) => {
                    if line.sequence < self.next_sequence {
                        continue;
                    }
                    if line.sequence > self.next_sequence && self.next_sequence > 1 {
                        let last = line.sequence - 1;
                        self.show.say(&format!(
                            "warning: the service left out lines {} to {last}",
                            self.next_sequence
                        ));
                    }
                    self.next_sequence = line.sequence.saturating_add(1);
                    self.show.line(&line)?;
                }
                Ok(None) => return Ok(Ok(())),
                Err(status) => return Ok(Err(status)),
            }
        }
    }

    async fn build(&self) -> Result<BuildJob, Status> {
        let mut client: Client = self.connection.client();
        let request = self.connection.request(GetBuildRequest {
            build_id: self.build_id.clone(),
            tenant_id: self.tenant_id.clone(),
        });
        let build = client.get_build(request).await?.into_inner().build;
        build.ok_or_else(|| Status::internal("the answer holds no build"))
    }
}

/// Whether a build in this state stays in it.
pub(super) const fn is_end(state: BuildState) -> bool {
    matches!(
        state,
        BuildState::Completed | BuildState::Failed | BuildState::Cancelled
    )
}

/// A time without an answer.
#[derive(Debug)]
struct Outage {
    limit: Duration,
    since: Option<Instant>,
    attempts: u32,
}

impl Outage {
    const fn new(limit: Duration) -> Self {
        Self {
            limit,
            since: None,
            attempts: 0,
        }
    }

    fn over(&mut self) {
        self.since = None;
        self.attempts = 0;
    }

    /// How long to wait before the next attempt; `None` when there is no use in one.
    fn pause(&mut self, status: &Status) -> Option<Duration> {
        if !may_pass(status) {
            return None;
        }
        let since = *self.since.get_or_insert_with(Instant::now);
        if since.elapsed() >= self.limit {
            return None;
        }
        let pause = FIRST_PAUSE.saturating_mul(1 << self.attempts.min(10));
        self.attempts += 1;
        Some(pause.min(LONGEST_PAUSE))
    }
}

/// Whether a connection that ended like this is worth another one. What the service itself refuses carries details;
/// what a broken connection looks like does not.
fn may_pass(status: &Status) -> bool {
    match status.code() {
        Code::Unavailable | Code::DeadlineExceeded => true,
        Code::Unknown | Code::Cancelled | Code::Internal => status.details().is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_outage_is_waited_for_so_long_and_no_longer() {
        let away = Status::unavailable("away");
        let mut outage = Outage::new(Duration::from_secs(30));
        let mut waited = Duration::ZERO;
        let mut pauses = 0;
        while let Some(pause) = outage.pause(&away) {
            assert!(pause <= LONGEST_PAUSE);
            waited += pause;
            pauses += 1;
            tokio::time::sleep(pause).await;
        }
        assert!(
            waited >= Duration::from_secs(30) && waited < Duration::from_secs(36),
            "{waited:?}"
        );
        assert!(pauses > 5);
        outage.over();
        assert_eq!(outage.pause(&away), Some(FIRST_PAUSE));
    }

    #[test]
    fn what_the_service_refuses_is_not_tried_again() {
        let refused = crate::status::with_info(Code::Internal, "logged", "INTERNAL", []);
        assert!(!may_pass(&refused));
        assert!(!may_pass(&Status::not_found("no such build")));
        assert!(may_pass(&Status::unknown("connection reset")));
        assert!(may_pass(&crate::status::with_info(
            Code::Unavailable,
            "draining",
            "DRAINING",
            []
        )));
    }
}
