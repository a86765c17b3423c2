//! What is accepted, started, ended and billed, case by case.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::time::Duration;

use common::{
    DAY, admit, apply, at, completed, database, end, failed, figures, id, number, start, table, transaction,
};
use tenant::{
    Admission, IDEMPOTENCY_KEPT, IdempotencyKey, LimitOverrides, NodeCapacity, Quota, RequestedLimits, Tier,
    account::{self, Ended, Used},
    ledger::{self, LedgerKind, LedgerQuery, Outcome},
    queue::{self, Next},
    records, storage,
};

fn refused(admission: Admission) -> (Quota, u64, u64, Option<u64>) {
    match admission {
        Admission::Refused(refusal) => (
            refusal.quota,
            refusal.current,
            refusal.limit,
            refusal.retry_after.map(|wait| wait.as_secs()),
        ),
        other => panic!("{other:?}"),
    }
}

#[test]
fn waiting_builds_count_for_the_day_and_a_refused_one_changes_nothing() {
    let (mut connection, table, node) = (database(), figures(1, 2), NodeCapacity::builds(9));
    assert_eq!(
        admit(&mut connection, &table, &node, "a1", "a"),
        Admission::Accepted
    );
    assert_eq!(start(&mut connection, &table, &node, at(0)).unwrap(), "a1");
    assert_eq!(
        admit(&mut connection, &table, &node, "a2", "a"),
        Admission::Accepted
    );
    let before = number(&connection, "SELECT total_changes()");
    let told = refused(admit(&mut connection, &table, &node, "a3", "a"));
    assert_eq!(told, (Quota::DailyBuilds, 2, 2, Some(DAY / 2)));
    assert_eq!(number(&connection, "SELECT COUNT(*) FROM admissions"), 2);
    assert!(number(&connection, "SELECT total_changes()") >= before);
    // Another tenant is not concerned, and one that was never seen leaves no record behind when it is refused.
    assert_eq!(
        admit(&mut connection, &table, &node, "b1", "b"),
        Admission::Accepted
    );
    let none = figures(1, 0);
    assert_eq!(
        refused(admit(&mut connection, &none, &node, "c1", "c")).0,
        Quota::DailyBuilds
    );
    assert_eq!(records::get(&connection, &id("c")).unwrap(), None);
    // What ended counts all the same; what the service spoiled does not.
    end(&mut connection, "a1", &failed(false), at(1));
    assert_eq!(
        refused(admit(&mut connection, &table, &node, "a3", "a")).0,
        Quota::DailyBuilds
    );
    assert_eq!(start(&mut connection, &table, &node, at(1)).unwrap(), "b1");
    assert_eq!(start(&mut connection, &table, &node, at(1)).unwrap(), "a2");
    end(&mut connection, "a2", &failed(true), at(2));
    assert_eq!(
        admit(&mut connection, &table, &node, "a3", "a"),
        Admission::Accepted
    );
}

#[test]
fn a_waiting_build_whose_day_is_full_waits_for_the_next_and_delays_nobody() {
    let (mut connection, node) = (database(), NodeCapacity::builds(9));
    for build in ["a1", "a2"] {
        assert_eq!(
            admit(&mut connection, &figures(9, 2), &node, build, "a"),
            Admission::Accepted
        );
    }
    assert_eq!(
        admit(&mut connection, &figures(9, 2), &node, "b1", "b"),
        Admission::Accepted
    );
    let lowered = figures(9, 1);
    assert_eq!(start(&mut connection, &lowered, &node, at(0)).unwrap(), "a1");
    assert_eq!(start(&mut connection, &lowered, &node, at(0)).unwrap(), "b1");
    let next = transaction(&mut connection, |transaction| {
        queue::start_next(transaction, &lowered, &node, at(0)).unwrap()
    });
    assert_eq!(
        next,
        Next::Wait {
            wake_at: Some(at(DAY / 2))
        }
    );
    assert_eq!(start(&mut connection, &lowered, &node, at(DAY / 2 - 1)), None);
    assert_eq!(
        start(&mut connection, &lowered, &node, at(DAY / 2)).unwrap(),
        "a2"
    );
}

