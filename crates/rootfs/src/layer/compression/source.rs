//! The input, buffered.

use std::io::{self, Read};

use crate::layer::LayerError;

/// One read asks for so much. Inflating a buffer of this size takes a fraction of a millisecond, so larger ones gain
/// nothing, and smaller ones cost system calls.
const BUFFER_BYTES: usize = 256 * 1024;

/// A reader with a buffer whose content can be looked at before it is used.
pub(super) struct Source<R> {
    reader: R,
    buffer: Box<[u8]>,
    start: usize,
    end: usize,
    consumed_bytes: u64,
}

impl<R: Read> Source<R> {
    pub(super) fn new(reader: R) -> Self {
        Self {
            reader,
            buffer: vec![0; BUFFER_BYTES].into_boxed_slice(),
            start: 0,
            end: 0,
            consumed_bytes: 0,
        }
    }

    /// What is in the buffer. Empty does not mean the end.
    pub(super) fn available(&self) -> &[u8] {
        &self.buffer[self.start..self.end]
    }

    /// What is in the buffer, after one read if it was empty. Empty means the end.
    pub(super) fn fill(&mut self) -> Result<&[u8], LayerError> {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
            self.end = read(&mut self.reader, &mut self.buffer)?;
        }
        Ok(self.available())
    }

    /// At least `wanted` bytes of the start of the input, fewer only where it ends before. Only before anything was
    /// consumed.
    pub(super) fn peek(&mut self, wanted: usize) -> Result<&[u8], LayerError> {
        debug_assert_eq!(self.start, 0);
        while self.end < wanted {
            match read(&mut self.reader, &mut self.buffer[self.end..])? {
                0 => break,
                count => self.end += count,
            }
        }
        Ok(self.available())
    }

    pub(super) fn consume(&mut self, count: usize) {
        self.start += count;
        self.consumed_bytes += count as u64;
        debug_assert!(self.start <= self.end);
    }

    /// The next byte, if there is one.
    pub(super) fn byte(&mut self) -> Result<Option<u8>, LayerError> {
        let byte = self.fill()?.first().copied();
        if byte.is_some() {
            self.consume(1);
        }
        Ok(byte)
    }

    /// Reads past the buffer where it is empty: plain archives are not copied twice.
    pub(super) fn read(&mut self, output: &mut [u8]) -> Result<usize, LayerError> {
        if self.start == self.end {
            let count = read(&mut self.reader, output)?;
            self.consumed_bytes += count as u64;
            return Ok(count);
        }
        let count = output.len().min(self.end - self.start);
        output[..count].copy_from_slice(&self.available()[..count]);
        self.consume(count);
        Ok(count)
    }

    pub(super) fn consumed_bytes(&self) -> u64 {
        self.consumed_bytes
    }
}

fn read(reader: &mut impl Read, buffer: &mut [u8]) -> Result<usize, LayerError> {
    loop {
        match reader.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A `Read` that claims more than the buffer holds is broken; an error is better than a panic in a slice.
            Ok(count) if count > buffer.len() => {
                return Err(LayerError::Input(io::Error::other(
                    "the reader returned more than was asked for",
                )));
            }
            result => return result.map_err(LayerError::Input),
        }
    }
}
