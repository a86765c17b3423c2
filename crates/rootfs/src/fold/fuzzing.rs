//! What the fuzz target runs, as a plain function that `cargo test` runs over the corpus, too.

use super::{FoldLimits, Folded, Folder, Mode};
use crate::{
    DeviceNumber, Metadata, Timestamp,
    layer::{Body, BodyExtent, Entry, EntryKind, LayerIndex},
    pack::PackId,
};

/// Folds the stack of layers that the text says, in both modes.
///
/// Each line is an entry: a letter for its kind (`d`, `f`, `l` symbolic link, `h` hard link, `c`, `b`, `p`), a byte for its
/// attributes, the path, and for links `>` and the target. A line `-` begins the next layer. Whatever else a line says
/// is a file, so that every input is a stack.
///
/// # Panics
/// When a tree breaks an invariant, a bound is exceeded, the counts of the report are not those of the tree, or the
/// modes differ without a note that says so.
pub fn fold(data: &[u8]) {
    let limits = FoldLimits {
        max_entries: 4096,
        max_path_bytes: 512,
        max_depth: 20,
        max_links: 20,
        max_notes: 30,
        max_difference_notes: 10_000,
    };
    let layers = layers(data);
    let results = [Mode::Oci, Mode::Docker].map(|mode| run(mode, &limits, &layers));
    if let [Some(oci), Some(docker)] = results
        && oci.tree.dump() != docker.tree.dump()
    {
        for folded in [oci, docker] {
            let notes = &folded.report.notes;
            assert!(
                notes.iter().any(|note| note.kind.modes_differ()),
                "the modes differ, and nothing says so"
            );
        }
    }
}

fn run(mode: Mode, limits: &FoldLimits, layers: &[LayerIndex]) -> Option<Folded> {
    let mut folder = Folder::new(mode, limits.clone());
    for (layer, pack) in layers.iter().zip(0..) {
        let result = folder.apply(layer, PackId(pack));
        let inodes = folder.tree().inodes().count() as u64;
        assert!(inodes <= limits.max_entries + 1, "the tree has {inodes} inodes");
        if let Err(error) = result {
            assert!(!error.to_string().is_empty(), "an error says what it is");
            return None;
        }
        folder.tree().check().expect("a layer leaves the tree sound");
    }
    let folded = folder.finish();
    let report = &folded.report;
    let others = report.notes.iter().filter(|note| !note.kind.modes_differ());
    assert!(others.count() <= limits.max_notes, "the notes are bounded");
    assert_eq!(report.layers.len(), layers.len(), "each layer is counted");
    let (added, removed) = report.layers.iter().fold((0, 0), |(added, removed), layer| {
        (added + layer.entries_added, removed + layer.entries_removed)
    });
    // The root has no name of its own.
    let names = folded.tree.walk().filter(|(path, _)| !path.is_empty()).count() as u64;
    assert_eq!(added - removed, names, "the counts are those of the tree");
    Some(folded)
}

fn layers(data: &[u8]) -> Vec<LayerIndex> {
    let mut layers: Vec<Vec<Entry>> = vec![Vec::new()];
    for line in data.split(|byte| *byte == b'\n').take(4096) {
        match line {
            [] => {}
            b"-" => layers.push(Vec::new()),
            [kind, attributes, path @ ..] => {
                let last = layers.last_mut().expect("there is a first layer");
                last.push(entry(*kind, *attributes, path));
            }
            _ => {}
        }
    }
    let index = |entries| LayerIndex {
        diff_id: [0; 32],
        uncompressed_size_bytes: 0,
        pack_size_bytes: 1 << 20,
        entries,
    };
    layers.into_iter().map(index).collect()
}

