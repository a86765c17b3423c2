//! A database that fails for a while.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
#[path = "common/fixture.rs"]
mod fixture;
#[path = "bin/serve/mod.rs"]
#[allow(dead_code, reason = "its main function is for the process of its own")]
mod serve;

use std::time::Duration;

use builder_core::{ServiceError, build::BuildState, service::Check};
use common::{PATIENCE, request};
use fixture::{Service, alice, assert_gapless, lines};

impl Service {
    fn database(&self, statement: &str) {
        let path = self.directory.path().join("database/builderd.db");
        let connection = rusqlite::Connection::open(path).unwrap();
        connection.busy_timeout(PATIENCE).unwrap();
        connection.execute_batch(statement).unwrap();
    }

    /// From now on the database fails to do what `when` says, as a full disk would.
    fn fail(&self, when: &str) {
        let body = "BEGIN SELECT RAISE(FAIL, 'no space'); END";
        self.database(&format!("CREATE TRIGGER fails BEFORE {when} {body};"));
    }

    fn recover(&self) {
        self.database("DROP TRIGGER fails");
    }

    async fn unhealthy(&self) {
        let wait = async {
            while self.builder.health().await.database == Check::Healthy {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, wait)
            .await
            .expect("it says that the database fails");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_end_of_a_build_is_stored_as_soon_as_the_database_takes_it() {
    let service = Service::start().await;
    service.fail("UPDATE ON builds WHEN NEW.state = 'completed'");
    let id = service.create().await.id;
    service.unhealthy().await;
    let refused = service.builder.create(request(&service.reference)).await;
    assert!(
        matches!(refused, Err(ServiceError::DatabaseUnavailable)),
        "{refused:?}"
    );
    assert!(!service.get(id).await.state.is_terminal());

    service.recover();
    assert_eq!(service.ended(id).await.state, BuildState::Completed);
    assert_gapless(
        &lines(service.builder.logs(alice(), id, 0, false)).await.unwrap(),
        1,
    );
    let healthy = async {
        while service.builder.health().await.database != Check::Healthy {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, healthy)
        .await
        .expect("it recovers");
    service.create().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_cannot_begin_waits_and_can_be_cancelled() {
    let service = Service::start().await;
    service.fail("UPDATE ON builds WHEN NEW.attempts > OLD.attempts");
    let (first, second) = (
        service.create().await.id,
        service.builder.create(request(&service.reference)).await,
    );
    service.unhealthy().await;
    service.builder.cancel(&alice(), &first).await.unwrap();
    service.recover();
    assert_eq!(service.get(first).await.state, BuildState::Cancelled);
    // Accepted before the failure was seen, or refused; never lost.
    if let Ok(second) = second {
        assert_eq!(service.ended(second.id).await.state, BuildState::Completed);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_build_tells_meanwhile_is_stored_afterwards() {
    let service = Service::start().await;
    service.stall();
    service.fail("INSERT ON build_logs WHEN NEW.message LIKE 'Resolved%'");
    let id = service.create().await.id;
    service.stalled().await;
    service.recover();
    service.let_go();
    assert_eq!(service.ended(id).await.state, BuildState::Completed);
    let log = lines(service.builder.logs(alice(), id, 0, false)).await.unwrap();
    assert_gapless(&log, 1);
    assert!(log.iter().any(|line| line.message.starts_with("Resolved")));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_build_that_cannot_be_stored_is_not_accepted() {
    let service = Service::start().await;
    service.fail("INSERT ON builds");
    let refused = service.builder.create(request(&service.reference)).await;
    assert!(
        matches!(refused, Err(ServiceError::DatabaseUnavailable)),
        "{refused:?}"
    );
    service.recover();
    let id = service.create().await.id;
    assert_eq!(service.ended(id).await.state, BuildState::Completed);
}
