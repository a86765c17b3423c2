use std::os::unix::fs::{FileExt, symlink};

use super::*;

const IDENTITY: [u8; 32] = [7; 32];
const SUM: [u8; 32] = [9; 32];

/// A cache and a file that stands for an image.
struct Site {
    workspace: tempfile::TempDir,
    cache: ImageCache,
    image: PathBuf,
}

impl Site {
    fn new() -> Self {
        let workspace = tempfile::tempdir().unwrap();
        let cache = ImageCache::open(workspace.path()).unwrap();
        let image = workspace.path().join("image.ext4");
        fs::write(&image, b"an image").unwrap();
        Self {
            workspace,
            cache,
            image,
        }
    }

    fn key(&self) -> ImageKey {
        self.cache
            .key("alice", ["sha256:a", "sha256:b"], &IDENTITY, false)
    }

    fn records(&self) -> usize {
        let tenant = self.cache.path(&self.key());
        fs::read_dir(tenant.parent().unwrap()).unwrap().count()
    }
}

#[test]
fn an_image_is_found_until_it_is_gone_or_something_else() {
    type Change = fn(&Path);
    let cases: [(&str, Change, &str); 7] = [
        ("as it was", |_| {}, "candidate"),
        ("deleted", |image| fs::remove_file(image).unwrap(), "nothing"),
        (
            "written to",
            |image| {
                let file = File::options().write(true).open(image).unwrap();
                file.write_all_at(b"A", 0).unwrap();
                file.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH))
                    .unwrap();
            },
            "changed",
        ),
        (
            "longer",
            |image| fs::write(image, b"a longer image").unwrap(),
            "changed",
        ),
        (
            "a directory",
            |image| {
                fs::remove_file(image).unwrap();
                fs::create_dir(image).unwrap();
            },
            "changed",
        ),
        (
            "a symbolic link",
            |image| {
                fs::remove_file(image).unwrap();
                symlink("/dev/zero", image).unwrap();
            },
            "nothing",
        ),
        (
            "a FIFO that nobody writes to",
            |image| {
                fs::remove_file(image).unwrap();
                rustix::fs::mknodat(
                    rustix::fs::CWD,
                    image,
                    rustix::fs::FileType::Fifo,
                    rustix::fs::Mode::RUSR,
                    0,
                )
                .unwrap();
            },
            "changed",
        ),
    ];
    for (name, change, expected) in cases {
        let site = Site::new();
        site.cache.remember(&site.key(), &site.image, SUM, None).unwrap();
        change(&site.image);
        let found = match site.cache.find(&site.key()) {
            Found::Candidate(record, _) => {
                assert_eq!((record.size_bytes, record.sha256), (8, SUM), "{name}");
                "candidate"
            }
            Found::Nothing => "nothing",
            Found::Changed => "changed",
        };
        assert_eq!(found, expected, "{name}");
        assert_eq!(site.records(), usize::from(expected == "candidate"), "{name}");
    }
}

#[test]
fn every_part_of_the_key_counts() {
    let site = Site::new();
    site.cache.remember(&site.key(), &site.image, SUM, None).unwrap();
    let key = |tenant: &str, blobs: &[&str], identity| {
        site.cache.key(tenant, blobs.iter().copied(), identity, false)
    };
    for (name, other) in [
        ("tenant", key("bob", &["sha256:a", "sha256:b"], &IDENTITY)),
        ("order", key("alice", &["sha256:b", "sha256:a"], &IDENTITY)),
        ("number", key("alice", &["sha256:a"], &IDENTITY)),
        ("identity", key("alice", &["sha256:a", "sha256:b"], &[8; 32])),
        (
            "hash tree",
            site.cache.key("alice", ["sha256:a", "sha256:b"], &IDENTITY, true),
        ),
    ] {
        assert!(matches!(site.cache.find(&other), Found::Nothing), "{name}");
    }
    assert!(matches!(site.cache.find(&site.key()), Found::Candidate(..)));
}

#[test]
fn what_a_crash_left_is_no_image_and_goes() {
    let site = Site::new();
    site.cache.remember(&site.key(), &site.image, SUM, None).unwrap();
    let record = site.cache.path(&site.key());
    // A rename that was on disk before the content.
    File::options()
        .write(true)
        .open(&record)
        .unwrap()
        .set_len(10)
        .unwrap();
    let unfinished = record.parent().unwrap().join(".unfinished-x");
    let file = File::create(&unfinished).unwrap();
    file.set_times(FileTimes::new().set_modified(SystemTime::UNIX_EPOCH))
        .unwrap();

    let cache = ImageCache::open(site.workspace.path()).unwrap();
    assert!(matches!(cache.find(&site.key()), Found::Nothing));
    assert!(!record.exists());
    cache.remember(&site.key(), &site.image, SUM, None).unwrap();
    assert!(!unfinished.exists());
    assert!(matches!(cache.find(&site.key()), Found::Candidate(..)));
}

#[test]
fn records_of_a_tenant_are_bounded_and_the_least_used_goes() {
    let site = Site::new();
    let key = |number: u32| {
        site.cache
            .key("alice", [number.to_string().as_str()], &IDENTITY, false)
    };
    for number in 0..u32::try_from(MAX_RECORDS).unwrap() {
        site.cache.remember(&key(number), &site.image, SUM, None).unwrap();
        let then = SystemTime::UNIX_EPOCH + Duration::from_secs(u64::from(number));
        let record = File::options()
            .write(true)
            .open(site.cache.path(&key(number)))
            .unwrap();
        record.set_times(FileTimes::new().set_modified(then)).unwrap();
    }
    assert!(
        matches!(site.cache.find(&key(0)), Found::Candidate(..)),
        "used now"
    );
    site.cache.remember(&site.key(), &site.image, SUM, None).unwrap();
    assert_eq!(site.records(), MAX_RECORDS);
    assert!(matches!(site.cache.find(&key(1)), Found::Nothing));
    assert!(matches!(site.cache.find(&key(0)), Found::Candidate(..)));
}
