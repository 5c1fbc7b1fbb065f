//! The answers of the longest prefix match that are asked for again and again.

use std::net::IpAddr;

use super::lookup::Lookup;

/// How many addresses are remembered: 2 KB, which stays in the nearest cache.
const ENTRIES: usize = 64;

/// Remembers what [`Lookup`] said of an address, in a place that depends on the address alone; a later
/// address takes the place of an earlier one. Belongs to one table: with another one, begin anew.
#[derive(Debug)]
pub(crate) struct Recent([Option<(IpAddr, Option<u32>)>; ENTRIES]);

impl Default for Recent {
    fn default() -> Self {
        Self([None; ENTRIES])
    }
}

impl Recent {
    /// The number of the longest prefix that holds `address`.
    pub(crate) fn get(&mut self, lookup: &Lookup, address: IpAddr) -> Option<u32> {
        let entry = &mut self.0[place(address)];
        match *entry {
            Some((known, answer)) if known == address => answer,
            _ => {
                let answer = lookup.get(address);
                *entry = Some((address, answer));
                answer
            }
        }
    }
}

fn place(address: IpAddr) -> usize {
    let word = match address {
        IpAddr::V4(v4) => u64::from(u32::from(v4)),
        IpAddr::V6(v6) => {
            let bits = u128::from(v6);
            (bits >> 64) as u64 ^ bits as u64
        }
    };
    (word.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 58) as usize % ENTRIES
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn it_says_what_the_lookup_says(hosts in prop::collection::vec(0_u8..40, 1..200)) {
            let mut lookup = Lookup::default();
            for (i, cidr) in ["10.0.0.0/8", "10.0.0.16/28", "fd00::/16", "fd00::10/124"].iter().enumerate() {
                lookup.insert(cidr.parse().unwrap(), i as u32);
            }
            let mut recent = Recent::default();
            for host in hosts {
                for address in [format!("10.0.0.{host}"), format!("11.0.0.{host}"), format!("fd00::{host:x}")] {
                    let address: IpAddr = address.parse().unwrap();
                    prop_assert_eq!(recent.get(&lookup, address), lookup.get(address));
                    prop_assert_eq!(recent.get(&lookup, address), lookup.get(address));
                }
            }
        }
    }
}
