//! What the fuzz target in `fuzz/` calls; `cargo test` runs the same over its corpus.

use std::io;

use super::elf::{self, NoPlan, ReadAt};

struct Bytes<'a>(&'a [u8]);

impl ReadAt for Bytes<'_> {
    fn size(&self) -> u64 {
        self.0.len() as u64
    }

    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok();
        let found = start.and_then(|start| self.0.get(start..start.checked_add(buffer.len())?));
        buffer.copy_from_slice(found.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}

/// A program or library, or what claims to be one: a plan makes it smaller, reads what is there and writes into the
/// result, in order.
///
/// # Panics
/// When it does not.
pub fn program(bytes: &[u8]) {
    let plan = match elf::plan(&Bytes(bytes)) {
        Ok(plan) => plan,
        // All of it can be read, so that a failed read is a read beyond the end.
        Err(NoPlan::Io(error)) => panic!("{error}"),
        Err(NoPlan::Left(_)) => return,
    };
    let old_size = bytes.len() as u64;
    assert!(plan.size < old_size, "{} of {old_size}", plan.size);
    let mut written = 0;
    for piece in &plan.pieces {
        assert!(piece.to >= written, "{piece:?}");
        written = piece.to.checked_add(piece.length).expect("within the file");
        assert!(written <= plan.size, "{piece:?}");
        assert!(
            piece
                .from
                .checked_add(piece.length)
                .is_some_and(|end| end <= old_size),
            "{piece:?}"
        );
    }
    let mut patched = 0;
    for patch in &plan.patches {
        assert!(patch.at >= patched, "{patch:?}");
        patched = patch.at + patch.bytes.len() as u64;
        assert!(patched <= plan.size, "{patch:?}");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_input_of_the_corpus_is_survived() {
        let corpus = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/program");
        let mut count = 0;
        for entry in std::fs::read_dir(corpus).unwrap() {
            let bytes = std::fs::read(entry.unwrap().path()).unwrap();
            super::program(&bytes);
            for at in 0..bytes.len() {
                // Every cut, and every byte with one of its bits and with all of them turned.
                super::program(&bytes[..at]);
                let mut changed = bytes.clone();
                for mask in [1 << (at % 8), 0xff] {
                    changed[at] = bytes[at] ^ mask;
                    super::program(&changed);
                }
            }
            count += 1;
        }
        assert!(count > 5, "the corpus is nearly empty");
    }
}