#[test]
fn giving_up_what_waits_is_free_but_not_without_end() {
    let (mut connection, table, node) = (database(), figures(1, 2), NodeCapacity::builds(9));
    let cancelled = account::End {
        outcome: Outcome::Cancelled,
        ..failed(false)
    };
    for build in 0..100 {
        let build = format!("a{build}");
        assert_eq!(
            admit(&mut connection, &table, &node, &build, "a"),
            Admission::Accepted
        );
        end(&mut connection, &build, &cancelled, at(0));
    }
    let told = refused(admit(&mut connection, &table, &node, "a100", "a"));
    assert_eq!(told, (Quota::DailyBuilds, 100, 100, Some(DAY / 2)));
    assert_eq!(
        admit(&mut connection, &table, &node, "b1", "b"),
        Admission::Accepted
    );
    let requested = RequestedLimits::default();
    let tomorrow = at(DAY / 2);
    assert_eq!(
        apply(
            &mut connection,
            &table,
            &node,
            "a100",
            "a",
            None,
            &requested,
            tomorrow
        ),
        Admission::Accepted
    );
}

#[test]
fn a_clock_that_steps_back_gives_nothing_away() {
    let (mut connection, table, node) = (database(), figures(9, 1), NodeCapacity::builds(9));
    assert_eq!(
        admit(&mut connection, &table, &node, "a1", "a"),
        Admission::Accepted
    );
    assert!(start(&mut connection, &table, &node, at(0)).is_some());
    let requested = RequestedLimits::default();
    let yesterday = at(0) - Duration::from_secs(DAY);
    let again = apply(
        &mut connection,
        &table,
        &node,
        "a2",
        "a",
        None,
        &requested,
        yesterday,
    );
    assert_eq!(refused(again).0, Quota::DailyBuilds);
    let tomorrow = at(DAY);
    let next = apply(
        &mut connection,
        &table,
        &node,
        "a2",
        "a",
        None,
        &requested,
        tomorrow,
    );
    assert_eq!(next, Admission::Accepted);
    assert!(start(&mut connection, &table, &node, tomorrow).is_some());
    // Ended before it began, by the clock: no time, and no negative one.
    end(&mut connection, "a2", &completed(7), at(0));
    let rows = ledger::rows_since(&connection, 0, 10).unwrap();
    assert_eq!((rows[0].wall, rows[0].build_id.as_str()), (Duration::ZERO, "a2"));
}

#[test]
fn storage_is_full_when_images_and_those_being_published_take_it() {
    let (mut connection, table, node) = (database(), table(), NodeCapacity::builds(9));
    let limit = 50 << 30;
    for build in ["a1", "a2"] {
        assert_eq!(
            admit(&mut connection, &table, &node, build, "a"),
            Admission::Accepted
        );
        start(&mut connection, &table, &node, at(0)).unwrap();
    }
    let mut keep = |build: &str, bytes| {
        transaction(&mut connection, |transaction| {
            storage::keep_room(transaction, build, bytes, limit).unwrap()
        })
    };
    assert_eq!(keep("a1", limit - 10), None);
    let refusal = keep("a2", 11).unwrap();
    assert_eq!(
        (refusal.quota, refusal.current, refusal.limit),
        (Quota::Storage, limit + 1, limit)
    );
    assert_eq!(keep("a2", 10), None);
    assert_eq!(keep("a1", limit - 20), None, "the last word counts");
    assert_eq!(keep("a1", limit - 10), None);
    assert_eq!(keep("nobody", limit), None);
    let told = refused(admit(&mut connection, &table, &node, "a3", "a"));
    assert_eq!(told.0, Quota::Storage);
    // What fails gives its room back; what completes keeps what it takes.
    end(&mut connection, "a2", &failed(false), at(1));
    assert_eq!(
        admit(&mut connection, &table, &node, "a3", "a"),
        Admission::Accepted
    );
    end(&mut connection, "a1", &completed(limit), at(1));
    let told = refused(admit(&mut connection, &table, &node, "a4", "a"));
    assert_eq!((told.0, told.1), (Quota::Storage, limit));
    transaction(&mut connection, |transaction| {
        storage::remove(transaction, "a1", at(2)).unwrap()
    });
    assert_eq!(
        admit(&mut connection, &table, &node, "a4", "a"),
        Admission::Accepted
    );
}

