//! What a box costs: from the call to the program's start, and from its end to nothing being left.
//!
//! ```text
//! cargo bench -p sandbox --bench boxes
//! ```
//!
//! As root, on a machine that is doing nothing else; the plain launch beside it is the scale.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for people")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::time::{Duration, Instant};

use sandbox::{Calls, Child, GroupLimits, Isolation, Layers, Level, Sandbox, Spec, launch};

const ROUNDS: usize = 100;
const AT_ONCE: usize = 50;

fn spec() -> Spec {
    let mut spec = Spec::new(common::probe_program());
    spec.arguments = vec!["exit=0".into()];
    spec
}

fn measure(name: &str, start: impl Fn() -> Child) {
    let mut starts = Vec::new();
    let mut ends = Vec::new();
    for _ in 0..ROUNDS {
        let began = Instant::now();
        let child = start();
        starts.push(began.elapsed());
        let began = Instant::now();
        child.wait().unwrap();
        ends.push(began.elapsed());
    }
    println!(
        "{name}: start {:?}, end {:?} (medians of {ROUNDS})",
        median(&mut starts),
        median(&mut ends)
    );
}

fn median(times: &mut [Duration]) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

fn boxed(sandbox: &Sandbox, isolation: Isolation) -> Child {
    sandbox
        .launch(spec(), isolation, None, &GroupLimits::default())
        .unwrap()
}

fn main() {
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    measure("plain", || launch(spec()).unwrap());
    let none = Isolation {
        layers: Layers::NONE,
        calls: Calls::Worker,
        own_user: false,
    };
    measure("helper without layers", || boxed(&sandbox, none));
    for level in [Level::Basic, Level::Strict, Level::Maximum] {
        let isolation = level.isolation(Calls::Worker);
        measure(&format!("level {}", level.number()), || {
            boxed(&sandbox, isolation)
        });
    }
    let began = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                boxed(&sandbox, Level::Strict.isolation(Calls::Worker))
                    .wait()
                    .unwrap()
            });
        }
    });
    println!(
        "{AT_ONCE} boxes of level 2 at once, start to end: {:?}",
        began.elapsed()
    );
}
