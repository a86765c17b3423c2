use super::*;
use std::os::unix::fs::FileExt;

const REGISTRY: &str = "registry.example";
const SOURCE: &str = "registry.example a/b";

fn part_name(digest: &Digest) -> String {
    format!(
        "{}-{}.part",
        digest.hex(),
        &Digest::sha256(REGISTRY.as_bytes()).hex()[..16]
    )
}

fn open(directory: &Path, limit: Option<u64>) -> Arc<Cache> {
    let mut config = ClientConfig::new(directory);
    config.cache_limit_bytes = limit;
    Arc::new(Cache::open(&config).unwrap())
}

fn publish(cache: &Cache, bytes: &[u8]) -> Digest {
    let digest = Digest::sha256(bytes);
    let part = cache.open_part(&digest, REGISTRY).unwrap();
    part.file().write_all_at(bytes, 0).unwrap();
    cache
        .publish(part, &digest, bytes.len() as u64, &[SOURCE.to_owned()])
        .unwrap();
    digest
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<String> = std::fs::read_dir(directory.join("blobs/sha256"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

#[test]
fn a_published_blob_is_found_with_its_sources_by_the_next_process_too() {
    let directory = tempfile::tempdir().unwrap();
    let digest = publish(&open(directory.path(), None), b"hello");
    let cache = open(directory.path(), None);
    let found = cache.find(&digest).unwrap().unwrap();
    assert_eq!(found.size_bytes, 5);
    assert_eq!(found.sources.iter().collect::<Vec<_>>(), [SOURCE]);
    assert!(
        !found.is_verified,
        "another process's blob has not been hashed by this one"
    );
    cache.add_source(&digest, "registry.example c/d").unwrap();
    assert_eq!(cache.find(&digest).unwrap().unwrap().sources.len(), 2);
}

#[test]
fn a_damaged_sources_file_grants_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), None);
    let digest = publish(&cache, b"hello");
    std::fs::write(cache.sources_path(&digest), [0xff, 0xfe]).unwrap();
    assert!(cache.find(&digest).unwrap().unwrap().sources.is_empty());
}

#[test]
fn two_downloads_of_one_digest_do_not_share_a_part() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), None);
    let digest = Digest::sha256(b"hello");
    let first = cache.open_part(&digest, REGISTRY).unwrap();
    let second = cache.open_part(&digest, REGISTRY).unwrap();
    second.file().write_all_at(b"hello", 0).unwrap();
    first.file().write_all_at(b"jello", 0).unwrap();
    cache.publish(second, &digest, 5, &[SOURCE.to_owned()]).unwrap();
    assert_eq!(std::fs::read(cache.path(&digest)).unwrap(), b"hello");
    cache.keep_part(first);
}

#[test]
fn a_part_is_resumed_up_to_its_first_hole() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), None);
    let digest = Digest::sha256(b"whatever");
    let mebibyte = vec![7_u8; 1 << 20];
    let part = cache.open_part(&digest, REGISTRY).unwrap();
    assert_eq!(part.resumable_bytes, 0);
    part.file().write_all_at(&mebibyte, 0).unwrap();
    part.file().write_all_at(&mebibyte, 8 << 20).unwrap();
    cache.keep_part(part);
    let part = cache.open_part(&digest, REGISTRY).unwrap();
    assert!(part.resumable_bytes <= 1 << 20, "{}", part.resumable_bytes);
    part.remove();
    assert_eq!(cache.open_part(&digest, REGISTRY).unwrap().resumable_bytes, 0);
}

#[test]
fn the_start_removes_abandoned_parts_only() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), None);
    let fresh = Digest::sha256(b"fresh");
    let stale = Digest::sha256(b"stale");
    let busy = Digest::sha256(b"busy");
    let fresh_part = cache.open_part(&fresh, REGISTRY).unwrap();
    fresh_part.file().write_all_at(b"x", 0).unwrap();
    cache.keep_part(fresh_part);
    let stale_part = cache.open_part(&stale, REGISTRY).unwrap();
    stale_part.file().write_all_at(b"x", 0).unwrap();
    stale_part
        .file()
        .set_modified(SystemTime::now() - STALE_PART * 2)
        .unwrap();
    cache.keep_part(stale_part);
    let busy_part = cache.open_part(&busy, REGISTRY).unwrap();
    busy_part
        .file()
        .set_modified(SystemTime::now() - STALE_PART * 2)
        .unwrap();
    let second = cache.open_part(&busy, REGISTRY).unwrap();
    drop(second); // As after kill -9: no cleaning up.
    assert_eq!(names(directory.path()).len(), 4);
    let _next = open(directory.path(), None);
    let mut expected = [part_name(&fresh), part_name(&busy)];
    expected.sort();
    assert_eq!(names(directory.path()), expected);
}

#[test]
fn the_least_recently_used_blob_without_a_lease_goes_first() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), Some(250));
    let leased = publish(&cache, &[1; 100]);
    let lease = cache.find(&leased).unwrap().unwrap();
    let old = publish(&cache, &[2; 100]);
    let new = publish(&cache, &[3; 100]);
    let is_there = |digest: &Digest| cache.path(digest).exists();
    assert!(is_there(&leased) && !is_there(&old) && is_there(&new));
    assert_eq!(cache.statistics().bytes, 200);
    assert_eq!(cache.statistics().bytes_in_use, 100);
    drop(lease);
    assert_eq!(cache.evict(Some(0)), 200);
    assert!(names(directory.path()).is_empty());
}

#[test]
fn with_limit_zero_a_blob_goes_when_its_last_user_does() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), Some(0));
    let digest = Digest::sha256(b"hello");
    let lease = cache.lease(&digest);
    publish(&cache, b"hello");
    assert!(cache.path(&digest).exists());
    drop(lease);
    assert!(!cache.path(&digest).exists());
}

#[test]
fn kept_parts_are_bounded_now_and_at_the_next_start() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), Some(1000));
    let digests: Vec<Digest> = (0..5_u8).map(|number| Digest::sha256(&[number])).collect();
    for digest in &digests {
        let part = cache.open_part(digest, REGISTRY).unwrap();
        part.file().write_all_at(&[1; 100], 0).unwrap();
        cache.keep_part(part);
    }
    let mut expected: Vec<String> = digests[3..].iter().map(part_name).collect();
    expected.sort();
    assert_eq!(names(directory.path()), expected);
    let _nothing_kept = open(directory.path(), Some(0));
    assert!(names(directory.path()).is_empty());
}

#[test]
fn a_part_is_not_resumed_from_another_registry() {
    let directory = tempfile::tempdir().unwrap();
    let cache = open(directory.path(), None);
    let digest = Digest::sha256(b"whatever");
    let part = cache.open_part(&digest, REGISTRY).unwrap();
    part.file().write_all_at(&[7; 200_000], 0).unwrap();
    cache.keep_part(part);
    assert_eq!(
        cache.open_part(&digest, "other.example").unwrap().resumable_bytes,
        0
    );
    assert!(cache.open_part(&digest, REGISTRY).unwrap().resumable_bytes > 0);
}
