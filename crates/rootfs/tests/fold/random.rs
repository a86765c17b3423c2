//! Random stacks of layers through the fold and through the model.

use proptest::{prelude::*, sample::select};
use rootfs::fold::{FoldLimits, Mode};

use crate::{
    dsl::{Layer, fold_with, layer, show},
    model::Model,
};

/// Few names, so that entries meet.
fn name() -> impl Strategy<Value = &'static str> {
    select(vec!["a", "b", "c"])
}

fn path() -> impl Strategy<Value = String> {
    prop::collection::vec(name(), 1..4).prop_map(|names| names.join("/"))
}

/// As it may stand in an archive: absolute, climbing, with a trailing slash.
fn wild_path() -> impl Strategy<Value = String> {
    (
        select(vec!["", "", "", "", "/", "./", "../", "a/../", "c/../../"]),
        path(),
        select(vec!["", "", "", "/", "/."]),
    )
        .prop_map(|(before, path, after)| format!("{before}{path}{after}"))
}

fn target() -> impl Strategy<Value = String> {
    (
        select(vec!["", "", "/", "../", "../../", "./"]),
        path(),
        select(vec!["", "", "", "/..", "/"]),
    )
        .prop_map(|(before, path, after)| format!("{before}{path}{after}"))
}

#[derive(Clone, Debug)]
enum Item {
    Directory(String, u16),
    File(String, u64),
    Symlink(String, String),
    HardLink(String, String, u16),
    Fifo(String),
    Whiteout(String, &'static str),
    Opaque(String),
    Root(u16),
}

fn item() -> impl Strategy<Value = Item> {
    prop_oneof![
        4 => (wild_path(), select(vec![0o755, 0o700])).prop_map(|(path, mode)| Item::Directory(path, mode)),
        5 => (wild_path(), 1_u64..1000).prop_map(|(path, size)| Item::File(path, size)),
        3 => (wild_path(), target()).prop_map(|(path, target)| Item::Symlink(path, target)),
        4 => (wild_path(), wild_path(), select(vec![0o644, 0o600])).prop_map(|(path, target, mode)| Item::HardLink(path, target, mode)),
        1 => wild_path().prop_map(Item::Fifo),
        3 => (prop_oneof![Just(String::new()), path()], name()).prop_map(|(path, name)| Item::Whiteout(path, name)),
        1 => prop_oneof![Just(String::new()), path()].prop_map(Item::Opaque),
        1 => select(vec![0o755, 0o700]).prop_map(Item::Root),
    ]
}

fn write(items: &[Item]) -> Layer {
    items.iter().fold(layer(), |layer, item| match item {
        Item::Directory(path, mode) => layer.dir(path).mode(*mode),
        Item::File(path, size) => layer.file(path, *size),
        Item::Symlink(path, target) => layer.symlink(path, target),
        Item::HardLink(path, target, mode) => layer.link(path, target).mode(*mode),
        Item::Fifo(path) => layer.fifo(path),
        Item::Whiteout(path, name) => layer.whiteout(format!("{path}/.wh.{name}")),
        Item::Opaque(path) => layer.whiteout(format!("{path}/.wh..wh..opq")),
        Item::Root(mode) => layer.dir("./").mode(*mode),
    })
}

/// Folds the layers both ways. Where both refuse, the entry that was named is left out and they try again, so that
/// every stack is compared to its end.
fn compare(mode: Mode, mut layers: Vec<Layer>) -> Result<(), TestCaseError> {
    loop {
        let folded = fold_with(mode, FoldLimits::default(), &layers);
        let mut model = Model::new(mode);
        let refused = layers.iter().find_map(|layer| model.apply(layer).err());
        match (folded, refused) {
            (Ok(folded), None) => {
                prop_assert_eq!(
                    show(&folded.tree),
                    model.show(),
                    "{:?} {:#?}",
                    mode,
                    text(&layers)
                );
                return Ok(());
            }
            (Err(error), Some(_)) => {
                let entries = &mut layers[error.layer - 1].entries;
                let position = entries.iter().position(|entry| entry.path == error.path);
                entries.remove(position.expect("the error names an entry of the layer"));
            }
            (Ok(_), Some(_)) => {
                prop_assert!(false, "only the model refuses: {:?} {:#?}", mode, text(&layers))
            }
            (Err(error), None) => {
                prop_assert!(
                    false,
                    "only the fold refuses: {} {:?} {:#?}",
                    error,
                    mode,
                    text(&layers)
                );
            }
        }
    }
}

fn text(layers: &[Layer]) -> Vec<Vec<String>> {
    let entry = |entry: &rootfs::layer::Entry| format!("{} {:?}", entry.path.escape_ascii(), entry.kind);
    layers
        .iter()
        .map(|layer| layer.entries.iter().map(entry).collect())
        .collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_stacks_fold_as_the_model_says(
        stack in prop::collection::vec(prop::collection::vec(item(), 0..8), 1..4),
    ) {
        let layers: Vec<Layer> = stack.iter().map(|items| write(items)).collect();
        compare(Mode::Oci, layers.clone())?;
        compare(Mode::Docker, layers)?;
    }
}
