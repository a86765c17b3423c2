//! Name resolution that answers with permitted addresses only.
//!
//! The check is made on the very addresses that the connection is then opened to, so a name that resolves to something
//! else a moment later (DNS rebinding) gains nothing.

use std::fmt;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;

use reqwest::dns::{Addrs, Name, Resolve, Resolving};

use crate::net::address::Reach;

/// A source of addresses for names.
pub trait Resolver: Send + Sync {
    /// The addresses of a host name, in the order in which they are to be tried.
    fn resolve(&self, host: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;
}

/// The operating system's resolver.
pub(crate) struct SystemResolver;

impl Resolver for SystemResolver {
    fn resolve(&self, host: String) -> Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>> {
        Box::pin(async move {
            let addresses = tokio::net::lookup_host((host.as_str(), 0)).await?;
            Ok(addresses.map(|address| address.ip()).collect())
        })
    }
}

/// Passes on what `reach` permits.
pub(crate) struct GuardedResolver {
    pub(crate) inner: Arc<dyn Resolver>,
    pub(crate) reach: Reach,
}

/// Why a connection was not opened; found again in reqwest's error by type.
#[derive(Debug)]
pub(crate) struct AddressDenied;

impl fmt::Display for AddressDenied {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("address is outside of what may be connected to")
    }
}

impl std::error::Error for AddressDenied {}

impl Resolve for GuardedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let inner = Arc::clone(&self.inner);
        let reach = self.reach;
        Box::pin(async move {
            let found = inner.resolve(name.as_str().to_owned()).await?;
            if found.is_empty() {
                return Err(io::Error::new(io::ErrorKind::NotFound, "name has no address").into());
            }
            let permitted: Vec<SocketAddr> = found
                .iter()
                .filter(|address| reach.permits(**address))
                .map(|address| SocketAddr::new(*address, 0))
                .collect();
            if permitted.is_empty() {
                tracing::debug!(host = name.as_str(), addresses = ?found, "Refused to connect");
                return Err(AddressDenied.into());
            }
            Ok(Box::new(permitted.into_iter()) as Addrs)
        })
    }
}
