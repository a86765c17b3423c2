//! Builds on their way through the accounts of their tenants: accepted, started, given room for their image. Each is one
//! transaction together with the build's own row.

use std::{path::PathBuf, time::SystemTime};

use rusqlite::{Transaction, params};
use tenant::{
    Admission, Application, IdempotencyKey, Limits, NodeCapacity, Refusal, RequestedLimits, Reserved,
    TenantId, TierTable,
    account::{self, End, Used},
    ledger::Outcome,
    queue::{self, Next, Order},
    storage,
};

use super::{
    NewLine, Store, StoreError,
    builds::{find, standing},
    logs::{append, encode},
    to_micros,
};
use crate::{
    build::{Build, BuildId, BuildMetrics, BuildState},
    error::{Exhausted, ServiceError},
    event::LogLine,
    request::BuildRequest,
};

/// A build to be accepted.
#[derive(Clone, Debug)]
pub(crate) struct NewBuild {
    pub(crate) id: BuildId,
    pub(crate) request: BuildRequest,
    /// What the request lowers, in the words of the tenant crate.
    pub(crate) requested: RequestedLimits,
    /// The key that the tenant gave to the request.
    pub(crate) key: Option<IdempotencyKey>,
    pub(crate) created_at: SystemTime,
    pub(crate) rootfs_path: PathBuf,
    pub(crate) lines: Vec<NewLine>,
}

/// What became of a build that was to be accepted.
#[derive(Clone, Debug)]
pub(crate) enum Inserted {
    /// It waits for its turn.
    New(Box<Build>),
    /// The tenant sent the same request with the same key before: this is its build, or was.
    Repeated(BuildId),
}

/// A build that was started.
#[derive(Clone, Debug)]
pub(crate) struct Started {
    pub(crate) id: BuildId,
    pub(crate) reserved: Reserved,
    /// Lines of its log that were written.
    pub(crate) lines: Vec<LogLine>,
}

/// What the attempt to start a build came to.
#[derive(Clone, Debug)]
pub(crate) enum Turn {
    Started(Started),
    /// Nothing can start before something changes, or the clock reaches that moment.
    Wait(Option<SystemTime>),
}

/// The end of what should not have begun.
const NOTHING: End = End {
    outcome: Outcome::Failed,
    refund: true,
    used: Used {
        cpu: std::time::Duration::ZERO,
        peak_memory_bytes: 0,
        pulled_bytes: 0,
    },
    stored_bytes: 0,
};

impl Store {
    /// Inserts a build and its first lines, unless its tenant may not have it or `check` refuses it. `check` sees what the
    /// tenant may use; the lines that it gives follow those of the build. The tenant's record is made when it was never
    /// seen before.
    pub(crate) async fn insert<C>(
        &self,
        new: NewBuild,
        table: TierTable,
        node: NodeCapacity,
        check: C,
    ) -> Result<Inserted, StoreError>
    where
        C: FnOnce(&Limits) -> Result<Vec<NewLine>, ServiceError> + Send + 'static,
    {
        self.write(move |transaction| {
            let refused = |error| StoreError::Refused(Box::new(error));
            let context = &new.request.tenant;
            let tenant_id = &context.tenant_id;
            let record = tenant::records::get_or_create(
                transaction,
                tenant_id,
                table.default_tier(),
                new.created_at,
            )?;
            let limits = table.limits_of(&record);
            let application = Application {
                build_id: &new.id.to_string(),
                tenant_id,
                customer_id: &context.customer_id,
                requested: &new.requested,
                limits: &limits.lowered_by(&new.requested).limits,
                key: new.key.as_ref(),
            };
            match tenant::admit(transaction, &application, &node, new.created_at)? {
                Admission::Accepted => {}
                Admission::Repeated { build_id } => {
                    let id = build_id.parse().map_err(|_| StoreError::Malformed {
                        build: build_id.chars().take(80).collect(),
                        column: "idempotency_keys.build_id",
                    })?;
                    return Ok(Inserted::Repeated(id));
                }
                Admission::Refused(refusal) => {
                    return Err(refused(ServiceError::ResourceExhausted(exhausted(&refusal))));
                }
                Admission::KeyReused => {
                    let message = "Idempotency-Key: the key was used for another request: expected the same request, \
                                   or another key";
                    return Err(refused(ServiceError::AlreadyExists(message.to_owned())));
                }
            }
            let more_lines = check(&limits).map_err(refused)?;
            let lines = new.lines.into_iter().chain(more_lines).collect();
            transaction
                .prepare_cached(
                    "INSERT INTO builds
                     (id, tenant_id, state, request, needs_credentials, created_at, rootfs_path, current_step)
                     VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
                )?
                .execute(params![
                    new.id.to_string(),
                    tenant_id.as_str(),
                    BuildState::Pending.as_str(),
                    // Credentials are skipped by serde: what is encoded here never holds them.
                    encode(&new.request),
                    new.request.source.credentials.is_some(),
                    to_micros(new.created_at),
                    std::os::unix::ffi::OsStrExt::as_bytes(new.rootfs_path.as_os_str()),
                    "wait for a turn",
                ])?;
            append(transaction, transaction.last_insert_rowid(), lines, false)?;
            let build = find(transaction, new.id)?.ok_or(StoreError::NoSuchBuild)?.build;
            Ok(Inserted::New(Box::new(build)))
        })
        .await
    }

