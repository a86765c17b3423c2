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
//! - One call is one attempt, within [`Config::timeout`], connecting included ([`AssetClient::upload`] has a second more for
//!   each MiB). Who wants it done for sure keeps the asset and tries again; [`AssetError::is_retryable`] says whether that
//!   makes sense soon, [`AssetErrorKind::may_be_done`] whether the failed attempt may have been carried out all the same.
//! - With a suggested id, an attempt can be repeated safely: [`AssetClient::find`] tells whether the asset is there and
//!   whose it is, and a second registration answers [`AssetErrorKind::AlreadyExists`].
//! - An asset is deleted only while nobody uses it (`force` is never set), and deleting what is not there succeeds.
//! - A server that refuses this side's certificate is [`AssetErrorKind::Unreachable`], with the alert's name.
//! - The service has two names in the field, which differ in nothing else: [`ServiceName`].
//! - No type of the wire is in this interface.
//!
//! # Limits
//!
//! An endpoint with `https://` needs [`Config::tls`] and is refused without, not talked to in the clear. Keeping what is
//! to be registered over a restart is the caller's; builder-core does it in its database.

#![forbid(unsafe_code)]

mod asset;
mod client;
mod config;
mod dial;
mod error;
mod observe;

pub use asset::{
    AssetId, AssetKind, AssetState, FinishedImage, KnownAsset, Owner, RegisterAsset, StorageBackend,
};
pub use client::AssetClient;
pub use config::{Config, Delivery, InvalidConfig, ServiceName, Tls, UnknownServiceName};
pub use dial::{Connection, Connector, Ending, TlsEnd, dial};
pub use error::{AssetError, AssetErrorKind};
pub use observe::CallObserver;

/// The messages of the wire.
#[allow(dead_code, missing_docs, unreachable_pub, clippy::all, reason = "generated")]
mod proto {
    include!(concat!(env!("OUT_DIR"), "/messages/asset.v1.rs"));
}
