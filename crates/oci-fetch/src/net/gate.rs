//! A bounded number of permits, shared out fairly between parties, whose number follows what the other side bears.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

/// Signs of overload that come within this time of each other are one: what was under way when the first came says
/// nothing about the number that holds since.
const EPOCH: Duration = Duration::from_millis(100);

/// Gives permits to parties.
///
/// Two rules make it fair. A party holds at most three quarters of the permits (rounded up), so that the next one to come
/// never waits for a whole download of a greedy one. A permit that becomes free goes to the party that holds the fewest, and of
/// a party's own requests to the one that waits longest.
///
/// The number of permits grows by one after as many successes as there are permits, up to the most, and is halved by a sign
/// of overload: additive increase, multiplicative decrease, as TCP does it. A party that alone is asked to slow down is
/// halved alone, or one could slow down the others by provoking it.
pub(crate) struct Gate {
    state: Mutex<State>,
    most: usize,
}

/// So many parties that were asked to slow down are remembered.
const MAX_SLOWED: usize = 1024;

struct State {
    limit: usize,
    /// Permits in use, over all parties. More than `limit` for a while after a decrease.
    in_use: usize,
    parties: HashMap<String, Party>,
    /// Since the last change of the limit.
    successes: usize,
    overloaded_at: Option<Instant>,
    /// Orders waiters of different parties.
    arrivals: u64,
}

#[derive(Default)]
struct Party {
    held: usize,
    /// The most that it may hold, with the successes since the last change; `None` for its fair share.
    slowed: Option<(usize, usize)>,
    waiting: VecDeque<(u64, oneshot::Sender<Permit>)>,
}

/// Given back with its drop.
#[derive(Debug)]
#[must_use]
pub(crate) struct Permit {
    gate: Arc<Gate>,
    party: String,
}

impl Gate {
    /// `start` permits now, at most `most` ever; both at least 1.
    pub(crate) fn new(start: usize, most: usize) -> Self {
        let most = most.max(1);
        Self {
            state: Mutex::new(State {
                limit: start.clamp(1, most),
                in_use: 0,
                parties: HashMap::new(),
                successes: 0,
                overloaded_at: None,
                arrivals: 0,
            }),
            most,
        }
    }

    /// A number of permits that does not change.
    pub(crate) fn fixed(permits: usize) -> Self {
        Self::new(permits, permits)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a permit. A dropped future leaves the queue, and gives back what it may have been given meanwhile.
    pub(crate) async fn acquire(self: &Arc<Self>, party: &str) -> Permit {
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.lock();
            state.arrivals += 1;
            let arrival = state.arrivals;
            let entry = state.parties.entry(party.to_owned()).or_default();
            entry.waiting.push_back((arrival, sender));
        }
        self.hand_out();
        receiver.await.expect("a waiter is dropped by itself only")
    }

    /// The other side has done what the party asked for.
    pub(crate) fn succeeded(self: &Arc<Self>, party: &str) {
        {
            let mut state = self.lock();
            let share = state.share();
            if let Some(party) = state.parties.get_mut(party) {
                party.slowed = match party.slowed {
                    Some((most, successes)) if successes + 1 < most => Some((most, successes + 1)),
                    Some((most, _)) if most + 1 < share => Some((most + 1, 0)),
                    _ => None,
                };
            }
            state.successes += 1;
            if state.successes < state.limit || state.limit >= self.most {
                return;
            }
            state.limit += 1;
            state.successes = 0;
        }
        self.hand_out();
    }

    /// The other side asks this party for less.
    pub(crate) fn slowed(&self, party: &str) {
        let mut state = self.lock();
        let share = state.share();
        if let Some(party) = state.parties.get_mut(party) {
            let most = party.slowed.map_or(share, |(most, _)| most);
            party.slowed = Some(((most / 2).max(1), 0));
        }
    }

    /// The other side asks for less, or does not answer.
    pub(crate) fn overloaded(&self) {
        let now = Instant::now();
        let mut state = self.lock();
        if state.overloaded_at.is_some_and(|before| now < before + EPOCH) {
            return;
        }
        state.overloaded_at = Some(now);
        state.limit = (state.limit / 2).max(1);
        state.successes = 0;
    }

    /// Gives free permits to those whose turn it is.
    fn hand_out(self: &Arc<Self>) {
        loop {
            let mut state = self.lock();
            let Some((party, sender)) = state.next() else {
                return;
            };
            // Not before the lock is released: a waiter that has gone gives the permit back, which locks again.
            drop(state);
            let permit = Permit {
                gate: Arc::clone(self),
                party,
            };
            drop(sender.send(permit));
        }
    }

    #[cfg(test)]
    fn limit(&self) -> usize {
        self.lock().limit
    }
}

impl State {
    /// The most that one party may hold.
    fn share(&self) -> usize {
        self.limit - self.limit / 4
    }

