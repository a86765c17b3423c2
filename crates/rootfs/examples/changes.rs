//! Lists what each layer of an OCI layout changes.
//!
//! ```text
//! cargo run -p rootfs --example changes -- LAYOUT
//! ```
//!
//! Without an argument it lists those of a small layout of its own.

#![allow(clippy::print_stdout, reason = "a command line program")]

mod layout;

use std::{env, path::PathBuf};

use anyhow::Result;
use rootfs::{
    fold::{FoldLimits, Folder, Mode},
    listing::Listing,
    pack::Packs,
};

fn main() -> Result<()> {
    let scratch = tempfile::tempdir()?;
    let layout = match env::args_os().nth(1).map(PathBuf::from) {
        Some(layout) => layout,
        None => layout::sample(scratch.path())?,
    };
    let mut folder = Folder::new(Mode::Oci, FoldLimits::default());
    let mut packs = Packs::new();
    let mut before = Listing::of_tree(folder.tree());
    for (position, blob) in layout::layers(&layout)?.iter().enumerate() {
        let (index, pack) = layout::index(blob)?;
        folder.apply(&index, packs.push(pack))?;
        let after = Listing::of_tree_with_content(folder.tree(), &packs)?;
        let changes = folder.report().layers[position];
        println!(
            "layer {}: {} names added, {} replaced, {} removed; {} bytes added, {} replaced, {} removed",
            position + 1,
            changes.entries_added,
            changes.entries_replaced,
            changes.entries_removed,
            changes.bytes_added,
            changes.bytes_replaced,
            changes.bytes_removed,
        );
        for difference in before.differences(&after) {
            println!("  {difference}");
        }
        before = after;
    }
    for note in &folder.report().notes {
        println!("{note}");
    }
    Ok(())
}
