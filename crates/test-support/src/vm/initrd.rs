//! The initial file system: loads the virtio modules, mounts the image, hands over to its init.

use std::{collections::BTreeSet, fs, io, io::Write as _, path::Path, process::Command};

use super::{BootOptions, kernel::Kernel};
use crate::lab;

/// The first program of the guest. `/proc` of the image is left to the image's own init; `/dev` is moved into it, for
/// Debian's kernel does not mount it by itself as Firecracker's usual ones do.
const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
init=/sbin/init
mode=rw
for word in $($b cat /proc/cmdline); do
  case "$word" in
    --) break ;;
    init=*) init="${word#init=}" ;;
    ro) mode=ro ;;
    rw) mode=rw ;;
  esac
done
for module in $($b cat /modules/order); do $b insmod "/modules/$module"; done
tries=0
while [ ! -b /dev/vda ] && [ "$tries" -lt 100 ]; do $b usleep 100000; tries=$((tries + 1)); done
root=/dev/vda
if [ -f /verity ]; then
  root=/dev/dm-0
  /sbin/dmsetup create --readonly --noudevsync --table "$($b cat /verity)" verity || echo "initrd: no dm-verity"
fi
if ! $b mount -t ext4 -o "$mode" "$root" /mnt; then
  echo "initrd: cannot mount the image"
  $b reboot -f
fi
$b umount /proc /sys
$b mount --move /dev /mnt/dev 2>/dev/null || echo "initrd: the image has no /dev"
exec $b switch_root /mnt "$init" "$@"
"#;

/// The initial file system as a compressed cpio archive.
pub(super) fn pack(busybox: &Path, kernel: &Kernel, options: &BootOptions) -> io::Result<Vec<u8>> {
    let mut archive = Archive::default();
    for directory in ["bin", "sbin", "dev", "proc", "sys", "mnt", "modules"] {
        archive.entry(directory, 0o040_755, b"", (0, 0));
    }
    // The kernel opens the console before anything is mounted.
    archive.entry("dev/console", 0o020_600, b"", (5, 1));
    archive.entry("bin/busybox", 0o100_755, &fs::read(busybox)?, (0, 0));
    archive.entry("init", 0o100_755, INIT.as_bytes(), (0, 0));
    let mut order = String::new();
    for module in &kernel.modules(options) {
        let name = module.file_name().unwrap_or_default().to_string_lossy();
        archive.entry(&format!("modules/{name}"), 0o100_644, &fs::read(module)?, (0, 0));
        order.push_str(&name);
        order.push('\n');
    }
    archive.entry("modules/order", 0o100_644, order.as_bytes(), (0, 0));
    if let Some(table) = &options.verity_table {
        archive.entry("verity", 0o100_644, table.as_bytes(), (0, 0));
        add_dmsetup(&mut archive)?;
    }
    archive.entry("TRAILER!!!", 0, b"", (0, 0));
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(&archive.bytes)?;
    encoder.finish()
}

/// `dmsetup` of this host, with the libraries that it needs at the places where it looks for them.
fn add_dmsetup(archive: &mut Archive) -> io::Result<()> {
    let program = lab::program("dmsetup", "dmsetup").map_err(io::Error::other)?;
    archive.entry("sbin/dmsetup", 0o100_755, &fs::read(&program)?, (0, 0));
    let listed = Command::new("ldd").arg(&program).output()?;
    let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
    let mut directories = BTreeSet::new();
    for library in listed.split_whitespace().filter(|word| word.starts_with('/')) {
        // Parents first; the archive may say twice what is a directory, but a link of the host would be one too many.
        let parents: Vec<&Path> = Path::new(library).ancestors().skip(1).collect();
        for parent in parents.into_iter().rev().skip(1) {
            let parent = parent.to_string_lossy().trim_start_matches('/').to_owned();
            if directories.insert(parent.clone()) {
                archive.entry(&parent, 0o040_755, b"", (0, 0));
            }
        }
        archive.entry(
            library.trim_start_matches('/'),
            0o100_755,
            &fs::read(library)?,
            (0, 0),
        );
    }
    Ok(())
}

/// A cpio archive in the kernel's `newc` form (Documentation/driver-api/early-userspace/buffer-format.rst).
#[derive(Default)]
struct Archive {
    bytes: Vec<u8>,
    n_entries: usize,
}

impl Archive {
    fn entry(&mut self, name: &str, mode: u32, content: &[u8], device: (u32, u32)) {
        self.n_entries += 1;
        let fields: [usize; 13] = [
            self.n_entries,
            mode as usize,
            0,
            0,
            1,
            0,
            content.len(),
            0,
            0,
            device.0 as usize,
            device.1 as usize,
            name.len() + 1,
            0,
        ];
        self.bytes.extend(b"070701");
        for field in fields {
            self.bytes.extend(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}
