//! The kernel argument `ip=`, for a kernel that knows it not (`CONFIG_IP_PNP`).
//!
//! `ip=CLIENT:SERVER:GATEWAY:NETMASK:HOSTNAME:DEVICE:AUTOCONF:DNS0:DNS1:NTP0`, every field but the first optional
//! (Documentation/admin-guide/nfs/nfsroot.rst). Only addresses that stand there are set; nobody is asked for one.

use std::{
    ffi::{OsStr, OsString},
    net::Ipv4Addr,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
};

/// The interface when none is named.
const DEFAULT_INTERFACE: &str = "eth0";

/// Bytes of an interface's name (`IFNAMSIZ` less the zero).
const LONGEST_INTERFACE: usize = 15;

/// What `ip=` says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// The address of this machine; `None` when it is to be asked for, which only the kernel does.
    pub address: Option<Ipv4Addr>,
    /// Where everything goes that is not in the same network.
    pub gateway: Option<Ipv4Addr>,
    /// The part of the address that names the network; that of the address's class when none is given.
    pub mask: Ipv4Addr,
    /// The name of this machine.
    pub hostname: Option<OsString>,
    /// The interface.
    pub interface: OsString,
    /// Name servers.
    pub name_servers: Vec<Ipv4Addr>,
}

impl Network {
    /// Reads the value of `ip=`.
    ///
    /// # Errors
    ///
    /// The field that is not what it should be, in words.
    pub fn parse(value: &OsStr) -> Result<Self, String> {
        let bytes = value.as_bytes();
        // `ip=dhcp` and the like have no fields at all.
        if !bytes.contains(&b':') && address("client", bytes).is_err() {
            return match bytes {
                b"dhcp" | b"on" | b"any" | b"both" | b"bootp" | b"rarp" | b"off" | b"none" => {
                    Ok(Self::without_address())
                }
                _ => Err("is neither an address nor a way to get one".into()),
            };
        }
        let mut fields = bytes.split(|&byte| byte == b':');
        let mut next = || fields.next().unwrap_or_default();
        let client = address("client", next())?;
        let _server = next();
        let gateway = address("gateway", next())?;
        let mask = address("netmask", next())?;
        let hostname = next();
        let interface = next();
        let _autoconf = next();
        let name_servers = [address("name server", next())?, address("name server", next())?];
        if interface.len() > LONGEST_INTERFACE {
            return Err("has an interface name of more than 15 bytes".into());
        }
        Ok(Self {
            address: client,
            gateway,
            mask: mask.unwrap_or_else(|| class_mask(client)),
            hostname: (!hostname.is_empty()).then(|| OsString::from_vec(hostname.to_vec())),
            interface: if interface.is_empty() {
                DEFAULT_INTERFACE.into()
            } else {
                OsString::from_vec(interface.to_vec())
            },
            name_servers: name_servers.into_iter().flatten().collect(),
        })
    }

    fn without_address() -> Self {
        Self {
            address: None,
            gateway: None,
            mask: Ipv4Addr::UNSPECIFIED,
            hostname: None,
            interface: DEFAULT_INTERFACE.into(),
            name_servers: Vec::new(),
        }
    }
}

/// An address; nothing and 0.0.0.0 are none.
fn address(field: &str, text: &[u8]) -> Result<Option<Ipv4Addr>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    let address: Option<Ipv4Addr> = str::from_utf8(text).ok().and_then(|text| text.parse().ok());
    match address {
        Some(address) => Ok(Some(address).filter(|address| !address.is_unspecified())),
        None => Err(format!("has a {field} address that is none")),
    }
}

/// The mask that an address had before there were masks, as the kernel takes it.
fn class_mask(address: Option<Ipv4Addr>) -> Ipv4Addr {
    match address.map(|address| address.octets()[0]) {
        Some(0..128) => Ipv4Addr::new(255, 0, 0, 0),
        Some(128..192) => Ipv4Addr::new(255, 255, 0, 0),
        _ => Ipv4Addr::new(255, 255, 255, 0),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn fields_are_read_by_their_place() {
        let network =
            Network::parse("10.0.2.15::10.0.2.2:255.255.255.0:web:eth1:off:10.0.2.3:1.1.1.1".as_ref())
                .unwrap();
        assert_eq!(network.address, Some(Ipv4Addr::new(10, 0, 2, 15)));
        assert_eq!(network.gateway, Some(Ipv4Addr::new(10, 0, 2, 2)));
        assert_eq!(network.mask, Ipv4Addr::new(255, 255, 255, 0));
        assert_eq!(network.hostname, Some("web".into()));
        assert_eq!(network.interface, "eth1");
        assert_eq!(
            network.name_servers,
            [Ipv4Addr::new(10, 0, 2, 3), Ipv4Addr::new(1, 1, 1, 1)]
        );
    }

    #[test]
    fn what_is_left_out_has_the_kernels_defaults() {
        for (text, mask) in [
            ("10.0.0.2", [255, 0, 0, 0]),
            ("172.16.0.2", [255, 255, 0, 0]),
            ("192.168.1.2", [255, 255, 255, 0]),
        ] {
            let network = Network::parse(text.as_ref()).unwrap();
            assert_eq!(network.mask, Ipv4Addr::from(mask), "{text}");
            assert_eq!(network.interface, "eth0");
            assert_eq!((network.gateway, network.hostname), (None, None));
        }
        for text in ["dhcp", "on", ":::::eth0:dhcp", "off"] {
            assert_eq!(Network::parse(text.as_ref()).unwrap().address, None, "{text}");
        }
        for text in [
            "10.0.0",
            "nonsense",
            "10.0.0.2::x",
            "10.0.0.2:::::abcdefghijklmnop",
        ] {
            Network::parse(text.as_ref()).unwrap_err();
        }
    }

    proptest! {
        #[test]
        fn random_values_are_understood_or_refused(
            bytes in prop::collection::vec(prop_oneof![Just(b':'), Just(b'.'), Just(b'1'), any::<u8>()], 0..60),
        ) {
            if let Ok(network) = Network::parse(OsStr::from_bytes(&bytes)) {
                prop_assert!(network.interface.len() <= LONGEST_INTERFACE && !network.interface.is_empty());
            }
        }
    }
}
