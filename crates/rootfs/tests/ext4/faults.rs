//! A sink that fails, and packs that are not what they should be.

use std::{
    io,
    sync::atomic::{AtomicUsize, Ordering},
};

use rootfs::{
    ext4::{ImageSink, Native, Plan},
    image::{ImageBackend as _, ImageError},
    pack::{Pack, Packs},
};

use crate::{
    basics::everything,
    support::{Image, all_kinds, read_only},
};

/// Counts calls and fails from one of them on.
struct FailingSink {
    calls: AtomicUsize,
    fails_at: usize,
    kind: io::ErrorKind,
}

impl FailingSink {
    fn call(&self) -> io::Result<()> {
        if self.calls.fetch_add(1, Ordering::Relaxed) >= self.fails_at {
            Err(self.kind.into())
        } else {
            Ok(())
        }
    }
}

impl ImageSink for FailingSink {
    fn set_len(&self, _: u64) -> io::Result<()> {
        self.call()
    }

    fn write_at(&self, _: &[u8], _: u64) -> io::Result<()> {
        self.call()
    }
}

fn emit(
    plan: &Plan<'_>,
    packs: &Packs,
    fails_at: usize,
    kind: io::ErrorKind,
) -> (Result<(), ImageError>, usize) {
    let sink = FailingSink {
        calls: AtomicUsize::new(0),
        fails_at,
        kind,
    };
    let result = plan.emit(packs, &sink);
    (result.map(|_| ()), sink.calls.into_inner())
}

#[test]
fn every_write_that_fails_is_reported_and_is_the_last() {
    for (name, options) in all_kinds() {
        let fixture = everything();
        let packs = fixture.packs();
        let plan = fixture.plan(&options);
        let (result, calls) = emit(&plan, &packs, usize::MAX, io::ErrorKind::Other);
        result.unwrap();
        assert!(calls >= 5, "{name}: {calls} calls");
        for fails_at in 0..calls {
            for kind in [io::ErrorKind::StorageFull, io::ErrorKind::Other] {
                let (result, made) = emit(&plan, &packs, fails_at, kind);
                match result {
                    Err(ImageError::Io { source, .. }) => assert_eq!(source.kind(), kind),
                    other => panic!("{name}: call {fails_at}: {other:?}"),
                }
                assert_eq!(made, fails_at + 1, "{name}: it went on after an error");
            }
        }
    }
}

#[test]
fn a_missing_pack_is_noticed_before_the_first_write() {
    let fixture = everything();
    let plan = fixture.plan(&read_only());
    let (result, calls) = emit(&plan, &Packs::new(), usize::MAX, io::ErrorKind::Other);
    assert!(
        matches!(result, Err(ImageError::MissingPack { .. })),
        "{result:?}"
    );
    assert_eq!(calls, 0);
}

#[test]
fn a_pack_that_is_too_short_is_an_error() {
    let fixture = everything();
    let mut packs = Packs::new();
    packs.push(Pack::Memory(vec![0; 4096].into()));
    packs.push(Pack::File(std::sync::Arc::new(tempfile::tempfile().unwrap())));
    let image = Image::create();
    match Native.write(&fixture.tree, &packs, &read_only(), &image.file) {
        Err(ImageError::Io { source, .. }) => assert_eq!(source.kind(), io::ErrorKind::UnexpectedEof),
        other => panic!("{other:?}"),
    }
}

/// Remembers where something was written.
#[derive(Default)]
struct RecordingSink {
    writes: std::sync::Mutex<Vec<(u64, u64)>>,
    length: std::sync::Mutex<u64>,
}

impl ImageSink for RecordingSink {
    fn set_len(&self, length: u64) -> io::Result<()> {
        *self.length.lock().unwrap() = length;
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.writes
            .lock()
            .unwrap()
            .push((offset, offset + bytes.len() as u64));
        Ok(())
    }
}

#[test]
fn nothing_is_written_twice_or_outside_the_image() {
    for (name, options) in all_kinds() {
        let fixture = everything();
        let sink = RecordingSink::default();
        let plan = fixture.plan(&options);
        plan.emit_metadata(&sink).unwrap();
        let metadata = sink.writes.lock().unwrap().clone();
        assert!(
            metadata.is_sorted(),
            "{name}: metadata is written in ascending order: {metadata:?}"
        );
        plan.emit(&fixture.packs(), &sink).unwrap();
        let mut writes = sink.writes.into_inner().unwrap().split_off(metadata.len());
        writes.sort_unstable();
        for pair in writes.windows(2) {
            assert!(pair[0].1 <= pair[1].0, "{name}: {pair:?} overlap");
        }
        assert_eq!(sink.length.into_inner().unwrap(), plan.size_bytes());
        assert!(writes.last().unwrap().1 <= plan.size_bytes());
    }
}
