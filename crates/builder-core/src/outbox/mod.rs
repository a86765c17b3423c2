//! Telling assetmanagerd of images, for sure.
//!
//! What is to be told is a row of the database (`store::outbox`), written in the transaction that completes or removes a
//! build. One task works the rows off, a few at a time, and comes back to each until it is done: a second after the first
//! failure, then twice as long each time up to five minutes, less a random part; an hour where another attempt makes sense
//! only after somebody has changed something. When assetmanagerd answers again after it did not, everything is due at
//! once. A build waits for none of this, and neither does a shutdown: an attempt that is cut off is one of which nobody
//! knows how it went, and the next one looks before it registers again.
//!
//! That looking is why every asset gets an id of ours: the one that the tenant suggested, or the build's own.

mod attempt;
mod clock;

use std::{
    collections::HashMap,
    fmt,
    hash::{BuildHasher as _, RandomState},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use assetclient::AssetClient;
use tokio::{
    sync::Notify,
    task::{Id, JoinSet},
};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

pub(crate) use self::{
    attempt::owner,
    clock::{Clock, SystemClock},
};
use crate::{
    artifact::{ArtifactKey, ArtifactStore},
    build::BuildId,
    pipeline::Outcome,
    request::BuildRequest,
    store::{Claimed, Duty, Registration, Store},
};

/// Calls at the same time.
const PLACES: usize = 4;

/// Between the first failure and the second attempt.
const FIRST_PAUSE: Duration = Duration::from_secs(1);

/// Between two attempts at most.
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);

/// Between two attempts where the first one was refused for good.
const REFUSED_PAUSE: Duration = Duration::from_secs(60 * 60);

/// Before the database is asked again after it failed.
const DATABASE_PAUSE: Duration = Duration::from_secs(5);

/// Longer ids would be refused by the client.
const LONGEST_ID: usize = 256;

/// Works off what assetmanagerd has to be told.
pub(crate) struct Outbox {
    store: Store,
    client: AssetClient,
    artifacts: Arc<dyn ArtifactStore>,
    clock: Arc<dyn Clock>,
    /// Somebody has written a row.
    wake: Arc<Notify>,
    /// The last attempt met no assetmanagerd that works.
    is_down: AtomicBool,
}

impl fmt::Debug for Outbox {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Outbox").finish_non_exhaustive()
    }
}

impl Outbox {
    pub(crate) fn new(
        store: Store,
        client: AssetClient,
        artifacts: Arc<dyn ArtifactStore>,
        clock: Arc<dyn Clock>,
        wake: Arc<Notify>,
    ) -> Self {
        Self {
            store,
            client,
            artifacts,
            clock,
            wake,
            is_down: AtomicBool::new(false),
        }
    }

    /// Runs until `stopped` is cancelled; attempts under way are cut off.
    pub(crate) async fn run(self, stopped: CancellationToken) {
        tokio::select! {
            () = stopped.cancelled() => {}
            () = Arc::new(self).work() => {}
        }
    }

