//! Tries out limits and walls of boxes on the machine that it runs on, and says how it went: for machines that have no
//! test harness, as a guest.
//!
//! `box-check HELPER ESCAPE-PROBE` prints `check NAME: ok` or `check NAME: FAILED …` for each, and `checked VERSION` with
//! the version of control groups at the end.

#![allow(clippy::print_stdout, reason = "the lines are what it is for")]

use std::{error::Error, fs, io::Read, path::PathBuf, process::ExitCode, time::Duration};

use sandbox::{Calls, GroupLimits, Layers, Level, Outcome, Sandbox, SealedProgram, Settings, Spec};

type Result<T> = std::result::Result<T, Box<dyn Error>>;
type Check = fn(&Boxes) -> Result<()>;

struct Boxes {
    sandbox: Sandbox,
    probe: SealedProgram,
}

const CHECKS: &[(&str, Check)] = &[
    ("layers", |boxes| {
        let missing = boxes.sandbox.missing();
        expect(boxes.sandbox.available() == Layers::ALL, &missing)
    }),
    ("exit code", |boxes| {
        let outcome = boxes.run("exit=7", GroupLimits::default(), 60_000)?;
        expect(outcome.status.code() == Some(7), &outcome)
    }),
    ("memory", |boxes| {
        let limits = GroupLimits {
            memory_bytes: Some(48 << 20),
            ..GroupLimits::default()
        };
        let outcome = boxes.run("memory", limits, 120_000)?;
        expect(
            outcome.out_of_memory && outcome.peak_memory_bytes > 16 << 20,
            &outcome,
        )
    }),
    ("a child's memory", |boxes| {
        let limits = GroupLimits {
            memory_bytes: Some(48 << 20),
            ..GroupLimits::default()
        };
        // Told whatever the program says, where it is asked at all.
        let (_, outcome) = boxes.run_in("childs-memory", Some("exit=0"), limits, 120_000)?;
        expect(outcome.out_of_memory && !outcome.timed_out, &outcome)
    }),
    ("zombies", |boxes| {
        let limits = GroupLimits {
            processes: Some(64),
            ..GroupLimits::default()
        };
        let (group, outcome) = boxes.run_in("zombies", Some("exit=0"), limits, 60_000)?;
        expect(outcome.status.success() && !group.exists(), &(group, outcome))
    }),
    ("processes", |boxes| {
        let limits = GroupLimits {
            processes: Some(24),
            ..GroupLimits::default()
        };
        // It has ended when nothing of it is left, in a group that is killed as a whole.
        let outcome = boxes.run("forks", limits, 3000)?;
        expect(outcome.timed_out, &outcome)
    }),
    ("processor", |boxes| {
        let limits = GroupLimits {
            cpu_millicores: Some(100),
            ..GroupLimits::default()
        };
        let outcome = boxes.run("spin", limits, 4000)?;
        let fair = Duration::from_millis(1)..Duration::from_millis(2000);
        expect(fair.contains(&outcome.cpu_time), &outcome)
    }),
    ("daemons", |boxes| {
        let (group, outcome) = boxes.run_in("daemons", Some("exit=0"), GroupLimits::default(), 60_000)?;
        expect(outcome.status.success() && !group.exists(), &(group, outcome))
    }),
    ("walls", |boxes| {
        let mut spec = boxes.spec(
            &["host-file=/proc/version", "proc", "user-namespace", "process"],
            60_000,
        );
        let (mut reader, writer) = std::io::pipe()?;
        spec.stdout = Some(writer.into());
        let strict = Level::Strict.isolation(Calls::Worker);
        let child = boxes
            .sandbox
            .launch(spec, strict, None, &GroupLimits::default())?;
        let mut said = String::new();
        reader.read_to_string(&mut said)?;
        child.wait()?;
        expect(said.matches("\"blocked\":true").count() == 4, &said)
    }),
];

impl Boxes {
    fn spec(&self, words: &[&str], wall_milliseconds: u64) -> Spec {
        let mut spec = Spec::new(self.probe.clone());
        spec.arguments = words.iter().map(Into::into).collect();
        spec.limits.wall_time = Some(Duration::from_millis(wall_milliseconds));
        spec
    }

    fn run(&self, word: &str, limits: GroupLimits, wall_milliseconds: u64) -> Result<Outcome> {
        Ok(self.run_in(word, None, limits, wall_milliseconds)?.1)
    }

    fn run_in(
        &self,
        word: &str,
        then: Option<&str>,
        limits: GroupLimits,
        wall_milliseconds: u64,
    ) -> Result<(PathBuf, Outcome)> {
        let words: Vec<&str> = [word].into_iter().chain(then).collect();
        let spec = self.spec(&words, wall_milliseconds);
        let basic = Level::Basic.isolation(Calls::Worker);
        let child = self.sandbox.launch(spec, basic, None, &limits)?;
        let group = child.group().ok_or("no control group")?.path().to_owned();
        Ok((group, child.wait()?))
    }
}

fn expect(holds: bool, found: &impl std::fmt::Debug) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(format!("{found:?}").into())
}

fn main() -> ExitCode {
    match check_all() {
        Ok(code) => code,
        Err(error) => {
            println!("check start: FAILED {error}");
            ExitCode::FAILURE
        }
    }
}

fn check_all() -> Result<ExitCode> {
    let mut paths = std::env::args().skip(1);
    let mut program = || -> Result<Vec<u8>> { Ok(fs::read(paths.next().ok_or("two paths are wanted")?)?) };
    let (helper, probe) = (program()?, program()?);
    let boxes = Boxes {
        sandbox: Sandbox::start(&Settings {
            name: "box-check",
            helper: &helper,
            lease_directory: None,
        })?,
        probe: SealedProgram::new("escape-probe", &probe)?,
    };
    let mut failed = false;
    for (name, check) in CHECKS {
        match check(&boxes) {
            Ok(()) => println!("check {name}: ok"),
            Err(error) => {
                failed = true;
                println!("check {name}: FAILED {error}");
            }
        }
    }
    let version = boxes
        .sandbox
        .groups()
        .map_or("without control groups", |groups| groups.version().as_str());
    println!("checked {version}");
    Ok(ExitCode::from(u8::from(failed)))
}