    /// Starts the build whose turn it is, if there is one that may: what it may use is reserved, its day is charged, its
    /// attempt is counted and dated.
    pub(crate) async fn start_next(
        &self,
        table: TierTable,
        node: NodeCapacity,
        now: SystemTime,
        line: NewLine,
    ) -> Result<Turn, StoreError> {
        self.write(move |transaction| {
            // Bounded: each round ends one that cannot be, and those are bugs.
            for _ in 0..1_000 {
                let start = match queue::start_next(transaction, &table, &node, now)? {
                    Next::Start(start) => start,
                    Next::Wait { wake_at } => return Ok(Turn::Wait(wake_at)),
                };
                let id = start.build_id.parse::<BuildId>().ok();
                let row = id.map(|id| Ok((id, standing(transaction, id)?))).transpose();
                let (id, ordinal) = match row {
                    Ok(Some((id, (ordinal, state)))) if !state.is_terminal() => (id, ordinal),
                    Ok(_) | Err(StoreError::NoSuchBuild | StoreError::Malformed { .. }) => {
                        tracing::error!(build.id = start.build_id, "A build waits that is not to be built");
                        account::end(transaction, &start.build_id, &NOTHING, now)?;
                        continue;
                    }
                    Err(error) => return Err(error),
                };
                transaction
                    .prepare_cached(
                        "UPDATE builds SET started_at = ?2, attempts = attempts + 1 WHERE ordinal = ?1",
                    )?
                    .execute(params![ordinal, to_micros(now)])?;
                return Ok(Turn::Started(Started {
                    id,
                    reserved: start.reserved,
                    lines: append(transaction, ordinal, vec![line], false)?,
                }));
            }
            Ok(Turn::Wait(None))
        })
        .await
    }

    /// Keeps room for the image of a build that is about to be published; says why there is none.
    pub(crate) async fn keep_room(
        &self,
        id: BuildId,
        bytes: u64,
        limit: u64,
    ) -> Result<Option<Refusal>, StoreError> {
        self.write(move |transaction| Ok(storage::keep_room(transaction, &id.to_string(), bytes, limit)?))
            .await
    }

    /// Notes what running builds have used so far.
    pub(crate) async fn checkpoint(&self, id: BuildId, used: Used) -> Result<(), StoreError> {
        self.write(move |transaction| {
            Ok(account::checkpoint(
                transaction,
                &id.to_string(),
                &used,
                super::now(),
            )?)
        })
        .await
    }

    /// The order of the builds that wait.
    pub(crate) async fn order(&self) -> Result<Order, StoreError> {
        self.read(|connection| Ok(queue::order(connection)?)).await
    }

    /// What waits, by tier.
    pub(crate) async fn waiting_by_tier(&self) -> Result<Vec<queue::Backlog>, StoreError> {
        self.read(|connection| Ok(queue::backlog(connection)?)).await
    }

    /// Ends what has a reservation although no build of this database runs: nothing does that, and nothing may stay
    /// reserved for ever if something did. Those that are `held` are left alone. Says how many.
    pub(crate) async fn release_leftovers(&self, held: Vec<BuildId>) -> Result<usize, StoreError> {
        let held: Vec<String> = held.iter().map(ToString::to_string).collect();
        self.write(move |transaction| {
            let mut left = account::running(transaction)?;
            left.retain(|build| !held.contains(build));
            for build in &left {
                account::end(transaction, build, &NOTHING, super::now())?;
            }
            Ok(left.len())
        })
        .await
    }

    /// What is due from time to time: the days of images that are over go into the ledger, old keys are forgotten.
    pub(crate) async fn keep_accounts(&self, now: SystemTime) -> Result<(), StoreError> {
        const IMAGES: usize = 500;
        // In steps, so that others have a turn; bounded, should the clock jump by years.
        for _ in 0..10_000 {
            let images = self
                .write(move |transaction| {
                    tenant::forget_keys(transaction, now)?;
                    Ok(storage::accrue_days(transaction, now, IMAGES)?)
                })
                .await?;
            if images < IMAGES {
                break;
            }
        }
        Ok(())
    }

    /// Tenants of which builds run.
    pub(crate) async fn busy_tenants(&self) -> Result<Vec<TenantId>, StoreError> {
        self.read(|connection| {
            let mut statement = connection.prepare_cached("SELECT DISTINCT tenant_id FROM reservations")?;
            let names = statement.query_map([], |row| row.get::<_, String>(0))?;
            let mut tenants = Vec::new();
            for name in names {
                tenants.extend(name?.parse());
            }
            Ok(tenants)
        })
        .await
    }
}

/// The end of a build in the accounts of its tenant.
pub(super) fn end(
    transaction: &Transaction<'_>,
    id: BuildId,
    state: BuildState,
    refund: bool,
    metrics: Option<&BuildMetrics>,
    stored_bytes: u64,
    moment: SystemTime,
) -> Result<(), StoreError> {
    let outcome = match state {
        BuildState::Completed => Outcome::Completed,
        BuildState::Cancelled => Outcome::Cancelled,
        _ => Outcome::Failed,
    };
    let end = End {
        outcome,
        refund,
        used: metrics.map(used).unwrap_or_default(),
        stored_bytes,
    };
    account::end(transaction, &id.to_string(), &end, moment)?;
    Ok(())
}

/// What a build's metrics say of what is billed.
pub(super) fn used(metrics: &BuildMetrics) -> Used {
    Used {
        cpu: std::time::Duration::from_millis(metrics.cpu_time_ms.unwrap_or(0)),
        peak_memory_bytes: metrics.memory_peak_bytes.unwrap_or(0),
        pulled_bytes: metrics.pulled_bytes.unwrap_or(0),
    }
}

/// A refusal for the caller.
fn exhausted(refusal: &Refusal) -> Exhausted {
    Exhausted {
        quota: refusal.quota.as_str(),
        current: refusal.current,
        limit: refusal.limit,
        message: refusal.to_string(),
        frees_at: refusal.frees_at,
        retry_after: refusal.retry_after,
    }
}