#[test]
fn a_full_queue_refuses_and_no_tenant_fills_it_alone() {
    let (mut connection, table) = (database(), figures(1, 100));
    let node = NodeCapacity {
        queued_builds: 3,
        queued_builds_of_tenant: 2,
        ..NodeCapacity::builds(1)
    };
    assert_eq!(
        admit(&mut connection, &table, &node, "a0", "a"),
        Admission::Accepted
    );
    start(&mut connection, &table, &node, at(0)).unwrap();
    for build in ["a1", "a2"] {
        assert_eq!(
            admit(&mut connection, &table, &node, build, "a"),
            Admission::Accepted
        );
    }
    let told = refused(admit(&mut connection, &table, &node, "a3", "a"));
    assert_eq!(told, (Quota::QueuedBuilds, 2, 2, Some(30)));
    assert_eq!(
        admit(&mut connection, &table, &node, "b1", "b"),
        Admission::Accepted
    );
    let told = refused(admit(&mut connection, &table, &node, "c1", "c"));
    assert_eq!(told, (Quota::QueuedBuilds, 3, 3, Some(30)));
    // A free place at once is no place in the queue.
    end(&mut connection, "a0", &failed(false), at(1));
    assert_eq!(
        admit(&mut connection, &table, &node, "c1", "c"),
        Admission::Accepted
    );
}

#[test]
fn a_key_stands_for_its_build_for_a_day_and_for_its_tenant_alone() {
    let (mut connection, table, node) = (database(), figures(1, 1), NodeCapacity::builds(9));
    let requested = RequestedLimits::default();
    let key = |hash| IdempotencyKey::new("k", [hash; 32]).unwrap();
    let day = IDEMPOTENCY_KEPT.as_secs();
    for (name, build, tenant, hash, seconds, expected) in [
        ("new", "a1", "a", 1, 0, Admission::Accepted),
        (
            "again, with the day full",
            "a2",
            "a",
            1,
            1,
            Admission::Repeated {
                build_id: "a1".to_owned(),
            },
        ),
        ("another request", "a2", "a", 2, 1, Admission::KeyReused),
        ("another tenant", "b1", "b", 2, 1, Admission::Accepted),
        (
            "just in time",
            "a2",
            "a",
            1,
            day - 1,
            Admission::Repeated {
                build_id: "a1".to_owned(),
            },
        ),
        ("a day later", "b2", "b", 3, day + 1, Admission::Accepted),
    ] {
        if name == "a day later" {
            // So that nothing of yesterday waits.
            while let Some(build) = start(&mut connection, &table, &node, at(0)) {
                end(&mut connection, &build, &completed(1), at(0));
            }
        }
        let answer = apply(
            &mut connection,
            &table,
            &node,
            build,
            tenant,
            Some(&key(hash)),
            &requested,
            at(seconds),
        );
        assert_eq!(answer, expected, "{name}");
    }
    let forgotten = transaction(&mut connection, |transaction| {
        tenant::forget_keys(transaction, at(day)).unwrap()
    });
    assert_eq!(forgotten, 1, "the one of b was used again");
    for bad in ["", "a b", "ä", &"k".repeat(256)] {
        assert!(IdempotencyKey::new(bad, [0; 32]).is_err(), "{bad:?}");
    }
}

