//! Writes an image of a tree that is made here, without any layer.
//!
//! ```text
//! cargo run -p rootfs --example from_code -- IMAGE
//! ```
//!
//! Without an argument the image is `from-code.ext4` in the temporary directory. It has the same bytes every time.

#![allow(clippy::print_stdout, reason = "a command line program")]

use std::{env, fs::File, path::PathBuf};

use anyhow::Result;
use rootfs::{
    DeviceNumber, Metadata, Timestamp, Tree,
    edit::Excludes,
    ext4::Native,
    image::{ImageBackend as _, ImageOptions, Profile},
    pack::Packs,
    tree::FileContent,
};

fn main() -> Result<()> {
    let image = env::args_os()
        .nth(1)
        .map_or_else(|| env::temp_dir().join("from-code.ext4"), PathBuf::from);
    let dated = |mode| Metadata {
        mtime: Timestamp::from_seconds(1_700_000_000),
        ..Metadata::root(mode)
    };

    let mut tree = Tree::new();
    for directory in ["/dev", "/etc", "/proc", "/usr/bin", "/usr/share/doc/tool"] {
        tree.create_directories(directory.as_bytes(), &dated(0o755))?;
    }
    tree.put_symlink(b"/bin", dated(0o777), b"usr/bin")?;
    // Goes to /usr/bin, because that is where /bin leads.
    let tool = tree.put_file(
        b"/bin/tool",
        dated(0o4755),
        FileContent::inline(*b"#!/bin/sh\necho hello\n"),
    )?;
    tree.put_link(b"/bin/alias", tool)?;
    tree.put_character_device(b"/dev/null", dated(0o666), DeviceNumber { major: 1, minor: 3 })?;
    tree.put_file(b"/etc/hostname", dated(0o644), FileContent::inline(*b"guest\n"))?;
    for name in ["README", "copyright"] {
        let path = format!("/usr/share/doc/tool/{name}");
        tree.put_file(path.as_bytes(), dated(0o644), FileContent::inline(*b"text\n"))?;
    }
    // No documentation, but licences.
    for rule in Excludes::new(["/usr/share/doc"], ["copyright"])?
        .apply(&mut tree)
        .rules
    {
        println!("{}: {} names, {} bytes", rule.pattern, rule.names, rule.bytes);
    }
    print!("{}", tree.dump());

    let output = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&image)?;
    let mut options = ImageOptions::new([0; 32]);
    options.profile = Profile::ReadOnly;
    let summary = Native.write(&tree, &Packs::new(), &options, &output)?;
    println!("{}: {} bytes", image.display(), summary.size_bytes);
    Ok(())
}
