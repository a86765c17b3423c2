//! `builderd image chunks A B`: how much of one image is in another.

use std::{
    fs::File,
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::{ArgMatches, Args, Command, FromArgMatches as _, ValueHint};
use rootfs::chunks::{CHUNK_BYTES, ChunkCount, ChunkList, Comparison};
use serde_json::{Value, json};

use crate::exit::{Exit, Failure};

const ABOUT: &str = "\
Say how many chunks of 512 KiB two images share.

Images with layers in common have these layers on the same chunk boundaries, so that storage and transfer by chunks \
need them once. Equal chunks within one image count once; chunks of zeros, which take no space, are counted apart.";

#[derive(Debug, Args)]
struct Arguments {
    /// The image that is there already
    #[arg(value_name = "A", value_hint = ValueHint::FilePath)]
    first: PathBuf,

    /// The image whose chunks are looked for in A
    #[arg(value_name = "B", value_hint = ValueHint::FilePath)]
    second: PathBuf,

    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) fn command() -> Command {
    let command = Command::new("chunks")
        .about("Say how many chunks of 512 KiB two images share")
        .long_about(ABOUT)
        .after_help(super::super::EXIT_CODES);
    Arguments::augment_args(command)
}

pub(super) fn run(matches: &ArgMatches) -> Result<(), Failure> {
    let arguments =
        Arguments::from_arg_matches(matches).map_err(|error| Failure::new(Exit::Usage, error.to_string()))?;
    let (first, second) = (read(&arguments.first)?, read(&arguments.second)?);
    let comparison = first.compare(&second);
    let sizes = (first.size_bytes(), second.size_bytes());
    let text = if arguments.json {
        format!("{}\n", object(&comparison, sizes))
    } else {
        table(&comparison, sizes)
    };
    io::stdout().lock().write_all(text.as_bytes()).map_err(|error| {
        Failure::new(
            Exit::CannotCreate,
            format!("standard output cannot be written to: {error}"),
        )
    })
}

fn read(path: &Path) -> Result<ChunkList, Failure> {
    let failed = |exit, reason: String| Failure::new(exit, format!("{}: {reason}", path.display()));
    let file = File::open(path).map_err(|error| {
        let exit = match error.kind() {
            io::ErrorKind::PermissionDenied => Exit::Permission,
            _ => Exit::Unavailable,
        };
        failed(exit, error.to_string())
    })?;
    let is_file = file.metadata().is_ok_and(|metadata| metadata.is_file());
    if !is_file {
        return Err(failed(
            Exit::Data,
            "expected an image in a regular file".to_owned(),
        ));
    }
    ChunkList::of_file(&file).map_err(|error| {
        let exit = match error.kind() {
            io::ErrorKind::InvalidData => Exit::Data,
            _ => Exit::Unavailable,
        };
        failed(exit, error.to_string())
    })
}

fn object(comparison: &Comparison, (first_size, second_size): (u64, u64)) -> Value {
    let count = |count: &ChunkCount| json!({"chunks": count.chunks, "bytes": count.bytes});
    let image = |counted: &ChunkCount, zero_chunks: u64, size_bytes: u64| {
        json!({
            "size_bytes": size_bytes,
            "chunks": counted.chunks,
            "bytes": counted.bytes,
            "zero_chunks": zero_chunks,
        })
    };
    json!({
        "chunk_bytes": CHUNK_BYTES,
        "a": image(&comparison.first, comparison.first_zero_chunks, first_size),
        "b": image(&comparison.second, comparison.second_zero_chunks, second_size),
        "shared": count(&comparison.shared),
        "percent_of_b": comparison.percent_of_second(),
    })
}

fn table(comparison: &Comparison, (first_size, second_size): (u64, u64)) -> String {
    let mut text = format!(
        "{:<8}{:>16}{:>10}{:>16}{:>14}\n",
        "", "file bytes", "chunks", "chunk bytes", "zero chunks"
    );
    for (name, size, counted, zero_chunks) in [
        ("A", first_size, &comparison.first, comparison.first_zero_chunks),
        (
            "B",
            second_size,
            &comparison.second,
            comparison.second_zero_chunks,
        ),
    ] {
        let line = format!(
            "{name:<8}{size:>16}{:>10}{:>16}{zero_chunks:>14}\n",
            counted.chunks, counted.bytes
        );
        text.push_str(&line);
    }
    let shared = &comparison.shared;
    let line = format!(
        "{:<8}{:>16}{:>10}{:>16}\n",
        "shared", "", shared.chunks, shared.bytes
    );
    text.push_str(&line);
    let line = format!(
        "{:.1} % of the chunks of B are in A\n",
        comparison.percent_of_second()
    );
    text.push_str(&line);
    text
}
