//! What happens during a build: the log stream and the progress bar are both made of these.

use std::{
    collections::BTreeMap,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use crate::{
    build::{BuildMetrics, BuildState, ImageMetadata},
    observe::{Step, StepOutcome},
};

/// In the metadata of the last line of a build that ended without an image: the kind of the error in one word, as
/// [`BuildErrorKind::as_str`](crate::BuildErrorKind::as_str), or `credentials_lost` when it could not go on after a restart.
pub const ERROR_KIND: &str = "error.kind";

/// How much an operator or a tenant should care.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Level {
    /// For the curious.
    Debug,
    /// What is being done.
    Info,
    /// Something that the tenant should look at.
    Warn,
    /// Why the build failed.
    Error,
}

impl Level {
    /// The name in lower case, as `warn`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warn => "warn",
            Self::Error => "error",
        }
    }
}

/// Which part of the pipeline speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Component {
    /// Admission, queue, end of the build.
    Builder,
    /// The registry client.
    Puller,
    /// Layers to indexes.
    Extractor,
    /// Tree to image.
    Writer,
    /// Leaving out and making smaller.
    Optimizer,
    /// Placing the image where it is served from.
    Publisher,
}

impl Component {
    /// The name in lower case, as `puller`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Builder => "builder",
            Self::Puller => "puller",
            Self::Extractor => "extractor",
            Self::Writer => "writer",
            Self::Optimizer => "optimizer",
            Self::Publisher => "publisher",
        }
    }
}

/// A line for people, kept with the build.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// 1 for a build's first line, then without gaps.
    pub sequence: u64,
    /// When it was written.
    pub timestamp: SystemTime,
    /// How much it matters.
    pub level: Level,
    /// Who wrote it.
    pub component: Component,
    /// One sentence.
    pub message: String,
    /// Figures and names that belong to it.
    pub metadata: BTreeMap<String, String>,
}

/// Something that happened in a running build.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// A line for the log.
    Log {
        /// How much it matters.
        level: Level,
        /// Who speaks.
        component: Component,
        /// One sentence.
        message: String,
        /// Figures and names that belong to it.
        metadata: BTreeMap<String, String>,
    },
    /// The build moved on.
    State(BuildState),
    /// How far it is.
    Progress {
        /// `0..=100`.
        percent: u8,
        /// The step in words.
        step: String,
    },
    /// What the image's configuration says, as soon as it is known.
    Metadata(Box<ImageMetadata>),
    /// What the build has used up to now: told whenever a worker has ended.
    Used {
        /// CPU time of the workers that have ended.
        cpu: Duration,
        /// The most memory of any of them, in bytes.
        peak_memory_bytes: u64,
        /// Compressed bytes that crossed the network.
        pulled_bytes: u64,
    },
    /// What a build took that ends without an image.
    Spent(Box<BuildMetrics>),
    /// A step of the build ended: for figures, not for people.
    Step {
        /// Which.
        step: Step,
        /// How.
        outcome: StepOutcome,
        /// How long it took.
        duration: Duration,
    },
}

/// Where a running build tells what happens. Cloned into every part of the pipeline.
///
/// The channel is bounded: a receiver that does not read holds the build up, so that nothing piles up in memory and no
/// line is lost. A receiver that is gone holds nothing up.
#[derive(Clone, Debug)]
pub struct EventSender {
    sender: mpsc::Sender<Event>,
}

/// A sender and the receiver that belongs to it, with room for `capacity` events (at least 1).
#[must_use]
pub fn channel(capacity: usize) -> (EventSender, mpsc::Receiver<Event>) {
    let (sender, receiver) = mpsc::channel(capacity.max(1));
    (EventSender { sender }, receiver)
}

impl EventSender {
    /// Hands an event over, waiting for room.
    pub async fn send(&self, event: Event) {
        // Nobody listens any more: the build goes on without an audience.
        let _ = self.sender.send(event).await;
    }

    /// Writes a line for the log.
    pub async fn log(&self, level: Level, component: Component, message: impl Into<String>) {
        self.log_with(level, component, message, []).await;
    }

    /// Writes a line for the log with figures that belong to it.
    pub async fn log_with<const N: usize>(
        &self,
        level: Level,
        component: Component,
        message: impl Into<String>,
        metadata: [(&str, String); N],
    ) {
        let metadata = metadata
            .into_iter()
            .map(|(name, value)| (name.to_owned(), value))
            .collect();
        self.send(Event::Log {
            level,
            component,
            message: message.into(),
            metadata,
        })
        .await;
    }
}