    /// Takes the next waiter out of the queue and counts its permit.
    fn next(&mut self) -> Option<(String, oneshot::Sender<Permit>)> {
        if self.in_use >= self.limit {
            return None;
        }
        let share = self.share();
        for party in self.parties.values_mut() {
            party.waiting.retain(|(_, sender)| !sender.is_closed());
        }
        let keeps_slowed = self.parties.len() < MAX_SLOWED;
        self.parties.retain(|_, party| {
            party.held > 0 || !party.waiting.is_empty() || (keeps_slowed && party.slowed.is_some())
        });
        let name = self
            .parties
            .iter()
            .filter(|(_, party)| party.held < party.slowed.map_or(share, |(most, _)| most.min(share)))
            .filter_map(|(name, party)| Some((party.held, party.waiting.front()?.0, name)))
            .min()
            .map(|(_, _, name)| name.clone())?;
        let party = self.parties.get_mut(&name)?;
        let (_, sender) = party.waiting.pop_front()?;
        party.held += 1;
        self.in_use += 1;
        Some((name, sender))
    }
}

impl Permit {
    pub(crate) fn succeeded(&self) {
        self.gate.succeeded(&self.party);
    }

    pub(crate) fn slowed(&self) {
        self.gate.slowed(&self.party);
    }

    pub(crate) fn overloaded(&self) {
        self.gate.overloaded();
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        {
            let mut state = self.gate.lock();
            state.in_use -= 1;
            if let Some(party) = state.parties.get_mut(&self.party) {
                party.held -= 1;
            }
        }
        self.gate.hand_out();
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Gate").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    fn take(gate: &Arc<Gate>, party: &str) -> Option<Permit> {
        gate.acquire(party).now_or_never()
    }

    #[test]
    fn a_greedy_party_leaves_room_and_a_free_permit_goes_to_who_holds_least() {
        let gate = Arc::new(Gate::fixed(8));
        let mut greedy: Vec<Permit> = std::iter::from_fn(|| take(&gate, "greedy")).collect();
        assert_eq!(greedy.len(), 6);
        let modest: Vec<Permit> = std::iter::from_fn(|| take(&gate, "modest")).collect();
        assert_eq!(modest.len(), 2);
        let mut more_of_greedy = Box::pin(gate.acquire("greedy"));
        let mut third = Box::pin(gate.acquire("third"));
        assert!(more_of_greedy.as_mut().now_or_never().is_none());
        assert!(third.as_mut().now_or_never().is_none());
        greedy.pop();
        // Greedy has asked before, but has five.
        assert!(more_of_greedy.as_mut().now_or_never().is_none());
        let _third = third.as_mut().now_or_never().unwrap();
    }

    #[test]
    fn dropped_waiters_and_permits_lose_nothing() {
        let gate = Arc::new(Gate::fixed(1));
        let held = take(&gate, "a").unwrap();
        let mut gone = Box::pin(gate.acquire("b"));
        let mut given = Box::pin(gate.acquire("c"));
        let mut last = Box::pin(gate.acquire("d"));
        for waiter in [&mut gone, &mut given, &mut last] {
            assert!(waiter.as_mut().now_or_never().is_none());
        }
        drop(gone);
        drop(held);
        // The permit is on its way to c, which does not look any more.
        drop(given);
        let last = last.as_mut().now_or_never().unwrap();
        drop(last);
        let state = gate.lock();
        assert_eq!(state.in_use, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn the_number_grows_by_one_a_round_and_is_halved_once_an_epoch() {
        let gate = Arc::new(Gate::new(4, 8));
        let round = |gate: &Arc<Gate>| (0..gate.limit()).for_each(|_| gate.succeeded("nobody"));
        round(&gate);
        assert_eq!(gate.limit(), 5);
        for _ in 0..10 {
            round(&gate);
        }
        assert_eq!(gate.limit(), 8);
        for _ in 0..5 {
            gate.overloaded();
        }
        assert_eq!(gate.limit(), 4);
        for expected in [2, 1, 1] {
            tokio::time::advance(EPOCH).await;
            gate.overloaded();
            assert_eq!(gate.limit(), expected);
        }
        // Permits that are out stay out, but none is given before there is room.
        let one = take(&gate, "a").unwrap();
        assert!(take(&gate, "b").is_none());
        round(&gate);
        assert!(take(&gate, "b").is_some());
        drop(one);
    }

    #[test]
    fn who_is_slowed_down_alone_recovers_alone() {
        let gate = Arc::new(Gate::fixed(8));
        let first = take(&gate, "hasty").unwrap();
        first.slowed();
        first.slowed();
        drop(first);
        assert!(take(&gate, "other").is_some());
        let held = take(&gate, "hasty").unwrap();
        assert!(take(&gate, "hasty").is_none());
        let others: Vec<Permit> = std::iter::from_fn(|| take(&gate, "other")).collect();
        assert_eq!(others.len(), 6);
        drop(others);
        held.succeeded();
        let second = take(&gate, "hasty").unwrap();
        assert!(take(&gate, "hasty").is_none());
        (0..20).for_each(|_| held.succeeded());
        let rest: Vec<Permit> = std::iter::from_fn(|| take(&gate, "hasty")).collect();
        assert_eq!(rest.len(), 4);
        drop((second, rest));
    }

    #[test]
    fn parties_that_have_gone_are_forgotten() {
        let gate = Arc::new(Gate::fixed(2));
        for number in 0..100 {
            drop(take(&gate, &number.to_string()));
        }
        assert!(gate.lock().parties.len() <= 1);
    }
}
