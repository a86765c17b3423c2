//! Registers finished images with assetmanagerd.
//!
//! ```no_run
//! use assetclient::{AssetClient, Config, FinishedImage, RegisterAsset};
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let client = AssetClient::connect_lazy(Config::new("http://127.0.0.1:8083"))?;
//! let asset = RegisterAsset::of_image(FinishedImage {
//!     tenant_id: "acme".to_owned(),
//!     build_id: "build-1".to_owned(),
//!     source_image: "nginx:1".to_owned(),
//!     location: "acme/build-1.ext4".to_owned(),
//!     size_bytes: 1 << 30,
//!     checksum: "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08".to_owned(),
//!     ..FinishedImage::default()
//! });
//! match client.register(&asset).await {
//!     Ok(id) => println!("registered as {id}"),
//!     Err(error) if error.is_retryable() => println!("later: {error}"),
//!     Err(error) => return Err(error.into()),
//! }
//! # Ok(()) }
//! ```
//!
//! # Semantics
//!
//! - One call is one attempt, within [`Config::timeout`], connecting included. Who wants it done for sure keeps the
//!   asset and tries again while [`AssetError::is_retryable`].
//! - An attempt that ran into the time limit may have been carried out. With a suggested id the next one then
//!   answers [`AssetErrorKind::AlreadyExists`], and that id is the asset's.
//! - An asset is deleted only while nobody uses it (`force` is never set), and deleting what is not there succeeds.
//! - The service has two names in the field, which differ in nothing else: [`ServiceName`].
//! - No type of the wire is in this interface.
//!
//! # Limits
//!
//! An endpoint with `https://` needs [`Config::tls`] and is refused without, not talked to in the clear. Uploading and an
//! outbox are not here yet.

#![forbid(unsafe_code)]

mod asset;
mod client;
mod config;
mod error;

pub use asset::{AssetId, AssetKind, FinishedImage, Owner, RegisterAsset, StorageBackend};
pub use client::AssetClient;
pub use config::{Config, InvalidConfig, ServiceName, Tls, UnknownServiceName};
pub use error::{AssetError, AssetErrorKind};

/// The messages of the wire.
#[allow(dead_code, missing_docs, unreachable_pub, clippy::all, reason = "generated")]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/messages/asset.v1.rs"));
}
