use std::{
    io::Write,
    os::unix::fs::FileExt,
    task::{Context, Waker},
};

use tempfile::TempDir;

use super::*;

const BLOB: &str = "sha256:1111";
const OTHER: &str = "sha256:2222";

fn grant(name: &str) -> Grant {
    Grant::new(name, "registry/repository")
}

fn cache(workspace: &TempDir, max_bytes: u64) -> PackCache {
    PackCache::open(workspace.path(), Some(max_bytes)).unwrap()
}

/// Publishes a layer file with a pack of that many bytes.
fn publish(cache: &PackCache, blob: &str, pack_bytes: u64, by: &Grant) -> LayerFile {
    let unfinished = cache.begin().unwrap();
    let mut file = unfinished.file();
    file.write_all(&vec![7; usize::try_from(pack_bytes).unwrap()])
        .unwrap();
    file.write_all(b"index").unwrap();
    let record = LayerRecord {
        diff_id: [3; 32],
        uncompressed_bytes: 1,
        entries: 2,
        pack_bytes,
        index_bytes: 5,
        index_sha256: hash_index(file, pack_bytes).unwrap(),
    };
    cache.publish(unfinished, blob, record, by).unwrap()
}

fn found(cache: &PackCache, blob: &str, by: &Grant) -> &'static str {
    match cache.lookup(blob, by).unwrap() {
        Lookup::Granted(_) => "granted",
        Lookup::Ungranted(_) => "ungranted",
        Lookup::Missing { damaged: None } => "missing",
        Lookup::Missing { damaged: Some(_) } => "damaged",
    }
}

fn unfinished(workspace: &TempDir) -> usize {
    fs::read_dir(workspace.path().join("cache/packs/tmp"))
        .unwrap()
        .count()
}

#[test]
fn an_entry_serves_its_maker_and_those_who_proved_their_right() {
    let workspace = tempfile::tempdir().unwrap();
    let cache = cache(&workspace, 1 << 20);
    let (alice, bob) = (grant("alice"), grant("bob"));
    assert_eq!(found(&cache, BLOB, &alice), "missing");
    drop(publish(&cache, BLOB, 4096, &alice));
    assert_eq!(found(&cache, BLOB, &alice), "granted");
    assert_eq!(found(&cache, BLOB, &bob), "ungranted");
    cache.add_grant(BLOB, &bob).unwrap();
    assert_eq!(found(&cache, BLOB, &bob), "granted");
    assert_ne!(Grant::new("a", "bc"), Grant::new("ab", "c"));
    // After a restart too.
    assert_eq!(
        found(
            &PackCache::open(workspace.path(), Some(1 << 20)).unwrap(),
            BLOB,
            &bob
        ),
        "granted"
    );
    assert_eq!(unfinished(&workspace), 0);
}

#[test]
fn a_published_layer_file_cannot_be_written_through_what_is_handed_out() {
    let workspace = tempfile::tempdir().unwrap();
    let cache = cache(&workspace, 1 << 20);
    let fresh = publish(&cache, BLOB, 4096, &grant("alice"));
    assert!(fresh.file.write_at(b"x", 0).is_err());
    let Lookup::Granted(found) = cache.lookup(BLOB, &grant("alice")).unwrap() else {
        panic!("it is there")
    };
    assert!(found.file.write_at(b"x", 0).is_err());
    let kept_nowhere = PackCache::open(workspace.path(), None).unwrap();
    assert!(
        publish(&kept_nowhere, BLOB, 4096, &grant("alice"))
            .file
            .write_at(b"x", 0)
            .is_err()
    );
}