    async fn work(self: Arc<Self>) {
        // What waited for a reason of the last service's time has waited enough.
        while let Err(error) = self.store.hurry_duties(self.clock.now()).await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "Failed to take up the outbox"
            );
            self.pause(DATABASE_PAUSE).await;
        }
        let mut attempts = JoinSet::new();
        let mut busy: HashMap<Id, BuildId> = HashMap::new();
        loop {
            let next = self.begin(&mut attempts, &mut busy).await;
            tokio::select! {
                () = self.wake.notified() => {}
                Some(ended) = attempts.join_next_with_id() => {
                    let id = match ended {
                        Ok((id, ())) => id,
                        Err(error) => {
                            tracing::error!(%error, "An attempt to tell assetmanagerd of an image panicked");
                            error.id()
                        }
                    };
                    busy.remove(&id);
                }
                () = self.wait(next) => {}
            }
        }
    }

    /// Begins as many attempts as there are places; says when to look again.
    async fn begin(
        self: &Arc<Self>,
        attempts: &mut JoinSet<()>,
        busy: &mut HashMap<Id, BuildId>,
    ) -> Option<SystemTime> {
        let free = PLACES.saturating_sub(busy.len());
        if free == 0 {
            return None;
        }
        let now = self.clock.now();
        let claim = async {
            let builds = || busy.values().copied().collect::<Vec<_>>();
            // A look without a transaction of the writer's, since most find nothing.
            let next = self.store.backlog(builds()).await?.next_attempt_at;
            match next {
                Some(next) if next <= now || next > now + crate::store::LONGEST_WAIT => {}
                next => return Ok((Vec::new(), next)),
            }
            let claimed = self.store.claim_duties(now, free, builds(), pause).await?;
            Ok::<_, crate::store::StoreError>((claimed, None))
        };
        match claim.await {
            Ok((claimed, next)) => {
                let began = !claimed.is_empty();
                for claimed in claimed {
                    let build = claimed.build;
                    let outbox = Arc::clone(self);
                    let task = attempts.spawn(async move { outbox.attempt(claimed).await });
                    busy.insert(task.id(), build);
                }
                if began && busy.len() < PLACES {
                    // Nothing more is due, and something may be soon.
                    let builds = busy.values().copied().collect();
                    return self.store.backlog(builds).await.ok()?.next_attempt_at;
                }
                next
            }
            Err(error) => {
                tracing::error!(
                    error = &error as &dyn std::error::Error,
                    "Failed to read the outbox"
                );
                Some(now + DATABASE_PAUSE)
            }
        }
    }

    async fn wait(&self, until: Option<SystemTime>) {
        match until {
            Some(moment) => self.clock.wait_until(moment).await,
            None => std::future::pending().await,
        }
    }

    async fn pause(&self, pause: Duration) {
        self.clock.wait_until(self.clock.now() + pause).await;
    }

    async fn attempt(&self, claimed: Claimed) {
        let name = match &claimed.duty {
            Duty::Register(_) => "register",
            Duty::Delete(_) => "delete",
        };
        let span = tracing::info_span!(
            parent: None,
            "asset",
            otel.name = name,
            otel.kind = "client",
            build.id = %claimed.build,
            tenant.id = %claimed.tenant,
            attempt = claimed.attempts,
        );
        self.client.attempts(&claimed.build.to_string(), &span);
        let ended = attempt::run(self, &claimed).instrument(span).await;
        if let Err(error) = ended {
            // The row was dated before the attempt: it comes again, and looks first.
            tracing::error!(build.id = %claimed.build, error = &error as &dyn std::error::Error, "Failed to store what assetmanagerd said");
        }
    }

    /// assetmanagerd works: what waited because it did not is due.
    async fn is_up(&self) {
        if self.is_down.swap(false, Ordering::Relaxed) {
            match self.store.hurry_duties(self.clock.now()).await {
                Ok(()) => self.wake.notify_one(),
                // Everything comes at its own time then.
                Err(error) => {
                    tracing::warn!(
                        error = &error as &dyn std::error::Error,
                        "Failed to hurry the outbox"
                    );
                }
            }
        }
    }
}

/// What is to be told of an image that is in its place.
pub(crate) fn registration(
    artifacts: &dyn ArtifactStore,
    key: &ArtifactKey,
    request: &BuildRequest,
    outcome: &Outcome,
) -> Registration {
    let suggested = &request.suggested_asset_id;
    let is_usable =
        !suggested.is_empty() && suggested.len() <= LONGEST_ID && !suggested.contains(char::is_control);
    Registration {
        asset_id: if is_usable {
            suggested.clone()
        } else {
            key.build.to_string()
        },
        customer_id: request.tenant.customer_id.clone(),
        name: request.build_name.clone(),
        source_image: request.source.image_uri.clone(),
        backend: artifacts.backend().as_str().to_owned(),
        location: artifacts.relative_location(key),
        size_bytes: outcome.size_bytes,
        checksum: outcome.checksum.clone(),
    }
}

/// How long to wait after so many failed attempts: between half and the whole of a pause that doubles.
fn pause(attempts: u32) -> Duration {
    let doubled = FIRST_PAUSE.saturating_mul(1 << attempts.saturating_sub(1).min(20));
    less_a_random_part(doubled.min(LONGEST_PAUSE))
}

/// So that rows that failed together do not all come back together.
fn less_a_random_part(pause: Duration) -> Duration {
    // The seed of each of these is random, which is all that is wanted here.
    let random = RandomState::new().hash_one(0_u8) % 1024;
    pause - pause / 2 * u32::try_from(random).unwrap_or(0) / 1024
}

#[cfg(test)]
mod tests;
