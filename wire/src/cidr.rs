//! The one address-prefix type of the workspace.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use ipnetwork::IpNetwork;
use serde::{Deserialize, Serialize};

/// Why a text is not a CIDR that podspan takes.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CidrError {
    /// Not `ADDRESS/LENGTH` at all.
    #[error("{text:?} is not a CIDR: write ADDRESS/LENGTH, such as 10.1.0.0/16 or fd00:1::/48")]
    Syntax {
        /// The text as it was given, shortened.
        text: String,
    },
    /// Bits are set behind the prefix length.
    #[error("{given} has host bits set: did you mean {meant}?")]
    HostBits {
        /// The CIDR as it was given.
        given: IpNetwork,
        /// The same prefix without them.
        meant: IpNetwork,
    },
    /// An IPv4 address in IPv6 clothing (`::ffff:0:0/96`); write it as IPv4.
    #[error("{given} is an IPv4-mapped IPv6 prefix: write it as IPv4")]
    Mapped {
        /// The CIDR as it was given.
        given: IpNetwork,
    },
}

/// An address prefix, IPv4 or IPv6, with no host bits set.
///
/// The order is by family, address, then length, so that sorted lists are canonical.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Cidr(IpNetwork);

impl Cidr {
    /// The prefix of `length` bits that holds `address`; host bits are cleared.
    ///
    /// # Errors
    /// If `length` is over 32 (IPv4) or 128 (IPv6), or the prefix is IPv4-mapped.
    pub fn containing(address: IpAddr, length: u8) -> Result<Self, CidrError> {
        let given = IpNetwork::new(address, length)
            .map_err(|_| CidrError::Syntax { text: format!("{address}/{length}") })?;
        let network = IpNetwork::new(given.network(), length)
            .map_err(|_| CidrError::Syntax { text: format!("{address}/{length}") })?;
        Self::new(network)
    }

    /// `network` as a CIDR.
    ///
    /// # Errors
    /// If it has host bits set or is IPv4-mapped.
    pub fn new(network: IpNetwork) -> Result<Self, CidrError> {
        if network.ip() != network.network() {
            let meant = IpNetwork::new(network.network(), network.prefix())
                .map_err(|_| CidrError::Syntax { text: network.to_string() })?;
            return Err(CidrError::HostBits { given: network, meant });
        }
        if let IpNetwork::V6(v6) = network
            && v6.ip().to_ipv4_mapped().is_some()
            && v6.prefix() >= 96
        {
            return Err(CidrError::Mapped { given: network });
        }
        Ok(Self(network))
    }

    /// The prefix that holds exactly `address`: /32 or /128.
    #[must_use]
    pub fn host(address: IpAddr) -> Self {
        Self(IpNetwork::from(address.to_canonical()))
    }

    /// The first address; for a pod CIDR also the address podspan gives to the node's own interface, as
    /// flannel does: no pod ever gets it.
    #[must_use]
    pub fn address(&self) -> IpAddr {
        self.0.network()
    }

    /// How many leading bits are fixed: 0 to 32 (IPv4) or 128 (IPv6).
    #[must_use]
    pub fn length(&self) -> u8 {
        self.0.prefix()
    }

    /// Whether the prefix is of IPv6.
    #[must_use]
    pub fn is_ipv6(&self) -> bool {
        self.0.is_ipv6()
    }

    /// Whether `address` lies within; never across families.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.contains(address)
    }

    /// Whether every address of `other` lies within.
    #[must_use]
    pub fn covers(&self, other: &Self) -> bool {
        self.length() <= other.length() && self.contains(other.address())
    }

    /// Whether the two share an address.
    #[must_use]
    pub fn overlaps(&self, other: &Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// The same as `ipnetwork` has it.
    #[must_use]
    pub fn network(&self) -> IpNetwork {
        self.0
    }

    /// Why no cluster may announce this prefix, if none may: it is not unicast, or so short that it would
    /// take the node's own default route with it.
    #[must_use]
    pub fn not_announceable(&self) -> Option<&'static str> {
        const RESERVED: [(&str, &str); 9] = [
            ("0.0.0.0/8", "holds \"this network\" (RFC 1122)"),
            ("127.0.0.0/8", "holds loopback addresses"),
            ("169.254.0.0/16", "holds link-local addresses"),
            ("224.0.0.0/4", "holds multicast addresses"),
            ("255.255.255.255/32", "holds the broadcast address"),
            ("::/127", "holds the unspecified and the loopback address"),
            ("fe80::/10", "holds link-local addresses"),
            ("ff00::/8", "holds multicast addresses"),
            ("::ffff:0:0/96", "holds IPv4-mapped addresses"),
        ];
        let least = if self.is_ipv6() { 16 } else { 8 };
        if self.length() < least {
            return Some("is shorter than /8 (IPv4) or /16 (IPv6)");
        }
        RESERVED.iter().find_map(|(text, why)| {
            let network: IpNetwork = text.parse().ok()?;
            self.overlaps(&Self(network)).then_some(*why)
        })
    }
}

