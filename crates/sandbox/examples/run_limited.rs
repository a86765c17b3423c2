//! Runs a command within limits and says what it used.
//!
//! ```text
//! cargo run -p sandbox --example run_limited -- 2 /bin/sh -c 'while :; do :; done'
//! ```
//!
//! The first argument is the time limit in seconds; the second an absolute path. Files are limited to 1 MiB, the
//! address space to 1 GiB.

use std::{env, os::fd::AsFd, time::Duration};

use anyhow::Context as _;
use sandbox::{Limits, Spec};

#[expect(clippy::print_stdout, reason = "a program's output")]
fn main() -> anyhow::Result<()> {
    let mut arguments = env::args_os().skip(1);
    let usage = "usage: run_limited SECONDS /ABSOLUTE/PROGRAM [ARGUMENT...]";
    let seconds = arguments
        .next()
        .and_then(|text| text.to_str()?.parse().ok())
        .context(usage)?;
    let mut spec = Spec::new(arguments.next().context(usage)?);
    spec.arguments = arguments.collect();
    spec.environment = vec![("PATH".into(), "/usr/bin:/bin".into())];
    spec.stdout = Some(std::io::stdout().as_fd().try_clone_to_owned()?);
    spec.stderr = Some(std::io::stderr().as_fd().try_clone_to_owned()?);
    spec.limits = Limits {
        file_size_bytes: Some(1 << 20),
        address_space_bytes: Some(1 << 30),
        wall_time: Some(Duration::from_secs(seconds)),
        ..Limits::default()
    };

    let outcome = sandbox::launch(spec)?.wait()?;
    println!("{}", outcome.status);
    println!("timed out: {}", outcome.timed_out);
    println!("CPU time: {:?}", outcome.cpu_time);
    println!("peak memory: {} KiB", outcome.peak_memory_bytes / 1024);
    Ok(())
}
