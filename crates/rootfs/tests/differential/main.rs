//! The same layers through this crate and through other tools: umoci with mode `oci`, containerd's overlay snapshotter
//! with mode `docker`. Every difference is on the list in `cases.rs`, with its reason; a difference that is not there
//! fails, and so does one that is there and no longer appears.
//!
//! Needs root and the tools (the packages `umoci` and `containerd`); without them the tests say so and pass, unless
//! `BUILDERD_REQUIRE_LAB=1`.

#![allow(clippy::unwrap_used, reason = "test code fails loudly")]

mod cases;
mod containerd;
mod umoci;

use std::path::Path;

use cases::{Case, Expected};
use rootfs::{
    fold::{FoldLimits, Folder, Mode},
    layer::{LayerLimits, index_layer},
    listing::{Field, Listing},
    pack::{Pack, Packs},
};
use test_support::image::Image;

/// What another tool makes of an image in an OCI layout: the listing of its result, or that it refuses.
trait Oracle {
    fn unpack(&self, layout: &Path, case: &str) -> Result<Listing, String>;
}

/// What this crate makes of the layers.
fn ours(case: &Case, mode: Mode) -> Result<Listing, String> {
    let mut folder = Folder::new(mode, FoldLimits::default());
    let mut packs = Packs::new();
    for layer in &case.layers {
        let mut pack = Vec::new();
        let index = index_layer(&layer.to_tar()[..], &mut pack, &LayerLimits::default())
            .map_err(|e| e.to_string())?;
        let pack = packs.push(Pack::Memory(pack.into()));
        folder.apply(&index, pack).map_err(|error| error.to_string())?;
    }
    let tree = folder.finish().tree;
    tree.check().unwrap();
    let mut listing = Listing::of_tree_with_content(&tree, &packs).unwrap();
    // Directories that nobody named: the other tools date them now.
    undate(&mut listing, &tree_of_implied(&tree));
    Ok(listing)
}

fn tree_of_implied(tree: &rootfs::Tree) -> Vec<Vec<u8>> {
    tree.walk()
        .filter(|(_, id)| tree.inode(*id).metadata == rootfs::Metadata::root(0o755))
        .map(|(path, _)| [b"/", &path[..]].concat())
        .collect()
}

fn undate(listing: &mut Listing, paths: &[Vec<u8>]) {
    for path in paths {
        if let Some(line) = listing.lines.get_mut(path) {
            line.remove(&Field::ModificationTime);
        }
    }
}

/// Compares one tool with this crate over all cases.
fn compare(oracle: &dyn Oracle, mode: Mode, expected: impl Fn(&Case) -> &Expected) {
    let mut wrong = Vec::new();
    for case in cases::all() {
        let directory = tempfile::tempdir().unwrap();
        let layout = directory.path().join("layout");
        let image = case
            .layers
            .iter()
            .fold(Image::new(), |image, layer| image.layer(layer));
        image.build().write_oci_layout(&layout, "test").unwrap();
        let (theirs, ours) = (oracle.unpack(&layout, case.name), ours(&case, mode));
        let seen = match (theirs, ours) {
            (Ok(mut theirs), Ok(ours)) => {
                let undated: Vec<Vec<u8>> = ours
                    .lines
                    .iter()
                    .filter(|(_, line)| !line.contains_key(&Field::ModificationTime))
                    .map(|(path, _)| path.clone())
                    .collect();
                undate(&mut theirs, &undated);
                theirs.differences(&ours).iter().map(shorten).collect()
            }
            (Err(_), Err(_)) => vec!["both refuse".to_owned()],
            (Err(_), Ok(_)) => vec!["they refuse".to_owned()],
            (Ok(_), Err(_)) => vec!["we refuse".to_owned()],
        };
        let listed: Vec<String> = match expected(&case) {
            Expected::Same => Vec::new(),
            Expected::BothRefuse => vec!["both refuse".to_owned()],
            Expected::WeRefuse(_) => vec!["we refuse".to_owned()],
            Expected::TheyRefuse(_) => vec!["they refuse".to_owned()],
            Expected::Differs(_, differences) => differences.iter().map(|&line| line.to_owned()).collect(),
        };
        if seen != listed {
            wrong.push(format!("{}:\n  listed {listed:#?}\n  seen {seen:#?}", case.name));
        }
    }
    assert!(
        wrong.is_empty(),
        "differences that are not on the list (theirs | ours):\n{}",
        wrong.join("\n")
    );
}

/// Whole lines are long, and that something is there or not is what counts. The present time is `now`.
fn shorten(difference: &rootfs::listing::Difference) -> String {
    /// 2024-01-01: later than everything that the cases say.
    const PRESENT: i64 = 1_704_067_200;
    let mut difference = difference.clone();
    if difference.field == Some(Field::ModificationTime)
        && let Some(time) = &difference.left
        && time
            .split('.')
            .next()
            .is_some_and(|seconds| seconds.parse().unwrap_or(0) > PRESENT)
    {
        difference.left = Some("now".to_owned());
    }
    if difference.field.is_none() {
        let kind = |text: String| text.split(' ').next().unwrap_or_default().to_owned();
        difference.left = difference.left.map(kind);
        difference.right = difference.right.map(kind);
    }
    difference.to_string()
}

#[test]
fn privileged_mode_oci_agrees_with_umoci() {
    match umoci::Umoci::new() {
        Ok(umoci) => compare(&umoci, Mode::Oci, |case| &case.umoci),
        Err(reason) => test_support::lab::skip(reason),
    }
}

#[test]
fn privileged_mode_docker_agrees_with_containerd() {
    match containerd::Containerd::start() {
        Ok(containerd) => compare(&containerd, Mode::Docker, |case| &case.containerd),
        Err(reason) => test_support::lab::skip(reason),
    }
}
