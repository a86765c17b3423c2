//! Waiting for what another thread or process does to files.

use std::fs::File;
use std::io::ErrorKind;
use std::mem::MaybeUninit;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{self, CreateFlags, ReadFlags, WatchFlags};

use super::LIMIT;

/// Waits until the condition holds; it is looked at again whenever something happens in the directory.
pub async fn until(directory: &Path, mut condition: impl FnMut() -> bool) {
    let watch = inotify::init(CreateFlags::CLOEXEC).unwrap();
    let happens = WatchFlags::CREATE
        | WatchFlags::DELETE
        | WatchFlags::MODIFY
        | WatchFlags::MOVE
        | WatchFlags::CLOSE_WRITE
        | WatchFlags::DELETE_SELF;
    inotify::add_watch(&watch, directory, happens).unwrap();
    let (happened, mut happenings) = tokio::sync::mpsc::unbounded_channel();
    // A thread of its own: the last read may have nothing to come back for before the directory goes.
    std::thread::spawn(move || {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(watch, &mut buffer);
        while let Ok(event) = reader.next() {
            let is_gone = event.events().contains(ReadFlags::DELETE_SELF);
            if happened.send(()).is_err() || is_gone {
                break;
            }
        }
    });
    while !condition() {
        let happened = tokio::time::timeout(LIMIT, happenings.recv()).await;
        assert!(
            matches!(happened, Ok(Some(()))),
            "nothing more happens in {}",
            directory.display()
        );
    }
}

/// Waits until nobody writes to this part of a download any more.
pub async fn until_unlocked(part: PathBuf) {
    tokio::task::spawn_blocking(move || match File::open(&part) {
        // It has become the blob, or was removed.
        Err(error) if error.kind() == ErrorKind::NotFound => {}
        file => file.unwrap().lock().unwrap(),
    })
    .await
    .unwrap();
}
