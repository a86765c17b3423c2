//! Who is next: the accounts of the tenants decide, one task asks them.
//!
//! Which builds wait, in which order they are served and which limit holds one up are rows (`tenant::queue`). What is kept
//! here is what no row may hold: the request with its credentials, and who follows the build.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use tenant::{TenantId, queue::Order};
use tokio::time::Instant;

use super::{
    Inner,
    live::LiveBuild,
    run::{self, Unstored},
};
use crate::{
    build::BuildId,
    event::{Component, Level},
    request::BuildRequest,
    store::{self, BuildChange, NewLine, Requeued, Started, Turn},
};

/// The queue is looked at so often at least, should a notice be missed or the clock be set.
const LOOK_AGAIN: Duration = Duration::from_secs(60);

/// Pauses while the database fails.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// A queue up to this length is counted anew for everybody who asks; the order of a longer one holds for a moment.
const SHORT_QUEUE: usize = 256;
const ORDER_KEPT: Duration = Duration::from_secs(1);

/// A build that waits, with the credentials that exist nowhere else.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) id: BuildId,
    pub(super) request: BuildRequest,
    pub(super) live: Arc<LiveBuild>,
}

/// Builds that wait, and how many run.
#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: HashMap<BuildId, Waiting>,
    running: usize,
    draining: bool,
}

/// Where a build stands among those that wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Place {
    /// Builds that are served before it.
    pub(super) before: u32,
    pub(super) estimated_start: Option<SystemTime>,
}

/// The order of the queue at one moment.
#[derive(Debug)]
pub(super) struct Places {
    places: HashMap<BuildId, u32>,
    /// By tenant: the turn of its last build that waits.
    last_turns: HashMap<TenantId, u64>,
    turns: Vec<u64>,
    running: u64,
    average_run: Option<Duration>,
    counted_at: Instant,
}

/// What came of a look at the queue.
enum Look {
    Started,
    /// Nothing to do before this.
    Wait(Option<SystemTime>),
    Failed,
}

impl Queue {
    /// The build is put here before its row is made: who starts it finds it.
    pub(super) fn insert(&mut self, waiting: Waiting) {
        self.waiting.insert(waiting.id, waiting);
    }

    /// Whoever takes a build out is the one who ends or runs it.
    pub(super) fn remove(&mut self, id: BuildId) -> Option<Waiting> {
        self.waiting.remove(&id)
    }

    /// Builds that run, and builds that wait.
    pub(super) fn lengths(&self) -> (usize, usize) {
        (self.running, self.waiting.len())
    }

    /// From now on nothing is accepted and nothing started.
    pub(super) const fn drain(&mut self) {
        self.draining = true;
    }

    pub(super) const fn is_draining(&self) -> bool {
        self.draining
    }
}

impl Places {
    fn new(order: Order) -> Self {
        let mut last_turns: HashMap<TenantId, u64> = HashMap::new();
        let mut places = HashMap::with_capacity(order.waiting.len());
        let mut turns = Vec::with_capacity(order.waiting.len());
        for (place, waiting) in (0..).zip(order.waiting) {
            turns.push(waiting.turn);
            if let Ok(id) = waiting.build_id.parse() {
                places.insert(id, place);
            }
            let last = last_turns.entry(waiting.tenant_id).or_default();
            *last = waiting.turn.max(*last);
        }
        Self {
            places,
            last_turns,
            turns,
            running: order.running,
            average_run: order.average_run,
            counted_at: Instant::now(),
        }
    }

    /// The place of a build that waits.
    fn place(&self, id: BuildId, slots: u64) -> Option<Place> {
        let before = *self.places.get(&id)?;
        Some(self.estimate(before, slots))
    }

    /// The place that a tenant's next build will have, about.
    fn next_place(&self, tenant: &TenantId, slots: u64) -> Place {
        let before = match self.last_turns.get(tenant) {
            Some(last) => self.turns.partition_point(|turn| turn <= last),
            // Its first: after those that are next.
            None => match self.turns.first() {
                Some(first) => self.turns.partition_point(|turn| turn <= first),
                None => 0,
            },
        };
        self.estimate(u32::try_from(before).unwrap_or(u32::MAX), slots)
    }

