//! What a person at a terminal sees of a build.

use std::{
    io::Read as _,
    process::{Command, Stdio},
};

use builderd_e2e::{api::TENANT, bench::Bench, parts};
use test_support::{lab, registry::Misbehaviour};

#[test]
fn privileged_a_bar_with_the_servers_steps_moves_while_a_build_is_followed() {
    let needed = parts::builderd_cli().and_then(|client| {
        // From util-linux: runs a command with a terminal of its own.
        let script = lab::program("script", "bsdutils")?;
        Ok((client, script, Bench::start(&[])?))
    });
    let (client, script, bench) = match needed {
        Ok(parts) => parts,
        Err(missing) => return lab::skip(missing),
    };
    // The build stands still until the bar was seen.
    bench.registry.misbehave("/blobs/", Misbehaviour::StallAt(0));
    let command = format!(
        "{} create-build --follow --tenant {TENANT} --server http://{} {}",
        client.display(),
        bench.daemon.address(),
        bench.reference
    );
    let mut terminal = Command::new(script)
        .args(["--quiet", "--return", "--command", &command, "/dev/null"])
        .envs([("TERM", "xterm"), ("COLUMNS", "120")])
        .env_remove("NO_COLOR")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut output = terminal.stdout.take().unwrap();
    let mut shown = String::new();
    let mut buffer = [0; 4096];
    let mut is_released = false;
    loop {
        // Ends with the client, which ends with the build.
        match output.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(length) => shown.push_str(&String::from_utf8_lossy(&buffer[..length])),
        }
        if !is_released && shown.contains("% ") {
            is_released = true;
            bench.registry.behave();
            bench.registry.release();
        }
    }
    let status = terminal.wait().unwrap();
    assert!(is_released, "no bar was shown: {shown:?}");
    assert!(status.success(), "{shown:?}\n{}", bench.daemon.log());
    // The bar is drawn over, the log stands above it.
    assert!(shown.contains('\u{1b}') && shown.contains('['), "{shown:?}");
    assert!(shown.contains("Resolved"), "{shown:?}");
    assert!(shown.contains("ext4"), "{shown:?}");

    // Where nobody looks there is no bar.
    let output = Command::new(parts::builderd_cli().unwrap())
        .args(["create-build", "--follow", "--tenant", TENANT, "--server"])
        .arg(format!("http://{}", bench.daemon.address()))
        .arg(&bench.reference)
        .env("TERM", "xterm")
        .output()
        .unwrap();
    assert!(output.status.success());
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!said.contains('\u{1b}') && said.contains("Resolved"), "{said:?}");
}
