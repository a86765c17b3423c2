//! What the tests of every crate share.
//!
//! - [`image`]: container images as code, from an ordinary file up to bytes that no honest tool writes.
//! - [`registry`]: a registry that misbehaves on request.
//! - [`assetmanagerd`]: the service that finished images are registered with.
//! - [`otlp`]: a collector that keeps the spans and metrics that it is sent.
//! - [`pki`]: authorities and certificates, good and bad ones.
//! - [`workload_api`]: a SPIFFE agent that renews identities, goes away and comes back.
//! - [`vm`]: a virtual machine that boots an image, where QEMU and a kernel are there.
//! - [`lab`]: where such parts are kept, and how a test says that it cannot run without them.
//!
//! Everything is made in the process and listens on loopback only, so that a test needs neither the network nor a
//! tool of the host.

#![forbid(unsafe_code)]

pub mod assetmanagerd;
mod background;
pub mod frozen;
pub mod image;
pub mod lab;
pub mod otlp;
pub mod pki;
pub mod registry;
pub mod vm;
pub mod workload_api;
