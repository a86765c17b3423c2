//! How far a build is: states in order, a percentage that never falls, a step in words.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use oci_fetch::{Blob, PullProgress};

use crate::{
    build::BuildState,
    event::{Component, Event, EventSender, Level},
};

/// How often figures are looked at.
const INTERVAL: Duration = Duration::from_millis(200);

/// A line about the pull goes to the log after so long, the next ones each after twice as long, up to the longest: an hour
/// makes some sixty lines.
const FIRST_LINE: Duration = Duration::from_secs(2);
const LONGEST_BETWEEN_LINES: Duration = Duration::from_secs(60);

/// Percentages at which the parts of a build begin. Pulling and indexing are one part, because a layer is indexed while
/// it comes in; how long writing takes beside it depends on both.
const RESOLVED: u8 = 2;
const INDEXED: u8 = 65;
const WRITTEN: u8 = 92;
const HASHED: u8 = 98;

/// What all parts of a build report to.
#[derive(Debug)]
pub(super) struct Progress {
    events: EventSender,
    started: Instant,
    /// Compressed bytes that have reached an index worker, or need not.
    bytes_in: AtomicU64,
    /// Bytes of the image that are on disk, or hashed, whichever is under way.
    bytes_out: AtomicU64,
    board: Mutex<Board>,
    /// The layers as they arrive; made when the image is known.
    pull: Mutex<Option<PullProgress>>,
    /// Held while an event is on its way, so that states and figures arrive in order.
    order: tokio::sync::Mutex<Sent>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Board {
    phase: Phase,
    layers: usize,
    pulled: usize,
    indexed: usize,
    total_in: u64,
    total_out: u64,
    first_byte: Option<Instant>,
    times: Times,
}

/// When the parts ended, counted from the start of the build.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Times {
    pub(super) pulled: Option<Duration>,
    /// Counted from the first byte of a layer.
    pub(super) indexed: Option<Duration>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Phase {
    #[default]
    Resolve,
    Layers,
    Write,
    Copy,
    Hash,
    Publish,
}

#[derive(Debug, Default)]
struct Sent {
    state: Option<BuildState>,
    percent: u8,
    step: String,
}

/// A pull in which bytes come in.
struct Pulling {
    arrived_bytes: u64,
    total_bytes: u64,
    bytes_per_second: u64,
    /// At this rate, rounded up.
    seconds_left: u64,
}

/// When the next line about the pull is due.
struct Schedule {
    due: Instant,
    pause: Duration,
}

impl Schedule {
    fn new() -> Self {
        Self {
            due: Instant::now() + FIRST_LINE,
            pause: FIRST_LINE,
        }
    }

    fn is_due(&self) -> bool {
        Instant::now() >= self.due
    }

    fn told(&mut self) {
        self.pause = (self.pause * 2).min(LONGEST_BETWEEN_LINES);
        self.due = Instant::now() + self.pause;
    }
}

impl Progress {
    pub(super) fn new(events: EventSender) -> Self {
        Self {
            events,
            started: Instant::now(),
            bytes_in: AtomicU64::new(0),
            bytes_out: AtomicU64::new(0),
            board: Mutex::default(),
            pull: Mutex::default(),
            order: tokio::sync::Mutex::default(),
        }
    }

    pub(super) const fn events(&self) -> &EventSender {
        &self.events
    }

    pub(super) fn elapsed(&self) -> Duration {
        self.started.elapsed()
    }

    pub(super) fn times(&self) -> Times {
        self.lock().times
    }

    fn lock(&self) -> MutexGuard<'_, Board> {
        // Plain figures: a panic elsewhere leaves nothing half done.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The layers are known.
    pub(super) fn plan(&self, layers: usize, total_bytes: u64) {
        *self.lock_pull() = Some(PullProgress::new(total_bytes));
        let mut board = self.lock();
        board.layers = layers;
        board.total_in = total_bytes;
        board.phase = Phase::Layers;
    }

    /// A layer is on its way here.
    pub(super) fn follow(&self, blob: &Blob) {
        if let Some(pull) = &mut *self.lock_pull() {
            pull.add(blob);
        }
    }

