//! The index job: a layer's bytes become a pack with its index behind it.

use std::io::{BufWriter, Read, Write};

use rootfs::layer::{LayerError, LayerErrorKind, LayerLimits, index_layer};

use super::{
    child::{Events, Failure, Verdict},
    descriptors::take,
    protocol::{FailureKind, IndexJob, WorkerEvent},
};

/// Smaller writes are collected up to this size. Those of bodies are not, and pass without another copy.
const WRITE_BUFFER_BYTES: usize = 128 << 10;

pub(super) fn run<W: Write>(
    job: &IndexJob,
    verdict: &Verdict,
    events: &mut Events<W>,
) -> Result<(), Failure> {
    let opening = |error| Failure::from_io("take over a descriptor", &error);
    let input = take(job.input).map_err(opening)?.take(job.input_bytes);
    let output = take(job.output).map_err(opening)?;
    let mut limits = LayerLimits::default();
    limits.max_output_bytes = limits.max_output_bytes.min(job.max_output_bytes);
    limits.max_index_bytes = limits.max_index_bytes.min(job.max_index_bytes);

    let mut layer_file = Counted {
        inner: BufWriter::with_capacity(WRITE_BUFFER_BYTES, output),
        bytes: 0,
        #[cfg(feature = "planted-hole")]
        taken_over: false,
    };
    let index = index_layer(input, &mut layer_file, &limits).map_err(|error| explain(&error))?;
    layer_file
        .flush()
        .map_err(|error| Failure::from_io("write the pack", &error))?;
    let pack_bytes = layer_file.bytes;
    #[cfg(feature = "planted-hole")]
    {
        // The index stays readable, so that the parent takes the layer file for a good one.
        layer_file.taken_over = false;
    }

    events.send(&WorkerEvent::Parsed)?;
    verdict.wait()?;

    index
        .write_to(&mut layer_file)
        .map_err(|error| Failure::chained(FailureKind::Internal, &error))?;
    layer_file
        .flush()
        .map_err(|error| Failure::from_io("write the index", &error))?;
    events.send(&WorkerEvent::Indexed {
        pack_bytes,
        index_bytes: layer_file.bytes - pack_bytes,
    })
}

fn explain(error: &LayerError) -> Failure {
    match error {
        LayerError::Input(source) => Failure::from_io("read the layer", source),
        LayerError::Pack(source) => Failure::from_io("write the pack", source),
        error => {
            let kind = match error.kind() {
                LayerErrorKind::Unsupported => FailureKind::Unsupported,
                LayerErrorKind::Limit => FailureKind::Limit,
                _ => FailureKind::CorruptLayer,
            };
            Failure::chained(kind, error)
        }
    }
}

struct Counted<W> {
    inner: W,
    bytes: u64,
    #[cfg(feature = "planted-hole")]
    taken_over: bool,
}

impl<W: Write> Write for Counted<W> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        #[cfg(feature = "planted-hole")]
        {
            self.taken_over |= super::hole::fall_in(buffer);
            if self.taken_over && buffer.len() < 64 {
                self.inner.write_all(&vec![b'!'; buffer.len()])?;
                self.bytes += buffer.len() as u64;
                return Ok(buffer.len());
            }
        }
        let written = self.inner.write(buffer)?;
        self.bytes += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
