//! A real server: it answers from inside the guest, also when everything that can be left out is left out.

use std::{
    io::{Read as _, Write as _},
    net::{Ipv4Addr, TcpStream},
    time::Duration,
};

use builderd_e2e::parts;
use test_support::{
    lab,
    vm::{GUEST_NETWORK, RunningVm, Vmm},
};

use crate::{build_layout, rig, stripped::programs_still_load};

/// Every rule, and a path that must outlive them.
const ALL_RULES: [&str; 5] = [
    "--remove-docs",
    "--remove-cache",
    "--strip-debug-symbols",
    "--preserve",
    "/usr/share/doc/site/one",
];

/// As long as a guest on a busy machine may take for an answer.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn privileged_a_server_answers_from_inside_with_and_without_what_can_be_left_out() {
    let needed = rig().and_then(|rig| {
        parts::root()?;
        Ok((rig, parts::lab_image("nginx")?))
    });
    let (rig, layout) = match needed {
        Ok(parts) => parts,
        Err(missing) => return lab::skip(missing),
    };
    let whole = build_layout(&layout, &[]);
    let small = build_layout(&layout, &ALL_RULES);
    // What the image's own layers took away cannot be taken away again, so there is little left to remove; but each
    // rule says what it did.
    let reported = small.metrics["optimization"].as_array().unwrap();
    let rules: Vec<&str> = reported
        .iter()
        .map(|savings| savings["rule"].as_str().unwrap())
        .collect();
    assert_eq!(rules, ["remove_docs", "remove_cache", "strip_debug_symbols"]);
    let changed = programs_still_load(&whole, &small);
    assert!(changed.is_empty(), "Debian's packages come stripped: {changed:?}");

    for (case, built, vmm) in [
        ("whole", &whole, Vmm::QemuQ35),
        ("small", &small, Vmm::QemuMicrovm),
    ] {
        let mut options = built.boot_options();
        options.kernel_arguments.push(GUEST_NETWORK.into());
        options.forward_to = Some(8080);
        let vm = rig.clone().with_vmm(vmm).start(&built.image, &options).unwrap();
        assert!(vm.wait_for("start worker process"), "{case}: {}", vm.serial());
        let answer = get(&vm, "/").unwrap_or_else(|error| panic!("{case}: {error}\n{}", vm.serial()));
        assert!(answer.starts_with("HTTP/1.1 200 "), "{case}: {answer}");
        assert!(
            answer.ends_with("<title>site</title><p>It works.\n"),
            "{case}: {answer}"
        );
        vm.send_ctrl_alt_delete().unwrap();
        let boot = vm.wait().unwrap();
        assert!(
            boot.serial.contains("command exited with code 0") && boot.ended_by_itself,
            "{case}: {}",
            boot.serial
        );
    }
}

/// Asks the guest for a page.
fn get(vm: &RunningVm, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, vm.forwarded_port()?))?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream
        .write_all(format!("GET {path} HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