    /// A layer of so many bytes need not be pulled.
    pub(super) fn skip(&self, bytes: u64) {
        if let Some(pull) = &mut *self.lock_pull() {
            pull.skip(bytes);
        }
    }

    fn lock_pull(&self) -> MutexGuard<'_, Option<PullProgress>> {
        self.pull.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How the pull is going while bytes come in; `None` when none do, or when that cannot be told yet.
    fn sample_pull(&self) -> Option<Pulling> {
        let sample = self.lock_pull().as_mut().map(PullProgress::sample)?;
        if sample.arrived_bytes >= sample.total_bytes {
            // Before the last layer's turn, maybe.
            let elapsed = self.elapsed();
            self.lock().times.pulled.get_or_insert(elapsed);
        }
        let left = sample.remaining?;
        Some(Pulling {
            arrived_bytes: sample.arrived_bytes,
            total_bytes: sample.total_bytes,
            bytes_per_second: sample.bytes_per_second.filter(|rate| *rate > 0)?,
            seconds_left: left.as_secs() + u64::from(left.subsec_nanos() > 0),
        })
        .filter(|pulling| pulling.arrived_bytes < pulling.total_bytes)
    }

    /// `, 10.2 MB/s, 4 s left` while bytes come in, else nothing.
    fn pull_in_words(&self) -> String {
        self.sample_pull().map_or_else(String::new, |pulling| {
            format!(
                ", {}/s, {} s left",
                megabytes(pulling.bytes_per_second),
                pulling.seconds_left
            )
        })
    }

    /// Writes a line about the pull to the log when one is due and there is something to tell.
    async fn tell_pull(&self, schedule: &mut Schedule) {
        if !schedule.is_due() || self.lock().phase != Phase::Layers {
            return;
        }
        let Some(pulling) = self.sample_pull() else { return };
        let message = format!(
            "Pulling: {} of {}, {}/s, {} s left",
            megabytes(pulling.arrived_bytes),
            megabytes(pulling.total_bytes),
            megabytes(pulling.bytes_per_second),
            pulling.seconds_left
        );
        let metadata = [
            ("pull.arrived_bytes", pulling.arrived_bytes.to_string()),
            ("pull.total_bytes", pulling.total_bytes.to_string()),
            ("pull.bytes_per_second", pulling.bytes_per_second.to_string()),
            ("pull.seconds_left", pulling.seconds_left.to_string()),
        ];
        self.events
            .log_with(Level::Info, Component::Puller, message, metadata)
            .await;
        schedule.told();
    }

    /// Bytes of a layer went to a worker.
    pub(super) fn advance(&self, bytes: u64) {
        self.bytes_in.fetch_add(bytes, Ordering::Relaxed);
        self.lock().first_byte.get_or_insert_with(Instant::now);
    }

    /// All bytes of one more layer are here.
    pub(super) async fn layer_pulled(&self) {
        let all = {
            let mut board = self.lock();
            board.pulled += 1;
            let all = board.pulled == board.layers;
            if all {
                board.times.pulled.get_or_insert(self.elapsed());
            }
            all
        };
        if all {
            self.enter(BuildState::Extracting).await;
        }
    }

    /// One more layer is indexed.
    pub(super) async fn layer_indexed(&self) {
        {
            let mut board = self.lock();
            board.indexed += 1;
            if board.indexed == board.layers {
                board.times.indexed = board.first_byte.map(|first| first.elapsed());
            }
        }
        self.report().await;
    }

    /// A part begins in which `total` bytes are to be written or read.
    pub(super) async fn begin(&self, phase: Phase, total: u64) {
        {
            let mut board = self.lock();
            board.phase = phase;
            board.total_out = total;
        }
        self.bytes_out.store(0, Ordering::Relaxed);
        self.report().await;
    }

    /// So many bytes of the present part are done.
    pub(super) fn set_done(&self, bytes: u64) {
        self.bytes_out.store(bytes, Ordering::Relaxed);
    }

    /// Moves on to `state`; a state that was passed already is not entered again.
    pub(super) async fn enter(&self, state: BuildState) {
        let mut sent = self.order.lock().await;
        if sent.state.is_none_or(|current| current < state) {
            sent.state = Some(state);
            self.events.send(Event::State(state)).await;
        }
    }

