//! The worker process of the integration tests, and a service that can be killed. The first argument says which.

mod serve;

use std::{
    io::{Read, Write},
    process::ExitCode,
};

fn main() -> ExitCode {
    let mode = std::env::args().nth(1).unwrap_or_default();
    match mode.as_str() {
        "worker" => builder_core::worker::main(),
        "serve" => serve::main(),
        // The rest behave as a worker that was taken over, or that is broken.
        "garbage" => say("this is no event\n"),
        "endless-line" => {
            let mut output = std::io::stdout();
            while output.write_all(&[b'x'; 4096]).is_ok() {}
            ExitCode::SUCCESS
        }
        "chatter" => {
            let mut output = std::io::stdout();
            while output.write_all(b"{\"note\":{\"message\":\"x\"}}\n").is_ok() {}
            ExitCode::SUCCESS
        }
        "loud" => {
            drain();
            let mut words = std::io::stderr();
            while words.write_all(&[b'x'; 4096]).is_ok() {}
            ExitCode::SUCCESS
        }
        "liar" => {
            drain();
            say("\"parsed\"\n{\"indexed\":{\"pack_bytes\":0,\"index_bytes\":0}}\n")
        }
        "silent" => {
            drain();
            ExitCode::SUCCESS
        }
        "panic" => panic!("a fault of the worker"),
        "abort" => std::process::abort(),
        "hang" => loop {
            std::thread::park();
        },
        "stuck" => write_to_descriptor_60(),
        _ => ExitCode::FAILURE,
    }
}

fn say(text: &str) -> ExitCode {
    let mut output = std::io::stdout();
    match output.write_all(text.as_bytes()).and_then(|()| output.flush()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// As a worker whose disk does not answer.
fn write_to_descriptor_60() -> ExitCode {
    match sandbox::take_descriptor(60).and_then(|mut file| file.write_all(b"x")) {
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

/// Reads the layer, as a worker would.
fn drain() {
    if let Ok(layer) = std::fs::File::open("/proc/self/fd/3") {
        let _ = std::io::copy(&mut layer.take(u64::MAX), &mut std::io::sink());
    }
}
