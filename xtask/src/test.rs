//! `cargo xtask test`: everything that CI runs.

use std::{fs, path::Path, process::ExitCode};

use crate::{
    context::{Context, Result, at, run},
    debian, lab,
    steps::Steps,
};

/// The comparison with another client.
const DIFFERENTIAL: &str = "crates/oci-fetch/differential/Cargo.toml";

/// Runs all steps; with `quick` only those that need Rust and a C compiler and nothing else.
pub(crate) fn test(context: &Context, quick: bool) -> ExitCode {
    let mut steps = Steps::default();
    // Where everything was installed, a test that skips itself is a failure.
    let mut has_lab = false;
    if !quick {
        match debian::can_install() {
            Ok(()) => {
                has_lab =
                    steps.step("packages", debian::install) && steps.step("kernel", || lab::kernel(context));
            }
            Err(reason) => steps.skip("packages", &reason),
        }
    }
    let cargo = |arguments: &[&str]| {
        let mut command = context.cargo(arguments);
        if has_lab {
            command.env("BUILDERD_REQUIRE_LAB", "1");
        }
        command
    };
    steps.step("format", || run(&mut cargo(&["fmt", "--all", "--check"])));
    steps.step("clippy", || {
        run(&mut cargo(&[
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ]))
    });
    steps.step("documentation", || {
        run(cargo(&["doc", "--quiet", "--workspace", "--no-deps"]).env("RUSTDOCFLAGS", "-D warnings"))
    });
    let crates = match crates(&context.root) {
        Ok(crates) => crates,
        Err(message) => {
            steps.step("list of crates", || Err(message));
            Vec::new()
        }
    };
    for name in crates
        .iter()
        .map(String::as_str)
        .chain(["xtask", "builderd-bench"])
    {
        steps.tests(&format!("{name} alone"), || {
            run(&mut cargo(&[
                "test",
                "--quiet",
                "--no-fail-fast",
                "--package",
                name,
            ]))
        });
    }
    if quick {
        return steps.finish();
    }
    if !has_lab {
        steps.skip("end to end", "it needs root and the packages named above");
        return steps.finish();
    }
    steps.tests("oci-fetch beside oci-client", || {
        // Of a workspace of its own, so that nothing else gets the crates that the other client needs.
        let mut test = cargo(&["test", "--quiet", "--locked", "--manifest-path", DIFFERENTIAL]);
        run(test.env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only"))
    });
    let has_images = steps.step("images", || lab::images(context));
    let has_clients = steps.step("clients", || lab::clients(context));
    steps.tests("end to end", || {
        if !has_images || !has_clients {
            return Err("its images or its clients could not be made".into());
        }
        run(&mut cargo(&[
            "build",
            "--quiet",
            "--package",
            "builderd",
            "--package",
            "builderd-e2e",
            "--bins",
            "--examples",
        ]))?;
        run(context.with_programs(&mut cargo(&[
            "test",
            "--quiet",
            "--no-fail-fast",
            "--package",
            "builderd-e2e",
        ]))?)
    });
    steps.finish()
}

/// The packages below `crates/`, in the order of their names.
fn crates(root: &Path) -> Result<Vec<String>> {
    let directory = root.join("crates");
    let mut names = Vec::new();
    for entry in at(&directory, fs::read_dir(&directory))? {
        let path = at(&directory, entry)?.path();
        if path.join("Cargo.toml").is_file()
            && let Some(name) = path.file_name()
        {
            names.push(name.to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}
