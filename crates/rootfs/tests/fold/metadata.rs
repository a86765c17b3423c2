//! Traps 42 to 49, as far as they concern a fold: attributes, owners, modes, times, devices.

use rootfs::fold::{Mode, NoteKind};

use crate::dsl::{expect_both, layer, note, notes};

/// What one host's storage or another file system meant by an attribute is no content of an image: `overlay` state
/// would redirect whoever mounts the image as an overlay layer, and NFSv4 ACLs mean nothing to ext4.
#[test]
fn trap_42_attributes_that_are_not_the_images() {
    let layers = [layer()
        .dir("d")
        .xattr("trusted.overlay.opaque", "y")
        .xattr("user.overlay.redirect", "/etc")
        .xattr("trusted.other", "1")
        .xattr("security.selinux", "label")
        .file("f", 1)
        .xattr("system.nfs4_acl", "x")
        .xattr("system.posix_acl_access", "acl")
        .xattr("unknown.space", "x")
        .xattr("user.", "x")
        .xattr("nodot", "x")];
    expect_both(
        &layers,
        &[
            "d/ security.selinux=label trusted.other=1",
            "f 1 system.posix_acl_access=acl",
        ],
    );
    let dropped = |path: &str, name: &str| note(path, NoteKind::XattrDropped { name: name.into() });
    assert_eq!(
        notes(Mode::Oci, &layers),
        [
            dropped("d", "trusted.overlay.opaque"),
            dropped("d", "user.overlay.redirect"),
            dropped("f", "nodot"),
            dropped("f", "system.nfs4_acl"),
            dropped("f", "unknown.space"),
            dropped("f", "user."),
        ]
    );
}

/// Linux refuses `user.` attributes there (`xattr(7)`), so no image that was made by unpacking has them.
#[test]
fn trap_43_user_attributes_on_links_devices_and_pipes() {
    let layers = [layer()
        .symlink("s", "x")
        .xattr("user.a", "1")
        .xattr("security.b", "2")
        .char("c", 1, 3)
        .xattr("user.a", "1")
        .fifo("p")
        .xattr("user.a", "1")
        .xattr("trusted.c", "3")
        .file("f", 1)
        .xattr("user.a", "1")];
    expect_both(
        &layers,
        &[
            "c char 1:3",
            "f 1 user.a=1",
            "p fifo trusted.c=3",
            "s -> x security.b=2",
        ],
    );
    assert_eq!(notes(Mode::Oci, &layers).len(), 3);
}

#[test]
fn trap_41_attribute_values_are_kept_byte_for_byte() {
    let capability = b"\x01\x00\x00\x02\x00\x04\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00";
    expect_both(
        &[layer()
            .file("ping", 1)
            .xattr("security.capability", capability)
            .xattr("user.nul", b"a\0=\xff")],
        &[&format!(
            "ping 1 security.capability={} user.nul=a\\x00=\\xff",
            capability.escape_ascii()
        )],
    );
}

#[test]
fn trap_44_owners_of_32_bits() {
    expect_both(
        &[layer()
            .file("f", 1)
            .owner(4_000_000_000, 70_000)
            .dir("d")
            .owner(u32::MAX, 65_536)],
        &["d/ 4294967295:65536", "f 1 4000000000:70000"],
    );
}

/// All twelve permission bits and nothing of the type, which some tools put into the header.
#[test]
fn trap_45_modes() {
    expect_both(
        &[layer()
            .file("f", 1)
            .mode(0o107_777)
            .dir("d")
            .mode(0o041_777)
            .symlink("s", "x")
            .mode(0o600)],
        &["d/ 1777", "f 1 7777", "s -> x"],
    );
}

/// A fold keeps what the layer says; the writer clamps to what ext4 can hold.
#[test]
fn trap_46_times_before_1970_and_far_ahead() {
    expect_both(
        &[layer()
            .file("before", 1)
            .mtime(-1, 750_000_000)
            .file("far", 1)
            .mtime(1 << 34, 1)
            .file("zero", 1)
            .mtime(0, 0)],
        &[
            "before 1 @-1.750000000",
            "far 1 @17179869184.000000001",
            "zero 1 @0.000000000",
        ],
    );
}

#[test]
fn trap_48_device_numbers_beyond_eight_bits() {
    expect_both(
        &[layer().block("b", 8, 300).char("c", 4095, 1_048_575)],
        &["b block 8:300", "c char 4095:1048575"],
    );
}

/// Sockets have no type in tar, so a layer cannot name one.
#[test]
fn trap_49_pipes() {
    expect_both(
        &[layer().fifo("run/p").mode(0o600)],
        &["run/ implied", "run/p fifo 600"],
    );
}
