//! What a guest with a read-only root finds below `/etc`.

use test_support::{image::Image, lab, vm::GUEST_NETWORK};

use crate::{assert_says, build, busybox, rig};

const LOOK: &str = "cat /etc/hosts /etc/resolv.conf; pwd; cat /proc/mounts; \
    echo x 2>/dev/null > /etc/new || echo cannot write to /etc; \
    echo x > /etc/resolv.conf && cat /etc/resolv.conf";

#[test]
fn a_read_only_root_has_hosts_and_name_servers_of_the_guests_own() {
    let (rig, layer) = match rig().and_then(|rig| Ok((rig, busybox()?))) {
        Ok(parts) => parts,
        Err(missing) => return lab::skip(missing),
    };
    let image = Image::new()
        .layer(&layer)
        .working_dir("/srv/made/for/the/command")
        .cmd(&["sh", "-c", LOOK]);
    let built = build(&image, &["--profile", "ro"]);
    let mut options = built.boot_options();
    options.kernel_arguments.push("hostname=box".into());
    options.kernel_arguments.push(GUEST_NETWORK.into());
    options.forward_to = Some(8080);
    let boot = rig.boot(&built.image, &options).unwrap();
    assert_says(
        &boot,
        &[
            "127.0.0.1\tlocalhost",
            "10.0.2.15\tbox",
            "nameserver 10.0.2.3",
            "/srv/made/for/the/command",
            "cannot write to /etc",
            "command exited with code 0",
        ],
    );
    let mounts: Vec<&str> = boot
        .serial
        .lines()
        .filter(|line| line.contains(" /etc/"))
        .collect();
    for path in [" /etc/hosts ", " /etc/resolv.conf "] {
        assert!(
            mounts.iter().any(|line| line.contains(path)),
            "{path}: {}",
            boot.serial
        );
    }
    assert!(boot.serial.contains(" / ext4 ro,"), "{}", boot.serial);
}
