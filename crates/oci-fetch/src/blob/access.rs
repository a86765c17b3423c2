//! By whose rights a blob is downloaded, and who may have it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Notify, watch};

use crate::error::{FetchError, FetchErrorKind};
use crate::registry::Session;

/// By whose rights, and by which ways, the job can be done. When one does not get through, the next is taken.
///
/// A party does not profit from another's rights as long as nobody has shown that the blob is in the party's repository: by
/// an answer to a request for it, in this job or before joining it. If all of a party's own ways are refused before that,
/// the party is, whoever else goes on. Otherwise a manifest that merely names a digest would do to get its bytes.
#[derive(Default)]
pub(super) struct Accesses {
    sessions: Mutex<Vec<Access>>,
    /// The repositories that have been shown to hold the blob, as the cache notes sources.
    proven: Mutex<BTreeSet<String>>,
    next: AtomicU64,
    joined: Notify,
}

/// One way of one party.
struct Access {
    /// Of one party's interest; a party with mirrors has several accesses of one number.
    interest: u64,
    session: Arc<Session>,
    refusal: watch::Sender<Option<FetchError>>,
}

impl Accesses {
    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Access>> {
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A party with its ways; gives its number, and where it hears that it gets nothing.
    pub(super) fn add(&self, sessions: &[Arc<Session>]) -> (u64, watch::Receiver<Option<FetchError>>) {
        let interest = self.next.fetch_add(1, Ordering::Relaxed);
        let (refusal, refused) = watch::channel(None);
        self.lock().extend(sessions.iter().map(|session| Access {
            interest,
            session: Arc::clone(session),
            refusal: refusal.clone(),
        }));
        // One waits, at most: the job's task.
        self.joined.notify_one();
        (interest, refused)
    }

    /// Ends when a party was added since the last one was waited for.
    pub(super) fn joined(&self) -> impl Future<Output = ()> + '_ {
        self.joined.notified()
    }

    /// Takes the ways of this party first.
    pub(super) fn prefer(&self, party: &str) {
        self.lock()
            .sort_by_key(|access| access.session.identity.isolation_key != party);
    }

    /// The isolation keys of all parties that want the blob.
    pub(super) fn parties(&self) -> BTreeSet<String> {
        self.lock()
            .iter()
            .map(|access| access.session.identity.isolation_key.clone())
            .collect()
    }

    /// The party has lost interest.
    pub(super) fn remove_all_of(&self, interest: u64) {
        self.lock().retain(|access| access.interest != interest);
    }

    /// The way to take now.
    pub(super) fn first(&self) -> Option<Arc<Session>> {
        self.lock().first().map(|access| Arc::clone(&access.session))
    }

    /// Whether somebody is asking for the blob in this repository.
    pub(super) fn is_asking(&self, source: &str) -> bool {
        self.lock().iter().any(|access| access.session.source() == source)
    }

    /// The registry has answered for the blob in this session's repository.
    pub(super) fn prove(&self, session: &Session) {
        self.proven
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(session.source());
    }

    /// Whether the registry has.
    pub(super) fn is_proven(&self, source: &str) -> bool {
        self.proven
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .contains(source)
    }

    /// The sources that the cache may note.
    pub(super) fn proven(&self) -> Vec<String> {
        self.proven
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }

    /// Whether there is another way than this one, which has failed with the error and is not tried again.
    ///
    /// One party's rights may end, and a mirror may fail in any way; another's may still stand. What the registry itself
    /// cannot do for one party, it cannot do for the others either.
    pub(super) fn leave(&self, failed: &Arc<Session>, error: &FetchError) -> bool {
        let is_personal = matches!(
            error.kind(),
            FetchErrorKind::Unauthorized
                | FetchErrorKind::Denied
                | FetchErrorKind::NotFound
                | FetchErrorKind::RateLimited { .. }
        );
        if !is_personal && !failed.route.is_mirror() {
            return false;
        }
        let mut sessions = self.lock();
        let Some(index) = sessions
            .iter()
            .position(|access| Arc::ptr_eq(&access.session, failed))
        else {
            // The party has left by itself meanwhile.
            return !sessions.is_empty();
        };
        let Access {
            interest,
            session,
            refusal,
        } = sessions.remove(index);
        let has_other_ways = sessions.iter().any(|access| access.interest == interest);
        if !has_other_ways && !self.is_proven(&session.source()) {
            refusal.send_replace(Some(error.clone()));
        }
        !sessions.is_empty()
    }
}
