//! Databases of earlier versions.

use super::*;

/// A file as version 2 left it: a completed build, a failed one, one that was running and one that waited.
const VERSION_2: &str = include_str!("../fixtures/version-2.sql");

#[tokio::test]
async fn a_database_of_version_2_is_brought_to_this_one_with_everything_in_it() {
    let directory = tempfile::tempdir().unwrap();
    let connection = Connection::open(directory.path().join("builderd.db")).unwrap();
    connection.execute_batch(VERSION_2).unwrap();
    drop(connection);
    let store = Store::open(directory.path()).unwrap();
    let version = store
        .read(|connection| Ok(connection.query_row("PRAGMA user_version", [], |row| row.get::<_, i64>(0))?));
    assert_eq!(version.await.unwrap(), schema::VERSION);

    let alice: tenant::TenantId = "alice".parse().unwrap();
    let listed = store.list(alice.clone(), Vec::new(), None, 10).await.unwrap();
    let states: Vec<_> = listed.builds.iter().map(|build| build.state).collect();
    assert_eq!(
        states,
        [BuildState::Pending, BuildState::Extracting, BuildState::Completed]
    );
    let completed = &listed.builds[2];
    assert_eq!(completed.asset_id.as_deref(), Some("asset-7"));
    assert_eq!(completed.rootfs_size_bytes, Some(301_989_888));
    assert_eq!(completed.image_removed_at, None);
    let id = completed.id;
    let lines = store
        .read(move |connection| lines_after(connection, id, 1, page(10)))
        .await
        .unwrap()
        .lines;
    assert_eq!(lines.len(), 3);
    assert_eq!(store.unfinished().await.unwrap().len(), 2);

    // What the new columns say of old rows.
    assert_eq!(store.stored_bytes().await.unwrap(), 12_345_678);
    let (tier, usage) = store.usage(alice, completed.completed_at.unwrap()).await.unwrap();
    assert_eq!(tier.map(|record| record.tier), Some(tenant::Tier::Pro));
    assert_eq!(usage.storage_bytes, 12_345_678);
    assert_eq!(usage.cpu_time_today, Duration::from_millis(1_500));
    assert_eq!(store.born_at().await.unwrap(), completed.created_at);
    let accounts = store.read(|connection| {
        let count = |table: &str| {
            connection.query_row(&format!("SELECT COUNT(*) FROM {table}"), [], |row| {
                row.get::<_, i64>(0)
            })
        };
        Ok((
            count("admissions")?,
            count("charges")?,
            count("stored_images")?,
            count("ledger")?,
        ))
    });
    assert_eq!(accounts.await.unwrap(), (2, 3, 1, 0));
}

#[tokio::test]
async fn a_refused_database_of_a_later_version_is_left_as_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("builderd.db");
    let connection = Connection::open(&path).unwrap();
    connection.execute_batch(VERSION_2).unwrap();
    connection.pragma_update(None, "user_version", 1_000).unwrap();
    drop(connection);
    let error = Store::open(directory.path()).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!(
            "the database has schema version 1000, and this builderd knows versions up to {}: use a later one",
            schema::VERSION
        )
    );
    let connection = Connection::open(&path).unwrap();
    let builds: i64 = connection
        .query_row("SELECT COUNT(*) FROM builds", [], |row| row.get(0))
        .unwrap();
    let version: i64 = connection
        .query_row("PRAGMA user_version", [], |row| row.get(0))
        .unwrap();
    assert_eq!((builds, version), (4, 1_000));
}
