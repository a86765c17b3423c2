//! What other tools write, compared with what they were given.

use std::{
    collections::BTreeMap,
    env,
    ffi::OsStr,
    fs::{self, File},
    io::{Read, Write},
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink},
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};

use super::super::{
    EntryKind,
    testing::{Indexed, index, message},
};
use crate::{Timestamp, Xattrs};

/// Whether a test can run; if not, says why not, and insists where the laboratory is required.
fn available(program: &str) -> bool {
    if Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok()
    {
        return true;
    }
    assert_ne!(
        env::var_os("BUILDERD_REQUIRE_LAB").as_deref(),
        Some(OsStr::new("1")),
        "{program} is missing"
    );
    let _ = std::io::Write::write_fmt(
        &mut std::io::stderr(),
        format_args!("skipped: {program} is not installed\n"),
    );
    false
}

fn run(program: &str, arguments: &[&str], directory: &Path) -> Vec<u8> {
    let output = Command::new(program)
        .args(arguments)
        .current_dir(directory)
        .env("LC_ALL", "C.UTF-8")
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{program} {arguments:?}: {errors}");
    output.stdout
}

/// What one path is, in the words of both sides.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    kind: String,
    mode: u32,
    uid: u32,
    gid: u32,
    mtime: Timestamp,
    content: Vec<u8>,
    xattrs: Xattrs,
}

/// A directory with everything in it that a file system without privileges has.
struct Tree {
    directory: tempfile::TempDir,
    has_xattrs: bool,
}

impl Tree {
    fn new(long_names: bool) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().join("tree");
        let at = |name: &[u8]| root.join(OsStr::from_bytes(name));
        fs::create_dir_all(at(b"dir/sub")).unwrap();
        fs::write(at(b"dir/empty"), b"").unwrap();
        fs::write(at(b"dir/small"), b"hello\n").unwrap();
        fs::write(at(b"dir/not-utf-8-\xff\xfe"), b"x").unwrap();
        fs::write(at(b"dir/with\nnewline and = sign"), b"y").unwrap();
        fs::write(
            at(b"large"),
            (0..700_001_u32).map(|at| (at % 253) as u8).collect::<Vec<_>>(),
        )
        .unwrap();
        symlink("dir/small", at(b"symlink")).unwrap();
        symlink("nowhere", at(b"dangling")).unwrap();
        fs::hard_link(at(b"dir/small"), at(b"hardlink")).unwrap();
        mknodat(CWD, at(b"fifo"), FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        let holes = File::create(at(b"sparse")).unwrap();
        for offset in [0, 81_920, 5 << 20] {
            std::os::unix::fs::FileExt::write_all_at(&holes, b"data between holes", offset).unwrap();
        }
        holes.set_len((6 << 20) + 5).unwrap();
        if long_names {
            let long = [&b"long/"[..], &b"component-of-twenty/".repeat(14)].concat();
            fs::create_dir_all(at(&long)).unwrap();
            fs::write(at(&[&long[..], &[b'n'; 255]].concat()), b"deep").unwrap();
            symlink(
                OsStr::from_bytes(&b"target/".repeat(40)),
                at(&[&long[..], b"symlink"].concat()),
            )
            .unwrap();
            fs::hard_link(at(b"large"), at(&[&long[..], &[b'h'; 120]].concat())).unwrap();
        }
        fs::set_permissions(at(b"large"), fs::Permissions::from_mode(0o4751)).unwrap();
        fs::set_permissions(at(b"dir"), fs::Permissions::from_mode(0o1777)).unwrap();
        let time = SystemTime::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
        File::open(at(b"large")).unwrap().set_modified(time).unwrap();
        let value = b"binary\0\n=value\xff";
        let has_xattrs = setxattr(at(b"dir/small"), "user.test", value, XattrFlags::empty()).is_ok();
        Self {
            directory,
            has_xattrs,
        }
    }

    fn path(&self) -> PathBuf {
        self.directory.path().join("tree")
    }

    /// What the kernel says, by path below `tree`.
    fn truth(&self, nanoseconds: bool, xattrs: bool) -> BTreeMap<Vec<u8>, Seen> {
        let mut seen = BTreeMap::new();
        let mut pending = vec![self.path()];
        while let Some(path) = pending.pop() {
            let metadata = fs::symlink_metadata(&path).unwrap();
            let file_type = metadata.file_type();
            let mut content = Vec::new();
            let kind = if file_type.is_dir() {
                pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
                "dir".to_owned()
            } else if file_type.is_symlink() {
                format!(
                    "symlink {}",
                    fs::read_link(&path)
                        .unwrap()
                        .into_os_string()
                        .as_bytes()
                        .escape_ascii()
                )
            } else if file_type.is_fifo() {
                "fifo".to_owned()
            } else {
                File::open(&path).unwrap().read_to_end(&mut content).unwrap();
                "file".to_owned()
            };
            let mut attributes = Xattrs::new();
            if xattrs && self.has_xattrs && metadata.nlink() == 2 && content == b"hello\n" {
                attributes.insert(b"user.test".to_vec(), b"binary\0\n=value\xff".to_vec());
            }
            let fraction = if nanoseconds {
                u32::try_from(metadata.mtime_nsec()).unwrap()
            } else {
                0
            };
            seen.insert(
                path.strip_prefix(self.path())
                    .unwrap()
                    .as_os_str()
                    .as_bytes()
                    .to_vec(),
                Seen {
                    kind,
                    mode: metadata.mode() & 0o7777,
                    uid: metadata.uid(),
                    gid: metadata.gid(),
                    mtime: Timestamp {
                        seconds: metadata.mtime(),
                        nanoseconds: fraction,
                    },
                    content,
                    xattrs: attributes,
                },
            );
        }
        seen
    }
}

