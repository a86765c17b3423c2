//! How long a guest takes until its command runs, and what each rule of optimization saves, as Markdown.
//!
//! ```sh
//! cargo build --release -p builderd --bins
//! BUILDERD_BINARY=target/release/builderd cargo run --release -p builderd-e2e --bin guest_bench [BOOTS]
//! ```
//!
//! It needs what `cargo xtask lab` makes. QEMU runs without KVM, so that the times are those of an emulated processor.

use std::{
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context as _, ensure};
use builderd_e2e::parts;
use serde_json::Value;
use test_support::{
    image::{Image, Layer},
    lab,
    vm::{BootOptions, VmRig, Vmm},
};

/// What was left out of every image, asked for or not, by the service that this one took its interface from.
const FIXED_LIST: [&str; 5] = [
    "/var/log/*",
    "/tmp/*",
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
];

#[expect(clippy::print_stdout, reason = "its result")]
fn main() -> anyhow::Result<()> {
    let boots: usize = match std::env::args().nth(1) {
        Some(count) => count.parse().context("BOOTS: expected a number")?,
        None => 5,
    };
    ensure!(boots > 0, "BOOTS: expected at least 1");
    let directory = tempfile::tempdir()?;
    println!("| machine | kernel start → command, ms | of it guest-init, ms | boots |\n|---|---|---|---|");
    let image = busybox_image(directory.path())?;
    let rig = VmRig::find()?;
    for (name, vmm) in [("q35", Vmm::QemuQ35), ("microvm", Vmm::QemuMicrovm)] {
        let rig = rig.clone().with_vmm(vmm);
        let mut times = Vec::new();
        for _ in 0..boots {
            times.push(boot(&rig, &image)?);
        }
        let (whole, own): (Vec<f64>, Vec<f64>) = times.into_iter().unzip();
        println!("| {name} | {} | {} | {boots} |", spread(whole), spread(own));
    }

    let layout = parts::lab_image("nginx")?;
    println!("\n| image nginx | size on disk, MiB | saved, MiB | files |\n|---|---|---|---|");
    let (before, _) = build(directory.path(), &layout, &[])?;
    println!("| nothing left out | {:.1} | | |", mebibytes(before));
    let fixed: Vec<String> = FIXED_LIST.map(|pattern| format!("--exclude={pattern}")).into();
    let all = ["--remove-docs", "--remove-cache", "--strip-debug-symbols"];
    let cases = [
        ("`remove_docs`", vec![all[0].to_owned()]),
        ("`remove_cache`", vec![all[1].to_owned()]),
        ("`strip_debug_symbols`", vec![all[2].to_owned()]),
        ("the three", all.map(str::to_owned).into()),
        ("the fixed list, as patterns", fixed),
    ];
    for (name, options) in cases {
        let (after, metrics) = build(directory.path(), &layout, &options)?;
        let savings = metrics["optimization"].as_array().cloned().unwrap_or_default();
        let files: u64 = savings.iter().filter_map(|rule| rule["files"].as_u64()).sum();
        let saved = mebibytes(before) - mebibytes(after);
        println!("| {name} | {:.1} | {saved:.1} | {files} |", mebibytes(after));
    }
    Ok(())
}

/// An image with a command that does nothing.
fn busybox_image(directory: &Path) -> anyhow::Result<PathBuf> {
    let program = std::fs::read(lab::program("busybox", "busybox-static")?)?;
    let layer = Layer::new()
        .directory("bin", 0o755)
        .file("bin/true", program)
        .mode(0o755);
    let layout = directory.join("layout");
    let image = Image::new().layer(&layer).cmd(&["/bin/true"]).build();
    image.write_oci_layout(&layout, "1")?;
    build(directory, &layout, &[])?;
    let kept = directory.join("boot.ext4");
    std::fs::rename(directory.join("image.ext4"), &kept)?;
    Ok(kept)
}

/// Builds `image.ext4`; gives the bytes that it takes on the disk, and the metrics.
fn build(directory: &Path, layout: &Path, options: &[String]) -> anyhow::Result<(u64, Value)> {
    let image = directory.join("image.ext4");
    let output = Command::new(parts::builderd()?)
        .args(["build", "--json", "--force"])
        .arg(format!("oci:{}:1", layout.display()))
        .arg("--output")
        .arg(&image)
        .arg("--cache-dir")
        .arg(directory.join("cache"))
        .args(options)
        .output()?;
    let told = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success(),
        "{told}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    let last: Value = serde_json::from_str(told.lines().last().unwrap_or_default())?;
    Ok((std::fs::metadata(&image)?.blocks() * 512, last["metrics"].clone()))
}

/// Boots once; gives the milliseconds from the kernel's start to the command, and those of process 1.
fn boot(rig: &VmRig, image: &Path) -> anyhow::Result<(f64, f64)> {
    let options = BootOptions {
        kernel_arguments: vec!["guest-init.log=verbose".to_owned()],
        ..BootOptions::default()
    };
    let boot = rig.boot(image, &options)?;
    let line = boot
        .serial
        .lines()
        .find(|line| line.contains("ms after process 1 began"));
    let line = line.with_context(|| format!("the guest does not say when:\n{}", boot.serial))?;
    // `…, OWN ms after process 1 began and WHOLE ms after the kernel`
    let figures: Vec<f64> = line
        .split(" ms after")
        .filter_map(|part| part.rsplit(' ').next()?.parse().ok())
        .collect();
    ensure!(figures.len() == 2, "{line:?} has no two figures");
    Ok((figures[1], figures[0]))
}

/// Median, lowest and highest.
fn spread(mut values: Vec<f64>) -> String {
    values.sort_by(f64::total_cmp);
    let median = values[values.len() / 2];
    let (lowest, highest) = (values[0], values[values.len() - 1]);
    format!("{median:.1} ({lowest:.1}–{highest:.1})")
}

#[expect(clippy::cast_precision_loss, reason = "sizes of files, for people")]
fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
