//! Nobody waits for ever, whatever the others do.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::{
    collections::{BTreeMap, VecDeque},
    time::Duration,
};

use common::{apply, at, database, end, failed, figures, id, start, transaction};
use proptest::prelude::*;
use rusqlite::Connection;
use tenant::{Admission, NodeCapacity, RequestedLimits, TierTable, queue, records};

/// A tenant of a simulated load.
#[derive(Clone, Debug)]
struct Tenant {
    weight: u32,
    /// Seconds that each of its builds may take, of one core.
    seconds: u64,
    concurrent: u32,
}

#[derive(Clone, Debug)]
enum Step {
    /// Who sends how many builds.
    Send(usize, usize),
    /// Which of the running builds ends.
    End(usize),
}

fn tenants() -> impl Strategy<Value = Vec<Tenant>> {
    let tenant = (1..9_u32, 60..900_u64, 1..4_u32).prop_map(|(weight, seconds, concurrent)| Tenant {
        weight,
        seconds,
        concurrent,
    });
    prop::collection::vec(tenant, 2..6)
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        1 => (any::<usize>(), 1..12_usize).prop_map(|(who, builds)| Step::Send(who, builds)),
        3 => any::<usize>().prop_map(Step::End),
    ];
    prop::collection::vec(step, 1..150)
}

struct Load {
    connection: Connection,
    table: TierTable,
    node: NodeCapacity,
    tenants: Vec<Tenant>,
    sent: usize,
}

impl Load {
    fn new(tenants: Vec<Tenant>, slots: u32) -> Self {
        let table = figures(100, u32::MAX);
        let mut connection = database();
        for (number, tenant) in tenants.iter().enumerate() {
            transaction(&mut connection, |transaction| {
                let id = id(&format!("t{number}"));
                records::get_or_create(transaction, &id, table.default_tier(), at(0)).unwrap();
                records::set_weight(transaction, &id, tenant.weight, 1, at(0)).unwrap();
            });
        }
        Self {
            connection,
            table,
            node: NodeCapacity::builds(slots),
            tenants,
            sent: 0,
        }
    }

    fn send(&mut self, who: usize) {
        let tenant = &self.tenants[who];
        let requested = RequestedLimits {
            timeout: Some(Duration::from_secs(tenant.seconds)),
            cpu_cores: Some(1),
            concurrent_builds: Some(tenant.concurrent),
            ..RequestedLimits::default()
        };
        let build = format!("{who}-{}", self.sent);
        self.sent += 1;
        let (table, node) = (&self.table, &self.node);
        let tenant = format!("t{who}");
        let answer = apply(
            &mut self.connection,
            table,
            node,
            &build,
            &tenant,
            None,
            &requested,
            at(0),
        );
        assert_eq!(answer, Admission::Accepted);
    }

    fn start(&mut self) -> Option<(usize, String)> {
        let build = start(&mut self.connection, &self.table, &self.node, at(0))?;
        let (who, _) = build.split_once('-').unwrap();
        Some((who.parse().unwrap(), build))
    }

    fn stride(&self, who: usize) -> f64 {
        let tenant = &self.tenants[who];
        f64::from(u32::try_from(tenant.seconds).unwrap()) / f64::from(tenant.weight)
    }
}

