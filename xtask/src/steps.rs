//! A run of named steps, and what became of them.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use crate::context::Result;

/// What became of a step.
enum Outcome {
    Passed,
    /// It failed, and passed when it ran once more: some test in it depends on luck.
    Unstable(String),
    Failed(String),
    Skipped(String),
}

/// Steps in the order in which they ran. A failed one does not keep the next from running.
#[derive(Default)]
pub(crate) struct Steps {
    done: Vec<(String, Duration, Outcome)>,
}

impl Steps {
    /// Runs a step; `true` when it passed.
    pub(crate) fn step(&mut self, name: &str, work: impl FnOnce() -> Result<()>) -> bool {
        println!("\n=== {name}");
        let started = Instant::now();
        let outcome = match work() {
            Ok(()) => Outcome::Passed,
            Err(message) => {
                println!("FAILED: {message}");
                Outcome::Failed(message)
            }
        };
        let passed = matches!(outcome, Outcome::Passed);
        self.done.push((name.to_owned(), started.elapsed(), outcome));
        passed
    }

    /// Runs a step of tests, and once more when it fails: `true` when it passed in the end.
    ///
    /// The real registry, the kernels and the clocks of a busy machine are part of many tests. One that fails now and
    /// then must not hide what all others say, and must not hide itself: the summary names the step as unstable.
    pub(crate) fn tests(&mut self, name: &str, mut work: impl FnMut() -> Result<()>) -> bool {
        println!("\n=== {name}");
        let started = Instant::now();
        let outcome = match work() {
            Ok(()) => Outcome::Passed,
            Err(first) => {
                println!("FAILED: {first}\n\n=== {name}, once more");
                match work() {
                    Ok(()) => Outcome::Unstable(first),
                    Err(second) => {
                        println!("FAILED twice: {second}");
                        Outcome::Failed(second)
                    }
                }
            }
        };
        let passed = !matches!(outcome, Outcome::Failed(_));
        self.done.push((name.to_owned(), started.elapsed(), outcome));
        passed
    }

    /// Records that a step cannot run here.
    pub(crate) fn skip(&mut self, name: &str, reason: &str) {
        println!("\n=== {name}\nskipped: {reason}");
        self.done.push((
            name.to_owned(),
            Duration::ZERO,
            Outcome::Skipped(reason.to_owned()),
        ));
    }

    /// Prints what became of each step, what did not run at all, and at the very end how many passed and failed.
    pub(crate) fn finish(&self) -> ExitCode {
        println!("\n=== summary");
        let (mut n_passed, mut n_failed) = (0, 0);
        let mut skipped = Vec::new();
        let mut unstable = Vec::new();
        let mut all = Duration::ZERO;
        for (name, duration, outcome) in &self.done {
            let seconds = duration.as_secs_f64();
            all += *duration;
            match outcome {
                Outcome::Passed => {
                    n_passed += 1;
                    println!("passed  {seconds:7.1} s  {name}");
                }
                Outcome::Unstable(message) => {
                    n_passed += 1;
                    unstable.push(name.as_str());
                    println!(
                        "UNSTABLE{seconds:7.1} s  {name}: passed the second time; the first time {message}"
                    );
                }
                Outcome::Failed(message) => {
                    n_failed += 1;
                    println!("FAILED  {seconds:7.1} s  {name}: {message}");
                }
                Outcome::Skipped(reason) => {
                    skipped.push(name.as_str());
                    println!("skipped            {name}: {reason}");
                }
            }
        }
        println!("in all  {:7.1} s", all.as_secs_f64());
        if !skipped.is_empty() {
            println!(
                "\n!!! NOT EVERYTHING RAN: {} left out, for the reasons above.\n\
                 !!! What passed says nothing about that. As root on Debian, `cargo xtask test` runs all of it.\n",
                skipped.join(", ")
            );
        }
        if !unstable.is_empty() {
            println!(
                "\n!!! UNSTABLE: {} failed at first and passed when run again. That is a fault in a test or in the \
                 product:\n!!! search the output above for `FAILED`, and mend it.\n",
                unstable.join(", ")
            );
        }
        println!("{n_passed} passed, {n_failed} failed");
        if n_failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}
