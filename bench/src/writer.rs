//! The writer alone: from a tree in memory and layer packs on disk to an image.

use std::{
    fs::{self, File},
    io::BufReader,
    path::PathBuf,
    sync::Arc,
};

use anyhow::Context as _;
use rootfs::{
    ext4::Native,
    fold::{FoldLimits, Folder, Mode},
    image::{ImageBackend as _, ImageOptions},
    layer::{LayerIndex, LayerLimits, index_layer},
    pack::{Pack, Packs},
};
use serde::{Deserialize, Serialize};

use crate::{clock::of_process, layout::Image};

/// What `builderd-bench write` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// The OCI layout, of which image 1 is written
    layout: PathBuf,
    /// Where the layers' packs and indexes are kept; made when they are not there
    packs: PathBuf,
    /// The image
    output: PathBuf,
}

/// What writing took.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Written {
    pub(crate) wall: f64,
    pub(crate) cpu: f64,
    pub(crate) size_bytes: u64,
}

/// `builderd-bench write`: prints a [`Written`] as JSON.
pub(crate) fn run(arguments: &Arguments) -> anyhow::Result<()> {
    fs::create_dir_all(&arguments.packs)?;
    let mut folder = Folder::new(Mode::Oci, FoldLimits::default());
    let mut packs = Packs::new();
    for (number, layer) in Image::open(&arguments.layout, "1")?.layers()?.iter().enumerate() {
        let pack_path = arguments.packs.join(format!("{number}.pack"));
        let index_path = arguments.packs.join(format!("{number}.index"));
        if !index_path.exists() {
            let input = BufReader::with_capacity(1 << 20, File::open(&layer.path)?);
            let mut pack = File::create(&pack_path)?;
            let index = index_layer(input, &mut pack, &LayerLimits::default())
                .with_context(|| format!("failed to index {}", layer.path.display()))?;
            pack.sync_all()?;
            let unfinished = index_path.with_extension("unfinished");
            index.write_to(File::create(&unfinished)?)?;
            fs::rename(&unfinished, &index_path)?;
        }
        let index = LayerIndex::read_from(BufReader::new(File::open(&index_path)?), &LayerLimits::default())?;
        folder.apply(&index, packs.push(Pack::File(Arc::new(File::open(&pack_path)?))))?;
    }
    let folded = folder.finish();
    let output = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&arguments.output)?;
    let options = ImageOptions::new([0; 32]);
    let (written, taken) = of_process(|| Native.write(&folded.tree, &packs, &options, &output));
    let written = Written {
        wall: taken.wall,
        cpu: taken.cpu,
        size_bytes: written?.size_bytes,
    };
    println!("{}", serde_json::to_string(&written)?);
    Ok(())
}
