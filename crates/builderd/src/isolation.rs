//! The boxes that workers run in: what the daemon carries for them, and how hard it insists.

use std::{io, path::Path, sync::Arc};

use builder_core::{
    request::Backend,
    worker::{BoxLauncher, Launcher},
};
use sandbox::{Level, Missing, Sandbox, SealedProgram, Settings};

/// Names the daemon's control groups.
const NAME: &str = "builderd";

/// The static program that parses layers and writes images.
const WORKER: &[u8] = include_bytes!(env!("WORKER_PROGRAM"));

/// The static program that makes a box around it.
const HELPER: &[u8] = include_bytes!(env!("SANDBOX_HELPER_PROGRAM"));

/// How hard a start insists on isolation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Insistence {
    /// Workers are plain processes: TENANT_ISOLATION_ENABLED=false.
    Off,
    /// Every layer that the host offers: `--dev` and `builderd build`.
    Lenient,
    /// All layers, or no start.
    Strict,
}

/// Isolation was insisted on and cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum IsolationError {
    /// A layer does not work here.
    #[error(
        "this host does not offer {}; `builderd doctor` says what to do, and \
         UNKEY_BUILDERD_TENANT_ISOLATION_ENABLED=false or --dev run without it",
        list(.0)
    )]
    Missing(Vec<Missing>),
    /// The reference writer needs tools and directories that are in no box.
    #[error("ROOTFS_BACKEND=mke2fs runs programs of the host, which no box has: set ROOTFS_BACKEND=native")]
    Backend,
    /// The programs could not be put into memory.
    #[error("cannot prepare the worker")]
    Memory(#[from] io::Error),
}

fn list(missing: &[Missing]) -> String {
    let words: Vec<_> = missing.iter().map(ToString::to_string).collect();
    words.join("; ")
}

/// Tries out what the host offers. Locks of user ids are kept in `state`.
///
/// # Errors
/// When the helper cannot be put into memory.
pub fn try_out(state: Option<&Path>) -> io::Result<Sandbox> {
    Sandbox::start(&Settings {
        name: NAME,
        helper: HELPER,
        lease_directory: state.map(|state| state.join("sandbox-users")),
    })
}

/// What starts the workers, and what it does without.
#[derive(Debug, Default)]
pub struct Prepared {
    /// `None` for plain processes.
    pub launcher: Option<Arc<dyn Launcher>>,
    /// One sentence for every layer that is missing although it was wanted.
    pub warnings: Vec<String>,
}

/// What starts the workers. Locks of user ids are kept in `state`.
///
/// # Errors
/// With [`Insistence::Strict`], when anything is missing.
pub fn launcher(insistence: Insistence, backend: Backend, state: &Path) -> Result<Prepared, IsolationError> {
    match (insistence, backend) {
        (Insistence::Off, _) => return Ok(Prepared::default()),
        (Insistence::Lenient, Backend::Mke2fs) => {
            return Ok(Prepared {
                launcher: None,
                warnings: vec![
                    "The mke2fs writer runs programs of the host: its workers are in no box".to_owned(),
                ],
            });
        }
        (Insistence::Strict, Backend::Mke2fs) => return Err(IsolationError::Backend),
        _ => {}
    }
    let sandbox = try_out(Some(state))?;
    let lenient = insistence == Insistence::Lenient;
    if !lenient && !sandbox.missing().is_empty() {
        return Err(IsolationError::Missing(sandbox.missing().to_vec()));
    }
    let warning = |missing: &Missing| format!("Workers run without a layer of their box: {missing}");
    let warnings = sandbox.missing().iter().map(warning).collect();
    let worker = SealedProgram::new("builderd-worker", WORKER)?;
    let launcher = BoxLauncher::new(sandbox, worker, Level::Strict, lenient);
    Ok(Prepared {
        launcher: Some(Arc::new(launcher)),
        warnings,
    })
}
