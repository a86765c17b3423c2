//! Who is next: first come, first served, so many at the same time.

use std::{
    collections::VecDeque,
    sync::{Arc, MutexGuard, PoisonError},
};

use super::{Inner, live::LiveBuild, run};
use crate::{build::BuildId, error::ServiceError, request::BuildRequest};

/// A build that waits, with the credentials that exist nowhere else.
#[derive(Debug)]
pub(super) struct Waiting {
    pub(super) id: BuildId,
    pub(super) request: BuildRequest,
    pub(super) live: Arc<LiveBuild>,
}

/// Builds that wait, and how many run.
#[derive(Debug)]
pub(super) struct Queue {
    waiting: VecDeque<Waiting>,
    /// Places for builds that are being accepted.
    reserved: usize,
    running: usize,
    slots: usize,
    draining: bool,
}

impl Queue {
    pub(super) const fn new(slots: usize) -> Self {
        Self {
            waiting: VecDeque::new(),
            reserved: 0,
            running: 0,
            slots,
            draining: false,
        }
    }

    /// Keeps a place for a build that is about to be accepted; [`give_back`](Self::give_back) ends that.
    pub(super) fn reserve(&mut self, max_waiting: usize) -> Result<(), ServiceError> {
        if self.draining {
            let message = "the service is shutting down: try again later";
            return Err(ServiceError::Unavailable(message.to_owned()));
        }
        let free_slots = self.slots.saturating_sub(self.running);
        let waiting = self.waiting.len() + self.reserved;
        if waiting >= max_waiting.saturating_add(free_slots) {
            return Err(ServiceError::ResourceExhausted(format!(
                "the queue is full: {waiting} builds wait, {max_waiting} may"
            )));
        }
        self.reserved += 1;
        Ok(())
    }

    pub(super) const fn give_back(&mut self) {
        self.reserved -= 1;
    }

    pub(super) fn push(&mut self, waiting: Waiting) {
        self.waiting.push_back(waiting);
    }

    pub(super) fn remove(&mut self, id: BuildId) -> Option<Waiting> {
        let position = self.waiting.iter().position(|waiting| waiting.id == id)?;
        self.waiting.remove(position)
    }

    /// Builds before this one.
    pub(super) fn position(&self, id: BuildId) -> Option<u32> {
        let position = self.waiting.iter().position(|waiting| waiting.id == id)?;
        u32::try_from(position).ok()
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

    fn take_next(&mut self) -> Option<Waiting> {
        if self.draining || self.running >= self.slots {
            return None;
        }
        let next = self.waiting.pop_front()?;
        self.running += 1;
        Some(next)
    }
}

/// The right to run one build; goes back when dropped, also by a panic.
struct Slot {
    inner: Arc<Inner>,
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.inner.lock_queue().running -= 1;
        self.inner.slot_freed.notify_waiters();
        Inner::dispatch(&self.inner);
    }
}

impl Inner {
    pub(super) fn lock_queue(&self) -> MutexGuard<'_, Queue> {
        // Every change of the queue is one statement: a panic elsewhere leaves nothing half done.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Starts waiting builds while there are slots.
    pub(super) fn dispatch(inner: &Arc<Self>) {
        loop {
            let Some(next) = inner.lock_queue().take_next() else {
                return;
            };
            let slot = Slot {
                inner: Arc::clone(inner),
            };
            tokio::spawn(async move {
                run::run(&slot.inner, next).await;
                drop(slot);
            });
        }
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
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_queue_takes_what_fits_into_slots_and_waiting_room() {
        let mut queue = Queue::new(2);
        assert!(
            queue.reserve(0).is_ok() && queue.reserve(0).is_ok(),
            "two slots are free"
        );
        assert!(matches!(
            queue.reserve(0),
            Err(ServiceError::ResourceExhausted(_))
        ));
        queue.give_back();
        assert!(queue.reserve(0).is_ok());
        queue.give_back();
        queue.give_back();
        queue.running = 2;
        assert!(matches!(
            queue.reserve(0),
            Err(ServiceError::ResourceExhausted(_))
        ));
        assert!(queue.reserve(1).is_ok());
        queue.drain();
        assert!(matches!(queue.reserve(9), Err(ServiceError::Unavailable(_))));
    }
}