    /// Reports the figures if they changed.
    pub(super) async fn report(&self) {
        let (percent, step) = self.figures();
        let mut sent = self.order.lock().await;
        let percent = percent.max(sent.percent);
        if percent != sent.percent || step != sent.step {
            sent.percent = percent;
            sent.step.clone_from(&step);
            self.events.send(Event::Progress { percent, step }).await;
        }
    }

    /// Reports again and again; never ends by itself.
    pub(super) async fn watch(&self) -> std::convert::Infallible {
        let mut schedule = Schedule::new();
        let mut interval = tokio::time::interval(INTERVAL);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            interval.tick().await;
            self.report().await;
            self.tell_pull(&mut schedule).await;
        }
    }

    fn figures(&self) -> (u8, String) {
        let board = *self.lock();
        let done_out = self.bytes_out.load(Ordering::Relaxed).min(board.total_out);
        match board.phase {
            Phase::Resolve => (0, "resolve the image".to_owned()),
            Phase::Layers => {
                let done = self.bytes_in.load(Ordering::Relaxed).min(board.total_in);
                let step = format!(
                    "pull and index layers: {} of {} done, {} of {}{}",
                    board.indexed,
                    board.layers,
                    megabytes(done),
                    megabytes(board.total_in),
                    self.pull_in_words()
                );
                (between(RESOLVED, INDEXED, done, board.total_in), step)
            }
            Phase::Write => {
                let step = format!(
                    "write the image: {} of {}",
                    megabytes(done_out),
                    megabytes(board.total_out)
                );
                (between(INDEXED, WRITTEN, done_out, board.total_out), step)
            }
            Phase::Copy => {
                let step = format!(
                    "copy the image: {} of {}",
                    megabytes(done_out),
                    megabytes(board.total_out)
                );
                (between(INDEXED, WRITTEN, done_out, board.total_out), step)
            }
            Phase::Hash => {
                let step = format!(
                    "hash the image: {} of {}",
                    megabytes(done_out),
                    megabytes(board.total_out)
                );
                (between(WRITTEN, HASHED, done_out, board.total_out), step)
            }
            Phase::Publish => (HASHED, "publish the image".to_owned()),
        }
    }
}

/// The percentage between two marks; the first when there is nothing to do.
fn between(from: u8, to: u8, done: u64, total: u64) -> u8 {
    if total == 0 {
        return from;
    }
    let part = u128::from(to - from) * u128::from(done.min(total)) / u128::from(total);
    from + u8::try_from(part).unwrap_or(to - from)
}

/// `12.3 MB`, with one figure behind the point.
pub(super) fn megabytes(bytes: u64) -> String {
    let tenths = (u128::from(bytes) * 10 + 500_000) / 1_000_000;
    format!("{}.{} MB", tenths / 10, tenths % 10)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_stay_between_their_marks() {
        for (done, total, expected) in [(0, 10, 2), (10, 10, 65), (11, 10, 65), (5, 10, 33), (0, 0, 2)] {
            assert_eq!(between(2, 65, done, total), expected, "{done} of {total}");
        }
        assert_eq!(between(0, 98, u64::MAX, u64::MAX), 98);
    }

    #[tokio::test]
    async fn states_and_percentages_never_go_back() {
        let (events, mut received) = crate::event::channel(64);
        let progress = Progress::new(events);
        progress.plan(1, 100);
        progress.enter(BuildState::Pulling).await;
        progress.advance(100);
        progress.layer_pulled().await;
        progress.layer_indexed().await;
        progress.enter(BuildState::Pulling).await;
        progress.plan(1, 1_000_000_000);
        progress.report().await;
        drop(progress);
        let mut seen = Vec::new();
        while let Some(event) = received.recv().await {
            match event {
                Event::State(state) => seen.push(state.as_str().to_owned()),
                Event::Progress { percent, .. } => seen.push(percent.to_string()),
                _ => {}
            }
        }
        assert_eq!(seen, ["pulling", "extracting", "65", "65"]);
    }
}
