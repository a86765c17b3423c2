//! The demo does what it shows.

use std::process::Command;

use builderd_e2e::{check, parts};
use test_support::lab;

#[test]
fn privileged_the_demo_builds_checks_and_boots_its_own_image() {
    let found = parts::root().and_then(|()| {
        parts::builderd()?;
        parts::guest_hello()?;
        parts::demo()
    });
    let demo = match found {
        Ok(demo) => demo,
        Err(missing) => return lab::skip(missing),
    };
    let output = Command::new(demo).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stdout);
    let all = format!("{shown}\n{}", String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{all}");
    let image = shown
        .lines()
        .last()
        .and_then(|line| line.strip_prefix("image: "))
        .unwrap();
    check::e2fsck(image.as_ref()).unwrap();
    let checksum = format!("SHA-256  {}", check::sha256(image.as_ref()).unwrap());
    assert!(shown.contains(&checksum), "{all}");
}

#[test]
fn a_demo_that_fails_says_so() {
    let found = parts::builderd().and_then(|_| parts::demo());
    let demo = match found {
        Ok(demo) => demo,
        Err(missing) => return lab::skip(missing),
    };
    let target = tempfile::tempdir().unwrap();
    let output = Command::new(demo)
        .env("CARGO_TARGET_DIR", target.path())
        .env("BUILDERD_BINARY", parts::builderd().unwrap())
        .arg("127.0.0.1:1/no/such:image")
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    assert!(errors.contains("the end of the daemon's log:"), "{errors}");
    assert!(
        !String::from_utf8_lossy(&output.stdout)
            .lines()
            .any(|line| line.starts_with("image: ")),
        "{errors}"
    );
}