#[test]
fn damage_is_found_and_removed() {
    type Damage = fn(&Path);
    let cases: [(&str, Damage); 8] = [
        ("index changed", |entry| {
            let file = File::options().write(true).open(entry.join(LAYER)).unwrap();
            file.write_at(b"X", 4096 + 2).unwrap();
        }),
        ("cut short", |entry| {
            File::options()
                .write(true)
                .open(entry.join(LAYER))
                .unwrap()
                .set_len(4096)
                .unwrap();
        }),
        ("layer file gone", |entry| {
            fs::remove_file(entry.join(LAYER)).unwrap()
        }),
        ("record torn", |entry| {
            fs::write(entry.join(RECORD), b"{\"diff_id\":").unwrap()
        }),
        ("record empty", |entry| {
            fs::write(entry.join(RECORD), b"").unwrap()
        }),
        ("made in an earlier boot and not yet on disk", |entry| {
            fs::remove_file(entry.join(UNSYNCED)).unwrap();
            std::os::unix::fs::symlink("00000000-another-boot", entry.join(UNSYNCED)).unwrap();
        }),
        ("mark torn", |entry| {
            fs::remove_file(entry.join(UNSYNCED)).unwrap();
            std::os::unix::fs::symlink("?", entry.join(UNSYNCED)).unwrap();
        }),
        ("record lies", |entry| {
            let text = fs::read_to_string(entry.join(RECORD)).unwrap();
            fs::write(entry.join(RECORD), text.replace("4096", "18446744073709551615")).unwrap();
        }),
    ];
    for (name, damage) in cases {
        let workspace = tempfile::tempdir().unwrap();
        let cache = cache(&workspace, 1 << 20);
        drop(publish(&cache, BLOB, 4096, &grant("alice")));
        damage(&cache.inner.directory(BLOB));
        assert_eq!(found(&cache, BLOB, &grant("alice")), "damaged", "{name}");
        assert_eq!(found(&cache, BLOB, &grant("alice")), "missing", "{name}");
        drop(publish(&cache, BLOB, 4096, &grant("alice")));
        assert_eq!(found(&cache, BLOB, &grant("alice")), "granted", "{name}");
    }
}

#[test]
fn an_entry_is_marked_until_it_has_had_the_time_to_reach_the_disk() {
    let workspace = tempfile::tempdir().unwrap();
    let cache = cache(&workspace, 1 << 20);
    drop(publish(&cache, BLOB, 4096, &grant("alice")));
    let mark = cache.inner.directory(BLOB).join(UNSYNCED);
    assert_eq!(fs::read_link(&mark).unwrap().to_str(), boot().as_deref());
    cache.trim().unwrap();
    assert!(mark.is_symlink(), "it was made just now");
    cache.inner.settle(Duration::ZERO).unwrap();
    assert!(!mark.is_symlink());
    assert_eq!(found(&cache, BLOB, &grant("alice")), "granted");

    // What another boot made is not for this one to call synced.
    std::os::unix::fs::symlink("another", &mark).unwrap();
    cache.inner.settle(Duration::ZERO).unwrap();
    assert!(mark.is_symlink());
    assert_eq!(found(&cache, BLOB, &grant("alice")), "damaged");
}

#[test]
fn where_boots_have_no_names_entries_have_no_mark() {
    let workspace = tempfile::tempdir().unwrap();
    let mut cache = cache(&workspace, 1 << 20);
    Arc::get_mut(&mut cache.inner).unwrap().boot = None;
    drop(publish(&cache, BLOB, 4096, &grant("alice")));
    assert!(!cache.inner.directory(BLOB).join(UNSYNCED).is_symlink());
    assert_eq!(found(&cache, BLOB, &grant("alice")), "granted");
}

#[test]
fn the_least_recently_used_goes_first_and_what_is_in_use_stays() {
    let workspace = tempfile::tempdir().unwrap();
    let cache = cache(&workspace, 25_000);
    let alice = grant("alice");
    let old = |blob: &str, seconds: u64| {
        let record = File::options()
            .write(true)
            .open(cache.inner.directory(blob).join(RECORD))
            .unwrap();
        record
            .set_modified(SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(seconds))
            .unwrap();
    };
    let in_use = publish(&cache, "sha256:a", 10_000, &alice);
    drop(publish(&cache, "sha256:b", 10_000, &alice));
    old("sha256:a", 1);
    old("sha256:b", 2);
    drop(publish(&cache, "sha256:c", 10_000, &alice));
    // a is older, but in use.
    assert!(matches!(
        cache.lookup("sha256:b", &alice).unwrap(),
        Lookup::Missing { .. }
    ));
    assert_eq!(found(&cache, "sha256:c", &alice), "granted");
    drop(in_use);
    old("sha256:a", 1);
    drop(publish(&cache, "sha256:d", 10_000, &alice));
    assert_eq!(found(&cache, "sha256:a", &alice), "missing");
    assert_eq!(found(&cache, "sha256:c", &alice), "granted");
    assert_eq!(found(&cache, "sha256:d", &alice), "granted");
    assert_eq!(unfinished(&workspace), 0);
}

