//! Longest prefix match.
//!
//! Prefixes of one length are in one hash table, and tables are asked from the longest prefixes to the shortest. A
//! cluster set has few lengths, say that of nodes and that of services, so an address is found with a step or
//! two, each in one line of memory, however many prefixes there are; a tree would take a step, and with many
//! prefixes a miss of the cache, for each bit in which they differ.

use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;

use podspan_wire::Cidr;

/// Prefixes of both families, each with a number.
#[derive(Debug)]
pub(crate) struct Lookup {
    /// Differs from table to table, so that nobody can choose prefixes that all fall into one place.
    seed: u64,
    v4: Vec<Level<u32>>,
    v6: Vec<Level<u128>>,
}

impl Default for Lookup {
    fn default() -> Self {
        Self { seed: RandomState::new().hash_one(0), v4: Vec::new(), v6: Vec::new() }
    }
}

/// An address as a number, the first bit highest.
trait Bits: Copy + Eq + Default {
    /// The first `length` bits, the others zero.
    fn first(self, length: u8) -> Self;

    /// A number that depends on all bits, and its highest bits most.
    fn mix(self, seed: u64) -> u64;
}

/// The finest of what one multiplication can do: all bits of both halves of the product.
fn fold(a: u64, b: u64) -> u64 {
    let product = u128::from(a) * u128::from(b);
    product as u64 ^ (product >> 64) as u64
}

const ODD: u64 = 0x9e37_79b9_7f4a_7c15;

impl Bits for u32 {
    fn first(self, length: u8) -> Self {
        self & u32::MAX.checked_shl(32 - u32::from(length)).unwrap_or(0)
    }

    fn mix(self, seed: u64) -> u64 {
        fold(u64::from(self) ^ seed, ODD)
    }
}

impl Bits for u128 {
    fn first(self, length: u8) -> Self {
        self & u128::MAX.checked_shl(128 - u32::from(length)).unwrap_or(0)
    }

    fn mix(self, seed: u64) -> u64 {
        fold(fold((self >> 64) as u64 ^ seed, ODD) ^ self as u64, ODD)
    }
}

/// The number of a place that nothing is in.
const FREE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug)]
struct Place<B> {
    prefix: B,
    value: u32,
}

/// The prefixes of one length: a power of two of places, at most half of them taken. Whoever finds its place
/// taken goes to the next.
#[derive(Debug)]
struct Level<B> {
    length: u8,
    used: usize,
    /// How far a hash is shifted for its highest bits to name a place.
    shift: u32,
    places: Box<[Place<B>]>,
}

impl<B: Bits> Level<B> {
    fn new(length: u8) -> Self {
        Self { length, used: 0, shift: 64 - 3, places: Self::free(8) }
    }

    fn free(places: usize) -> Box<[Place<B>]> {
        vec![Place { prefix: B::default(), value: FREE }; places].into()
    }

    /// The place of `prefix`, or the free one where it would be.
    fn find(&self, seed: u64, prefix: B) -> usize {
        let mut at = (prefix.mix(seed) >> self.shift) as usize;
        // Half of the places are free: this ends.
        while self.places[at].value != FREE && self.places[at].prefix != prefix {
            at = (at + 1) % self.places.len();
        }
        at
    }

    fn insert(&mut self, seed: u64, prefix: B, value: u32) -> bool {
        let at = self.find(seed, prefix);
        if self.places[at].value != FREE {
            return false;
        }
        self.places[at] = Place { prefix, value };
        self.used += 1;
        if self.used * 2 > self.places.len() {
            let more = Self::free(self.places.len() * 2);
            self.shift -= 1;
            let all = std::mem::replace(&mut self.places, more);
            for place in all.into_iter().filter(|place| place.value != FREE) {
                let at = self.find(seed, place.prefix);
                self.places[at] = place;
            }
        }
        true
    }
}

/// Adds a prefix; `false` if it is there already.
fn insert<B: Bits>(levels: &mut Vec<Level<B>>, seed: u64, prefix: B, length: u8, value: u32) -> bool {
    let at = match levels.binary_search_by(|level| length.cmp(&level.length)) {
        Ok(at) => at,
        Err(at) => {
            levels.insert(at, Level::new(length));
            at
        }
    };
    levels[at].insert(seed, prefix, value)
}

