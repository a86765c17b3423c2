//! Choices that travel to the worker.

use serde::{Deserialize, Serialize};

/// How layers are understood where the specification and Docker differ.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerMode {
    /// The image-spec to the letter.
    #[default]
    Oci,
    /// What containerd and Docker users see.
    Docker,
}

/// How the image will be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Profile {
    /// Written to by the guest.
    #[default]
    #[serde(rename = "rw")]
    ReadWrite,
    /// Never written to.
    #[serde(rename = "ro")]
    ReadOnly,
}

/// Which writer makes the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Backend {
    /// Our own.
    Native,
    /// e2fsprogs as a subprocess; needs root.
    Mke2fs,
}
