//! Which addresses a connection may go to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How far a connection may reach, narrowest first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Reach {
    /// Globally routable unicast addresses only.
    Public,
    /// These and the loopback addresses.
    Loopback,
    /// These and private networks; for registries that the operator named.
    Private,
}

/// Addresses of cloud metadata services that look like ordinary ones: Azure's wire server, Alibaba's metadata service.
const METADATA: [Ipv4Addr; 2] = [Ipv4Addr::new(168, 63, 129, 16), Ipv4Addr::new(100, 100, 100, 200)];

impl Reach {
    /// Whether a connection of this reach may go to the address. Unspecified, link-local (where clouds keep their metadata
    /// service), multicast, reserved and documentation addresses are out of every reach, and so are IPv6 addresses that
    /// carry an IPv4 one for a translator on the way, except v4-mapped ones, which the kernel itself translates.
    pub(crate) fn permits(self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.permits_v4(address),
            IpAddr::V6(address) => match address.to_ipv4_mapped() {
                // ::ffff:a.b.c.d connects to a.b.c.d. No name server has a good reason to answer so: only named private
                // registries get it.
                Some(mapped) => self == Self::Private && self.permits_v4(mapped),
                None => self.permits_v6(address),
            },
        }
    }

    fn permits_v4(self, address: Ipv4Addr) -> bool {
        if METADATA.contains(&address) {
            return false;
        }
        let octets = address.octets();
        match octets {
            [127, ..] => self >= Self::Loopback,
            [10, ..] | [192, 168, ..] => self == Self::Private,
            [172, second, ..] if (16..32).contains(&second) => self == Self::Private,
            // Carrier-grade NAT, RFC 6598.
            [100, second, ..] if (64..128).contains(&second) => self == Self::Private,
            // "This network", link-local, IETF assignments, documentation, 6to4 relays, benchmarks.
            [0, ..] | [169, 254, ..] | [192, 0, 0 | 2, _] | [192, 88, 99, _] | [198, 18 | 19, ..] => false,
            [198, 51, 100, _] | [203, 0, 113, _] => false,
            // Multicast, reserved, broadcast.
            [224..=255, ..] => false,
            _ => true,
        }
    }

    fn permits_v6(self, address: Ipv6Addr) -> bool {
        if address == Ipv6Addr::LOCALHOST {
            return self >= Self::Loopback;
        }
        let segments = address.segments();
        match segments {
            // Unique local addresses, RFC 4193; fd00:ec2::254 is Amazon's metadata service, fd20:ce::254 Google's.
            [0xfd00, 0xec2, ..] | [0xfd20, 0xce, ..] => false,
            [first, ..] if first & 0xfe00 == 0xfc00 => self == Self::Private,
            // Teredo and the other IETF assignments of 2001::/23, documentation, 6to4.
            [0x2001, second, ..] if second < 0x200 => false,
            [0x2001, 0xdb8, ..] | [0x2002, ..] => false,
            [0x3fff, second, ..] if second < 0x1000 => false,
            // Everything that is global unicast lies in 2000::/3; NAT64 (64:ff9b::/96) and v4-compatible addresses do not.
            [first, ..] => first & 0xe000 == 0x2000,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_reach_permits_what_it_says() {
        // Columns: address, public, loopback, private.
        for (address, expected) in [
            ("1.1.1.1", [true, true, true]),
            ("172.15.0.1", [true, true, true]),
            ("172.32.0.1", [true, true, true]),
            ("100.63.0.1", [true, true, true]),
            ("2606:4700::1111", [true, true, true]),
            ("127.0.0.1", [false, true, true]),
            ("127.255.255.254", [false, true, true]),
            ("::1", [false, true, true]),
            ("10.0.0.1", [false, false, true]),
            ("172.16.0.1", [false, false, true]),
            ("172.31.255.255", [false, false, true]),
            ("192.168.1.1", [false, false, true]),
            ("100.64.0.1", [false, false, true]),
            ("fc00::1", [false, false, true]),
            ("fd12:3456::1", [false, false, true]),
            ("::ffff:10.0.0.1", [false, false, true]),
            ("::ffff:127.0.0.1", [false, false, true]),
            ("::ffff:1.1.1.1", [false, false, true]),
            ("::ffff:169.254.169.254", [false, false, false]),
            ("0.0.0.0", [false, false, false]),
            ("0.1.2.3", [false, false, false]),
            ("169.254.169.254", [false, false, false]),
            ("168.63.129.16", [false, false, false]),
            ("100.100.100.200", [false, false, false]),
            ("192.0.0.192", [false, false, false]),
            ("192.0.2.1", [false, false, false]),
            ("198.18.0.1", [false, false, false]),
            ("224.0.0.1", [false, false, false]),
            ("240.0.0.1", [false, false, false]),
            ("255.255.255.255", [false, false, false]),
            ("::", [false, false, false]),
            ("::127.0.0.1", [false, false, false]),
            ("fe80::1", [false, false, false]),
            ("ff02::1", [false, false, false]),
            ("fd00:ec2::254", [false, false, false]),
            ("fd20:ce::254", [false, false, false]),
            ("64:ff9b::7f00:1", [false, false, false]),
            ("64:ff9b:1::1", [false, false, false]),
            ("2002:7f00:1::1", [false, false, false]),
            ("2001::1", [false, false, false]),
            ("2001:db8::1", [false, false, false]),
        ] {
            let address: IpAddr = address.parse().unwrap();
            let actual = [Reach::Public, Reach::Loopback, Reach::Private].map(|reach| reach.permits(address));
            assert_eq!(actual, expected, "{address}");
        }
    }
}