#[test]
fn memory_and_disk_are_never_promised_twice_and_figures_are_cut_to_the_node() {
    let (mut connection, table) = (database(), figures(9, 100));
    let node = NodeCapacity {
        memory_bytes: Some(5 << 30),
        ..NodeCapacity::builds(9)
    };
    for build in ["a1", "a2", "a3"] {
        assert_eq!(
            admit(&mut connection, &table, &node, build, "a"),
            Admission::Accepted
        );
    }
    // 2 GiB each.
    assert!(start(&mut connection, &table, &node, at(0)).is_some());
    assert!(start(&mut connection, &table, &node, at(0)).is_some());
    assert_eq!(start(&mut connection, &table, &node, at(0)), None);
    end(&mut connection, "a1", &failed(false), at(0));
    assert!(start(&mut connection, &table, &node, at(0)).is_some());
    // A node that is smaller than one build of the tier gives what it has.
    for build in ["a2", "a3"] {
        end(&mut connection, build, &failed(false), at(0));
    }
    let small = NodeCapacity {
        memory_bytes: Some(1 << 30),
        disk_bytes: Some(1 << 20),
        cpu_cores: Some(1),
        ..NodeCapacity::builds(9)
    };
    assert_eq!(
        admit(&mut connection, &table, &small, "a4", "a"),
        Admission::Accepted
    );
    let next = transaction(&mut connection, |transaction| {
        queue::start_next(transaction, &table, &small, at(0)).unwrap()
    });
    let Next::Start(started) = next else {
        panic!("{next:?}")
    };
    let reserved = started.reserved;
    assert_eq!(
        (reserved.memory_bytes, reserved.cpu_cores, reserved.disk_bytes),
        (1 << 30, 1, 1 << 20)
    );
}

#[test]
fn a_large_build_is_passed_over_so_often_and_then_waited_for() {
    let (mut connection, table) = (database(), figures(100, 1_000));
    let node = NodeCapacity {
        memory_bytes: Some(2 << 30),
        ..NodeCapacity::builds(100)
    };
    let small = RequestedLimits {
        memory_bytes: Some(1 << 30),
        ..RequestedLimits::default()
    };
    let mut names = (0..).map(|number| format!("s{number}"));
    let mut more = |connection: &mut rusqlite::Connection| {
        let build = names.next().unwrap();
        let accepted = apply(connection, &table, &node, &build, "small", None, &small, at(0));
        assert_eq!(accepted, Admission::Accepted);
    };
    more(&mut connection);
    let mut running = start(&mut connection, &table, &node, at(0)).unwrap();
    assert_eq!(
        admit(&mut connection, &table, &node, "large", "large"),
        Admission::Accepted
    );
    // One small build is always running: the large one would never find the whole memory free.
    let mut others = 0;
    loop {
        more(&mut connection);
        let next = start(&mut connection, &table, &node, at(0));
        end(&mut connection, &running, &failed(false), at(0));
        match next {
            Some(build) => running = build,
            None => break,
        }
        others += 1;
        assert!(others < 100);
    }
    assert_eq!(others, queue::MOST_PASSED_OVER);
    assert_eq!(start(&mut connection, &table, &node, at(0)).unwrap(), "large");
}

#[test]
fn a_build_ends_once_and_its_attempts_are_added_up() {
    let (mut connection, table, node) = (database(), table(), NodeCapacity::builds(9));
    assert_eq!(
        admit(&mut connection, &table, &node, "a1", "a"),
        Admission::Accepted
    );
    start(&mut connection, &table, &node, at(0)).unwrap();
    let used = Used {
        cpu: Duration::from_secs(5),
        peak_memory_bytes: 100,
        pulled_bytes: 1_000,
    };
    transaction(&mut connection, |transaction| {
        account::checkpoint(transaction, "a1", &used, at(10)).unwrap();
        // Less than before is not taken, and who does not run is not known.
        account::checkpoint(transaction, "a1", &Used::default(), at(9)).unwrap();
        account::checkpoint(transaction, "nobody", &used, at(9)).unwrap();
        // A crash: only the checkpoint knows.
        assert_eq!(account::running(transaction).unwrap(), ["a1"]);
        account::interrupt(transaction, "a1", &Used::default(), None).unwrap();
        account::interrupt(transaction, "a1", &used, Some(at(99))).unwrap();
    });
    assert_eq!(number(&connection, "SELECT COUNT(*) FROM reservations"), 0);
    assert_eq!(start(&mut connection, &table, &node, at(100)).unwrap(), "a1");
    assert_eq!(
        number(&connection, "SELECT COUNT(*) FROM charges"),
        1,
        "one build, one day"
    );
    let last = account::End {
        used: Used {
            cpu: Duration::from_secs(2),
            peak_memory_bytes: 300,
            pulled_bytes: 20,
        },
        ..completed(4_096)
    };
    assert_eq!(end(&mut connection, "a1", &last, at(120)), Ended::Now);
    assert_eq!(end(&mut connection, "a1", &failed(true), at(121)), Ended::Before);
    assert_eq!(
        end(&mut connection, "nobody", &failed(true), at(121)),
        Ended::Before
    );
    let rows = ledger::rows_since(&connection, 0, 10).unwrap();
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    assert_eq!(
        (row.event_id.as_str(), row.kind, row.tier),
        ("a1", LedgerKind::Build, Tier::Pro)
    );
    assert_eq!((row.outcome, row.refunded), (Some(Outcome::Completed), false));
    assert_eq!((row.wall.as_secs(), row.cpu.as_secs()), (30, 7));
    assert_eq!(
        (row.peak_memory_bytes, row.pulled_bytes, row.stored_bytes),
        (300, 1_020, 4_096)
    );
    assert_eq!((row.started_at, row.ended_at), (Some(at(0)), at(120)));
    assert_eq!(row.customer_id, "customer");
    let usage = tenant::usage(&connection, &id("a"), at(130)).unwrap();
    assert_eq!((usage.wall_today.as_secs(), usage.cpu_today.as_secs()), (30, 7));
    assert_eq!(
        (usage.daily_builds, usage.storage_bytes, usage.active_builds),
        (1, 4_096, 0)
    );
}

