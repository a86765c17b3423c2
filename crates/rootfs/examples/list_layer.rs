//! Prints what a layer says, one entry a line.
//!
//! ```sh
//! cargo run -p rootfs --example list_layer -- layer.tar.gz
//! ```

use std::{
    env,
    fs::File,
    io::{self, BufWriter, Write},
};

use anyhow::Context;
use rootfs::layer::{Entry, EntryKind, LayerLimits, index_layer};

fn main() -> anyhow::Result<()> {
    let path = env::args_os().nth(1).context("usage: list_layer LAYER")?;
    let input = File::open(&path).with_context(|| format!("failed to open {}", path.display()))?;

    // Only the list is wanted, so the bodies go nowhere.
    let index = index_layer(input, &mut io::sink(), &LayerLimits::default())?;

    let mut output = BufWriter::new(io::stdout().lock());
    for entry in &index.entries {
        print(&mut output, entry)?;
    }
    writeln!(
        output,
        "diff_id sha256:{}, {} entries, {} bytes, {} bytes of file content kept",
        hex::encode(index.diff_id),
        index.entries.len(),
        index.uncompressed_size_bytes,
        index.pack_size_bytes,
    )?;
    output.flush()?;
    Ok(())
}

fn print(output: &mut impl Write, entry: &Entry) -> io::Result<()> {
    let metadata = &entry.metadata;
    let (kind, more) = match &entry.kind {
        EntryKind::Directory => ('d', String::new()),
        EntryKind::File(body) => (
            '-',
            format!(" {} bytes in {} extents", body.size, body.extents.len()),
        ),
        EntryKind::Symlink(target) => ('l', format!(" -> {}", target.escape_ascii())),
        EntryKind::HardLink(target) => ('h', format!(" = {}", target.escape_ascii())),
        EntryKind::CharacterDevice(number) => ('c', format!(" {}:{}", number.major, number.minor)),
        EntryKind::BlockDevice(number) => ('b', format!(" {}:{}", number.major, number.minor)),
        EntryKind::Fifo => ('p', String::new()),
    };
    write!(
        output,
        "{kind} {:04o} {:>5}:{:<5} {:>11}.{:09} {}{more}",
        metadata.mode,
        metadata.uid,
        metadata.gid,
        metadata.mtime.seconds,
        metadata.mtime.nanoseconds,
        entry.path.escape_ascii(),
    )?;
    for (name, value) in &metadata.xattrs {
        write!(output, " [{}={}]", name.escape_ascii(), hex::encode(value))?;
    }
    writeln!(output)
}