/// Builds of another tenant that may be started while one waits: what makes up for this one's own last build, one for
/// what the other may have had to make up for, one that was about to be next anyway.
fn bound(load: &Load, waiting: usize, other: usize) -> u64 {
    let builds = load.stride(waiting) / load.stride(other);
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a small positive number"
    )]
    let builds = builds.ceil() as u64;
    builds + 2
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    #[test]
    fn every_tenant_waits_a_bounded_number_of_builds(tenants in tenants(), slots in 1..5_u32, steps in steps()) {
        let mut load = Load::new(tenants, slots);
        let n = load.tenants.len();
        let mut waiting = vec![0_u32; n];
        let mut running: BTreeMap<usize, VecDeque<String>> = BTreeMap::new();
        // How many builds of the second were started while the first waited and could have been started.
        let mut passed = vec![vec![0_u64; n]; n];
        for step in steps {
            match step {
                Step::Send(who, builds) => {
                    let who = who % n;
                    for _ in 0..builds {
                        load.send(who);
                        waiting[who] += 1;
                    }
                }
                Step::End(chosen) => {
                    let busy: Vec<usize> = (0..n).filter(|who| running.get(who).is_some_and(|builds| !builds.is_empty())).collect();
                    if !busy.is_empty() {
                        let who = busy[chosen % busy.len()];
                        let build = running.get_mut(&who).unwrap().pop_front().unwrap();
                        end(&mut load.connection, &build, &failed(false), at(0));
                    }
                }
            }
            loop {
                let count = |who: usize| running.get(&who).map_or(0, VecDeque::len);
                let can_start: Vec<bool> = (0..n)
                    .map(|who| waiting[who] > 0 && count(who) < load.tenants[who].concurrent as usize)
                    .collect();
                let all: usize = (0..n).map(count).sum();
                for who in 0..n {
                    if !can_start[who] {
                        passed[who].fill(0);
                    }
                }
                let Some((who, build)) = load.start() else {
                    let idle = all < slots as usize;
                    prop_assert!(!idle || !can_start.contains(&true), "a place is free and somebody could have it");
                    break;
                };
                prop_assert!(can_start[who] && all < slots as usize);
                waiting[who] -= 1;
                running.entry(who).or_default().push_back(build);
                passed[who].fill(0);
                for other in 0..n {
                    if other != who && can_start[other] {
                        passed[other][who] += 1;
                        let most = bound(&load, other, who);
                        prop_assert!(passed[other][who] <= most, "{other} waits for {} of {who}, {most} at most", passed[other][who]);
                    }
                }
            }
        }
    }
}

#[test]
fn a_flood_of_one_delays_the_others_by_one_build_each_and_shares_go_by_weight() {
    let tenant = |weight| Tenant {
        weight,
        seconds: 60,
        concurrent: 100,
    };
    let mut load = Load::new(vec![tenant(1), tenant(1), tenant(2)], 1);
    for _ in 0..500 {
        load.send(0);
    }
    let mut order = Vec::new();
    let mut step = |load: &mut Load| {
        let (who, build) = load.start().unwrap();
        end(&mut load.connection, &build, &failed(false), at(0));
        order.push(who);
    };
    for _ in 0..10 {
        step(&mut load);
    }
    for _ in 0..50 {
        load.send(1);
        load.send(2);
    }
    for _ in 0..40 {
        step(&mut load);
    }
    assert_eq!(order[..10], [0; 10]);
    let late = &order[10..];
    assert!(late[..4].contains(&1) && late[..4].contains(&2), "{late:?}");
    let share = |who| late.iter().filter(|served| **served == who).count();
    assert!(
        (9..=11).contains(&share(0)) && (9..=11).contains(&share(1)),
        "{late:?}"
    );
    assert!((19..=21).contains(&share(2)), "{late:?}");
}

#[test]
fn the_order_that_is_told_is_the_order_of_the_starts_also_over_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("database");
    let tenant = |weight, seconds| Tenant {
        weight,
        seconds,
        concurrent: 100,
    };
    let mut load = Load::new(vec![tenant(1, 60), tenant(3, 100), tenant(2, 900)], 1);
    for who in [0, 0, 1, 0, 2, 1, 1, 0, 2, 2, 1, 0, 0, 1, 2] {
        load.send(who);
    }
    for _ in 0..4 {
        let (_, build) = load.start().unwrap();
        end(&mut load.connection, &build, &failed(false), at(0));
    }
    let told: Vec<String> = queue::order(&load.connection)
        .unwrap()
        .waiting
        .into_iter()
        .map(|waiting| waiting.build_id)
        .collect();
    assert_eq!(told.len(), 11);
    load.connection
        .execute("VACUUM INTO ?1", [path.to_str().unwrap()])
        .unwrap();
    load.connection = Connection::open(&path).unwrap();
    let mut seen = Vec::new();
    while let Some((_, build)) = load.start() {
        end(&mut load.connection, &build, &failed(false), at(0));
        seen.push(build);
    }
    assert_eq!(seen, told);
}
