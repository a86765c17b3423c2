//! Container images as code.
//!
//! ```
//! use test_support::image::{Compression, Image, Layer};
//!
//! let base = Layer::new().directory("etc", 0o755).file("etc/motd", b"hello\n").owner(1000, 1000);
//! let top = Layer::new().whiteout("etc/motd").symlink("etc/issue", "motd");
//! let image = Image::new().layer(&base).layer_as(&top, Compression::Zstd).cmd(&["/bin/sh"]).build();
//! assert!(image.manifest_digest.starts_with("sha256:"));
//! ```
//!
//! A [`Layer`] writes its own tar headers, so that a test can say things that tar libraries refuse. An [`Image`] can
//! be made wrong in one chosen way with [`Image::fault`].

mod build;
mod compression;
mod index;
mod layer;
mod tar;
mod write;

pub use build::{BuiltImage, BuiltLayer, Fault, Format, Image, Manifest};
pub use compression::Compression;
pub use index::ImageIndex;
pub use layer::Layer;
pub use tar::LongNames;

use sha2::{Digest as _, Sha256};

/// The OCI digest of `bytes`: `sha256:` and 64 hexadecimal digits.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}
