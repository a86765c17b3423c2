//! Makes an ext4 image of an OCI layout.
//!
//! ```text
//! cargo run -p rootfs --example flatten -- LAYOUT IMAGE
//! ```
//!
//! Without arguments it makes a small layout of its own and the image `sample.ext4` of it in the temporary directory.

#![allow(clippy::print_stdout, reason = "a command line program")]

mod layout;

use std::{env, fs::File, path::PathBuf};

use anyhow::{Context as _, Result};
use rootfs::{
    ext4::Native,
    fold::{FoldLimits, Folder, Mode},
    image::{ImageBackend as _, ImageOptions},
    pack::Packs,
};
use sha2::{Digest as _, Sha256};

fn main() -> Result<()> {
    let mut arguments = env::args_os().skip(1).map(PathBuf::from);
    let scratch = tempfile::tempdir()?;
    let layout = match arguments.next() {
        Some(layout) => layout,
        None => layout::sample(scratch.path())?,
    };
    let image = arguments
        .next()
        .unwrap_or_else(|| env::temp_dir().join("sample.ext4"));

    let mut folder = Folder::new(Mode::Oci, FoldLimits::default());
    let mut packs = Packs::new();
    // What decides the image's bytes decides its UUID.
    let mut identity = Sha256::new();
    for blob in layout::layers(&layout)? {
        let (index, pack) = layout::index(&blob)?;
        identity.update(index.diff_id);
        folder.apply(&index, packs.push(pack))?;
    }
    let folded = folder.finish();
    for note in &folded.report.notes {
        println!("{note}");
    }

    let output = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&image)?;
    let options = ImageOptions::new(identity.finalize().into());
    let summary = Native
        .write(&folded.tree, &packs, &options, &output)
        .with_context(|| format!("failed to make {}", image.display()))?;
    let usage = folded.tree.usage();
    println!(
        "{}: {} bytes for {} names and {} bytes of files",
        image.display(),
        summary.size_bytes,
        usage.names,
        usage.file_bytes
    );
    Ok(())
}
