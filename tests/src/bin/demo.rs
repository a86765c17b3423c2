//! From an image reference to a booted virtual machine, before one's eyes. `cargo xtask demo` builds and runs it.

#![forbid(unsafe_code)]
#![expect(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "a demonstration talks to its terminal"
)]

use std::{
    fs,
    io::{IsTerminal as _, stderr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context as _, bail, ensure};
use builderd::proto::{BuildJob, BuildState};
use builderd_e2e::{
    api::{Api, seed_request},
    check,
    daemon::Daemon,
    demo_image::{EXPECTED, demo_image},
    parts,
};
use indicatif::{ProgressBar, ProgressStyle};
use test_support::{
    lab,
    registry::Registry,
    vm::{BootOptions, VmRig},
};

/// What the init says when the image's command has ended.
const COMMAND_ENDED: &str = "guest-init: command";

/// How long an image's command may run before it is asked to stop. Without KVM a boot alone takes some seconds.
const PATIENCE: Duration = Duration::from_secs(40);

/// Lines of the daemon's log that are shown when something failed.
const LOG_TAIL_LINES: usize = 30;

#[tokio::main]
async fn main() -> ExitCode {
    let reference = std::env::args().nth(1);
    match demo(reference.as_deref()).await {
        Ok(image) => {
            println!("image: {}", image.display());
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("the demo failed: {error:#}");
            ExitCode::FAILURE
        }
    }
}

async fn demo(reference: Option<&str>) -> anyhow::Result<PathBuf> {
    let state_directory = lab::target_directory().join("demo");
    if state_directory.exists() {
        fs::remove_dir_all(&state_directory).context("cannot remove the state of the last demo")?;
    }
    fs::create_dir_all(&state_directory)?;

    // Without a reference the image comes from a registry in this process, which lives until the build is done.
    let (reference, registry) = match reference {
        Some(reference) => (reference.to_owned(), None),
        None => {
            let registry = Registry::start()?;
            let image = demo_image(&fs::read(parts::guest_hello()?)?);
            (registry.publish("demo/hello", "1", &image), Some(registry))
        }
    };
    let is_own_image = registry.is_some();

    let daemon = Daemon::start(&parts::builderd()?, &state_directory, &[])?;
    println!(
        "builderd serves on {}, its state is in {}",
        daemon.address(),
        state_directory.display()
    );
    let image = match build(&daemon, &reference).await {
        Ok(image) => image,
        Err(error) => {
            let log = daemon.log();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("the end of the daemon's log:");
            for line in &lines[lines.len().saturating_sub(LOG_TAIL_LINES)..] {
                eprintln!("  {line}");
            }
            return Err(error);
        }
    };
    let status = daemon.stop()?;
    ensure!(status.success(), "after SIGTERM the daemon ended with {status}");
    println!("the daemon ended after SIGTERM");

    check::e2fsck(&image)?;
    println!("e2fsck -fn found no fault");
    boot(&image, is_own_image)?;
    Ok(image)
}

/// Has the daemon build the image, shows how it goes, and checks what it says of the result.
async fn build(daemon: &Daemon, reference: &str) -> anyhow::Result<PathBuf> {
    let api = Api::new(daemon.address())?;
    println!("CreateBuild {}", seed_request(reference));
    let build_id = api.create(reference).await?;
    println!("build {build_id}");
    let build = follow(&api, &build_id).await?;
    if build.state() != BuildState::Completed {
        bail!(
            "the build ended {}: {}",
            build.state().as_str_name(),
            build.error_message
        );
    }
    let image = PathBuf::from(&build.rootfs_path);
    show(&build);
    let size = fs::metadata(&image)
        .with_context(|| image.display().to_string())?
        .len();
    ensure!(
        size == u64::try_from(build.rootfs_size_bytes)?,
        "the image has {size} bytes, which is not what was said"
    );
    let checksum = check::sha256(&image)?;
    ensure!(
        checksum == build.rootfs_checksum,
        "the image has SHA-256 {checksum}, which is not what was said"
    );
    Ok(image)
}

/// Shows the log with a bar below it where there is a terminal.
async fn follow(api: &Api, build_id: &str) -> anyhow::Result<BuildJob> {
    let bar = ProgressBar::new(100);
    if let Ok(style) = ProgressStyle::with_template("{spinner} [{bar:32}] {pos:>3}% {wide_msg}") {
        bar.set_style(style);
    }
    let ticker = stderr().is_terminal().then(|| {
        let (api, bar, build_id) = (api.clone(), bar.clone(), build_id.to_owned());
        tokio::spawn(async move {
            let mut interval = tokio::time::interval(Duration::from_millis(100));
            loop {
                interval.tick().await;
                // The log's stream tells when the build cannot be had any more.
                if let Ok(build) = api.build(&build_id).await {
                    bar.set_position(u64::try_from(build.progress_percent).unwrap_or(0));
                    bar.set_message(build.current_step);
                }
            }
        })
    });
    let finished = api
        .finish(build_id, |line| {
            bar.suspend(|| println!("  {:>9}  {:<5} {}", line.component, line.level, line.message));
        })
        .await;
    if let Some(ticker) = ticker {
        ticker.abort();
    }
    bar.finish_and_clear();
    finished
}

fn show(build: &BuildJob) {
    println!("size     {} bytes", build.rootfs_size_bytes);
    println!("SHA-256  {}", build.rootfs_checksum);
    let metrics = build.metrics.clone().unwrap_or_default();
    for (step, milliseconds) in [
        ("pull", metrics.pull_duration_ms),
        ("extract", metrics.extract_duration_ms),
        ("build", metrics.build_duration_ms),
        ("optimize", metrics.optimize_duration_ms),
        ("total", metrics.total_duration_ms),
    ] {
        println!("{step:<8} {milliseconds} ms");
    }
}

/// Boots the image where that is possible; our own image must then say what it is meant to say.
fn boot(image: &Path, is_own_image: bool) -> anyhow::Result<()> {
    let rig = match VmRig::find() {
        Ok(rig) => rig,
        Err(missing) => {
            println!("not booted: {missing}");
            return Ok(());
        }
    };
    println!("booting the image in QEMU");
    let vm = rig.start(image, &BootOptions::default())?;
    // A server does not end by itself; the init ends it, and the machine, when it is told to.
    if !vm.wait_for_within(COMMAND_ENDED, PATIENCE) {
        println!("the image's command still runs: pressing Ctrl-Alt-Delete");
        vm.send_ctrl_alt_delete()
            .context("the virtual machine has ended early")?;
    }
    let boot = vm.wait()?;
    for line in boot.serial.lines().map(printable).filter(|line| !line.is_empty()) {
        println!("  guest | {line}");
    }
    ensure!(boot.ended_by_itself, "the virtual machine did not end by itself");
    if is_own_image {
        for expected in EXPECTED {
            ensure!(
                boot.serial.contains(expected),
                "the guest did not say {expected:?}"
            );
        }
    }
    println!(
        "the virtual machine ended by itself after {:.1} s",
        boot.duration.as_secs_f64()
    );
    Ok(())
}

/// A line of the console without what would drive the terminal that it is shown on: control characters, and the
/// sequences of letters and digits that an escape begins.
fn printable(line: &str) -> String {
    let mut characters = line.chars();
    let mut shown = String::with_capacity(line.len());
    while let Some(character) = characters.next() {
        if character == '\u{1b}' {
            // `ESC [ … letter`, else `ESC letter`.
            if characters.next() == Some('[') {
                characters.find(char::is_ascii_alphabetic);
            }
        } else if !character.is_control() {
            shown.push(character);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::printable;

    #[test]
    fn a_guest_cannot_drive_the_terminal() {
        assert_eq!(
            printable("\u{1b}c\u{1b}[?7l\u{1b}[2J\u{1b}[0mhello\u{7} there\r"),
            "hello there"
        );
        assert_eq!(printable("cut off \u{1b}["), "cut off ");
    }
}
