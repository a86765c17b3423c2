//! Bounds on what a layer can ask for, and how long it takes.

use std::time::{Duration, Instant};

use rootfs::{
    fold::{FoldErrorKind, FoldLimits, Folder, Mode},
    pack::PackId,
};

use crate::dsl::{BOTH, Layer, fold, fold_with, layer, refuse_both};

fn limits(change: impl FnOnce(&mut FoldLimits)) -> FoldLimits {
    let mut limits = FoldLimits::default();
    change(&mut limits);
    limits
}

#[test]
fn entries_of_all_layers_count_together() {
    let limits = limits(|limits| limits.max_entries = 3);
    let two = layer().file("a", 1).file("b", 1);
    assert!(fold_with(Mode::Oci, limits.clone(), std::slice::from_ref(&two)).is_ok());
    let error = fold_with(Mode::Oci, limits, &[two.clone(), two]).unwrap_err();
    assert_eq!(
        (error.layer, error.kind),
        (2, FoldErrorKind::TooManyEntries { limit: 3 })
    );
}

/// Few entries can imply many directories: each of these asks for 200.
#[test]
fn implied_directories_count_too() {
    let limits = limits(|limits| limits.max_entries = 1000);
    let layers = [(0..10).fold(layer(), |layer, n| {
        layer.file(format!("{n}/{}f", "d/".repeat(199)), 1)
    })];
    for mode in BOTH {
        let error = fold_with(mode, limits.clone(), &layers).unwrap_err();
        assert_eq!(error.kind, FoldErrorKind::TooManyEntries { limit: 1000 });
    }
}

#[test]
fn depth_is_bounded() {
    let path = |depth: usize| vec!["d"; depth].join("/");
    for mode in BOTH {
        assert!(
            fold(mode, &[layer().dir(path(255))])
                .tree
                .lookup(path(255).as_bytes())
                .is_some()
        );
    }
    refuse_both(
        &[layer().dir(path(256))],
        path(256),
        FoldErrorKind::TooDeep { limit: 255 },
    );
    // The same depth by way of a link.
    let layers = [
        layer().dir(path(200)).symlink("l", path(200)),
        layer().file(format!("l/{}", path(60)), 1),
    ];
    let error = fold_with(Mode::Oci, FoldLimits::default(), &layers).unwrap_err();
    assert_eq!(error.kind, FoldErrorKind::TooDeep { limit: 255 });
    // A link to a directory of the full depth: the entry itself would be one too deep.
    let layers = [
        layer().dir(path(255)).symlink("l", path(255)),
        layer().file("l/f", 1),
    ];
    let error = fold_with(Mode::Oci, FoldLimits::default(), &layers).unwrap_err();
    assert_eq!(error.kind, FoldErrorKind::TooDeep { limit: 255 });
}

#[test]
fn targets_of_symbolic_links_are_bounded() {
    let kind = |length| FoldErrorKind::SymlinkTarget { length };
    refuse_both(&[layer().symlink("s", "")], "s", kind(0));
    refuse_both(&[layer().symlink("s", "t".repeat(4096))], "s", kind(4096));
    fold(Mode::Oci, &[layer().symlink("s", "t".repeat(4095))]);
}

#[test]
fn device_numbers_are_bounded() {
    refuse_both(
        &[layer().char("c", 4096, 0)],
        "c",
        FoldErrorKind::DeviceNumber {
            major: 4096,
            minor: 0,
        },
    );
    let minor = 1 << 20;
    refuse_both(
        &[layer().block("c", 0, minor)],
        "c",
        FoldErrorKind::DeviceNumber { major: 0, minor },
    );
}

#[test]
fn notes_are_bounded_and_the_rest_is_counted() {
    let limits = limits(|limits| limits.max_notes = 10);
    let layers = [(0..25).fold(layer(), |layer, n| layer.file(format!("x/../{n}"), 1))];
    let report = fold_with(Mode::Oci, limits, &layers).unwrap().report;
    assert_eq!((report.notes.len(), report.notes_omitted), (10, 15));
    assert_eq!(report.differences_omitted, 0);
}

