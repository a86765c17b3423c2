//! Who watches the service: what is told here becomes figures and traces, in words of this crate.
//!
//! The narrow way out for telemetry: whoever runs a [`crate::service::Builder`] hands it an [`Observer`], and what that makes
//! of it (metrics, trace contexts) is its own affair. Nothing that it does may hold a build up: its methods are called on
//! the way and have to return at once.

use std::{fmt, time::Duration};

use assetclient::CallObserver;
use tenant::{TenantId, Tier};
use tracing::{Instrument as _, Span, field};

use crate::{
    build::{BuildId, BuildMetrics, BuildState},
    error::{BuildError, BuildErrorKind},
    event::{Event, EventSender},
};

/// A part of a build that is worth a figure and a span of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// Reference to manifest.
    Resolve,
    /// All layers: pulled and indexed, or found in the cache.
    Layers,
    /// A finished image of the same content, copied instead of made again.
    Reuse,
    /// Fold, plan, metadata.
    Write,
    /// Contents copied from packs into the image, and its checksum.
    Contents,
    /// Into its final place on this machine.
    Place,
    /// Into its bucket, where that is where images are kept.
    Publish,
}

impl Step {
    /// All steps, in their order.
    pub const ALL: [Self; 7] = [
        Self::Resolve,
        Self::Layers,
        Self::Reuse,
        Self::Write,
        Self::Contents,
        Self::Place,
        Self::Publish,
    ];

    /// The name in lower case, as `layers`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Resolve => "resolve",
            Self::Layers => "layers",
            Self::Reuse => "reuse",
            Self::Write => "write",
            Self::Contents => "contents",
            Self::Place => "place",
            Self::Publish => "publish",
        }
    }
}

/// How a step ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StepOutcome {
    /// It did what it is there for.
    Done,
    /// It failed.
    Failed,
    /// It was cut short because the build was cancelled.
    Cancelled,
}

impl StepOutcome {
    /// The name in lower case, as `done`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    const fn of<T>(result: &Result<T, BuildError>) -> Self {
        match result {
            Ok(_) => Self::Done,
            Err(error) => match error.kind() {
                BuildErrorKind::Cancelled => Self::Cancelled,
                _ => Self::Failed,
            },
        }
    }
}

/// A build that has ended and whose end is stored.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct EndedBuild {
    /// Which.
    pub id: BuildId,
    /// Whose.
    pub tenant: TenantId,
    /// The tenant's tier.
    pub tier: Tier,
    /// Completed, failed or cancelled.
    pub state: BuildState,
    /// Of a failed build, the kind of its error in one word, as `image_not_found`.
    pub failure: Option<&'static str>,
    /// From its begin to its end; `None` when it never began.
    pub duration: Option<Duration>,
    /// What it took.
    pub metrics: BuildMetrics,
}

/// Is told what happens.
pub trait Observer: CallObserver + Send + Sync + fmt::Debug {
    /// A build was accepted, within the span of the request that asked for it.
    fn accepted(&self, _build: &BuildId) {}

    /// A build was refused because a quota of its tenant, or the machine's room, is used up.
    fn refused(&self, _tenant: &TenantId) {}

    /// The work of a build begins. `span` is the build's, just made and not entered yet: whoever knows what the build
    /// belongs to can say so.
    fn begins(&self, _build: &BuildId, _span: &Span) {}

    /// A step of some build ended.
    fn step(&self, _step: Step, _outcome: StepOutcome, _duration: Duration) {}

    /// A build ended.
    fn ended(&self, _build: &EndedBuild) {}

    /// A build that had begun starts over with the next start of the service.
    fn requeued(&self, _build: &BuildId) {}
}

/// Takes no notice.
#[derive(Clone, Copy, Debug, Default)]
pub struct Unobserved;

impl CallObserver for Unobserved {}

impl Observer for Unobserved {}

/// The span of a build; the parts of the build are within it.
pub(crate) fn build_span(build: &BuildId, tenant: &TenantId) -> Span {
    tracing::info_span!(
        parent: None,
        "build",
        build.id = %build,
        tenant.id = %tenant,
        build.state = field::Empty,
        otel.status_code = field::Empty,
    )
}

/// Runs a step in a span of its own, and tells how it went.
pub(crate) async fn step<T>(
    events: &EventSender,
    step: Step,
    work: impl Future<Output = Result<T, BuildError>>,
) -> Result<T, BuildError> {
    let span = tracing::info_span!(
        "step",
        otel.name = step.as_str(),
        step = step.as_str(),
        outcome = field::Empty,
        otel.status_code = field::Empty,
    );
    let begun = std::time::Instant::now();
    let result = work.instrument(span.clone()).await;
    let outcome = StepOutcome::of(&result);
    span.record("outcome", outcome.as_str());
    if outcome == StepOutcome::Failed {
        span.record("otel.status_code", "ERROR");
    }
    drop(span);
    let duration = begun.elapsed();
    events
        .send(Event::Step {
            step,
            outcome,
            duration,
        })
        .await;
    result
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_step_tells_how_it_ended() {
        let (events, mut received) = crate::event::channel(8);
        let wrong = |kind| BuildError::new(kind, "no");
        let cases = [
            (Ok(1), StepOutcome::Done),
            (Err(wrong(BuildErrorKind::ImageNotFound)), StepOutcome::Failed),
            (Err(wrong(BuildErrorKind::Cancelled)), StepOutcome::Cancelled),
        ];
        for (result, expected) in cases {
            let is_ok = result.is_ok();
            let given = step(&events, Step::Resolve, async { result }).await;
            assert_eq!(given.is_ok(), is_ok);
            let Some(Event::Step { step, outcome, .. }) = received.recv().await else {
                panic!("no step was told")
            };
            assert_eq!((step, outcome), (Step::Resolve, expected));
        }
    }
}