#[test]
fn an_image_is_billed_by_the_day_and_exactly() {
    let (mut connection, table, node) = (database(), table(), NodeCapacity::builds(9));
    assert_eq!(
        admit(&mut connection, &table, &node, "a1", "a"),
        Admission::Accepted
    );
    start(&mut connection, &table, &node, at(0)).unwrap();
    end(&mut connection, "a1", &completed(10), at(0));
    let mut accrue = |seconds| {
        transaction(&mut connection, |transaction| {
            storage::accrue_days(transaction, at(seconds), 100).unwrap()
        })
    };
    assert_eq!(accrue(DAY / 2 - 1), 0, "the day is not over");
    assert_eq!(accrue(DAY / 2 + 5), 1);
    assert_eq!(accrue(DAY / 2 + 6), 0);
    assert_eq!(accrue(0), 0, "a clock that was set back");
    // Two days without anybody looking, and a half.
    let removed = 3 * DAY;
    transaction(&mut connection, |transaction| {
        storage::remove(transaction, "a1", at(removed)).unwrap()
    });
    transaction(&mut connection, |transaction| {
        storage::remove(transaction, "a1", at(removed + 9)).unwrap()
    });
    let query = LedgerQuery {
        tenant: Some(id("a")),
        ..LedgerQuery::default()
    };
    let rows = ledger::rows(&connection, &query).unwrap();
    let events: Vec<_> = rows
        .iter()
        .map(|row| (row.event_id.as_str(), row.stored_byte_seconds))
        .collect();
    let half = 10 * DAY / 2;
    assert_eq!(
        events,
        [
            ("a1", 0),
            ("a1.storage.2024-10-04", half),
            ("a1.storage.2024-10-05", 10 * DAY),
            ("a1.storage.2024-10-06", 10 * DAY),
            ("a1.storage.2024-10-07", half),
        ]
    );
    let sums = ledger::sums(&connection, &query).unwrap();
    assert_eq!((sums.builds, sums.stored_byte_seconds), (1, 10 * removed));
    let later = LedgerQuery {
        since: Some(at(DAY)),
        until: Some(at(removed)),
        ..query
    };
    assert_eq!(ledger::rows(&connection, &later).unwrap().len(), 2);
    assert_eq!(
        ledger::rows_since(&connection, rows[2].sequence, 1).unwrap()[0],
        rows[3]
    );
}

#[test]
fn rows_of_the_ledger_are_neither_changed_nor_deleted() {
    let (mut connection, table, node) = (database(), table(), NodeCapacity::builds(9));
    assert_eq!(
        admit(&mut connection, &table, &node, "a1", "a"),
        Admission::Accepted
    );
    end(&mut connection, "a1", &failed(false), at(3));
    let rows = ledger::rows_since(&connection, 0, 10).unwrap();
    assert_eq!(
        (rows[0].started_at, rows[0].wall),
        (None, Duration::ZERO),
        "it never ran"
    );
    for statement in ["UPDATE ledger SET cpu_ms = 0", "DELETE FROM ledger"] {
        let error = connection.execute(statement, []).unwrap_err();
        assert!(
            error.to_string().starts_with("a row of the ledger is never "),
            "{error}"
        );
    }
}

