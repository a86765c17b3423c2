//! `cargo xtask demo`: from an image reference to a booted virtual machine, before one's eyes.

use std::process::Command;

use crate::context::{Context, Result, run};

/// Builds what the demo needs and runs it.
pub(crate) fn demo(context: &Context, reference: Option<&str>) -> Result<()> {
    println!("building builderd (some minutes, the first time)");
    run(&mut context.cargo(&[
        "build",
        "--package",
        "builderd",
        "--package",
        "builderd-e2e",
        "--bins",
    ]))?;
    let mut demo = Command::new(context.target.join("debug/demo"));
    demo.args(reference);
    run(context.with_programs(&mut demo)?)
}