/// What the index says, hard links replaced by what they link to.
fn seen(indexed: &Indexed) -> BTreeMap<Vec<u8>, Seen> {
    let normal = |path: &[u8]| {
        let path = path.strip_suffix(b"/").unwrap_or(path);
        path.strip_prefix(b"./")
            .unwrap_or(if path == b"." { b"" } else { path })
            .to_vec()
    };
    let mut seen: BTreeMap<Vec<u8>, Seen> = BTreeMap::new();
    for entry in &indexed.index.entries {
        let (kind, content) = match &entry.kind {
            EntryKind::Directory => ("dir".to_owned(), Vec::new()),
            EntryKind::File(_) => ("file".to_owned(), indexed.content(entry)),
            EntryKind::Symlink(target) => (format!("symlink {}", target.escape_ascii()), Vec::new()),
            EntryKind::Fifo => ("fifo".to_owned(), Vec::new()),
            EntryKind::HardLink(target) => {
                let target = seen.get(&normal(target)).expect("the target comes first").clone();
                seen.insert(normal(&entry.path), target);
                continue;
            }
            other => panic!("{other:?}"),
        };
        let metadata = &entry.metadata;
        let value = Seen {
            kind,
            mode: u32::from(metadata.mode),
            uid: metadata.uid,
            gid: metadata.gid,
            mtime: metadata.mtime,
            content,
            xattrs: metadata.xattrs.clone(),
        };
        seen.insert(normal(&entry.path), value);
    }
    seen
}

fn check(name: &str, archive: &[u8], truth: &BTreeMap<Vec<u8>, Seen>) {
    let indexed = match index(archive) {
        Ok(indexed) => indexed,
        Err(error) => panic!("{name}: {}", message(&error)),
    };
    let seen = seen(&indexed);
    for (path, expected) in truth {
        let found = seen.get(path);
        let shown = path.escape_ascii();
        // Content apart, because it is long.
        let short = |seen: &Seen| Seen {
            content: Vec::new(),
            ..seen.clone()
        };
        assert_eq!(found.map(short), Some(short(expected)), "{name}: {shown}");
        assert!(
            found.is_some_and(|found| found.content == expected.content),
            "{name}: content of {shown}"
        );
    }
    assert_eq!(
        seen.len(),
        truth.len(),
        "{name}: more than there is: {:?}",
        seen.keys()
    );
}

#[test]
fn gnu_tar() {
    if !available("tar") {
        return;
    }
    let (short, long) = (Tree::new(false), Tree::new(true));
    // Arguments, whether the format has long names, whether it has fractions of seconds.
    for (arguments, tree, nanoseconds) in [
        (&["--format=v7", "--exclude=./fifo"][..], &short, false),
        (&["--format=ustar"], &short, false),
        (&["--format=oldgnu"], &long, false),
        (&["--format=gnu"], &long, false),
        (&["--format=gnu", "--sparse"], &long, false),
        (&["--format=oldgnu", "--sparse"], &long, false),
        (&["--format=posix"], &long, true),
        (
            &["--format=posix", "--sparse", "--sparse-version=0.0"],
            &long,
            true,
        ),
        (
            &["--format=posix", "--sparse", "--sparse-version=0.1"],
            &long,
            true,
        ),
        (
            &["--format=posix", "--sparse", "--sparse-version=1.0"],
            &long,
            true,
        ),
        (&["--format=posix", "--hard-dereference"], &long, true),
    ] {
        let archive = run("tar", &[&["-cf", "-"], arguments, &["."]].concat(), &tree.path());
        let mut truth = tree.truth(nanoseconds, false);
        // V7 has no type for it.
        if arguments[0] == "--format=v7" {
            truth.remove(&b"fifo"[..]);
        }
        check(&format!("tar {arguments:?}"), &archive, &truth);
    }
    let archive = run(
        "tar",
        &[
            "-cf",
            "-",
            "--format=posix",
            "--xattrs",
            "--xattrs-include=user.*",
            ".",
        ],
        &long.path(),
    );
    check("tar --xattrs", &archive, &long.truth(true, true));
}