    /// As if all builds took as long as the last ones did on average, and no tenant were at a limit of its own.
    fn estimate(&self, before: u32, slots: u64) -> Place {
        let free = slots.saturating_sub(self.running);
        let estimated_start = if u64::from(before) < free {
            Some(store::now())
        } else {
            self.average_run.and_then(|average| {
                let rounds = (u64::from(before) - free + 1).div_ceil(slots.max(1));
                let wait = average.checked_mul(u32::try_from(rounds).ok()?)?;
                store::now().checked_add(wait)
            })
        };
        Place {
            before,
            estimated_start,
        }
    }
}

/// The right to run one build; goes back when dropped, also by a panic.
struct Slot {
    inner: Arc<Inner>,
    /// A build was run: there may be room for another.
    was_used: AtomicBool,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.inner.lock_queue().running -= 1;
        self.inner.slot_freed.notify_waiters();
        if self.was_used.load(Ordering::Relaxed) {
            self.inner.wake.notify_one();
        }
    }
}

/// Starts builds whenever one can be started, until the service has stopped or is dropped.
pub(super) async fn dispatch(inner: Weak<Inner>) {
    let mut pause = FIRST_PAUSE;
    // Says that the service is unhealthy, for as long as builds cannot be started.
    loop {
        let Some(service) = inner.upgrade() else {
            return;
        };
        let look = {
            let mut look = look(&service).await;
            let mut unstored = None;
            while matches!(look, Look::Started | Look::Failed) {
                if matches!(look, Look::Failed) {
                    unstored.get_or_insert_with(|| Unstored::new(&service.unstored));
                    tokio::select! {
                        () = service.stopped.cancelled() => return,
                        () = tokio::time::sleep(pause) => {}
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                } else {
                    unstored = None;
                    pause = FIRST_PAUSE;
                }
                look = self::look(&service).await;
            }
            look
        };
        let (wake, stopped) = (Arc::clone(&service.wake), service.stopped.clone());
        drop(service);
        let patience = match look {
            Look::Wait(Some(moment)) => moment
                .duration_since(SystemTime::now())
                .unwrap_or_default()
                // A timer may be early by a little, and then nothing would have changed.
                .saturating_add(Duration::from_millis(10))
                .min(LOOK_AGAIN),
            _ => LOOK_AGAIN,
        };
        tokio::select! {
            () = stopped.cancelled() => return,
            () = wake.notified() => {}
            () = tokio::time::sleep(patience) => {}
        }
    }
}

/// Starts one build, if one can be started.
async fn look(inner: &Arc<Inner>) -> Look {
    let slot = {
        let mut queue = inner.lock_queue();
        if queue.draining || queue.waiting.is_empty() {
            return Look::Wait(None);
        }
        // From here on a shutdown waits for this one.
        queue.running += 1;
        Slot {
            inner: Arc::clone(inner),
            was_used: AtomicBool::new(false),
        }
    };
    let line = NewLine::new(Level::Info, Component::Builder, "The build begins");
    let tenants = inner.config.tenants.clone();
    let turn = inner
        .store
        .start_next(tenants, inner.capacity(), store::now(), line)
        .await;
    match turn {
        Ok(Turn::Wait(wake_at)) => Look::Wait(wake_at),
        Ok(Turn::Started(started)) => {
            slot.was_used.store(true, Ordering::Relaxed);
            begin(slot, started).await;
            Look::Started
        }
        Err(error) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "Failed to start a build"
            );
            Look::Failed
        }
    }
}

