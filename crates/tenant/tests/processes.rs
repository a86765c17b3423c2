//! Sixteen processes on one database, and one that is killed between any two statements.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    env,
    os::unix::process::ExitStatusExt as _,
    path::Path,
    process::{Command, Stdio},
    sync::atomic::{AtomicU64, Ordering},
};

use common::{admit, at, completed, end, failed, figures, migrated, number, open, start, transaction};
use rusqlite::{
    Connection,
    trace::{TraceEvent, TraceEventCodes},
};
use tenant::{
    Admission, NodeCapacity, TierTable,
    account::{self, Ended, Used},
    storage,
};

const PROCESSES: usize = 16;
const BUILDS_OF_PROCESS: u64 = 12;
const PATH: &str = "TENANT_TEST_DATABASE";
const NUMBER: &str = "TENANT_TEST_NUMBER";

fn node() -> NodeCapacity {
    NodeCapacity::builds(5)
}

/// 2 at once and 30 a day.
fn limits() -> TierTable {
    figures(2, 30)
}

/// This program again, with one of the functions below that are no tests of their own.
fn program(function: &str, path: &Path, number: u64) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args(["--ignored", "--exact", function])
        .env(PATH, path)
        .env(NUMBER, number.to_string())
        .stdout(Stdio::null())
        .stderr(Stdio::inherit());
    command
}

fn given() -> (Connection, u64) {
    let path = env::var(PATH).unwrap();
    (open(Path::new(&path)), env::var(NUMBER).unwrap().parse().unwrap())
}

#[test]
#[ignore = "run by the test below, in processes of its own"]
fn one_of_sixteen() {
    let (mut connection, number) = given();
    let (table, node) = (limits(), node());
    let mut running = Vec::new();
    for build in 0..BUILDS_OF_PROCESS {
        let tenant = format!("t{}", (number + build) % 4);
        let _ = admit(
            &mut connection,
            &table,
            &node,
            &format!("{number}-{build}"),
            &tenant,
        );
        running.extend(start(&mut connection, &table, &node, at(0)));
        if build % 3 == 2 {
            for build in running.drain(..) {
                assert_eq!(end(&mut connection, &build, &completed(1), at(1)), Ended::Now);
            }
        }
    }
    for build in running {
        assert_eq!(end(&mut connection, &build, &completed(1), at(1)), Ended::Now);
    }
}

#[test]
fn sixteen_processes_on_one_database_never_exceed_a_limit() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("database");
    let connection = migrated(open(&path));
    // An observer that this crate knows nothing of.
    connection
        .execute_batch(
            "CREATE TABLE seen (what TEXT NOT NULL);
             CREATE TRIGGER watch_node AFTER INSERT ON reservations WHEN (SELECT COUNT(*) FROM reservations) > 5
                BEGIN INSERT INTO seen VALUES ('node'); END;
             CREATE TRIGGER watch_tenant AFTER INSERT ON reservations
                WHEN (SELECT COUNT(*) FROM reservations WHERE tenant_id = NEW.tenant_id) > 2
                BEGIN INSERT INTO seen VALUES ('tenant'); END;
             CREATE TRIGGER watch_day AFTER INSERT ON charges
                WHEN (SELECT COUNT(*) FROM charges WHERE tenant_id = NEW.tenant_id) > 30
                BEGIN INSERT INTO seen VALUES ('day'); END;",
        )
        .unwrap();
    let children: Vec<_> = (0..PROCESSES)
        .map(|number| program("one_of_sixteen", &path, number as u64).spawn().unwrap())
        .collect();
    for mut child in children {
        assert!(child.wait().unwrap().success());
    }
    assert_eq!(number(&connection, "SELECT COUNT(*) FROM seen"), 0);
    assert_eq!(number(&connection, "SELECT COUNT(*) FROM reservations"), 0);
    let ended = number(&connection, "SELECT COUNT(*) FROM ledger");
    assert_eq!(ended, number(&connection, "SELECT COUNT(*) FROM charges"));
    assert_eq!(
        ended,
        number(&connection, "SELECT COUNT(DISTINCT build_id) FROM ledger")
    );
    // 192 builds wanted in, 120 may begin on the day: what was not accepted was refused for its day.
    let waiting = number(&connection, "SELECT COUNT(*) FROM admissions");
    assert_eq!(ended + waiting, 4 * 30);
}

static STATEMENTS_LEFT: AtomicU64 = AtomicU64::new(u64::MAX);

/// As `kill -9`, before the statement is run.
#[expect(clippy::needless_pass_by_value, reason = "the signature is SQLite's")]
fn die_in_time(event: TraceEvent<'_>) {
    if let TraceEvent::Stmt(..) = event
        && STATEMENTS_LEFT.fetch_sub(1, Ordering::SeqCst) == 0
    {
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
    }
}

