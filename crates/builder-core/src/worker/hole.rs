//! A planted hole in the parser, for the tests of the box: only with the feature `planted-hole`, which no program that is
//! shipped has.
//!
//! A file of a layer that begins with [`MARKER`] takes the worker over that indexes it, and a symbolic link whose target
//! does, the one that assembles the image. The lines behind the marker are what it then tries, an attack and its target
//! each; what came of them goes to the build's log. From there on the pack is written with other contents than the layer
//! has, as a worker that was taken over may do.

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::fs::FileExt,
    time::Duration,
};

use super::protocol::WorkerEvent;

const MARKER: &[u8] = b"PLANTED HOLE\n";

/// Bytes of attacks that are read at most.
const MAX_TEXT_BYTES: usize = 4096;

/// Whether these bytes of a layer take the worker over; if so, does what they say.
pub(super) fn fall_in(bytes: &[u8]) -> bool {
    let Some(text) = bytes.strip_prefix(MARKER) else {
        return false;
    };
    let text = String::from_utf8_lossy(&text[..text.len().min(MAX_TEXT_BYTES)]);
    for line in text.lines().take_while(|line| *line != "END") {
        let (name, target) = line.split_once(' ').unwrap_or((line, ""));
        let message = match attack(name, target) {
            Ok(()) => format!("attack {name}: succeeded"),
            Err(error) => format!("attack {name}: blocked: {error}"),
        };
        let line = serde_json::to_string(&WorkerEvent::Note { message });
        let _ = writeln!(io::stdout(), "{}", line.unwrap_or_default());
    }
    true
}

fn attack(name: &str, target: &str) -> io::Result<()> {
    match name {
        "read" => File::open(target)?
            .take(16)
            .read_to_end(&mut Vec::new())
            .map(drop),
        "list" => fs::read_dir(target).map(drop),
        "overwrite" => {
            let mut file = File::options().append(true).open(target)?;
            file.write_all(b"spoilt")
        }
        "connect" => {
            let address: SocketAddr = target.parse().map_err(io::Error::other)?;
            TcpStream::connect_timeout(&address, Duration::from_secs(5)).map(drop)
        }
        // `DESCRIPTOR@OFFSET`: fills the disk through what it was given for writing.
        "grow" => {
            let (number, offset) = target.split_once('@').unwrap_or_default();
            let file = super::descriptors::take(number.parse().map_err(io::Error::other)?)?;
            file.write_all_at(b"x", offset.parse().map_err(io::Error::other)?)
        }
        // What it was given for reading: the layers of others that are in its image, say.
        "reopen" => {
            let mut last = io::ErrorKind::NotFound.into();
            for number in 3..256 {
                let path = format!("/proc/self/fd/{number}");
                // Others are its own.
                if fs::read_link(&path).is_ok_and(|to| !to.to_string_lossy().contains(target)) {
                    continue;
                }
                let overwritten = File::options().append(true).open(&path);
                match overwritten.and_then(|mut file| file.write_all(b"spoilt")) {
                    Ok(()) => return Ok(()),
                    Err(error) => last = error,
                }
            }
            Err(last)
        }
        _ => Err(io::ErrorKind::Unsupported.into()),
    }
}
