//! One build, from request to published image, and the service that runs many of them.
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]
// The worker alone only reads what the other side writes.
#![cfg_attr(not(feature = "service"), allow(dead_code, unreachable_pub))]

#[cfg(feature = "service")]
pub mod admin;
#[cfg(feature = "service")]
pub mod artifact;
#[cfg(feature = "service")]
pub mod audit;
#[cfg(feature = "service")]
pub mod build;
#[cfg(feature = "service")]
pub mod error;
#[cfg(feature = "service")]
pub mod event;
#[cfg(feature = "service")]
mod image_cache;
#[cfg(feature = "service")]
pub mod observe;
pub mod optimize;
mod options;
#[cfg(feature = "service")]
mod outbox;
#[cfg(feature = "service")]
mod pack_cache;
#[cfg(feature = "service")]
pub mod pipeline;
#[cfg(feature = "service")]
pub mod request;
#[cfg(feature = "service")]
pub mod service;
#[cfg(feature = "service")]
mod shape;
#[cfg(feature = "service")]
mod store;
#[cfg(feature = "service")]
mod text;
pub mod worker;

#[cfg(feature = "service")]
pub use error::{BuildError, BuildErrorKind, ServiceError, StartError, StartErrorKind};
#[cfg(feature = "service")]
pub use image_cache::ImageCache;
#[cfg(feature = "service")]
pub use pack_cache::PackCache;
#[cfg(feature = "service")]
pub use store::backup;
