//! How many logs are read at the same time.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tenant::TenantId;

use crate::error::{Exhausted, ServiceError};

/// Logs that one tenant reads or follows at the same time.
pub const MAX_LOG_STREAMS_PER_TENANT: usize = 256;

/// Logs that all tenants read or follow at the same time.
pub const MAX_LOG_STREAMS: usize = 2048;

/// The logs that are read. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(in crate::service) struct LogStreams {
    open: Arc<Mutex<Open>>,
}

#[derive(Debug, Default)]
struct Open {
    /// Only tenants that have some.
    by_tenant: HashMap<TenantId, usize>,
    total: usize,
}

impl LogStreams {
    fn lock(&self) -> MutexGuard<'_, Open> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.lock().total
    }

    /// A place for one more, given back when it is dropped.
    pub(super) fn take(&self, tenant: &TenantId) -> Result<Place, ServiceError> {
        let mut open = self.lock();
        let of_tenant = open.by_tenant.get(tenant).copied().unwrap_or(0);
        let full = if of_tenant >= MAX_LOG_STREAMS_PER_TENANT {
            Some(("of this tenant", of_tenant, MAX_LOG_STREAMS_PER_TENANT))
        } else if open.total >= MAX_LOG_STREAMS {
            Some(("of all tenants", open.total, MAX_LOG_STREAMS))
        } else {
            None
        };
        if let Some((whose, current, limit)) = full {
            let count = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
            return Err(ServiceError::ResourceExhausted(Exhausted {
                quota: "log_streams",
                current: count(current),
                limit: count(limit),
                message: format!(
                    "log_streams: {current} of {limit} log streams {whose} are open; a place is free when one of them ends"
                ),
                frees_at: None,
                retry_after: None,
            }));
        }
        open.by_tenant.insert(tenant.clone(), of_tenant + 1);
        open.total += 1;
        Ok(Place {
            streams: self.clone(),
            tenant: tenant.clone(),
        })
    }
}

/// A place among the logs that are read.
#[derive(Debug)]
pub(super) struct Place {
    streams: LogStreams,
    tenant: TenantId,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut open = self.streams.lock();
        open.total -= 1;
        if let Some(count) = open.by_tenant.get_mut(&self.tenant) {
            *count -= 1;
            if *count == 0 {
                open.by_tenant.remove(&self.tenant);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tenant_has_so_many_places_and_all_tenants_so_many() {
        let streams = LogStreams::default();
        let tenant = |number: usize| format!("tenant-{number}").parse::<TenantId>().unwrap();
        let refused = |number| streams.take(&tenant(number)).unwrap_err().to_string();
        let mut places = Vec::new();
        for number in 0..MAX_LOG_STREAMS / MAX_LOG_STREAMS_PER_TENANT {
            for _ in 0..MAX_LOG_STREAMS_PER_TENANT {
                places.push(streams.take(&tenant(number)).unwrap());
            }
            assert!(refused(number).contains("256 of 256 log streams of this tenant"));
        }
        assert!(refused(1000).contains("2048 of 2048 log streams of all tenants"));
        places.pop();
        places.push(streams.take(&tenant(1000)).unwrap());
        assert!(refused(1000).contains("of all tenants"));
        places.clear();
        let open = streams.lock();
        assert_eq!((open.total, open.by_tenant.len()), (0, 0), "nobody is remembered");
    }
}