/// Runs a build whose row says that it has begun.
async fn begin(slot: Slot, started: Started) {
    let inner = &slot.inner;
    let id = started.id;
    let (waiting, draining) = {
        let mut queue = inner.lock_queue();
        (queue.remove(id), queue.draining)
    };
    let Some(waiting) = waiting else {
        // Somebody cancels it at this moment and ends it, with what it has reserved.
        if inner.live.get(id).is_none() {
            tracing::error!(build.id = %id, "A build was started of which nothing is known but its row");
            let reason = "internal error: the build's request is gone";
            let change = BuildChange {
                state: Some(crate::build::BuildState::Failed),
                completed_at: Some(store::now()),
                error_message: Some(reason.to_owned()),
                refund: true,
                lines: vec![NewLine::new(Level::Error, Component::Builder, reason)],
                ..BuildChange::default()
            };
            if let Err(error) = inner.store.change(id, change).await {
                tracing::error!(build.id = %id, error = &error as &dyn std::error::Error, "Failed to end a build");
            }
        }
        return;
    };
    if draining {
        let line = NewLine::new(
            Level::Warn,
            Component::Builder,
            "The service is shutting down: the build starts over when it is back",
        );
        // When that fails, the next start finds it running, which comes to the same.
        if let Err(error) = inner.store.requeue(id, line, Requeued::Shutdown).await {
            tracing::error!(build.id = %id, error = &error as &dyn std::error::Error, "Failed to put a build back");
        }
        inner.lock_queue().insert(waiting);
        return;
    }
    waiting.live.broadcast(started.lines);
    tokio::spawn(async move {
        run::run(&slot.inner, waiting, started.reserved).await;
        drop(slot);
    });
}

impl Inner {
    pub(super) fn lock_queue(&self) -> MutexGuard<'_, Queue> {
        // Every change of the queue is one statement: a panic elsewhere leaves nothing half done.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until no build runs.
    pub(super) async fn idle(&self) {
        loop {
            // Registered before the look, so that no notice is missed.
            let freed = self.slot_freed.notified();
            if self.lock_queue().running == 0 {
                return;
            }
            freed.await;
        }
    }

    /// Where a build stands that waits.
    pub(super) async fn place(&self, id: BuildId) -> Option<Place> {
        let places = self.places().await?;
        places.place(id, self.slots())
    }

    /// Where the next build of a tenant will stand, about.
    pub(super) async fn next_place(&self, tenant: &TenantId) -> Option<Place> {
        let places = self.places().await?;
        let place = places.next_place(tenant, self.slots());
        (u64::from(place.before) + places.running >= self.slots()).then_some(place)
    }

    /// The order of the queue: as it is, or, where it is long, as it was a moment ago. `None` when the database does not
    /// tell.
    pub(super) async fn places(&self) -> Option<Arc<Places>> {
        let lock = |places: &Mutex<Option<Arc<Places>>>| {
            places.lock().unwrap_or_else(PoisonError::into_inner).clone()
        };
        if let Some(known) = lock(&self.places)
            && known.turns.len() > SHORT_QUEUE
            && known.counted_at.elapsed() < ORDER_KEPT
        {
            return Some(known);
        }
        match self.store.order().await {
            Ok(order) => {
                let places = Arc::new(Places::new(order));
                *self.places.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&places));
                Some(places)
            }
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "Failed to read the queue"
                );
                None
            }
        }
    }

    fn slots(&self) -> u64 {
        self.config.node.concurrent_builds.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(running: u64, turns: &[(BuildId, &str, u64)]) -> Places {
        let mut order = Order::default();
        order.running = running;
        order.average_run = Some(Duration::from_secs(10));
        for (id, tenant, turn) in turns {
            order.waiting.push(tenant::queue::Waiting::new(
                &id.to_string(),
                tenant.parse().unwrap(),
                *turn,
            ));
        }
        Places::new(order)
    }

    #[test]
    fn a_place_is_how_many_come_before_and_the_start_is_estimated_from_the_average() {
        let [first, second, third] = [(); 3].map(|()| BuildId::generate());
        let places = order(2, &[(first, "a", 5), (second, "b", 6), (third, "a", 9)]);
        let wait = |id| {
            let place = places.place(id, 2).unwrap();
            let start = place.estimated_start.unwrap();
            let wait = start.duration_since(store::now()).unwrap_or_default();
            (place.before, wait.as_secs_f64().round())
        };
        assert_eq!(
            [wait(first), wait(second), wait(third)],
            [(0, 10.0), (1, 10.0), (2, 20.0)]
        );
        assert_eq!(places.place(BuildId::generate(), 2), None);
        let next = |tenant: &str| places.next_place(&tenant.parse().unwrap(), 2).before;
        assert_eq!((next("a"), next("b"), next("new")), (3, 2, 1));
        let free = order(0, &[(first, "a", 5)]).place(first, 2).unwrap();
        assert!(free.estimated_start.unwrap() <= store::now());
    }
}