#[test]
fn an_entry_larger_than_the_cache_lives_as_long_as_its_use() {
    let workspace = tempfile::tempdir().unwrap();
    let cache = cache(&workspace, 10);
    let file = publish(&cache, BLOB, 4096, &grant("alice"));
    assert_eq!(found(&cache, BLOB, &grant("alice")), "granted");
    drop(file);
    cache.trim().unwrap();
    assert_eq!(found(&cache, BLOB, &grant("alice")), "missing");
}

#[test]
fn leaf_hashes_that_nobody_wants_any_more_are_left() {
    let workspace = tempfile::tempdir().unwrap();
    let cache = cache(&workspace, 1 << 30);
    let maker = grant("maker");
    let name = "sha256:0a";
    let unwanted = publish(&cache, name, 8192, &maker);
    assert!(cache.with_leaf_hashes(unwanted, || true).is_err());
    let Lookup::Granted(wanted) = cache.lookup(name, &maker).unwrap() else {
        panic!("the entry stays");
    };
    let wanted = cache.with_leaf_hashes(wanted, || false).unwrap();
    assert_eq!(wanted.leaves.unwrap().blocks(), 2);
}

#[test]
fn a_cache_that_is_off_keeps_nothing() {
    let workspace = tempfile::tempdir().unwrap();
    let cache = PackCache::open(workspace.path(), None).unwrap();
    let file = publish(&cache, BLOB, 4096, &grant("alice"));
    assert_eq!(file.record.pack_bytes, 4096);
    assert_eq!(found(&cache, BLOB, &grant("alice")), "missing");
    drop(file);
    assert_eq!(unfinished(&workspace), 0);
}

#[test]
fn a_start_sweeps_what_a_crash_left_but_not_what_is_being_made() {
    let workspace = tempfile::tempdir().unwrap();
    let first = cache(&workspace, 1 << 20);
    let in_work = first.begin().unwrap();
    let crashed = workspace.path().join("cache/packs/tmp/layer-crashed");
    fs::create_dir(&crashed).unwrap();
    fs::write(crashed.join(LAYER), b"half").unwrap();
    let old_version = workspace.path().join("cache/packs/v0-0/sha256-1111");
    fs::create_dir_all(&old_version).unwrap();

    let _second = cache(&workspace, 1 << 20);
    assert!(!crashed.exists() && !old_version.exists());
    assert!(in_work.directory.path().exists());
}

#[test]
fn two_parties_that_make_the_same_entry_both_get_one() {
    let workspace = tempfile::tempdir().unwrap();
    let cache = cache(&workspace, 1 << 20);
    let one = publish(&cache, BLOB, 4096, &grant("alice"));
    let other = publish(&cache, BLOB, 4096, &grant("bob"));
    assert_eq!(one.record, other.record);
    drop((one, other));
    assert_eq!(found(&cache, BLOB, &grant("alice")), "granted");
    assert_eq!(found(&cache, BLOB, &grant("bob")), "granted");
    assert_eq!(found(&cache, OTHER, &grant("bob")), "missing");
    assert_eq!(unfinished(&workspace), 0);
}

#[tokio::test]
async fn one_party_makes_an_entry_once_and_does_not_wait_for_another() {
    let workspace = tempfile::tempdir().unwrap();
    let cache = cache(&workspace, 1 << 20);
    let held = cache.queue("alice", BLOB).await;
    let _others = (cache.queue("bob", BLOB).await, cache.queue("alice", OTHER).await);
    let mut waiting = std::pin::pin!(cache.queue("alice", BLOB));
    let mut context = Context::from_waker(Waker::noop());
    assert!(waiting.as_mut().poll(&mut context).is_pending());
    drop(held);
    drop(waiting.await);
}
