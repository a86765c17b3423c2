//! Each strategy, and what a command finds.

use std::{fs, process::Command};

use builderd_e2e::parts;
use test_support::{
    image::{Image, Layer},
    lab,
    vm::Vmm,
};

use crate::{assert_says, build, busybox, rig};

/// Everything of one image in one boot, since a boot takes seconds.
const LOOK_AROUND: &str = "id; pwd; echo greeting=$GREETING extra=$EXTRA home=$HOME; cat /etc/hosts; \
    cat /proc/sys/kernel/hostname; ls -d /dev/pts/ptmx /dev/shm /dev/null; \
    i=0; while [ $i -lt 1000 ]; do (sleep 0 & ); i=$((i+1)); done; sleep 1; \
    n=0; for s in /proc/[0-9]*/stat; do case \"$(cat $s 2>/dev/null)\" in *') Z '*) n=$((n+1));; esac; done; \
    echo zombies=$n; exit 7";

#[test]
fn a_guest_finds_user_groups_directory_and_environment_and_reaps_orphans() {
    let (rig, layer) = match rig().and_then(|rig| Ok((rig, busybox()?))) {
        Ok(parts) => parts,
        Err(missing) => return lab::skip(missing),
    };
    let image = Image::new()
        .layer(&layer)
        .user("app")
        .working_dir("../../srv/data/../work")
        .env(&["GREETING=hello"])
        .cmd(&["/bin/sh", "-c", LOOK_AROUND]);
    let built = build(&image, &["--env", "EXTRA=said by the request"]);
    let mut options = built.boot_options();
    options.kernel_arguments.push("hostname=box".into());
    let boot = rig
        .with_vmm(Vmm::QemuMicrovm)
        .boot(&built.image, &options)
        .unwrap();
    assert_says(
        &boot,
        &[
            "uid=1000(app) gid=1001(app) groups=29(audio),44(video),1001(app)",
            "/srv/work",
            "greeting=hello extra=said by the request home=/home/app",
            "127.0.1.1\tbox",
            "box",
            "/dev/shm",
            "zombies=0",
            "guest-init: command exited with code 7",
        ],
    );
}

#[test]
fn a_read_only_image_from_scratch_runs_on_both_machines() {
    let (rig, hello) = match rig().and_then(|rig| Ok((rig, parts::guest_hello()?))) {
        Ok(parts) => parts,
        Err(missing) => return lab::skip(missing),
    };
    let layer = Layer::new()
        .file("hello", fs::read(hello).unwrap())
        .mode(0o755)
        .hard_link("again", "hello");
    let image = Image::new().layer(&layer).entrypoint(&["/hello"]);
    let built = build(
        &image,
        &[
            "--profile",
            "ro",
            "--cmd",
            "--exit",
            "--cmd",
            "137",
            "--cmd",
            "/again",
        ],
    );
    for vmm in [Vmm::QemuQ35, Vmm::QemuMicrovm] {
        let boot = rig
            .clone()
            .with_vmm(vmm)
            .boot(&built.image, &built.boot_options())
            .unwrap();
        assert_says(
            &boot,
            &[
                "hello from the guest",
                "cwd /",
                "guest-init: command exited with code 137",
            ],
        );
        assert!(boot.serial.contains("links=2"), "{}", boot.serial);
    }
}

#[test]
fn with_direct_the_command_is_process_1() {
    let (rig, layer) = match rig().and_then(|rig| Ok((rig, busybox()?))) {
        Ok(parts) => parts,
        Err(missing) => return lab::skip(missing),
    };
    let image = Image::new().layer(&layer).env(&["GREETING=hello"]).cmd(&[
        "sh",
        "-c",
        "echo process=$$ greeting=$GREETING; reboot -f",
    ]);
    let built = build(&image, &["--init", "direct", "--workdir", "/srv"]);
    let boot = rig.boot(&built.image, &built.boot_options()).unwrap();
    assert_says(&boot, &["process=1 greeting=hello"]);
    assert!(!boot.serial.contains("guest-init: command"), "{}", boot.serial);
}

#[test]
fn with_custom_the_images_own_init_runs() {
    let (rig, layer) = match rig().and_then(|rig| Ok((rig, busybox()?))) {
        Ok(parts) => parts,
        Err(missing) => return lab::skip(missing),
    };
    let init =
        "#!/bin/sh\necho own init $$ greeting=$GREETING\nls -d /proc /sys /run /tmp | wc -w\nreboot -f\n";
    let layer = layer
        .symlink("bin/wc", "busybox")
        .directory("sbin", 0o755)
        .file("sbin/init", init)
        .mode(0o755);
    let image = Image::new().layer(&layer).cmd(&["/bin/sh"]);
    let built = build(&image, &["--init", "custom", "--env", "GREETING=hello"]);
    assert!(
        built.metadata["kernel_args"]
            .as_str()
            .unwrap()
            .contains(" init=/sbin/init GREETING=hello"),
        "{}",
        built.metadata
    );
    let boot = rig.boot(&built.image, &built.boot_options()).unwrap();
    assert_says(&boot, &["own init 1 greeting=hello", "4"]);
}

#[test]
fn an_image_of_another_architecture_needs_an_init_of_its_own() {
    if let Err(missing) = parts::builderd() {
        return lab::skip(missing);
    }
    let layer = Layer::new()
        .directory("sbin", 0o755)
        .file("sbin/init", "x")
        .mode(0o755);
    let image = Image::new().platform("linux", "riscv64", "").layer(&layer);
    let built = build(&image, &["--platform", "linux/riscv64", "--init", "custom"]);
    assert_eq!(built.metadata["platform"], "linux/riscv64");

    let directory = tempfile::tempdir().unwrap();
    let layout = directory.path().join("layout");
    image.build().write_oci_layout(&layout, "1").unwrap();
    for init in ["tini", "direct"] {
        let output = Command::new(parts::builderd().unwrap())
            .args(["build", "--platform", "linux/riscv64", "--init", init])
            .arg(format!("oci:{}:1", layout.display()))
            .arg("--output")
            .arg(directory.path().join("x.ext4"))
            .arg("--cache-dir")
            .arg(directory.path().join("cache"))
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(64), "{init}: {said}");
        assert!(said.contains("docker_image.platform"), "{init}: {said}");
    }
}
