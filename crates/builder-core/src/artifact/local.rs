//! A directory of this machine.

use std::{
    collections::HashMap,
    fs::{self, File, Metadata},
    io,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
    time::SystemTime,
};

use futures_util::future::{BoxFuture, FutureExt};

use tokio_util::sync::CancellationToken;

use super::{
    ArtifactError, ArtifactKey, ArtifactStore, IMAGE_ENDING, Published, StagedImage, StoredArtifact, build_of,
};
use crate::{
    build::BuildId,
    pipeline::{machine_path, metadata_path},
};

/// Bytes of a block in `st_blocks` (stat(2)).
const STAT_BLOCK_BYTES: u64 = 512;

/// Artifacts below a directory.
///
/// The pipeline writes an image under a hidden name in its final directory and renames it, so that publishing moves no
/// bytes: the staging path is the place.
#[derive(Clone, Debug)]
pub struct LocalStore {
    directory: PathBuf,
}

impl LocalStore {
    /// Keeps artifacts below `directory`, which exists.
    #[must_use]
    pub const fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    fn image(&self, key: &ArtifactKey) -> PathBuf {
        self.directory
            .join(key.tenant.as_str())
            .join(format!("{}{IMAGE_ENDING}", key.build))
    }
}

impl ArtifactStore for LocalStore {
    fn backend(&self) -> assetclient::StorageBackend {
        assetclient::StorageBackend::Local
    }

    fn location(&self, key: &ArtifactKey) -> PathBuf {
        self.image(key)
    }

    fn local_path(&self, key: &ArtifactKey) -> Option<PathBuf> {
        Some(self.location(key))
    }

    fn staging_path(&self, key: &ArtifactKey) -> PathBuf {
        self.image(key)
    }

    fn prepare<'a>(&'a self, key: &'a ArtifactKey) -> BoxFuture<'a, Result<(), ArtifactError>> {
        let directory = self.directory.join(key.tenant.as_str());
        blocking("make the tenant's directory", move || {
            fs::DirBuilder::new()
                .recursive(true)
                .mode(0o750)
                .create(directory)
        })
        .boxed()
    }

    fn publish<'a>(
        &'a self,
        key: &'a ArtifactKey,
        staged: &'a StagedImage,
        stop: &'a CancellationToken,
    ) -> BoxFuture<'a, Result<Published, ArtifactError>> {
        let image = self.image(key);
        let staged = staged.clone();
        // Where the pipeline wrote the image into its place, it is there already: a stop comes too late.
        if staged.image != image && stop.is_cancelled() {
            return async { Err(ArtifactError::stopped("publish the image")) }.boxed();
        }
        blocking("publish the image", move || {
            let (metadata, machine) = (metadata_path(&image), machine_path(&image));
            if staged.image != image {
                // The sidecars first: an image that is there has them.
                fs::rename(&staged.metadata, &metadata)?;
                fs::rename(&staged.machine, &machine)?;
                fs::rename(&staged.image, &image)?;
                sync_directory(&image)?;
            }
            let mut stored_bytes = 0;
            for path in [image, metadata, machine] {
                stored_bytes += allocated(&fs::metadata(path)?);
            }
            Ok(Published { stored_bytes })
        })
        .boxed()
    }

    fn remove<'a>(&'a self, key: &'a ArtifactKey) -> BoxFuture<'a, Result<(), ArtifactError>> {
        let image = self.image(key);
        let build = key.build;
        blocking("remove the image", move || remove(&image, build)).boxed()
    }

    fn list(&self) -> BoxFuture<'_, Result<Vec<StoredArtifact>, ArtifactError>> {
        let directory = self.directory.clone();
        blocking("list the images", move || list(&directory)).boxed()
    }

    fn last_read<'a>(&'a self, key: &'a ArtifactKey) -> BoxFuture<'a, Option<SystemTime>> {
        let image = self.image(key);
        async move {
            // Mounted with relatime, as is usual: the first reading after the writing shows, then one a day.
            blocking("look at the image", move || fs::metadata(image)?.accessed())
                .await
                .ok()
        }
        .boxed()
    }

    fn check(&self) -> BoxFuture<'_, Result<(), ArtifactError>> {
        let directory = self.directory.clone();
        blocking("write to the output directory", move || {
            fs::create_dir_all(&directory)?;
            tempfile::tempfile_in(directory).map(drop)
        })
        .boxed()
    }
}

/// The image last: while it is there, the build's files are known by it.
fn remove(image: &Path, build: BuildId) -> io::Result<()> {
    let directory = image.parent().unwrap_or(image);
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    };
    for entry in entries {
        let path = entry?.path();
        if path != image && build_of(&path) == Some(build) {
            absent_is_fine(fs::remove_file(&path))?;
        }
    }
    absent_is_fine(fs::remove_file(image))?;
    // The directory stays: another build of the tenant may be about to write into it.
    sync_directory(image)
}