#[test]
fn gnu_tar_sparse_files_lose_their_holes() {
    if !available("tar") {
        return;
    }
    let tree = Tree::new(false);
    for arguments in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
        // Not stored as sparse: the zero blocks are found all the same.
        &["--format=posix", "--hole-detection=raw"],
    ] {
        let archive = run(
            "tar",
            &[&["-cf", "-", "--sparse"], arguments, &["./sparse"]].concat(),
            &tree.path(),
        );
        let indexed = index(&archive).unwrap();
        assert_eq!(indexed.index.pack_size_bytes, 3 * 4096, "{arguments:?}");
    }
}

#[test]
fn bsdtar() {
    if !available("bsdtar") {
        return;
    }
    let (short, long) = (Tree::new(false), Tree::new(true));
    for (arguments, tree, nanoseconds, xattrs) in [
        (&["--format=ustar", "--no-xattrs"][..], &short, false, false),
        (&["--format=gnutar", "--no-xattrs"], &long, false, false),
        // Both encodings of attributes at once, and sparse files of form 1.0 without being asked.
        (&["--format=pax"], &long, true, true),
    ] {
        let archive = run(
            "bsdtar",
            &[&["-cf", "-"], arguments, &["."]].concat(),
            &tree.path(),
        );
        check(
            &format!("bsdtar {arguments:?}"),
            &archive,
            &tree.truth(nanoseconds, xattrs),
        );
    }
}

/// Writes, with Python's tarfile, what a file system without privileges does not have.
const PYTHON: &str = r#"
import io, sys, tarfile
format = {"ustar": tarfile.USTAR_FORMAT, "gnu": tarfile.GNU_FORMAT, "pax": tarfile.PAX_FORMAT}[sys.argv[1]]
archive = tarfile.open(fileobj=sys.stdout.buffer, mode="w|", format=format, encoding="utf-8", errors="surrogateescape")

def add(name, type=tarfile.REGTYPE, body=b"", **fields):
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mode, info.mtime = type, len(body), 0o640, 1000
    for field, value in fields.items():
        setattr(info, field, value)
    archive.addfile(info, io.BytesIO(body))

add("dir", tarfile.DIRTYPE)
add("bytes-\udcff", body=b"raw")
add("null", tarfile.CHRTYPE, devmajor=1, devminor=3)
add("disk", tarfile.BLKTYPE, devmajor=259, devminor=70000)
add("pipe", tarfile.FIFOTYPE)
add("link", tarfile.LNKTYPE, linkname="dir/other")
add("symbolic", tarfile.SYMTYPE, linkname="/absolute/../target")
if format != tarfile.USTAR_FORMAT:
    add("owner", uid=4000000000, gid=70000)
    add("n" * 240 + "-ä", body=b"long")
    add("old", mtime=-12345)
if format == tarfile.PAX_FORMAT:
    add("fine", mtime=-0.25)
    add("attributes", pax_headers={"SCHILY.xattr.user.a": "b=c"})
archive.close()
"#;

#[test]
fn python_tarfile() {
    if !available("python3") {
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let script = directory.path().join("write.py");
    File::create(&script)
        .unwrap()
        .write_all(PYTHON.as_bytes())
        .unwrap();
    let script = script.into_os_string().into_vec();
    let script = String::from_utf8(script).unwrap();
    let common = [
        "dir dir/",
        r"file bytes-\xff raw",
        "char null 1:3",
        "block disk 259:70000",
        "fifo pipe",
        "link link dir/other",
        "symlink symbolic /absolute/../target",
    ];
    let long = format!(r"file {}-\xc3\xa4 long", "n".repeat(240));
    let more = ["file owner ", &long, "file old "];
    for (format, expected) in [
        ("ustar", common.to_vec()),
        ("gnu", [&common[..], &more].concat()),
        (
            "pax",
            [&common[..], &more, &["file fine ", "file attributes "]].concat(),
        ),
    ] {
        let archive = run("python3", &[&script, format], directory.path());
        let indexed = index(&archive).unwrap_or_else(|error| panic!("{format}: {}", message(&error)));
        assert_eq!(indexed.lines(), expected, "{format}");
        let metadata = |path: &[u8]| {
            let entry = indexed.index.entries.iter().find(|entry| entry.path == path);
            entry.map(|entry| entry.metadata.clone())
        };
        assert_eq!(
            metadata(b"pipe").map(|metadata| metadata.mode),
            Some(0o640),
            "{format}"
        );
        if let Some(owner) = metadata(b"owner") {
            assert_eq!((owner.uid, owner.gid), (4_000_000_000, 70_000), "{format}");
        }
        if let Some(old) = metadata(b"old") {
            assert_eq!(old.mtime, Timestamp::from_seconds(-12_345), "{format}");
        }
        if let Some(fine) = metadata(b"fine") {
            assert_eq!(
                fine.mtime,
                Timestamp {
                    seconds: -1,
                    nanoseconds: 750_000_000
                },
                "{format}"
            );
        }
        if let Some(attributes) = metadata(b"attributes") {
            assert_eq!(
                attributes.xattrs,
                Xattrs::from([(b"user.a".to_vec(), b"b=c".to_vec())]),
                "{format}"
            );
        }
    }
}
