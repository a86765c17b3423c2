//! Measures [`index_layer`] on a gzip layer, next to what is the least it has to do: inflating and hashing.
//!
//! ```sh
//! cargo run --release -p rootfs --example measure_layer -- layer.tar.gz
//! ```

use std::{
    env, fs,
    io::{self, Read, Write},
    time::{Duration, Instant},
};

use anyhow::Context;
use flate2::read::MultiGzDecoder;
use rootfs::layer::{LayerLimits, index_layer};
use sha2::{Digest, Sha256};

/// The best of so many runs counts: everything that disturbs a run makes it slower.
const RUNS: u32 = 5;

/// What one way of reading the layer does with its bytes.
type Reading<'a> = (&'a str, Box<dyn Fn(&[u8]) -> anyhow::Result<u64> + 'a>);

fn main() -> anyhow::Result<()> {
    let path = env::args_os()
        .nth(1)
        .context("usage: measure_layer LAYER.tar.gz")?;
    // From memory, so that no disk is measured.
    let layer = fs::read(&path).with_context(|| format!("failed to read {}", path.display()))?;
    let readings: [Reading<'_>; 3] = [
        ("inflate", Box::new(|layer| inflate(layer, |_| ()))),
        (
            "inflate, then SHA-256",
            Box::new(|layer| {
                let mut digest = Sha256::new();
                let count = inflate(layer, |bytes| digest.update(bytes))?;
                std::hint::black_box(digest.finalize());
                Ok(count)
            }),
        ),
        (
            "index_layer",
            Box::new(|layer| {
                let index = index_layer(layer, &mut io::sink(), &LayerLimits::default())?;
                Ok(index.uncompressed_size_bytes)
            }),
        ),
    ];
    let mut output = io::stdout().lock();
    for (name, read) in readings {
        let (mut best, mut least_work) = (Duration::MAX, Duration::MAX);
        let mut count = 0;
        for _ in 0..RUNS {
            let (start, work_before) = (Instant::now(), processor_time()?);
            count = read(&layer)?;
            best = best.min(start.elapsed());
            least_work = least_work.min(processor_time()?.saturating_sub(work_before));
        }
        let rate = |time: Duration| u128::from(count) * 1000 / time.as_nanos().max(1);
        writeln!(
            output,
            "{name:24} {:>6} MB/s; {:>6} MB for each second of processor time ({count} bytes, best of {RUNS})",
            rate(best),
            rate(least_work)
        )?;
    }
    Ok(())
}

/// What all threads together have used so far: comparable even on a busy machine. In steps of 10 ms, from proc(5).
fn processor_time() -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/self/stat")?;
    // The second field, the program's name, ends with the last parenthesis; user and system time are fields 14 and 15.
    let (_, fields) = stat.rsplit_once(") ").context("/proc/self/stat has no name")?;
    let ticks = fields
        .split(' ')
        .skip(11)
        .take(2)
        .map(str::parse::<u64>)
        .sum::<Result<u64, _>>()?;
    Ok(Duration::from_millis(ticks * 10))
}

fn inflate(layer: &[u8], mut take: impl FnMut(&[u8])) -> anyhow::Result<u64> {
    let mut decoder = MultiGzDecoder::new(layer);
    let mut buffer = vec![0; 256 * 1024];
    let mut total = 0;
    loop {
        let count = decoder.read(&mut buffer)?;
        if count == 0 {
            return Ok(total);
        }
        take(&buffer[..count]);
        total += count as u64;
    }
}
