//! What each layer is said to have done.

use rootfs::fold::{LayerChanges, Mode};

use crate::dsl::{BOTH, Layer, fold, layer};

fn changes(layers: &[Layer]) -> Vec<[u64; 6]> {
    let report = fold(Mode::Oci, layers).report;
    assert_eq!(report.layers, fold(Mode::Docker, layers).report.layers);
    let numbers = |changes: &LayerChanges| {
        [
            changes.entries_added,
            changes.entries_replaced,
            changes.entries_removed,
            changes.bytes_added,
            changes.bytes_replaced,
            changes.bytes_removed,
        ]
    };
    report.layers.iter().map(numbers).collect()
}

#[test]
fn additions_replacements_and_removals_are_told_apart() {
    let lower = layer().dir("d").file("d/a", 10).file("d/b", 20).file("c", 30);
    let upper = layer()
        .file("c", 5)
        .whiteout("d/.wh.a")
        .file("new/f", 7)
        .dir("d")
        .mode(0o700);
    assert_eq!(
        changes(&[lower.clone(), upper]),
        [[4, 0, 0, 60, 0, 0], [2, 2, 1, 12, 30, 10]]
    );
    // The directory's own name is replaced, its two files go.
    assert_eq!(changes(&[lower, layer().file("d", 1)])[1], [0, 1, 2, 1, 30, 0]);
}

/// Layers repeat directories to reach what they change below; that is no change.
#[test]
fn a_directory_that_is_repeated_as_it_was_counts_as_nothing() {
    let lower = layer().dir("d").file("d/a", 10);
    assert_eq!(changes(&[lower, layer().dir("d")])[1], [0; 6]);
}

#[test]
fn a_file_with_two_names_counts_once_and_goes_with_its_last_name() {
    let lower = layer().file("a", 10).link("b", "a");
    let layers = [lower, layer().whiteout(".wh.a"), layer().whiteout(".wh.b")];
    assert_eq!(
        changes(&layers),
        [[2, 0, 0, 10, 0, 0], [0, 0, 1, 0, 0, 0], [0, 0, 1, 0, 0, 10]]
    );
}

#[test]
fn a_file_that_a_link_takes_up_again_was_removed_and_added() {
    assert_eq!(
        changes(&[layer().file("a", 10), layer().whiteout(".wh.a").link("b", "a")])[1],
        [1, 0, 1, 10, 0, 10]
    );
}

#[test]
fn an_empty_layer_has_its_place_in_the_report() {
    for mode in BOTH {
        assert_eq!(
            fold(mode, &[layer(), layer().file("a", 1), layer()])
                .report
                .layers
                .len(),
            3
        );
    }
}
