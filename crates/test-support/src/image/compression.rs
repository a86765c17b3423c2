//! How a layer's tar archive is packed into a blob.

use std::io::Write as _;

use flate2::{GzBuilder, write::GzEncoder};

/// How a layer's tar archive is packed into a blob.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// The archive itself.
    None,
    /// One gzip member.
    #[default]
    Gzip,
    /// Several gzip members, one after the other, each holding at most so many bytes of the archive (as pigz and
    /// estargz write them).
    GzipMembers(usize),
    /// One zstd frame.
    Zstd,
}

impl Compression {
    /// The packed form of `tar`. Equal input gives equal bytes.
    ///
    /// # Panics
    /// With [`Compression::GzipMembers`] of zero.
    #[must_use]
    pub fn pack(self, tar: &[u8]) -> Vec<u8> {
        match self {
            Self::None => tar.to_vec(),
            Self::Gzip => gzip(tar),
            Self::GzipMembers(bytes) => tar.chunks(bytes).flat_map(gzip).collect(),
            Self::Zstd => zstd::encode_all(tar, 3).expect("reading from and writing to memory does not fail"),
        }
    }

    /// The media type of a layer that is packed so, in OCI's spelling.
    #[must_use]
    pub const fn oci_media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.oci.image.layer.v1.tar",
            Self::Gzip | Self::GzipMembers(_) => "application/vnd.oci.image.layer.v1.tar+gzip",
            Self::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }

    /// The media type of a layer that is packed so, in Docker's spelling. Docker never defined one for zstd; the one
    /// here follows its pattern.
    #[must_use]
    pub const fn docker_media_type(self) -> &'static str {
        match self {
            Self::None => "application/vnd.docker.image.rootfs.diff.tar",
            Self::Gzip | Self::GzipMembers(_) => "application/vnd.docker.image.rootfs.diff.tar.gzip",
            Self::Zstd => "application/vnd.docker.image.rootfs.diff.tar.zstd",
        }
    }
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    // No name and no time in the header, so that the blob's digest depends on nothing but `bytes`.
    let mut encoder: GzEncoder<Vec<u8>> = GzBuilder::new()
        .mtime(0)
        .write(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("writing to memory does not fail");
    encoder.finish().expect("writing to memory does not fail")
}
