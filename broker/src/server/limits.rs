//! Token buckets by key. Pure: time comes in as an argument.

use std::borrow::Borrow;
use std::collections::HashMap;
use std::hash::Hash;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

/// How many keys are told apart; beyond that, unknown keys go unlimited rather than good ones refused.
const KEYS: usize = 65_536;

/// One token bucket for each key: `rate` tokens a second, at most `burst` at once.
pub struct Buckets<K> {
    rate: f64,
    burst: f64,
    buckets: HashMap<K, Bucket>,
}

struct Bucket {
    tokens: f64,
    at: Duration,
}

impl<K: Eq + Hash> Buckets<K> {
    /// Buckets that are full at first. `rate` is in tokens a second.
    #[must_use]
    pub fn new(rate: u32, burst: u32) -> Self {
        Self { rate: f64::from(rate.max(1)), burst: f64::from(burst.max(1)), buckets: HashMap::new() }
    }

    /// Takes a token.
    ///
    /// # Errors
    /// How long until there is one.
    pub fn take(&mut self, key: K, now: Duration) -> Result<(), Duration> {
        let (rate, burst) = (self.rate, self.burst);
        if self.buckets.len() >= KEYS && !self.buckets.contains_key(&key) {
            // A bucket that has filled up again is the same as none.
            self.buckets.retain(|_, bucket| bucket.filled(now, rate) < burst);
            if self.buckets.len() >= KEYS {
                return Ok(());
            }
        }
        let bucket = self.buckets.entry(key).or_insert(Bucket { tokens: burst, at: now });
        bucket.tokens = bucket.filled(now, rate).min(burst);
        bucket.at = now;
        if bucket.tokens >= 1.0 {
            bucket.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - bucket.tokens) / rate))
    }

    /// Whether there is no token for the key now; takes none.
    #[must_use]
    pub fn is_empty<Q: Eq + Hash + ?Sized>(&self, key: &Q, now: Duration) -> bool
    where
        K: Borrow<Q>,
    {
        self.buckets.get(key).is_some_and(|bucket| bucket.filled(now, self.rate) < 1.0)
    }
}

impl Bucket {
    fn filled(&self, now: Duration, rate: f64) -> f64 {
        self.tokens + now.saturating_sub(self.at).as_secs_f64() * rate
    }
}

/// What counts as one address: an IPv4 address, or the /64 that an IPv6 host can pick from at will.
#[must_use]
pub fn address_key(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from_bits(v6.to_bits() & (!0 << 64))),
        v4 => v4,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bucket_empties_and_fills() {
        let mut buckets = Buckets::new(10, 3);
        let at = Duration::from_millis;
        for _ in 0..3 {
            buckets.take("a", at(0)).unwrap();
        }
        assert!(buckets.is_empty("a", at(50)));
        assert_eq!(buckets.take("a", at(50)).unwrap_err().as_millis(), 50);
        buckets.take("b", at(50)).unwrap();
        buckets.take("a", at(100)).unwrap();
        assert!(buckets.take("a", at(100)).is_err());
        // Never more than the burst, however long it waited; time that runs backwards adds nothing.
        for _ in 0..3 {
            buckets.take("a", at(100_000)).unwrap();
        }
        assert!(buckets.take("a", at(100_000)).is_err());
        assert!(buckets.take("a", at(0)).is_err());
    }

    #[test]
    fn many_keys_stay_bounded_and_block_nobody() {
        let mut buckets = Buckets::new(1, 1);
        for key in 0..KEYS + 100 {
            buckets.take(key, Duration::ZERO).unwrap();
        }
        assert!(buckets.buckets.len() <= KEYS);
        buckets.take(KEYS + 200, Duration::from_secs(10)).unwrap();
        assert!(buckets.buckets.len() < 10, "filled buckets are dropped");
    }

    #[test]
    fn an_ipv6_host_is_its_slash_64() {
        let key = |text: &str| address_key(text.parse().unwrap());
        assert_eq!(key("2001:db8:0:1::1"), key("2001:db8:0:1:ffff::2"));
        assert_ne!(key("2001:db8:0:1::1"), key("2001:db8:0:2::1"));
        assert_eq!(key("::ffff:192.0.2.1"), key("192.0.2.1"));
        assert_ne!(key("192.0.2.1"), key("192.0.2.2"));
    }
}
