//! One build, from request to published image.
//!
//! Domain types without wire types, the pipeline that both the daemon and `builderd build` run, the worker processes
//! in which every byte of a layer is parsed, and the state that survives a restart.

#![forbid(unsafe_code)]

pub mod build;
pub mod error;
pub mod event;
mod pack_cache;
pub mod pipeline;
pub mod request;
pub mod service;
mod shape;
mod store;
mod text;
pub mod worker;

pub use error::{BuildError, BuildErrorKind, ServiceError, StartError, StartErrorKind};
pub use pack_cache::PackCache;
