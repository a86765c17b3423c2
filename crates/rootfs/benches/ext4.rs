//! The writer alone, on trees made up here: `cargo bench -p rootfs --bench ext4 -- CASE DIRECTORY`.
//!
//! # Benchmarking cases
//! - `many`: 120,000 files of 0 to 8 KiB in 1,200 directories.
//! - `flat`: 120,000 such files in one directory.
//! - `big`: 64 files of 64 MiB.
//!
//! The pack is written into the directory first and is not measured. Printed are seconds of wall clock and of CPU for
//! planning and writing, and the peak of memory of the whole process: for a read-write image, for one with a hash tree
//! and nothing kept, and for a second one on the same base with the leaf hashes kept, without and with its checksum. The
//! file system of the directory decides whether contents are copied or shared. Without arguments nothing is measured.

#![allow(
    missing_docs,
    clippy::print_stdout,
    clippy::unwrap_used,
    reason = "a program for developers"
)]

use std::{
    fs::File,
    io::{BufWriter, Write as _},
    path::Path,
    sync::Arc,
    time::Instant,
};

use rootfs::{
    Metadata, Tree,
    ext4::plan,
    image::{ImageOptions, Profile},
    layer::BodyExtent,
    pack::{Pack, PackId, Packs},
    tree::{Content, FileContent},
    verity::LeafHashes,
};

fn main() {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    let [case, directory] = &arguments[..] else {
        println!("nothing measured: give a case (many, flat, big) and a directory");
        return;
    };
    let directory = Path::new(directory);
    let pack_path = directory.join("pack");
    let mut pack = BufWriter::with_capacity(1 << 20, File::create(&pack_path).unwrap());
    let mut tree = Tree::new();
    let mut next = 0;
    let mut add = |path: String, length: u64| {
        let bytes: Vec<u8> = (0..length).map(|at| (at ^ next).to_le_bytes()[0] | 1).collect();
        pack.write_all(&bytes).unwrap();
        pack.write_all(&vec![
            0;
            usize::try_from(length.next_multiple_of(4096) - length)
                .unwrap()
        ])
        .unwrap();
        let extent = BodyExtent {
            logical_offset: 0,
            pack_offset: next,
            length,
        };
        let extents = if length == 0 { Vec::new() } else { vec![extent] };
        let content = Content::Packed {
            pack: PackId(0),
            extents: extents.into(),
        };
        next += length.next_multiple_of(4096);
        if let Some((directory, _)) = path.rsplit_once('/') {
            tree.create_directories(directory.as_bytes(), &Metadata::root(0o755))
                .unwrap();
        }
        tree.put_file(
            path.as_bytes(),
            Metadata::root(0o644),
            FileContent {
                size_bytes: length,
                content,
            },
        )
        .unwrap();
    };
    match case.as_str() {
        "many" => (0..120_000u64).for_each(|nth| add(format!("{}/file-{nth}", nth / 100), nth * 7919 % 8192)),
        "flat" => (0..120_000u64).for_each(|nth| add(format!("flat/file-{nth}"), nth * 7919 % 8192)),
        "big" => (0..64u64).for_each(|nth| add(format!("file-{nth}"), 64 << 20)),
        _ => panic!("no such case: {case}"),
    }
    pack.flush().unwrap();
    let pack = Pack::File(Arc::new(File::open(&pack_path).unwrap()));
    let mut packs = Packs::new();
    let base = packs.push(pack.clone());
    measure(
        case,
        "first, rw",
        &tree,
        &packs,
        directory,
        &ImageOptions::new([0; 32]),
    );

    let mut verity = ImageOptions::new([0; 32]);
    verity.profile = Profile::ReadOnly;
    verity.verity = true;
    measure(
        case,
        "first, ro with verity, nothing kept",
        &tree,
        &packs,
        directory,
        &verity,
    );

    let (start, cpu) = (Instant::now(), cpu_seconds());
    let hashes = LeafHashes::of_pack(&pack, next).unwrap();
    println!(
        "{case}: leaf hashes of {next} bytes: {:.3} s wall, {:.2} s CPU",
        start.elapsed().as_secs_f64(),
        cpu_seconds() - cpu
    );
    packs.set_leaf_hashes(base, Arc::new(hashes));
    // Another image on the same base.
    tree.put_file(
        b"top",
        Metadata::root(0o644),
        FileContent::inline(*b"another application"),
    )
    .unwrap();
    measure(case, "second, ro with verity", &tree, &packs, directory, &verity);
    verity.findings.sha256 = true;
    measure(
        case,
        "second, ro with verity and SHA-256",
        &tree,
        &packs,
        directory,
        &verity,
    );
}

fn measure(case: &str, what: &str, tree: &Tree, packs: &Packs, directory: &Path, options: &ImageOptions) {
    let image = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(directory.join("image.ext4"))
        .unwrap();
    let (start, cpu) = (Instant::now(), cpu_seconds());
    let plan = plan(tree, options).unwrap();
    let planned = start.elapsed().as_secs_f64();
    plan.emit_and_find(packs, &image, options.findings).unwrap();
    let all = start.elapsed().as_secs_f64();
    println!(
        "{case}: {what}: {all:.3} s wall (plan {planned:.3} s), {:.2} s CPU, {} KiB peak, image of {} bytes",
        cpu_seconds() - cpu,
        peak_kib(),
        plan.size_bytes(),
    );
}

/// CPU seconds of this process so far, of user and system.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11..13]
        .iter()
        .map(|ticks| ticks.parse::<f64>().unwrap())
        .sum::<f64>()
        / 100.0
}

fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmHWM:"))
        .unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}
