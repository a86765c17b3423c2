//! zstd, all frames of it (RFC 8878).

use std::io::Read;

use zstd::stream::raw::{DParameter, Decoder, Operation};

use super::{Compression, Source};
use crate::layer::LayerError;

/// Frames may ask for a window of 2^27 bytes (128 MiB, `zstd --long`), and so for as much memory, but not for more.
const WINDOW_LOG_MAX: u32 = 27;

/// The state of decoding between two reads.
pub(super) struct Zstd {
    decoder: Decoder<'static>,
    /// Whether a frame has begun and not ended.
    in_frame: bool,
}

impl Zstd {
    pub(super) fn new() -> Result<Self, LayerError> {
        let decoder = Decoder::new().and_then(|mut decoder| {
            decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
            Ok(decoder)
        });
        Ok(Self {
            decoder: decoder.map_err(LayerError::Input)?,
            in_frame: false,
        })
    }

    pub(super) fn read<R: Read>(
        &mut self,
        source: &mut Source<R>,
        output: &mut [u8],
    ) -> Result<usize, LayerError> {
        loop {
            if self.in_frame || !source.available().is_empty() {
                // libzstd passes over skippable frames and starts the next frame by itself.
                let status = self
                    .decoder
                    .run_on_buffers(source.available(), output)
                    .map_err(|error| LayerError::CorruptCompression {
                        compression: Compression::Zstd,
                        offset: source.consumed_bytes(),
                        reason: error.to_string(),
                    })?;
                source.consume(status.bytes_read);
                self.in_frame = status.remaining > 0;
                if status.bytes_written > 0 {
                    return Ok(status.bytes_written);
                }
            }
            if source.fill()?.is_empty() {
                if self.in_frame {
                    return Err(LayerError::TruncatedCompression {
                        compression: Compression::Zstd,
                        offset: source.consumed_bytes(),
                    });
                }
                return Ok(0);
            }
        }
    }
}
