//! From an image reference to verified blobs: registries, OCI layouts and archives, for callers who trust neither the
//! registry nor each other.
#![doc = include_str!("../README.md")]
#![forbid(unsafe_code)]

mod auth;
mod blob;
mod cache;
mod certificates;
mod client;
mod config;
mod credentials;
mod digest;
mod error;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzzing;
mod image;
mod json;
mod local;
mod manifest;
mod net;
mod platform;
mod policy;
mod probe;
mod progress;
mod reference;
mod registry;
mod select;
mod source;

pub use crate::auth::docker_config::DockerConfig;
pub use crate::blob::{Blob, BlobReader, Verified};
pub use crate::cache::CacheStatistics;
pub use crate::client::Client;
pub use crate::config::{ClientConfig, Loopback, Ranges, RetryPolicy, Timeouts};
pub use crate::credentials::{Credentials, PullContext, RevealedCredentials};
pub use crate::digest::{Algorithm, Digest};
pub use crate::error::{FetchError, FetchErrorKind};
pub use crate::image::{Image, ImageConfig, LayerDescriptor};
pub use crate::net::proxy::Proxies;
pub use crate::net::resolver::Resolver;
pub use crate::platform::Platform;
pub use crate::policy::Policy;
pub use crate::probe::{Answered, Probed, probe};
pub use crate::progress::{BlobSample, PullProgress, PullSample};
pub use crate::reference::{Reference, normalise_registry, redact_user_information};
pub use crate::source::ImageSource;
