//! What is refused, what fails, and what is killed: nothing stays behind.

use std::{fs::File, io::Read as _};

use rootfs::{
    Metadata, Tree,
    image::{ImageBackend as _, ImageError, Profile},
    pack::{Pack, Packs},
    tree::FileContent,
};

use crate::{full_tree, lab::Lab, metadata, options};

#[test]
fn privileged_a_size_limit_is_kept_before_anything_is_written() {
    let Some(lab) = Lab::new() else { return };
    let (tree, packs) = full_tree();
    let mut options = options(Profile::ReadWrite);
    options.max_image_bytes = Some(1 << 20);
    let image = lab.image();
    let error = lab
        .backend()
        .write(&tree, &packs, &options, &image.open())
        .unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::TooLarge {
                limit_bytes: 1_048_576,
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(image.open().metadata().unwrap().len(), 0);
    lab.assert_nothing_left();
}

#[test]
fn privileged_failures_leave_nothing_behind() {
    let Some(lab) = Lab::new() else { return };
    let options = options(Profile::ReadOnly);
    let image = lab.image();

    // A program that says what is wrong, with a name of the layer in it.
    let script = lab.path().join("fails");
    std::fs::write(
        &script,
        "#!/bin/sh\nprintf 'mke2fs: bad \\033[2J name\\n' >&2\nexit 3\n",
    )
    .unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let backend = lab.backend().with_program(&script);
    let error = backend
        .write(&Tree::new(), &Packs::new(), &options, &image.open())
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "mke2fs failed with exit status: 3: mke2fs: bad \\u{1b}[2J name",
    );
    lab.assert_nothing_left();

    // A pack that was not given, and one that is too short.
    let (tree, _) = full_tree();
    let error = lab
        .backend()
        .write(&tree, &Packs::new(), &options, &image.open())
        .unwrap_err();
    assert!(matches!(error, ImageError::MissingPack { .. }), "{error}");
    let mut short = Packs::new();
    short.push(Pack::Memory(vec![0; 100].into()));
    let error = lab
        .backend()
        .write(&tree, &short, &options, &image.open())
        .unwrap_err();
    assert!(
        matches!(
            error,
            ImageError::Io {
                action: "stage the tree",
                ..
            }
        ),
        "{error}"
    );

    // What the kernel refuses.
    let mut tree = Tree::new();
    let owner = Metadata {
        uid: u32::MAX,
        ..metadata(0o644)
    };
    tree.put_file(b"/f", owner, FileContent::inline(*b"")).unwrap();
    let error = lab
        .backend()
        .write(&tree, &Packs::new(), &options, &image.open())
        .unwrap_err();
    assert!(matches!(error, ImageError::Unrepresentable { .. }), "{error}");
    lab.assert_nothing_left();
}

/// Set for the process that [`privileged_the_program_ends_with_its_caller`] kills: where the program that never ends is.
const DOOMED: &str = "ROOTFS_TEST_DOOMED_DIRECTORY";

/// Killed in the middle, the caller takes the program with it, and the next run clears away what was staged.
#[test]
fn privileged_the_program_ends_with_its_caller() {
    if let Some(directory) = std::env::var_os(DOOMED) {
        let directory = std::path::PathBuf::from(directory);
        let backend =
            rootfs::mke2fs::Mke2fs::new(directory.join("staging")).with_program(directory.join("endless"));
        let output = tempfile::tempfile().unwrap();
        let _ = backend.write(&Tree::new(), &Packs::new(), &options(Profile::ReadOnly), &output);
        return;
    }
    let Some(lab) = Lab::new() else { return };
    if !std::path::Path::new("/usr/bin/setpriv").exists() {
        return test_support::lab::skip("setpriv is missing: apt-get install util-linux");
    }
    let (pipe, script) = (lab.path().join("pipe"), lab.path().join("endless"));
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &pipe,
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RWXU,
        0,
    )
    .unwrap();
    // Its end of the pipe is closed when it is dead, and not before.
    let text = format!(
        "#!/bin/sh\nexec 3>'{}'\necho ready >&3\nexec sleep 60\n",
        pipe.display()
    );
    std::fs::write(&script, text).unwrap();
    std::fs::set_permissions(&script, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let mut caller = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "failures::privileged_the_program_ends_with_its_caller"])
        .env(DOOMED, lab.path())
        .spawn()
        .unwrap();
    let mut pipe = File::open(&pipe).unwrap();
    let mut ready = [0; 6];
    pipe.read_exact(&mut ready).unwrap();
    let start = std::time::Instant::now();
    caller.kill().unwrap();
    caller.wait().unwrap();
    assert_eq!(pipe.read(&mut ready).unwrap(), 0);
    assert!(
        start.elapsed() < std::time::Duration::from_secs(30),
        "it ended by itself"
    );

    let image = lab.image();
    lab.backend()
        .write(
            &Tree::new(),
            &Packs::new(),
            &options(Profile::ReadOnly),
            &image.open(),
        )
        .unwrap();
    lab.assert_nothing_left();
}
