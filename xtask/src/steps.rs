//! A run of named steps, and what became of them.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use crate::context::Result;

/// What became of a step.
enum Outcome {
    Passed,
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
        let mut all = Duration::ZERO;
        for (name, duration, outcome) in &self.done {
            let seconds = duration.as_secs_f64();
            all += *duration;
            match outcome {
                Outcome::Passed => {
                    n_passed += 1;
                    println!("passed  {seconds:7.1} s  {name}");
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
        println!("{n_passed} passed, {n_failed} failed");
        if n_failed == 0 {
            ExitCode::SUCCESS
        } else {
            ExitCode::FAILURE
        }
    }
}
