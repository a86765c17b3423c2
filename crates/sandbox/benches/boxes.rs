//! What a box costs: from the call to the program's start, and from its end to nothing being left.
//!
//! ```text
//! cargo bench -p sandbox --bench boxes
//! ```
//!
//! As root, on a machine that is doing nothing else; the plain launch beside it is the scale. The further mounts are made
//! by a second process, in a mount namespace of its own with which they end: nobody else on the host sees them.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a program for people")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::{
    ffi::OsStr,
    path::Path,
    process::Command,
    time::{Duration, Instant},
};

use sandbox::{Calls, Child, GroupLimits, Isolation, Layers, Level, Sandbox, Spec, launch};

const ROUNDS: usize = 100;
const AT_ONCE: usize = 50;
const MOUNTS: usize = 500;
/// The word that tells the second process what it is.
const AMONG_MOUNTS: &str = "among-mounts";

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

/// Starts this program once more, by `unshare` of util-linux, with the place where it is to mount.
fn measure_among_mounts() {
    let directory = tempfile::tempdir().unwrap();
    let status = Command::new("unshare")
        .args(["--mount", "--propagation", "private"])
        .arg(std::env::current_exe().unwrap())
        .arg(AMONG_MOUNTS)
        .arg(directory.path())
        .env(
            common::static_programs::PLACE,
            common::static_programs::directory(),
        )
        .status()
        .unwrap();
    assert!(status.success(), "{status}");
    // Nothing of it is seen here.
    assert_eq!(n_mounts(directory.path()), 0);
}

/// The second process.
fn among_mounts(place: &OsStr) {
    let place = Path::new(place);
    let script = "for i in $(seq \"$1\"); do mkdir \"$2/$i\" && mount -t tmpfs -o size=4k bench \"$2/$i\" || exit 1; done";
    let mounted = Command::new("sh")
        .args(["-c", script, "sh", &MOUNTS.to_string()])
        .arg(place)
        .status()
        .unwrap();
    assert!(mounted.success(), "{mounted}");
    assert_eq!(n_mounts(place), MOUNTS);
    let Some(sandbox) = common::full_sandbox() else {
        return;
    };
    let strict = Level::Strict.isolation(Calls::Worker);
    measure(&format!("level 2, {MOUNTS} further mounts on the host"), || {
        boxed(&sandbox, strict)
    });
}

fn n_mounts(below: &Path) -> usize {
    let all = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    let below = format!(" {}/", below.display());
    all.lines().filter(|line| line.contains(&below)).count()
}

fn main() {
    let words: Vec<_> = std::env::args_os().skip(1).collect();
    if let [word, place] = words.as_slice()
        && word == AMONG_MOUNTS
    {
        among_mounts(place);
        return;
    }
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
    measure_among_mounts();
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
