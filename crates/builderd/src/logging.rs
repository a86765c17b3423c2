//! Log lines on standard error.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{EnvFilter, fmt, util::SubscriberInitExt as _};

use crate::config::{LogConfig, LogFormat};

/// Starts to log. Later calls in the same process change nothing, so tests may call it at will.
pub fn start(config: &LogConfig) {
    let filter = EnvFilter::try_new(filter(&config.filter)).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = fmt().with_env_filter(filter).with_writer(io::stderr);
    let started = match config.format {
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
        LogFormat::Pretty => builder.with_ansi(io::stderr().is_terminal()).finish().try_init(),
    };
    // Fails when there is a subscriber already, and then that one is used.
    drop(started);
}

/// A plain level is about builderd itself: what libraries say below it is for those who name them.
fn filter(asked: &str) -> String {
    const LIBRARIES: [&str; 6] = ["connectrpc", "h2", "hyper", "hyper_util", "reqwest", "tower"];
    let is_plain = asked.bytes().all(|byte| byte.is_ascii_alphabetic());
    if !is_plain || !matches!(asked.to_ascii_lowercase().as_str(), "debug" | "trace") {
        return asked.to_owned();
    }
    LIBRARIES.iter().fold(asked.to_owned(), |filter, library| {
        filter + "," + library + "=info"
    })
}