#[test]
fn a_record_decides_for_builds_that_wait_already() {
    let (mut connection, table, node) = (database(), figures(1, 100), NodeCapacity::builds(9));
    for build in ["a1", "a2", "a3"] {
        assert_eq!(
            admit(&mut connection, &table, &node, build, "a"),
            Admission::Accepted
        );
    }
    assert!(start(&mut connection, &table, &node, at(0)).is_some());
    assert_eq!(start(&mut connection, &table, &node, at(0)), None);
    let raised = LimitOverrides {
        concurrent_builds: Some(2),
        ..LimitOverrides::default()
    };
    transaction(&mut connection, |transaction| {
        records::set_limits(transaction, &id("a"), &raised, 1, at(0)).unwrap()
    });
    assert!(start(&mut connection, &table, &node, at(0)).is_some());
    assert_eq!(start(&mut connection, &table, &node, at(0)), None);
    let none = LimitOverrides {
        concurrent_builds: Some(0),
        ..LimitOverrides::default()
    };
    transaction(&mut connection, |transaction| {
        records::set_limits(transaction, &id("a"), &none, 2, at(0)).unwrap()
    });
    let told = refused(admit(&mut connection, &table, &node, "a4", "a"));
    assert_eq!(told, (Quota::ConcurrentBuilds, 0, 0, None), "it could never run");
}

#[test]
fn what_waits_is_counted_by_tier_with_the_age_of_the_oldest() {
    let (mut connection, table, node) = (database(), figures(1, 100), NodeCapacity::builds(9));
    assert_eq!(queue::backlog(&connection).unwrap(), []);
    for (build, tenant) in [("a1", "a"), ("a2", "a"), ("a3", "a"), ("b1", "b"), ("b2", "b")] {
        assert_eq!(
            admit(&mut connection, &table, &node, build, tenant),
            Admission::Accepted
        );
    }
    transaction(&mut connection, |transaction| {
        records::set_tier(transaction, &id("b"), Tier::Dedicated, 1, at(0)).unwrap()
    });
    // One build of each tenant runs.
    assert!(start(&mut connection, &table, &node, at(1)).is_some());
    assert!(start(&mut connection, &table, &node, at(1)).is_some());
    let mut found = queue::backlog(&connection).unwrap();
    found.sort_by_key(|backlog| backlog.tier);
    let counts: Vec<_> = found
        .iter()
        .map(|backlog| (backlog.tier, backlog.builds))
        .collect();
    assert_eq!(counts, [(Some(Tier::Pro), 2), (Some(Tier::Dedicated), 1)]);
    assert!(
        found.iter().all(|backlog| backlog.oldest_admitted_at == at(0)),
        "{found:?}"
    );
    // Without a record it is a tenant of the default tier.
    connection.execute("DELETE FROM tenants", []).unwrap();
    let unknown = queue::backlog(&connection).unwrap();
    assert_eq!((unknown.len(), unknown[0].tier), (1, None), "{unknown:?}");
}

#[test]
fn refunds_of_a_day_are_bounded() {
    let (mut connection, table, node) = (database(), figures(1, 1_000), NodeCapacity::builds(9));
    for (day, builds, refunded) in [(0, 103, 100), (1, 2, 102)] {
        for number in 0..builds {
            let (build, now) = (format!("a{day}-{number}"), at(day * DAY));
            let requested = RequestedLimits::default();
            let admission = apply(&mut connection, &table, &node, &build, "a", None, &requested, now);
            assert_eq!(admission, Admission::Accepted);
            assert_eq!(start(&mut connection, &table, &node, now).unwrap(), build);
            assert_eq!(end(&mut connection, &build, &failed(true), now), Ended::Now);
        }
        let told = number(&connection, "SELECT COUNT(*) FROM ledger WHERE refunded = 1");
        assert_eq!(told, refunded, "after day {day}");
    }
    assert_eq!(
        number(&connection, "SELECT COUNT(*) FROM charges"),
        3,
        "those beyond the bound count"
    );
}
