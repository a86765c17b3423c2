//! `cargo xtask bench`: how fast it is, beside the floor and beside others. The measuring is in the package
//! `builderd-bench`; here everything is built and made that it needs.

use std::{os::unix::process::CommandExt as _, process::Command};

use crate::{
    context::{Context, Result, is_root, run},
    debian, lab,
};

/// The images that are built from Debian packages; the bench makes the others itself.
const BUILT: [&str; 2] = ["nginx", "big"];

/// Builds, makes the images that `arguments` ask for, and becomes the bench. Returns only when that fails.
pub(crate) fn bench(context: &Context, arguments: &[&str]) -> Result<()> {
    if arguments
        .iter()
        .any(|argument| matches!(*argument, "--help" | "-h"))
    {
        let help = [
            "run",
            "--quiet",
            "--package",
            "builderd-bench",
            "--",
            "run",
            "--help",
        ];
        return run(&mut context.cargo(&help));
    }
    if !is_root() {
        return Err("this needs root: it mounts, and so do those it is compared with".into());
    }
    debian::can_install()?;
    debian::install()?;
    for name in BUILT.into_iter().filter(|name| is_wanted(name, arguments)) {
        lab::image(context, name)?;
    }
    println!("building the release (some minutes, the first time)");
    run(&mut context.cargo(&[
        "build",
        "--quiet",
        "--release",
        "--package",
        "builderd",
        "--package",
        "builderd-bench",
        "--bins",
    ]))?;
    let release = context.target.join("release");
    let mut bench = Command::new(release.join("builderd-bench"));
    bench.arg("run");
    for (option, path) in [
        ("--builderd", release.join("builderd")),
        ("--directory", context.target.join("bench")),
        ("--images", context.lab().join("images")),
        ("--document", context.root.join("docs/benchmarks.md")),
    ] {
        bench.arg(option).arg(path);
    }
    bench.args(arguments);
    // The bench takes this process over, so that Ctrl-C reaches the one that has to clean up.
    let error = bench.exec();
    Err(format!("cannot run {}: {error}", bench.get_program().display()))
}

/// Whether `--fixture` names it, or no fixture at all.
fn is_wanted(name: &str, arguments: &[&str]) -> bool {
    if arguments.contains(&"--quick")
        && name == "big"
        && !arguments.iter().any(|argument| argument.starts_with("--fixture"))
    {
        return false;
    }
    let mut named = arguments.iter().enumerate().filter_map(|(index, argument)| {
        argument.strip_prefix("--fixture=").or_else(|| {
            (*argument == "--fixture")
                .then(|| arguments.get(index + 1).copied())
                .flatten()
        })
    });
    let mut none_named = true;
    let found = named.any(|fixtures| {
        none_named = false;
        fixtures.split(',').any(|fixture| fixture == name)
    });
    found || none_named
}
