//! Worker processes: every byte of a layer is parsed, and every image written, in a process of its own.
//!
//! # The protocol
//!
//! The parent starts a worker with nothing but descriptors. On standard input it writes JSON lines: first the job, then
//! `"verified"` or `"abort"`; the end of input means that the parent is gone, and the worker ends. On standard output
//! the worker writes JSON lines: what it notes, how far it is, how it ended. Further descriptors are named in the job
//! by their numbers. Nothing of a job is committed before `verified`: an index worker writes the pack while the layer
//! streams in, but the index, without which a pack is nothing, only then.
//!
//! | job | descriptors | result |
//! |---|---|---|
//! | `index` | the compressed layer (a pipe, or its file when all of it is there), the layer file | the pack, then the index behind it, in the layer file |
//! | `assemble` | a layer file for each layer, the init binary, leaf hashes of the packs, the image, a list | the image without the contents of files, and the list of these |
//!
//! The parent copies the contents of files itself, when the worker is gone: so it can hash the image meanwhile. The backend
//! that runs a program writes all of the image.
//!
//! A worker knows no path of a cache, no name of a tenant and no credential. Its answers are input like any other: lines
//! are bounded in length and number, text is cleaned before it reaches a log, and files are checked before use.

#[cfg(feature = "service")]
mod alarms;
mod assemble;
mod child;
mod copies;
mod descriptors;
#[cfg(feature = "planted-hole")]
mod hole;
mod index;
#[cfg(feature = "service")]
mod launch;
mod protocol;
#[cfg(feature = "service")]
mod session;

#[cfg(feature = "service")]
pub use self::alarms::Alarms;
pub use self::child::main;
#[cfg(feature = "service")]
pub use self::launch::{
    BoxLauncher, BuildBox, Launcher, ProcessLauncher, Survivor, WorkerLimits, WorkerSpec,
};
#[cfg(feature = "service")]
pub(crate) use self::{
    alarms::Alarm,
    copies::read as read_copies,
    launch::MAX_DESCRIPTOR,
    protocol::{
        AssembleJob, Control, Edit, EditContent, HashTree, ImageRequest, IndexJob, Job, LayerInput,
        WorkerEvent,
    },
    session::{Session, Usage, input_pipe},
};
