//! Images grow, as far as promised.

use std::process::Command;

use crate::{
    basics::everything,
    expect::compare,
    support::{Fixture, check_with_e2fsck, read_write, run},
};

#[test]
fn resize2fs_grows_an_image_without_moving_anything() {
    for (free, factor) in [
        (4 << 20, 8),
        (100 << 20, 8),
        (0, 40),
        (129 << 20, 3),
        (1 << 30, 2),
    ] {
        let fixture = everything();
        let image = fixture.image(&read_write(free, 50));
        let before = image.file.metadata().unwrap().len();
        image.file.set_len(before * factor).unwrap();
        let Some(output) = run(Command::new("resize2fs").arg(image.path())) else {
            return;
        };
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            output.status.success(),
            "{free} bytes free, times {factor}: {text}"
        );
        check_with_e2fsck(&image.path());
        let blocks = u64::from(image.superblock_u32(4));
        assert!(blocks * 4096 > before * (factor - 1), "{blocks} blocks");
        compare(&fixture, &image);
    }
}

#[test]
fn there_are_descriptors_for_a_thousandfold() {
    for free in [0, 20 << 20, 1 << 30, 5 << 30, 1 << 40] {
        let fixture = Fixture::new();
        let plan = fixture.plan(&read_write(free, 0));
        let image = crate::support::Image::create();
        plan.emit(&fixture.packs(), &image.file).unwrap();
        image.check();
        let descriptors = plan.size_bytes().div_ceil(128 << 20).div_ceil(128);
        let reserved = u64::from(image.superblock_u32(0xcc) >> 16);
        // 128 descriptors of 128 MiB per block; the most that one block of pointers can reserve covers 16 TiB.
        let covered = (descriptors + reserved) << 34;
        assert!(
            covered >= (plan.size_bytes() * 1024).min(1 << 44),
            "{free}: {covered}"
        );
    }
}
