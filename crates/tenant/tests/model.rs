//! Everything that can happen, in any order, beside a model that is too simple to be wrong.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod common;

use std::collections::BTreeMap;

use common::{DAY, admit, apply, at, completed, database, end, failed, id, number, start, transaction};
use proptest::prelude::*;
use tenant::{
    Admission, LimitOverrides, NodeCapacity, Quota, RequestedLimits, TierTable,
    account::{self, Ended, Used},
    records,
};

const TENANTS: [&str; 3] = ["a", "b", "c"];
/// Concurrent builds, builds a day, gibibytes of memory of a build.
const FIGURES: [(u64, u64, u64); 3] = [(1, 3, 1), (2, 6, 2), (3, 9, 3)];
const STORAGE: u64 = 100;
const PLACES: u64 = 4;
const SLOTS: u64 = 4;
const MEMORY: u64 = 6;

#[derive(Clone, Debug)]
enum Step {
    Admit(usize),
    Start,
    /// Which of the running ones, how it ended, bytes of its image.
    End(usize, usize, u64),
    /// Which of the waiting ones is cancelled.
    Cancel(usize),
    /// Ends a build that has ended.
    EndAgain(usize),
    Crash,
    /// Which of the images.
    Delete(usize),
    /// Hours, also back.
    Clock(i64),
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..3_usize).prop_map(Step::Admit),
        6 => Just(Step::Start),
        4 => (any::<usize>(), 0..4_usize, 0..60_u64).prop_map(|(build, how, bytes)| Step::End(build, how, bytes)),
        1 => any::<usize>().prop_map(Step::Cancel),
        1 => any::<usize>().prop_map(Step::EndAgain),
        1 => Just(Step::Crash),
        1 => any::<usize>().prop_map(Step::Delete),
        2 => (-30..60_i64).prop_map(Step::Clock),
    ]
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Stands {
    Waiting,
    Running,
    Ended,
}

#[derive(Debug)]
struct Build {
    tenant: usize,
    stands: Stands,
    charged_on: Option<i64>,
    image: u64,
}

#[derive(Default)]
struct Model {
    /// By order of acceptance.
    builds: BTreeMap<usize, Build>,
    hours: i64,
}

impl Model {
    fn today(&self) -> i64 {
        (self.hours + 12).div_euclid(24)
    }

    fn count(&self, holds: impl Fn(&Build) -> bool) -> u64 {
        self.builds.values().filter(|build| holds(build)).count() as u64
    }

    fn charged(&self, tenant: usize) -> u64 {
        let today = self.today();
        self.count(|build| build.tenant == tenant && build.charged_on.is_some_and(|day| day >= today))
    }

    fn running(&self, tenant: usize) -> u64 {
        self.count(|build| build.tenant == tenant && build.stands == Stands::Running)
    }

    fn memory(&self) -> u64 {
        (0..3)
            .map(|tenant| self.running(tenant) * FIGURES[tenant].2)
            .sum()
    }

    fn stored(&self, tenant: usize) -> u64 {
        let images = self.builds.values().filter(|build| build.tenant == tenant);
        images.map(|build| build.image).sum()
    }

    fn first_waiting(&self, tenant: usize) -> Option<usize> {
        let mut waiting = self.builds.iter();
        waiting
            .find(|(_, build)| build.tenant == tenant && build.stands == Stands::Waiting)
            .map(|(number, _)| *number)
    }

    fn refuses(&self, tenant: usize) -> Option<Quota> {
        let waiting = |build: &Build| build.stands == Stands::Waiting;
        let uncharged =
            self.count(|build| build.tenant == tenant && waiting(build) && build.charged_on.is_none());
        let running = self.count(|build| build.stands == Stands::Running);
        if self.charged(tenant) + uncharged >= FIGURES[tenant].1 {
            Some(Quota::DailyBuilds)
        } else if self.stored(tenant) >= STORAGE {
            Some(Quota::Storage)
        } else if self.count(waiting) >= PLACES + (SLOTS - running) {
            Some(Quota::QueuedBuilds)
        } else {
            None
        }
    }