fn get<B: Bits>(levels: &[Level<B>], seed: u64, address: B) -> Option<u32> {
    levels.iter().find_map(|level| {
        let place = level.places[level.find(seed, address.first(level.length))];
        (place.value != FREE).then_some(place.value)
    })
}

impl Lookup {
    /// Adds a prefix; `false` if it is there already, which changes nothing. `value` is not `u32::MAX`.
    pub(crate) fn insert(&mut self, cidr: Cidr, value: u32) -> bool {
        debug_assert_ne!(value, FREE);
        let length = cidr.length();
        match cidr.address() {
            IpAddr::V4(address) => insert(&mut self.v4, self.seed, u32::from(address), length, value),
            IpAddr::V6(address) => insert(&mut self.v6, self.seed, u128::from(address), length, value),
        }
    }

    /// The number of the longest prefix that holds `address`.
    pub(crate) fn get(&self, address: IpAddr) -> Option<u32> {
        match address {
            IpAddr::V4(address) => get(&self.v4, self.seed, u32::from(address)),
            IpAddr::V6(address) => get(&self.v6, self.seed, u128::from(address)),
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

    /// Prefixes of one length by the thousand, so that tables grow and places are taken.
    #[test]
    fn many_prefixes_are_all_found() {
        let mut lookup = Lookup::default();
        let v4 = |i: u32| -> IpAddr { Ipv4Addr::from(0x0a00_0000 + (i << 8)).into() };
        let v6 = |i: u32| -> IpAddr { Ipv6Addr::from((0xfd << 120) + (u128::from(i) << 64)).into() };
        for i in 0..50_000 {
            assert!(lookup.insert(Cidr::containing(v4(i), 24).unwrap(), i));
            assert!(lookup.insert(Cidr::containing(v6(i), 64).unwrap(), i));
        }
        for i in 0..50_000 {
            assert_eq!((lookup.get(v4(i)), lookup.get(v6(i))), (Some(i), Some(i)));
            assert!(!lookup.insert(Cidr::containing(v4(i), 24).unwrap(), 1));
        }
        assert_eq!(lookup.get(v4(50_000)), None);
        assert_eq!(lookup.get(v6(50_000)), None);
    }

    /// The time with 100,000 prefixes is at most twice that with 10: the best
    /// of many rounds of each, so that what else the machine does hardly counts.
    #[test]
    fn many_prefixes_take_hardly_longer_than_few() {
        let addresses = |n: u32| {
            let mut random = 1_u64;
            let mut next = move || {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                let (prefix, host) = ((random >> 33) as u32 % n, (random >> 20) as u32 & 0xff);
                IpAddr::from(Ipv4Addr::from(0x0a00_0000 + (prefix << 8) + host))
            };
            (0..4096).map(|_| next()).collect::<Vec<_>>()
        };
        let filled = |n: u32| {
            let mut lookup = Lookup::default();
            for i in 0..n {
                let address = Ipv4Addr::from(0x0a00_0000 + (i << 8)).into();
                lookup.insert(Cidr::containing(address, 24).unwrap(), i);
            }
            // Services of a few clusters, too.
            for i in 0..4 {
                let address = Ipv4Addr::from(0xac10_0000 + (i << 16)).into();
                lookup.insert(Cidr::containing(address, 16).unwrap(), n + i);
            }
            (lookup, addresses(n))
        };
        let round = |(lookup, addresses): &(Lookup, Vec<IpAddr>)| {
            let start = std::time::Instant::now();
            let found = addresses.iter().filter(|&&a| std::hint::black_box(lookup.get(a)).is_some()).count();
            let took = start.elapsed();
            assert_eq!(found, addresses.len());
            took
        };
        let (few, many) = (filled(10), filled(100_000));
        let best = |which| (0..200).map(|_| round(which)).min().unwrap();
        let (few, many) = (best(&few), best(&many));
        println!("4096 lookups take {few:?} among 10 prefixes, {many:?} among 100,000");
        assert!(many <= few * 2, "{few:?} for 4096 lookups among 10 prefixes, {many:?} among 100,000");
    }
}
