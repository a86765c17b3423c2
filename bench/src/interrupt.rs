//! Ctrl-C and its kin end a run in order: what was started is ended, what was mounted is unmounted.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use anyhow::bail;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

static FLAG: OnceLock<Arc<AtomicBool>> = OnceLock::new();

/// From now on these signals only raise the flag.
pub(crate) fn listen() -> anyhow::Result<()> {
    let flag = FLAG.get_or_init(Arc::default);
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(flag))?;
    }
    Ok(())
}

/// Whether somebody asked to stop.
pub(crate) fn is_raised() -> bool {
    FLAG.get().is_some_and(|flag| flag.load(Ordering::Relaxed))
}

/// An error when somebody asked to stop.
pub(crate) fn check() -> anyhow::Result<()> {
    if is_raised() {
        bail!("interrupted");
    }
    Ok(())
}