    /// Whether a tenant's own limits let its first waiting build start.
    fn may_start(&self, tenant: usize) -> bool {
        let Some(first) = self.first_waiting(tenant) else {
            return false;
        };
        let has_day = self.builds[&first].charged_on.is_some() || self.charged(tenant) < FIGURES[tenant].1;
        has_day && self.running(tenant) < FIGURES[tenant].0
    }

    fn fits(&self, tenant: usize) -> bool {
        self.memory() + FIGURES[tenant].2 <= MEMORY
            && self.count(|build| build.stands == Stands::Running) < SLOTS
    }

    fn pick(&self, chosen: usize, holds: impl Fn(&Build) -> bool) -> Option<usize> {
        let fitting: Vec<usize> = self
            .builds
            .iter()
            .filter(|(_, build)| holds(build))
            .map(|(number, _)| *number)
            .collect();
        (!fitting.is_empty()).then(|| fitting[chosen % fitting.len()])
    }
}

fn name(number: usize) -> String {
    format!("build-{number}")
}

fn run(steps: Vec<Step>) {
    let node = NodeCapacity {
        memory_bytes: Some(MEMORY << 30),
        queued_builds: u32::try_from(PLACES).unwrap(),
        ..NodeCapacity::builds(u32::try_from(SLOTS).unwrap())
    };
    let table = TierTable::default();
    let mut connection = database();
    for (tenant, (concurrent, daily, memory)) in TENANTS.into_iter().zip(FIGURES) {
        transaction(&mut connection, |transaction| {
            records::get_or_create(transaction, &id(tenant), table.default_tier(), at(0)).unwrap();
            let limits = LimitOverrides {
                concurrent_builds: u32::try_from(concurrent).ok(),
                daily_builds: u32::try_from(daily).ok(),
                memory_bytes: Some(memory << 30),
                storage_bytes: Some(STORAGE),
                ..LimitOverrides::default()
            };
            records::set_limits(transaction, &id(tenant), &limits, 1, at(0)).unwrap();
        });
    }
    let mut model = Model::default();
    let mut next = 0;
    for step in steps {
        // Long after the day at which the clock starts, so that it can go back.
        let now = at(u64::try_from(model.hours + 10_000 * 24).unwrap() * 3_600);
        match step {
            Step::Admit(tenant) => {
                let requested = RequestedLimits::default();
                let answer = apply(
                    &mut connection,
                    &table,
                    &node,
                    &name(next),
                    TENANTS[tenant],
                    None,
                    &requested,
                    now,
                );
                match (answer, model.refuses(tenant)) {
                    (Admission::Accepted, None) => {
                        let build = Build {
                            tenant,
                            stands: Stands::Waiting,
                            charged_on: None,
                            image: 0,
                        };
                        model.builds.insert(next, build);
                        next += 1;
                    }
                    (Admission::Refused(refusal), Some(quota)) => assert_eq!(refusal.quota, quota),
                    (answer, expected) => panic!("{answer:?}, expected {expected:?}"),
                }
            }
            Step::Start => match start(&mut connection, &table, &node, now) {
                Some(build) => {
                    let number: usize = build.trim_start_matches("build-").parse().unwrap();
                    let tenant = model.builds[&number].tenant;
                    assert_eq!(
                        model.first_waiting(tenant),
                        Some(number),
                        "in order of acceptance"
                    );
                    assert!(model.may_start(tenant) && model.fits(tenant), "{build}");
                    let today = model.today();
                    let build = model.builds.get_mut(&number).unwrap();
                    build.stands = Stands::Running;
                    build.charged_on.get_or_insert(today);
                }
                None => {
                    // Somebody who does not fit may be waited for; otherwise whoever can start does.
                    let held = (0..3).any(|tenant| model.may_start(tenant) && !model.fits(tenant));
                    let could = (0..3).any(|tenant| model.may_start(tenant) && model.fits(tenant));
                    assert!(held || !could, "{model:?}", model = model.builds);
                }
            },
            Step::End(chosen, how, bytes) => {
                if let Some(number) = model.pick(chosen, |build| build.stands == Stands::Running) {
                    let how = [completed(bytes), failed(false), failed(true), failed(false)][how];
                    assert_eq!(end(&mut connection, &name(number), &how, now), Ended::Now);
                    let build = model.builds.get_mut(&number).unwrap();
                    build.stands = Stands::Ended;
                    build.image = how.stored_bytes;
                    if how.refund {
                        build.charged_on = None;
                    }
                }
            }
            Step::Cancel(chosen) => {
                if let Some(number) = model.pick(chosen, |build| build.stands == Stands::Waiting) {
                    assert_eq!(
                        end(&mut connection, &name(number), &failed(false), now),
                        Ended::Now
                    );
                    model.builds.get_mut(&number).unwrap().stands = Stands::Ended;
                }
            }
            Step::EndAgain(chosen) => {
                if let Some(number) = model.pick(chosen, |build| build.stands == Stands::Ended) {
                    assert_eq!(
                        end(&mut connection, &name(number), &failed(true), now),
                        Ended::Before
                    );
                }
            }
            Step::Crash => {
                transaction(&mut connection, |transaction| {
                    for build in account::running(transaction).unwrap() {
                        account::interrupt(transaction, &build, &Used::default(), None).unwrap();
                    }
                });
                for build in model
                    .builds
                    .values_mut()
                    .filter(|build| build.stands == Stands::Running)
                {
                    build.stands = Stands::Waiting;
                }
            }
            Step::Delete(chosen) => {
                if let Some(number) = model.pick(chosen, |build| build.image > 0) {
                    transaction(&mut connection, |transaction| {
                        tenant::storage::remove(transaction, &name(number), now).unwrap();
                    });
                    model.builds.get_mut(&number).unwrap().image = 0;
                }
            }
            Step::Clock(hours) => model.hours += hours,
        }
        let now = at(u64::try_from(model.hours + 10_000 * 24).unwrap() * 3_600);
        for (tenant, name) in TENANTS.into_iter().enumerate() {
            let usage = tenant::usage(&connection, &id(name), now).unwrap();
            let waiting = model.count(|build| build.tenant == tenant && build.stands == Stands::Waiting);
            assert_eq!(
                (
                    usage.active_builds,
                    usage.queued_builds,
                    usage.daily_builds,
                    usage.storage_bytes
                ),
                (
                    model.running(tenant),
                    waiting,
                    model.charged(tenant),
                    model.stored(tenant)
                ),
                "{name}"
            );
        }
        let ended = model.count(|build| build.stands == Stands::Ended);
        assert_eq!(
            number(&connection, "SELECT COUNT(*) FROM ledger WHERE kind = 'build'"),
            ended
        );
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, ..ProptestConfig::default() })]

    #[test]
    fn the_accounts_are_those_of_the_model(steps in prop::collection::vec(steps(), 1..120)) {
        run(steps);
    }
}

#[test]
fn the_hours_of_the_model_begin_at_noon() {
    let model = Model::default();
    assert_eq!(
        (
            model.today(),
            Model {
                hours: 11,
                ..Model::default()
            }
            .today()
        ),
        (0, 0)
    );
    assert_eq!(
        Model {
            hours: 12,
            ..Model::default()
        }
        .today(),
        1
    );
    assert_eq!(at(0) + std::time::Duration::from_secs(DAY / 2), at(DAY / 2));
    let mut connection = database();
    assert_eq!(
        admit(
            &mut connection,
            &TierTable::default(),
            &NodeCapacity::builds(1),
            "a",
            "a"
        ),
        Admission::Accepted
    );
}
