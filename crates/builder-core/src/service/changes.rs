//! Work that goes on when its caller has left.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
};

use tenant::TenantId;
use tracing::Instrument as _;

use crate::error::ServiceError;

/// Creations, cancellations and deletions of one tenant that may be under way at once, those included whose caller waits no
/// more: a deadline of a millisecond must not make room for the next one.
const MAX_CHANGES_PER_TENANT: usize = 256;

/// What is under way, by tenant.
#[derive(Clone, Debug, Default)]
pub(super) struct Changes {
    under_way: Arc<Mutex<HashMap<TenantId, usize>>>,
}

/// A place, until it is dropped.
struct Place {
    changes: Changes,
    tenant: TenantId,
}

impl Changes {
    /// Runs `work` to its end even when the caller loses interest: half of it done would leave a build that nobody runs.
    pub(super) async fn run<T: Send + 'static>(
        &self,
        tenant: &TenantId,
        work: impl Future<Output = Result<T, ServiceError>> + Send + 'static,
    ) -> Result<T, ServiceError> {
        let place = self.enter(tenant)?;
        let work = async move {
            let _place = place;
            work.await
        };
        // Within the span of the request, so that what it starts knows what it belongs to.
        let result = tokio::spawn(work.in_current_span()).await;
        result.unwrap_or_else(|error| Err(ServiceError::Internal(Box::new(error))))
    }

    fn enter(&self, tenant: &TenantId) -> Result<Place, ServiceError> {
        self.change(tenant, |under_way| {
            if *under_way >= MAX_CHANGES_PER_TENANT {
                let message =
                    format!("{MAX_CHANGES_PER_TENANT} calls of this tenant are under way: try again later");
                return Err(ServiceError::Unavailable(message));
            }
            *under_way += 1;
            Ok(Place {
                changes: self.clone(),
                tenant: tenant.clone(),
            })
        })
    }

    fn change<T>(&self, tenant: &TenantId, change: impl FnOnce(&mut usize) -> T) -> T {
        // Counted in one go, so that a panic elsewhere cannot have left it half done.
        let mut all = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        let under_way = all.entry(tenant.clone()).or_default();
        let result = change(under_way);
        if *under_way == 0 {
            all.remove(tenant);
        }
        result
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.changes
            .change(&self.tenant, |under_way| *under_way = under_way.saturating_sub(1));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn work_without_a_caller_keeps_its_place() {
        let changes = Changes::default();
        let (alice, bob): (TenantId, TenantId) = ("alice".parse().unwrap(), "bob".parse().unwrap());
        let (let_go, waits) = tokio::sync::watch::channel(false);
        let work = || {
            let mut waits = waits.clone();
            async move {
                let _ = waits.wait_for(|go| *go).await;
                Ok(())
            }
        };
        for _ in 0..MAX_CHANGES_PER_TENANT {
            let call = changes.run(&alice, work());
            // Polled once, and left.
            assert!(futures_util::FutureExt::now_or_never(call).is_none());
        }
        let refused = changes.run(&alice, work()).await;
        assert!(
            matches!(refused, Err(ServiceError::Unavailable(_))),
            "{refused:?}"
        );
        assert!(changes.run(&bob, async { Ok(()) }).await.is_ok());
        let_go.send_replace(true);
        while !changes.under_way.lock().unwrap().is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(changes.run(&alice, work()).await.is_ok());
    }
}