fn list(directory: &Path) -> io::Result<Vec<StoredArtifact>> {
    let mut found: HashMap<ArtifactKey, u64> = HashMap::new();
    for tenant in fs::read_dir(directory)? {
        let tenant = tenant?;
        let name = tenant.file_name();
        let Some(id) = name.to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        // Not through symbolic links: what is behind one is not ours.
        if !tenant.file_type()?.is_dir() {
            continue;
        }
        let entries = match fs::read_dir(tenant.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let Some(build) = build_of(&entry.path()) else {
                continue;
            };
            let metadata = match entry.metadata() {
                Ok(metadata) if metadata.is_file() => metadata,
                Ok(_) => continue,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error),
            };
            let key = ArtifactKey {
                tenant: tenant::TenantId::clone(&id),
                build,
            };
            *found.entry(key).or_default() += allocated(&metadata);
        }
    }
    let artifact = |(key, stored_bytes)| StoredArtifact { key, stored_bytes };
    Ok(found.into_iter().map(artifact).collect())
}

fn allocated(metadata: &Metadata) -> u64 {
    metadata.blocks() * STAT_BLOCK_BYTES
}

fn sync_directory(image: &Path) -> io::Result<()> {
    match image.parent() {
        Some(directory) => absent_is_fine(File::open(directory).and_then(|directory| directory.sync_all())),
        None => Ok(()),
    }
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

async fn blocking<T: Send + 'static>(
    action: &'static str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> Result<T, ArtifactError> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| ArtifactError::new(action, error))?
        .map_err(|error| ArtifactError::new(action, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{artifact::ArtifactFault, pipeline::UNFINISHED_MARK};

    fn key(tenant: &str) -> ArtifactKey {
        ArtifactKey {
            tenant: tenant.parse().unwrap(),
            build: BuildId::generate(),
        }
    }

    fn write(path: &Path) {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, [7; 5000]).unwrap();
    }

    #[tokio::test]
    async fn an_artifact_is_listed_with_all_its_files_and_removed_with_them() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::new(directory.path().to_owned());
        let (mine, other) = (key("alice"), key("alice"));
        let image = store.location(&mine);
        let unfinished = image.with_file_name(format!(".{}.ext4{UNFINISHED_MARK}ab12", mine.build));
        for path in [
            &image,
            &metadata_path(&image),
            &machine_path(&image),
            &unfinished,
            &store.location(&other),
        ] {
            write(path);
        }
        let listed = store.list().await.unwrap();
        let bytes = |key: &ArtifactKey| {
            let found = listed.iter().find(|stored| stored.key == *key);
            found.unwrap().stored_bytes
        };
        assert_eq!((listed.len(), bytes(&mine)), (2, 4 * bytes(&other)));

        store.remove(&mine).await.unwrap();
        store.remove(&mine).await.unwrap();
        assert!(!image.exists() && !unfinished.exists() && store.location(&other).exists());
        store.remove(&other).await.unwrap();
        assert_eq!(fs::read_dir(directory.path().join("alice")).unwrap().count(), 0);
    }

    #[tokio::test]
    async fn what_no_build_made_is_neither_listed_nor_removed() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::new(directory.path().join("images"));
        let mine = key("alice");
        let image = store.location(&mine);
        write(&image);
        let id = mine.build;
        let strangers = [
            image.with_file_name("notes.ext4"),
            image.with_file_name(format!("{id}.txt")),
            image.with_file_name(format!(".{id}.ext4")),
            image.with_file_name(format!("{id}.ext4.bak")),
            directory.path().join("images").join(format!("{id}.ext4")),
        ];
        for stranger in &strangers {
            write(stranger);
        }
        // A directory that is called as a tenant could be, but lies elsewhere.
        let outside = directory.path().join("outside");
        write(&outside.join(format!("{id}.ext4")));
        std::os::unix::fs::symlink(&outside, directory.path().join("images/bob")).unwrap();

        let listed = store.list().await.unwrap();
        assert_eq!(
            listed.iter().map(|stored| &stored.key).collect::<Vec<_>>(),
            [&mine]
        );
        store.remove(&mine).await.unwrap();
        assert!(strangers.iter().all(|stranger| stranger.exists()));
        assert!(outside.join(format!("{id}.ext4")).exists());
    }

    #[tokio::test]
    async fn a_staged_image_elsewhere_is_moved_with_its_metadata() {
        let directory = tempfile::tempdir().unwrap();
        let store = LocalStore::new(directory.path().join("images"));
        let mine = key("alice");
        store.prepare(&mine).await.unwrap();
        let image = directory.path().join("staged.ext4");
        let staged = StagedImage {
            metadata: metadata_path(&image),
            machine: machine_path(&image),
            image,
            checksum: String::new(),
        };
        write(&staged.image);
        write(&staged.metadata);
        write(&staged.machine);
        let stop = CancellationToken::new();
        stop.cancel();
        let stopped = store.publish(&mine, &staged, &stop).await.unwrap_err();
        assert_eq!(stopped.fault, ArtifactFault::Stopped);
        assert!(staged.image.exists() && !store.location(&mine).exists());
        let stop = CancellationToken::new();
        let published = store.publish(&mine, &staged, &stop).await.unwrap();
        assert!(published.stored_bytes >= 3 * 5000);
        let place = store.location(&mine);
        assert!(place.exists() && metadata_path(&place).exists() && machine_path(&place).exists());
        assert!(!staged.image.exists() && !staged.metadata.exists() && !staged.machine.exists());
        let absent = StagedImage {
            image: directory.path().join("absent.ext4"),
            ..staged
        };
        assert!(store.publish(&key("bob"), &absent, &stop).await.is_err());
    }
}
