//! Reads that do not hold each other up, and pages that end.

use std::sync::mpsc;

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn reads_of_one_lane_hold_up_no_other() {
    let fixture = Fixture::new();
    let id = fixture.add("alice").await;
    // More than any lane is wide; those that have begun do not end before they are told to.
    let (began, beginning) = mpsc::channel();
    let mut replays = Vec::new();
    let mut ends = Vec::new();
    for _ in 0..20 {
        let store = fixture.store.clone();
        let began = began.clone();
        let (end, ending) = mpsc::channel::<()>();
        ends.push(end);
        replays.push(tokio::spawn(async move {
            let work = move |_: &Connection| {
                began.send(()).unwrap();
                // An error when the other end is dropped, which is the sign.
                let _ = ending.recv();
                Ok(())
            };
            store.read_in(Lane::Replay, work).await
        }));
    }
    for _ in 0..4 {
        beginning.recv().unwrap();
    }
    assert!(beginning.try_recv().is_err(), "more than the lane is wide");

    assert_eq!(fixture.store.get(id).await.unwrap().unwrap().build.id, id);
    let one = |connection: &Connection| Ok(connection.query_row("SELECT 1", [], |row| row.get::<_, i64>(0))?);
    assert_eq!(fixture.store.read_in(Lane::Health, one).await.unwrap(), 1);

    // Who goes away leaves a read behind that still has its place.
    for replay in &replays {
        replay.abort();
    }
    for replay in replays {
        assert!(replay.await.unwrap_err().is_cancelled());
    }
    let waiting = tokio::spawn({
        let store = fixture.store.clone();
        async move { store.read_in(Lane::Replay, one).await }
    });
    assert_eq!(fixture.store.get(id).await.unwrap().unwrap().build.id, id);
    assert!(!waiting.is_finished());
    ends.clear();
    assert_eq!(waiting.await.unwrap().unwrap(), 1);
}

#[tokio::test]
async fn a_page_of_a_log_ends_by_bytes_as_well_as_by_lines() {
    let fixture = Fixture::new();
    let id = fixture.add("alice").await;
    let lines = [3000, 3000, 3000, 10, 10].map(|length| line(&"x".repeat(length)));
    let change = BuildChange {
        lines: lines.into(),
        ..BuildChange::default()
    };
    fixture.change(id, change).await;
    // The first line says that the build was accepted; two bytes of each are its metadata, `{}`.
    for (name, from, lines, bytes, expected, is_last) in [
        ("all", 1, 6, usize::MAX, 1..=6, true),
        ("lines", 1, 5, usize::MAX, 1..=5, false),
        ("bytes", 2, 64, 6100, 2..=3, false),
        ("to the byte", 2, 64, 6004, 2..=3, false),
        ("a byte less", 2, 64, 6003, 2..=2, false),
        ("one line at least", 2, 64, 1, 2..=2, false),
        ("the rest", 4, 64, 6100, 4..=6, true),
    ] {
        let size = PageSize { lines, bytes };
        let read = move |connection: &Connection| lines_after(connection, id, from, size);
        let page = fixture.store.read(read).await.unwrap();
        let numbers: Vec<_> = page.lines.iter().map(|line| line.sequence).collect();
        assert_eq!(numbers, expected.collect::<Vec<u64>>(), "{name}");
        assert_eq!(page.is_last, is_last, "{name}");
    }
}

#[tokio::test]
async fn a_page_of_builds_ends_before_it_is_too_large_and_all_pages_together_have_all() {
    let fixture = Fixture::new();
    let alice: tenant::TenantId = "alice".parse().unwrap();
    // 200 KiB each, and one that is larger than any page.
    let mut added = Vec::new();
    for number in 0..12 {
        let mut new = new_build("alice");
        let bytes = if number == 4 { 3 << 20 } else { 200 << 10 };
        new.request.labels.insert("label".to_owned(), "x".repeat(bytes));
        added.push(new.id);
        super::insert(&fixture.store, new).await.unwrap();
    }
    let mut sizes = Vec::new();
    let mut listed = Vec::new();
    let mut before = None;
    loop {
        let page = fixture
            .store
            .list(alice.clone(), Vec::new(), before, 200)
            .await
            .unwrap();
        assert_eq!(page.total, 12);
        sizes.push(page.builds.len());
        listed.extend(page.builds.iter().map(|build| build.id));
        before = page.next_before;
        if before.is_none() {
            break;
        }
    }
    added.reverse();
    assert_eq!(listed, added);
    assert_eq!(sizes, [5, 2, 1, 4]);

    let (sums, recent) = fixture.store.window(alice, None, None, 10).await.unwrap();
    assert_eq!((sums.total, recent.len()), (12, 5));
}
