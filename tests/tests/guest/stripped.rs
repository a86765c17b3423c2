//! Programs without their debug information still load and run.

use std::{
    collections::BTreeSet,
    fs,
    io::Read as _,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use builderd_e2e::{
    check::{self, Mounted},
    parts,
};
use test_support::{image::Image, lab, vm::Vmm};

use crate::{Built, assert_says, build, busybox, rig};

/// A library with something of everything that a loader has to get right: constructors, thread-local data, data that
/// points to data, a function that is chosen when the library is loaded.
const LIBRARY: &str = r#"
static __thread int calls = 40;
static int begun;
__attribute__((constructor)) static void begin(void) { begun = 1; }
static int one(void) { return 1; }
static int (*choose(void))(void) { return one; }
int chosen(void) __attribute__((ifunc("choose")));
static int (*const table[])(void) = { one, chosen };
int answer(void) { return calls + table[0]() * begun + chosen() * 0 + table[1](); }
"#;

const PROGRAM: &str = r#"
#include <stdio.h>
int answer(void);
int main(int argc, char **argv) { printf("%s says %d\n", argv[0], answer()); return 0; }
"#;

#[test]
fn privileged_programs_without_debug_information_load_and_run() {
    let needed = rig().and_then(|rig| {
        parts::root()?;
        lab::program("cc", "gcc")?;
        Ok((rig, busybox()?))
    });
    let (rig, mut layer) = match needed {
        Ok(parts) => parts,
        Err(missing) => return lab::skip(missing),
    };
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("library.c"), LIBRARY).unwrap();
    fs::write(at("program.c"), PROGRAM).unwrap();
    let compile = |arguments: &[&str]| {
        check::run(
            Command::new("cc")
                .current_dir(directory.path())
                .arg("-g3")
                .args(arguments),
        )
        .unwrap();
    };
    compile(&["-shared", "-fPIC", "-o", "libanswer.so", "library.c"]);
    compile(&["-o", "pie", "program.c", "-L.", "-lanswer"]);
    compile(&["-no-pie", "-o", "fixed", "program.c", "-L.", "-lanswer"]);
    compile(&["-static", "-o", "static", "program.c", "library.c"]);
    compile(&["-static-pie", "-o", "static-pie", "program.c", "library.c"]);
    compile(&["-gz", "-o", "compressed", "program.c", "-L.", "-lanswer"]);

    let programs = ["pie", "fixed", "static", "static-pie", "compressed"];
    layer = layer.directory("lib64", 0o755).directory("lib", 0o755);
    for (name, place) in programs
        .map(|name| (name, "bin"))
        .into_iter()
        .chain([("libanswer.so", "lib")])
    {
        let content = fs::read(at(name)).unwrap();
        layer = layer.file(format!("{place}/{name}"), content).mode(0o755);
    }
    let loader = "lib64/ld-linux-x86-64.so.2";
    let library = "lib/x86_64-linux-gnu/libc.so.6";
    layer = layer
        .file(loader, fs::read(Path::new("/").join(loader)).unwrap())
        .mode(0o755)
        .directory("lib/x86_64-linux-gnu", 0o755)
        .file(library, fs::read(Path::new("/").join(library)).unwrap())
        .mode(0o755);
    let image =
        Image::new()
            .layer(&layer)
            .cmd(&["sh", "-c", "pie && fixed && static && static-pie && compressed"]);

    let (whole, small) = (build(&image, &[]), build(&image, &["--strip-debug-symbols"]));
    let changed = programs_still_load(&whole, &small);
    for name in programs
        .map(|name| format!("bin/{name}"))
        .iter()
        .chain([&"lib/libanswer.so".to_owned()])
    {
        assert!(
            changed.contains(&PathBuf::from(name)),
            "{name} is not in {changed:?}"
        );
    }
    let savings = &small.metrics["optimization"][0];
    assert_eq!(savings["rule"], "strip_debug_symbols");
    assert_eq!(savings["files"], changed.len(), "{savings}");

    let boot = rig
        .with_vmm(Vmm::QemuMicrovm)
        .boot(&small.image, &small.boot_options())
        .unwrap();
    let lines = programs.map(|name| format!("{name} says 42"));
    let mut expected: Vec<&str> = lines.iter().map(String::as_str).collect();
    expected.push("command exited with code 0");
    assert_says(&boot, &expected);
}

/// Has the image's own loader resolve every symbol of every program and library, in both images: what could be loaded
/// before can be loaded after. Gives what is not the same in both.
pub(crate) fn programs_still_load(whole: &Built, small: &Built) -> Vec<PathBuf> {
    let (whole, small) = (
        Mounted::image(&whole.image).unwrap(),
        Mounted::image(&small.image).unwrap(),
    );
    let (before, after) = (elf_files(whole.path()), elf_files(small.path()));
    assert_eq!(before, after, "no program is left out");
    let changed: Vec<PathBuf> = before
        .into_iter()
        .filter(|path| {
            let content = |root: &Mounted| check::sha256(&root.path().join(path)).unwrap();
            content(&whole) != content(&small)
        })
        .collect();
    for path in &changed {
        let (before, after) = (load(whole.path(), path), load(small.path(), path));
        assert_eq!(before, after, "{}", path.display());
    }
    changed
}

/// What the loader finds out about a file: where each library comes from, and what is missing.
fn load(root: &Path, path: &Path) -> String {
    let output = Command::new(lab::program("chroot", "coreutils").unwrap())
        .arg(root)
        .args(["/lib64/ld-linux-x86-64.so.2", "--list"])
        .arg(Path::new("/").join(path))
        // As `ldd -r` does it.
        .envs([("LD_WARN", "yes"), ("LD_BIND_NOW", "yes")])
        .output()
        .unwrap();
    // The address at which a library lies is another one each time.
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text).into_owned();
    let lines = text
        .lines()
        .map(|line| line.split(" (0x").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

/// Paths of all ELF files, from the root.
fn elf_files(root: &Path) -> BTreeSet<PathBuf> {
    let mut found = BTreeSet::new();
    let mut directories = vec![root.to_owned()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let entry = entry.unwrap();
            let kind = entry.file_type().unwrap();
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_file() && entry.metadata().unwrap().size() > 4 {
                let mut magic = [0; 4];
                let mut file = fs::File::open(entry.path()).unwrap();
                file.read_exact(&mut magic).unwrap();
                if magic == *b"\x7fELF" {
                    found.insert(entry.path().strip_prefix(root).unwrap().to_owned());
                }
            }
        }
    }
    found
}
