//! A service that is shut down in good order, and the one that comes after it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;
#[path = "common/fixture.rs"]
mod fixture;
#[path = "bin/serve/mod.rs"]
#[allow(dead_code, reason = "its main function is for the process of its own")]
mod serve;

use std::{fs, time::Duration};

use builder_core::{
    ServiceError,
    build::{BuildId, BuildState},
    event::LogLine,
    request::{RegistryCredentials, Secret},
    service::Builder,
};
use common::{PATIENCE, request};
use fixture::{Service, alice, assert_gapless, lines, restart};
use futures_util::StreamExt;

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_requeues_what_runs_and_keeps_what_waits() {
    let service = Service::start().await;
    service.stall();
    let running = service.create().await.id;
    service.stalled().await;
    let waiting = service.create().await.id;
    let mut followers = Vec::new();
    for id in [running, waiting] {
        followers.push(tokio::spawn(until_interrupted(service.builder.clone(), id)));
    }
    service.builder.shutdown(Duration::from_millis(100)).await;
    let requeued = service.get(running).await;
    assert_eq!((requeued.state, requeued.started_at), (BuildState::Pending, None));
    assert_eq!(requeued.error_message, None);
    assert_eq!(service.get(waiting).await.state, BuildState::Pending);
    let mut seen = Vec::new();
    for follower in followers {
        seen.push(follower.await.unwrap());
    }
    let last = seen[0].last().unwrap();
    assert_eq!(
        last.message,
        "The service is shutting down: the build starts over when it is back"
    );
    let refused = service
        .builder
        .create(request(&service.reference))
        .await
        .unwrap_err();
    assert!(matches!(refused, ServiceError::Unavailable(_)), "{refused}");
    assert!(service.builder.health().await.draining);

    // The next start takes both up, and who followed goes on where it was, without a gap or a repeat.
    service.let_go();
    let Service {
        directory,
        builder,
        registry: _registry,
        ..
    } = service;
    drop(builder);
    let builder = restart(&directory).await;
    for (id, seen) in [running, waiting].into_iter().zip(&mut seen) {
        let next = seen.last().map_or(1, |line| line.sequence + 1);
        seen.extend(lines(builder.logs(alice(), id, next, true)).await.unwrap());
        assert_gapless(seen, 1);
        assert_eq!(
            builder.get(&alice(), &id).await.unwrap().state,
            BuildState::Completed
        );
    }
}

/// The lines up to the one error with which a shutdown ends a followed log.
async fn until_interrupted(builder: Builder, id: BuildId) -> Vec<LogLine> {
    let mut items: Vec<_> = builder.logs(alice(), id, 0, true).collect().await;
    let last = items.pop().expect("an error at least");
    assert!(matches!(last, Err(ServiceError::Unavailable(_))), "{last:?}");
    items.into_iter().collect::<Result<_, _>>().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_lets_finish_what_can() {
    let service = Service::start().await;
    service.stall();
    let id = service.create().await.id;
    service.stalled().await;
    let builder = service.builder.clone();
    let shutdown = tokio::spawn(async move { builder.shutdown(PATIENCE).await });
    let draining = async {
        while !service.builder.health().await.draining {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, draining).await.expect("it drains");
    service.let_go();
    shutdown.await.unwrap();
    assert_eq!(service.get(id).await.state, BuildState::Completed);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_build_with_credentials_ends_with_the_reason_at_a_shutdown() {
    let service = Service::start().await;
    service.stall();
    let mut with_credentials = request(&service.reference);
    with_credentials.source.credentials = Some(RegistryCredentials {
        username: "robot".to_owned(),
        password: Secret::new("hunter2-secret".to_owned()),
        ..RegistryCredentials::default()
    });
    let id = service.builder.create(with_credentials).await.unwrap().id;
    service.stalled().await;
    service.builder.shutdown(Duration::ZERO).await;
    let ended = service.get(id).await;
    assert_eq!(ended.state, BuildState::Failed);
    assert_eq!(
        ended.error_message.as_deref(),
        Some("credentials are not kept over a restart; submit again")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_waiting_build_with_credentials_ends_with_the_restart() {
    let service = Service::start().await;
    service.stall();
    service.create().await;
    service.stalled().await;
    let mut with_credentials = request(&service.reference);
    with_credentials.source.credentials = Some(RegistryCredentials {
        username: "robot".to_owned(),
        password: Secret::new("hunter2-secret".to_owned()),
        ..RegistryCredentials::default()
    });
    let build = service.builder.create(with_credentials).await.unwrap();
    assert_eq!(build.request.source.credentials, None);
    service.builder.shutdown(Duration::ZERO).await;
    let Service {
        directory,
        builder,
        registry: _registry,
        ..
    } = service;
    drop(builder);
    let builder = restart(&directory).await;
    let ended = builder.get(&alice(), &build.id).await.unwrap();
    assert_eq!(ended.state, BuildState::Failed);
    assert_eq!(
        ended.error_message.as_deref(),
        Some("credentials are not kept over a restart; submit again")
    );
    for file in common::files_below(directory.path()) {
        let text = fs::read(&file).unwrap();
        let found = text.windows(14).any(|window| window == b"hunter2-secret");
        assert!(!found, "{} holds a password", file.display());
    }
}
