use super::{Mke2fs, derive_uuid, ext4_time, uuid_text};
use crate::{Timestamp, image::ImageError};

#[test]
fn uuids_come_from_the_identity_and_the_purpose() {
    let uuid = derive_uuid("uuid", &[7; 32]);
    assert_eq!(uuid, derive_uuid("uuid", &[7; 32]));
    assert_ne!(uuid, derive_uuid("uuid", &[8; 32]));
    assert_ne!(uuid, derive_uuid("hash seed", &[7; 32]));
    let text = uuid_text(uuid);
    assert_eq!((text.len(), &text[14..15]), (36, "8"), "{text}");
}

#[test]
fn a_missing_program_is_named_with_a_way_out() {
    let error = Mke2fs::default()
        .with_program("/nowhere/mke2fs")
        .check_available()
        .unwrap_err();
    let ImageError::Unavailable {
        backend: "mke2fs",
        reason,
    } = error
    else {
        panic!("{error}")
    };
    // Without root that is said first.
    assert!(reason.contains("native backend"), "{reason}");
}

/// The table in the kernel's `fs/ext4/ext4.h`.
#[test]
fn times_are_encoded_as_the_kernel_decodes_them() {
    let cases: [(i64, (u32, u32)); 8] = [
        (0, (0, 0)),
        (-1, (0xffff_ffff, 0)),
        (-0x8000_0000, (0x8000_0000, 0)),
        (0x7fff_ffff, (0x7fff_ffff, 0)),
        (0x8000_0000, (0x8000_0000, 1)),
        (0x1_0000_0000, (0, 1)),
        (0x2_7fff_ffff, (0x7fff_ffff, 2)),
        (0x3_7fff_ffff, (0x7fff_ffff, 3)),
    ];
    for (seconds, expected) in cases {
        assert_eq!(
            ext4_time(Timestamp::from_seconds(seconds)),
            expected,
            "{seconds:#x}"
        );
    }
    assert_eq!(
        ext4_time(Timestamp {
            seconds: i64::MAX,
            nanoseconds: 5
        }),
        (0x7fff_ffff, 3)
    );
    assert_eq!(
        ext4_time(Timestamp {
            seconds: 1,
            nanoseconds: 999_999_999
        }),
        (1, 999_999_999 << 2)
    );
}
