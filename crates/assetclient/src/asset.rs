//! What is registered.

use std::{collections::BTreeMap, fmt};

/// The name that assetmanagerd gave an asset; not empty.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AssetId(pub(crate) String);

/// For whom a call is made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Owner {
    /// Header X-Tenant-ID; no control characters.
    pub tenant_id: String,
    /// Header X-Customer-ID; no control characters; not sent when empty.
    pub customer_id: String,
}

/// What a file is good for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AssetKind {
    /// A kernel.
    Kernel,
    /// A root file system.
    #[default]
    Rootfs,
    /// An initial RAM disk.
    Initrd,
    /// Another disk.
    DiskImage,
}

/// What holds the bytes of an asset.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum StorageBackend {
    /// A file system of the machine.
    #[default]
    Local,
    /// An object store.
    S3,
    /// A web server.
    Http,
    /// A network file system.
    Nfs,
}

/// Where an asset is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum AssetState {
    /// Its content is on its way to assetmanagerd.
    Uploading,
    /// It can be used.
    Available,
    /// It is being removed.
    Deleting,
    /// It cannot be used and will not become usable.
    Failed,
}

/// What assetmanagerd knows of an asset.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct KnownAsset {
    /// Its id.
    pub id: AssetId,
    /// Where it is in its life.
    pub state: AssetState,
    /// How many virtual machines use it.
    pub reference_count: u32,
    /// The build that made it; may be empty.
    pub build_id: String,
    /// Its SHA-256 in hexadecimal; may be empty.
    pub checksum: String,
}

/// A file that is in place, and is to be known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RegisterAsset {
    /// Header X-Tenant-ID; no control characters.
    pub tenant_id: String,
    /// Header X-Customer-ID; no control characters; not sent when empty.
    pub customer_id: String,
    /// A name for people.
    pub name: String,
    /// What it is.
    pub kind: AssetKind,
    /// What holds it.
    pub backend: StorageBackend,
    /// Where it is, relative to the backend's base.
    pub location: String,
    /// Its size, at most 2^63 - 1.
    pub size_bytes: u64,
    /// Its SHA-256 in hexadecimal.
    pub checksum: String,
    /// For queries.
    pub labels: BTreeMap<String, String>,
    /// The program that made it.
    pub created_by: String,
    /// The build that made it.
    pub build_id: String,
    /// The image reference from which it was built.
    pub source_image: String,
    /// The id that it is to have; `None` leaves the choice to assetmanagerd.
    pub suggested_id: Option<String>,
}

/// An image that a build has published.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FinishedImage {
    /// Whose build.
    pub tenant_id: String,
    /// For which customer; may be empty.
    pub customer_id: String,
    /// The build.
    pub build_id: String,
    /// A name for people; the build's id when empty.
    pub name: String,
    /// The image reference as asked for.
    pub source_image: String,
    /// What holds it.
    pub backend: StorageBackend,
    /// Where it is, relative to the backend's base.
    pub location: String,
    /// Its size.
    pub size_bytes: u64,
    /// Its SHA-256 in hexadecimal.
    pub checksum: String,
    /// The id that it is to have; empty leaves the choice to assetmanagerd.
    pub suggested_id: String,
}

impl AssetId {
    /// The id as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl StorageBackend {
    /// All there are.
    pub const ALL: [Self; 4] = [Self::Local, Self::S3, Self::Http, Self::Nfs];

    /// Its name in lower case, for who keeps it somewhere.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "local",
            Self::S3 => "s3",
            Self::Http => "http",
            Self::Nfs => "nfs",
        }
    }

    /// The one of this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|backend| backend.as_str() == name)
    }
}

impl fmt::Display for AssetId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl RegisterAsset {
    /// A root file system that builderd made, with the labels that others look for.
    #[must_use]
    pub fn of_image(image: FinishedImage) -> Self {
        let labels = [
            ("source_type", "docker"),
            ("tenant_id", &image.tenant_id),
            ("customer_id", &image.customer_id),
            ("docker_image", &image.source_image),
            ("build_id", &image.build_id),
            ("created_by", CREATED_BY),
        ];
        let labels = labels
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .into();
        Self {
            name: if image.name.is_empty() {
                image.build_id.clone()
            } else {
                image.name
            },
            tenant_id: image.tenant_id,
            customer_id: image.customer_id,
            kind: AssetKind::Rootfs,
            backend: image.backend,
            location: image.location,
            size_bytes: image.size_bytes,
            checksum: image.checksum,
            labels,
            created_by: CREATED_BY.to_owned(),
            build_id: image.build_id,
            source_image: image.source_image,
            suggested_id: Some(image.suggested_id).filter(|id| !id.is_empty()),
        }
    }
}

const CREATED_BY: &str = "builderd";