fn entry(kind: u8, attributes: u8, rest: &[u8]) -> Entry {
    let mut parts = rest.splitn(2, |byte| *byte == b'>');
    let path = parts.next().unwrap_or_default().to_vec();
    let target = parts.next().unwrap_or_default().to_vec();
    let device = DeviceNumber {
        major: u32::from(attributes & 1),
        minor: u32::from(attributes & 2),
    };
    let kind = match kind {
        b'd' => EntryKind::Directory,
        b'l' => EntryKind::Symlink(target),
        b'h' => EntryKind::HardLink(target),
        b'c' => EntryKind::CharacterDevice(device),
        b'b' => EntryKind::BlockDevice(device),
        b'p' => EntryKind::Fifo,
        _ => EntryKind::File(body(attributes)),
    };
    let mut metadata = Metadata {
        mtime: Timestamp::from_seconds(i64::from(attributes & 4)),
        uid: u32::from(attributes & 8),
        ..Metadata::root(if attributes & 1 == 0 { 0o755 } else { 0o600 })
    };
    for (bit, name) in [
        (16, &b"user.a"[..]),
        (32, b"trusted.overlay.opaque"),
        (64, b"other.x"),
    ] {
        if attributes & bit == 0 {
            continue;
        }
        metadata.xattrs.insert(name.to_vec(), vec![attributes]);
    }
    Entry { path, kind, metadata }
}

fn body(attributes: u8) -> Body {
    let length = u64::from(attributes) * 16;
    let extent = BodyExtent {
        logical_offset: 4096,
        pack_offset: 0,
        length,
    };
    Body {
        size: 4096 + length,
        extents: (length > 0).then_some(extent).into_iter().collect(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::{prelude::*, sample::select};

    use crate::corpus;

    /// A stack for each thing that a layer can say about another.
    const SEEDS: [(&str, &[u8]); 9] = [
        ("plain", b"d0usr\nf0usr/f\nl0bin>usr/bin\nc1null\np0pipe\nb1disk"),
        ("whiteout", b"f0a/f\nf0a/g\n-\nf0a/.wh.f\nf0a/h\n-\nf0.wh.a"),
        ("opaque", b"f0a/f\nf0a/b/g\n-\nf0a/h\nf0a/.wh..wh..opq"),
        (
            "through-symlink",
            b"d0usr/lib\nl0lib>usr/lib\nf0usr/lib/x\n-\nf0lib/y\n-\nf0lib/.wh.x",
        ),
        (
            "hard-link",
            b"f0a\nh1b>a\n-\nh0c>b\nf0.wh.a\nf0.wh.b\n-\nh0d>/c\nf4c",
        ),
        ("root", b"d9./\nf0a\n-\nd8/"),
        ("climbing", b"f0../../a\nf0x/../b\nl0s>../../..\n-\nf0s/c"),
        (
            "in-whiteout",
            b"f0a/f\n-\nf0.wh.a/b\nc0a\nfq.wh..wh.plnk/1\nh0l>.wh..wh.plnk/1",
        ),
        ("loop", b"l0a>b\nl0b>a\n-\nf0a/c"),
    ];

    #[test]
    fn seeds_and_corpus() {
        corpus::replay("fold", &corpus::owned(&SEEDS), super::fold);
    }

    #[test]
    #[ignore = "writes into the source tree"]
    fn write_seeds() {
        corpus::write("fold", &corpus::owned(&SEEDS));
    }

    fn line() -> impl Strategy<Value = String> {
        let component = || {
            select(vec![
                "a",
                "b",
                "c",
                "a",
                "b",
                ".wh.a",
                ".wh.b",
                ".wh..wh..opq",
                "..",
                "",
                ".wh.",
            ])
        };
        let path = move || prop::collection::vec(component(), 1..4).prop_map(|names| names.join("/"));
        let entry = (
            select(vec!['d', 'f', 'f', 'l', 'l', 'h', 'c', 'p']),
            select(vec!['0', '1', 'D', '`', ' ']),
            path(),
            path(),
        )
            .prop_map(|(kind, attributes, path, target)| format!("{kind}{attributes}{path}>{target}"));
        prop_oneof![6 => entry, 1 => Just("-".to_owned())]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 4000, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn any_stack_is_folded_or_refused(lines in prop::collection::vec(line(), 0..14)) {
            super::fold(lines.join("\n").as_bytes());
        }

        #[test]
        fn any_bytes_are_folded_or_refused(data in prop::collection::vec(any::<u8>(), 0..300)) {
            super::fold(&data);
        }
    }
}