#[test]
#[ignore = "run by the test below, in processes of its own"]
fn a_life_until_the_kill() {
    let (mut connection, number) = given();
    STATEMENTS_LEFT.store(number, Ordering::SeqCst);
    connection.trace_v2(TraceEventCodes::SQLITE_TRACE_STMT, Some(die_in_time));
    let (table, node) = (limits(), node());
    for build in ["a1", "a2", "a3"] {
        assert_eq!(
            admit(&mut connection, &table, &node, build, "a"),
            Admission::Accepted
        );
    }
    start(&mut connection, &table, &node, at(0)).unwrap();
    start(&mut connection, &table, &node, at(0)).unwrap();
    let used = Used {
        peak_memory_bytes: 1,
        ..Used::default()
    };
    transaction(&mut connection, |transaction| {
        account::checkpoint(transaction, "a1", &used, at(1)).unwrap();
        storage::keep_room(transaction, "a1", 10, 100).unwrap();
        storage::keep_room(transaction, "a2", 10, 100).unwrap();
    });
    end(&mut connection, "a1", &completed(10), at(2));
    transaction(&mut connection, |transaction| {
        account::interrupt(transaction, "a2", &used, None).unwrap();
    });
    start(&mut connection, &table, &node, at(3)).unwrap();
    end(&mut connection, "a2", &failed(true), at(4));
    transaction(&mut connection, |transaction| {
        storage::accrue_days(transaction, at(common::DAY), 10).unwrap();
        storage::remove(transaction, "a1", at(common::DAY)).unwrap();
    });
}

#[test]
fn a_kill_between_any_two_statements_leaks_nothing_and_frees_nothing_twice() {
    let directory = tempfile::tempdir().unwrap();
    let template = directory.path().join("template");
    drop(migrated(open(&template)));
    let mut kills = 0_u64;
    loop {
        assert!(kills < 1_000, "the life ends by itself");
        let path = directory.path().join(format!("database-{kills}"));
        std::fs::copy(&template, &path).unwrap();
        let status = program("a_life_until_the_kill", &path, kills).status().unwrap();
        let was_killed = status.signal() == Some(9);
        assert!(was_killed || status.success(), "{status}");
        look_at(open(&path), kills);
        if !was_killed {
            break;
        }
        kills += 1;
    }
    assert!(kills > 60, "only {kills} statements");
}

/// What must hold after a kill, and after the next start has cleared up.
fn look_at(mut connection: Connection, kills: u64) {
    for (what, select) in [
        (
            "who runs has a reservation and a day, and nobody else has a reservation",
            "SELECT COUNT(*) FROM admissions a WHERE running <>
                (EXISTS (SELECT 1 FROM reservations r WHERE r.build_id = a.build_id)
                 AND EXISTS (SELECT 1 FROM charges c WHERE c.build_id = a.build_id))
             AND (running = 1 OR EXISTS (SELECT 1 FROM reservations r WHERE r.build_id = a.build_id))",
        ),
        (
            "a reservation belongs to a build",
            "SELECT COUNT(*) FROM reservations WHERE build_id NOT IN (SELECT build_id FROM admissions WHERE running = 1)",
        ),
        (
            "a build waits, runs or has ended",
            "SELECT COUNT(*) FROM ledger WHERE kind = 'build' AND build_id IN (SELECT build_id FROM admissions)",
        ),
        (
            "room is kept for running builds and images",
            "SELECT COUNT(*) FROM stored_images WHERE since IS NULL
             AND build_id NOT IN (SELECT build_id FROM reservations)",
        ),
    ] {
        assert_eq!(number(&connection, select), 0, "{what}, after {kills} statements");
    }
    // As a start does.
    let (table, node) = (limits(), node());
    transaction(&mut connection, |transaction| {
        for build in account::running(transaction).unwrap() {
            account::interrupt(transaction, &build, &Used::default(), None).unwrap();
        }
    });
    let accepted = number(
        &connection,
        "SELECT (SELECT COUNT(*) FROM admissions) + (SELECT COUNT(*) FROM ledger WHERE kind = 'build')",
    );
    while let Some(build) = start(&mut connection, &table, &node, at(10)) {
        assert_eq!(end(&mut connection, &build, &failed(false), at(11)), Ended::Now);
    }
    for (table, rows) in [("reservations", 0), ("admissions", 0)] {
        assert_eq!(
            number(&connection, &format!("SELECT COUNT(*) FROM {table}")),
            rows,
            "{table}, {kills}"
        );
    }
    assert_eq!(
        number(&connection, "SELECT COUNT(*) FROM ledger WHERE kind = 'build'"),
        accepted
    );
    let refunded = number(&connection, "SELECT COUNT(*) FROM ledger WHERE refunded = 1");
    assert_eq!(
        number(&connection, "SELECT COUNT(*) FROM charges"),
        accepted - refunded,
        "{kills}"
    );
}