#[test]
fn harmless_notes_do_not_crowd_out_those_for_which_the_modes_differ() {
    let limits = limits(|limits| (limits.max_notes, limits.max_difference_notes) = (10, 20));
    let lower = (0..27).fold(layer().dir("usr/lib"), |layer, n| {
        layer.symlink(format!("lib{n}"), "usr/lib")
    });
    let harmless = |layer: Layer| (0..25).fold(layer, |layer, n| layer.file(format!("x/../{n}"), 1));
    let upper = |count| {
        (0..count).fold(harmless(layer()), |layer, n| {
            layer.file(format!("lib{n}/f{n}"), 1)
        })
    };
    for mode in BOTH {
        for (different, kept, omitted) in [(15, 15, 0), (27, 20, 7)] {
            let layers = [lower.clone(), upper(different)];
            let report = fold_with(mode, limits.clone(), &layers).unwrap().report;
            let (named, others): (Vec<_>, Vec<_>) =
                report.notes.iter().partition(|note| note.kind.modes_differ());
            assert_eq!(
                (named.len(), others.len(), report.differences_omitted),
                (kept, 10, omitted),
                "mode {mode:?}, {different} entries"
            );
            assert_eq!(
                report.notes_omitted,
                15 + omitted,
                "mode {mode:?}, {different} entries"
            );
        }
    }
}

/// The paths of the notes have a bound, too: what a layer can make the report hold does not grow with its path lengths.
#[test]
fn long_paths_do_not_make_the_report_large() {
    let lower = layer().dir("d").symlink("l", "d");
    let long = ["l", &"./".repeat(2000), "f"].join("/");
    let upper = (0..20_000).fold(layer(), |layer, n| layer.file(format!("{long}{n}"), 1));
    let report = fold_with(Mode::Oci, FoldLimits::default(), &[lower, upper])
        .unwrap()
        .report;
    let bytes: usize = report.notes.iter().map(|note| note.path.len()).sum();
    assert!((60 << 20..=64 << 20).contains(&bytes), "{bytes}");
    assert_eq!(report.notes.len() as u64 + report.differences_omitted, 20_000);
}

#[test]
fn an_error_names_the_layer_and_the_path() {
    let error = fold_with(
        Mode::Oci,
        FoldLimits::default(),
        &[layer(), layer().link("usr/b", "usr/a")],
    )
    .unwrap_err();
    assert_eq!(
        error.to_string(),
        "layer 2: usr/b: the hard link's target usr/a does not exist"
    );
}

/// Sixty thousand entries are a large image; a fold of one must not be felt. The bound leaves room for a slow and
/// busy machine: the usual figure is a twentieth of it.
#[test]
fn sixty_thousand_entries_take_no_time() {
    let files = (0..60_000).fold(layer(), |layer: Layer, n| {
        layer.file(
            format!("usr/share/package{}/directory{}/file{n}", n / 200, n / 30 % 7),
            n,
        )
    });
    let index = files.index();
    let mut folder = Folder::new(Mode::Oci, FoldLimits::default());
    for round in ["anew", "again"] {
        let start = Instant::now();
        folder.apply(&index, PackId(0)).unwrap();
        let elapsed = start.elapsed();
        println!("60,000 entries {round}: {elapsed:?}");
        assert!(elapsed < Duration::from_secs(1), "{elapsed:?}");
    }
}

/// Chains of links in the worst order, and links that all wait for one, stay linear.
#[test]
fn waiting_links_take_linear_time() {
    let count = 50_000;
    let chain = (0..count).fold(layer(), |layer, n| {
        layer.link(format!("l{n}"), format!("l{}", n + 1))
    });
    let start = Instant::now();
    fold(Mode::Oci, &[chain.file(format!("l{count}"), 1)]);
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
}
