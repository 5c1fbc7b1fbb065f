//! Longest prefix match.

use std::net::IpAddr;

use podspan_wire::Cidr;
use prefix_trie::PrefixMap;

/// Prefixes of both families, each with a number.
#[derive(Debug, Default)]
pub(crate) struct Lookup {
    v4: PrefixMap<(u32, u8), u32>,
    v6: PrefixMap<(u128, u8), u32>,
}

impl Lookup {
    /// Adds a prefix; `false` if it is there already, which changes nothing.
    pub(crate) fn insert(&mut self, cidr: Cidr, value: u32) -> bool {
        match cidr.address() {
            IpAddr::V4(address) => {
                let key = (u32::from(address), cidr.length());
                self.v4.get(&key).is_none() && self.v4.insert(key, value).is_none()
            }
            IpAddr::V6(address) => {
                let key = (u128::from(address), cidr.length());
                self.v6.get(&key).is_none() && self.v6.insert(key, value).is_none()
            }
        }
    }

    /// The number of the longest prefix that holds `address`.
    pub(crate) fn get(&self, address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(address) => self.v4.get_lpm(&(u32::from(address), 32)).map(|(_, &value)| value),
            IpAddr::V6(address) => self.v6.get_lpm(&(u128::from(address), 128)).map(|(_, &value)| value),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use proptest::prelude::*;

    use super::*;

    fn naive(cidrs: &[Cidr], address: IpAddr) -> Option<u32> {
        let covering = cidrs.iter().enumerate().filter(|(_, cidr)| cidr.contains(address));
        // The first of equal prefixes counts, as in `insert`.
        covering.rev().max_by_key(|(i, cidr)| (cidr.length(), usize::MAX - i)).map(|(i, _)| i as u32)
    }

    fn filled(cidrs: &[Cidr]) -> Lookup {
        let mut lookup = Lookup::default();
        for (i, cidr) in cidrs.iter().enumerate() {
            lookup.insert(*cidr, i as u32);
        }
        lookup
    }

    /// Addresses from few bits, so that prefixes nest and hit.
    fn v4() -> impl Strategy<Value = IpAddr> {
        any::<u32>()
            .prop_map(|bits| IpAddr::V4(Ipv4Addr::from(0x0a00_0000 | (bits & 0x8181_8181 & 0x00ff_ffff))))
    }

    fn v6() -> impl Strategy<Value = IpAddr> {
        any::<u128>().prop_map(|bits| {
            let few = 0x0081_8181_8181_8181_8181_8181_8181_8181;
            IpAddr::V6(Ipv6Addr::from((0xfd << 120) | (bits & few)))
        })
    }

    proptest! {
        #[test]
        fn agrees_with_a_naive_search_v4(
            prefixes in prop::collection::vec((v4(), 0u8..=32), 0..40),
            addresses in prop::collection::vec(v4(), 1..40),
        ) {
            let cidrs: Vec<_> = prefixes.iter().map(|&(a, l)| Cidr::containing(a, l).unwrap()).collect();
            let lookup = filled(&cidrs);
            for address in addresses {
                prop_assert_eq!(lookup.get(address), naive(&cidrs, address));
            }
        }

        #[test]
        fn agrees_with_a_naive_search_v6(
            prefixes in prop::collection::vec((v6(), 0u8..=128), 0..40),
            addresses in prop::collection::vec(v6(), 1..40),
        ) {
            let cidrs: Vec<_> = prefixes.iter().map(|&(a, l)| Cidr::containing(a, l).unwrap()).collect();
            let lookup = filled(&cidrs);
            for address in addresses {
                prop_assert_eq!(lookup.get(address), naive(&cidrs, address));
            }
        }
    }

    #[test]
    fn families_do_not_mix_and_the_first_of_two_stays() {
        let mut lookup = Lookup::default();
        assert!(lookup.insert("0.0.0.0/0".parse().unwrap(), 1));
        assert!(!lookup.insert("0.0.0.0/0".parse().unwrap(), 2));
        assert_eq!(lookup.get("192.0.2.1".parse().unwrap()), Some(1));
        assert_eq!(lookup.get("2001:db8::1".parse().unwrap()), None);
    }
}