impl FromStr for Cidr {
    type Err = CidrError;
    fn from_str(text: &str) -> Result<Self, CidrError> {
        let syntax = || CidrError::Syntax { text: text.chars().take(80).collect() };
        // `ipnetwork` reads a bare address as a host prefix and "10.0.0.0/255.0.0.0" as a netmask; one
        // way of writing a thing is enough.
        let (_, length) = text.split_once('/').ok_or_else(syntax)?;
        if length.is_empty() || length.len() > 3 || !length.bytes().all(|b| b.is_ascii_digit()) {
            return Err(syntax());
        }
        Self::new(text.parse().map_err(|_| syntax())?)
    }
}

impl TryFrom<String> for Cidr {
    type Error = CidrError;
    fn try_from(text: String) -> Result<Self, CidrError> {
        text.parse()
    }
}

impl From<Cidr> for String {
    fn from(cidr: Cidr) -> Self {
        cidr.to_string()
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0.to_string())
    }
}

impl fmt::Debug for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Prefixes, sorted, none twice: one list for one meaning.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(from = "Vec<Cidr>", into = "Vec<Cidr>")]
pub struct CidrSet(Vec<Cidr>);

impl CidrSet {
    /// The prefixes, sorted.
    pub fn iter(&self) -> impl Iterator<Item = &Cidr> + Clone {
        self.0.iter()
    }

    /// How many prefixes there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether one prefix of the set covers `cidr` whole.
    #[must_use]
    pub fn covers(&self, cidr: &Cidr) -> bool {
        self.0.iter().any(|own| own.covers(cidr))
    }

    /// Whether `address` lies within a prefix of the set.
    #[must_use]
    pub fn contains(&self, address: IpAddr) -> bool {
        self.0.iter().any(|own| own.contains(address))
    }

    /// The first pair, one of each set, that shares an address.
    #[must_use]
    pub fn overlap(&self, other: &Self) -> Option<(Cidr, Cidr)> {
        self.0.iter().find_map(|a| other.0.iter().find(|b| a.overlaps(b)).map(|b| (*a, *b)))
    }
}

impl FromIterator<Cidr> for CidrSet {
    fn from_iter<I: IntoIterator<Item = Cidr>>(cidrs: I) -> Self {
        let mut cidrs: Vec<Cidr> = cidrs.into_iter().collect();
        cidrs.sort_unstable();
        cidrs.dedup();
        Self(cidrs)
    }
}

impl From<Vec<Cidr>> for CidrSet {
    fn from(cidrs: Vec<Cidr>) -> Self {
        cidrs.into_iter().collect()
    }
}

impl From<CidrSet> for Vec<Cidr> {
    fn from(set: CidrSet) -> Self {
        set.0
    }
}

impl<'a> IntoIterator for &'a CidrSet {
    type Item = &'a Cidr;
    type IntoIter = std::slice::Iter<'a, Cidr>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.iter()
    }
}

impl fmt::Display for CidrSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, cidr) in self.0.iter().enumerate() {
            write!(f, "{}{cidr}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn only_one_way_to_write_a_prefix() {
        for bad in
            ["", "10.0.0.0", "10.0.0.0/", "10.0.0.0/33", "10.0.0.0/255.0.0.0", "10.0.0.0/+8", "fd00::/129"]
        {
            assert!(matches!(bad.parse::<Cidr>(), Err(CidrError::Syntax { .. })), "{bad}");
        }
        let error = "10.1.2.3/16".parse::<Cidr>().unwrap_err();
        assert_eq!(error.to_string(), "10.1.2.3/16 has host bits set: did you mean 10.1.0.0/16?");
        assert!(matches!("::ffff:10.0.0.0/104".parse::<Cidr>(), Err(CidrError::Mapped { .. })));
        assert_eq!(cidr("FD00:0::/32").to_string(), "fd00::/32");
    }

    #[test]
    fn covers_and_overlaps() {
        assert!(cidr("10.0.0.0/8").covers(&cidr("10.1.0.0/16")));
        assert!(!cidr("10.1.0.0/16").covers(&cidr("10.0.0.0/8")));
        assert!(cidr("10.1.0.0/16").overlaps(&cidr("10.0.0.0/8")));
        assert!(!cidr("10.1.0.0/16").overlaps(&cidr("10.2.0.0/16")));
        assert!(!cidr("0.0.0.0/0").overlaps(&cidr("::/0")));
    }

    #[test]
    fn reserved_prefixes_are_not_announceable() {
        for bad in [
            "0.0.0.0/0",
            "10.0.0.0/7",
            "127.0.0.1/32",
            "169.254.169.254/32",
            "239.0.0.0/8",
            "::1/128",
            "fe80::/64",
            "fc00::/7",
        ] {
            assert!(cidr(bad).not_announceable().is_some(), "{bad}");
        }
        for good in ["10.0.0.0/8", "100.64.0.0/10", "192.0.2.0/24", "fd00::/48", "2001:db8::/32"] {
            assert!(cidr(good).not_announceable().is_none(), "{good}");
        }
    }

    #[test]
    fn sets_are_canonical() {
        let set: CidrSet =
            ["10.2.0.0/16", "fd00::/48", "10.1.0.0/16", "10.2.0.0/16"].map(cidr).into_iter().collect();
        assert_eq!(set.to_string(), "10.1.0.0/16, 10.2.0.0/16, fd00::/48");
    }
}
