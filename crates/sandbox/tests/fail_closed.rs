//! Where a layer cannot be had, nothing runs without it.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests")]

mod common;

#[path = "common/lack.rs"]
mod lack;

use std::process::Command;

use lack::Lacking;
use sandbox::{Calls, GroupLimits, LaunchErrorKind, Layer, Level, Spec};

/// Not a test of its own: what the others run on a host that lacks something.
#[test]
#[ignore = "started by the other tests"]
fn strict_launch() {
    if std::env::var_os("SANDBOX_TEST_STRICT").is_none() {
        return;
    }
    let lacking = std::env::var("SANDBOX_TEST_LACKS").unwrap_or_default();
    let (what, when) = lacking.split_once(' ').unwrap_or_default();
    let take_away = || {
        lack::take_away(match what {
            "seccomp" => Lacking::Seccomp,
            _ => Lacking::Landlock,
        });
    };
    if when == "before" {
        take_away();
    }
    let sandbox = common::sandbox();
    if when == "later" {
        take_away();
    }
    let mut spec = Spec::new(common::probe_program());
    spec.arguments = vec!["exit=0".into()];
    let strict = Level::Strict.isolation(Calls::Worker);
    match sandbox.launch(spec, strict, None, &GroupLimits::default()) {
        Ok(_) => println!("\nresult: launched"),
        Err(error) => match error.kind() {
            LaunchErrorKind::Missing { layer, reason } => println!("\nresult: {layer} missing: {reason}"),
            other => println!("\nresult: {other:?}"),
        },
    }
    let layers = sandbox.available();
    println!("layers: {layers}");
    println!("check: {:?}", sandbox.check(strict));
    println!("groups left: {}", common::boxes_of(std::process::id()).len());
}

/// Runs the launch after a shell has taken something away, in namespaces of its own.
fn launch_on_a_poorer_host(unshare: &[&str], take_away: &str) -> String {
    let own = std::env::current_exe().unwrap();
    let output = Command::new("unshare")
        .args(unshare)
        .args(["sh", "-c", &format!("{take_away}; exec \"$0\" \"$@\"")])
        .arg(own)
        .args(["--exact", "strict_launch", "--ignored", "--nocapture"])
        .env("SANDBOX_TEST_STRICT", "1")
        .output()
        .unwrap();
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn privileged_each_missing_layer_is_refused_by_name() {
    if common::full_sandbox().is_none() {
        return;
    }
    // The control: nothing taken away, launched.
    let output = launch_on_a_poorer_host(&["--mount", "--propagation", "private"], ":");
    assert!(output.contains("result: launched"), "{output}");

    let read_only =
        "for m in $(grep cgroup /proc/self/mounts | cut -d' ' -f2); do mount -o remount,bind,ro $m; done";
    let output = launch_on_a_poorer_host(&["--mount", "--propagation", "private"], read_only);
    assert!(
        output.contains("result: control groups missing: failed to create"),
        "{output}"
    );
    assert!(
        !output.contains(&format!("layers: {}", Layer::ControlGroups)),
        "{output}"
    );

    let no_namespaces = "echo 0 > /proc/sys/user/max_user_namespaces";
    let output = launch_on_a_poorer_host(&["--user", "--map-root-user"], no_namespaces);
    assert!(output.contains("result: namespaces missing: step"), "{output}");

    // A memory limit that cannot be had: the controller is not mounted.
    let no_memory = "umount -l /sys/fs/cgroup/memory 2>/dev/null || umount -l /sys/fs/cgroup";
    let output = launch_on_a_poorer_host(&["--mount", "--propagation", "private"], no_memory);
    assert!(
        output.contains("result: control groups missing: no control group hierarchy"),
        "{output}"
    );
}

#[test]
fn privileged_a_filter_that_cannot_be_loaded_and_a_kernel_without_landlock_are_refused() {
    if common::full_sandbox().is_none() {
        return;
    }
    let launch = |lacking: &str| {
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "strict_launch", "--ignored", "--nocapture"])
            .env("SANDBOX_TEST_STRICT", "1")
            .env("SANDBOX_TEST_LACKS", lacking)
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for (lacking, expected) in [
        // At the start it is found out, and the launch is refused without an attempt.
        (
            "seccomp before",
            "result: seccomp missing: step \"program: seccomp",
        ),
        (
            "landlock before",
            "result: landlock missing: the kernel does not have it",
        ),
        // Later the launch fails in the box, before the program's first instruction.
        ("seccomp later", "result: Step { step: \"program: seccomp"),
        ("landlock later", "result: Step { step: \"program: landlock"),
    ] {
        let output = launch(lacking);
        assert!(output.contains(expected), "{lacking}: {output}");
        assert!(!output.contains("result: launched"), "{lacking}: {output}");
        assert!(output.contains("check: Err("), "{lacking}: {output}");
        assert!(output.contains("groups left: 0"), "{lacking}: {output}");
        let all = output.contains("layers: namespaces, control groups, seccomp, landlock");
        assert_eq!(all, lacking.ends_with("later"), "{lacking}: {output}");
    }
    // The control.
    assert!(launch("").contains("result: launched"));
}
