//! An image whose own init is systemd.

use std::time::Duration;

use builderd_e2e::parts;
use test_support::lab;

use crate::{assert_says, build_layout, rig};

#[test]
fn systemd_starts_its_units_and_ends_the_machine() {
    let (rig, layout) = match rig().and_then(|rig| Ok((rig, parts::lab_image("systemd")?))) {
        Ok(parts) => parts,
        Err(missing) => return lab::skip(missing),
    };
    let built = build_layout(&layout, &["--init", "custom", "--env", "GREETING=hello"]);
    let mut options = built.boot_options();
    options.limit = Duration::from_secs(300);
    // Without udev nobody announces the console's device, and its login would wait for it for 90 seconds.
    options
        .kernel_arguments
        .push("systemd.mask=serial-getty@ttyS0.service".into());
    let boot = rig.boot(&built.image, &options).unwrap();
    // What the image's unit `report` writes.
    assert_says(
        &boot,
        &[
            "process 1 is systemd",
            "multi-user.target is active",
            "journald is active",
            "failed units:",
            "greeting=hello",
        ],
    );
}
