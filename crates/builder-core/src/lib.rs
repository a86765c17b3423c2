//! One build, from request to published image, and the service that runs many of them.
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

pub mod artifact;
pub mod build;
pub mod error;
pub mod event;
mod image_cache;
pub mod optimize;
mod pack_cache;
pub mod pipeline;
pub mod request;
pub mod service;
mod shape;
mod store;
mod text;
pub mod worker;

pub use error::{BuildError, BuildErrorKind, ServiceError, StartError, StartErrorKind};
pub use image_cache::ImageCache;
pub use pack_cache::PackCache;
