//! Who is asking: the grant in the header, and the key that TLS proved.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::HeaderMap;
use podspan_wire::api::GRANT_HEADER;
use podspan_wire::{Envelope, PublicKey, Trust, UnixTime, VerifiedGrant};

use super::engine::{Engine, EngineError, wall_clock};
use super::failure::Failure;
use super::limits::{Buckets, address_key};
use super::registry::Refused;

/// How many verified grants are remembered; at the next one all are forgotten and verified again.
const CACHE: usize = 1024;

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// The key whose possession TLS proved.
    pub key: PublicKey,
    /// Where it connects from.
    pub address: IpAddr,
}

/// A cluster of the set, as its grant and its key prove.
#[derive(Clone, Debug)]
pub struct Member {
    /// The grant.
    pub grant: Arc<VerifiedGrant>,
}

/// Verifies grants and remembers those that were good.
pub struct Gate {
    trust: Trust,
    start: Instant,
    good: Mutex<HashMap<Vec<u8>, Arc<VerifiedGrant>>>,
    failures: Mutex<Buckets<IpAddr>>,
}

impl Gate {
    /// A gate for the cluster set of `trust`; an address that fails more often than the limit is turned
    /// away for a while.
    #[must_use]
    pub fn new(trust: Trust, failures_per_second: u32, failures_burst: u32) -> Self {
        Self {
            trust,
            start: Instant::now(),
            good: Mutex::default(),
            failures: Mutex::new(Buckets::new(failures_per_second, failures_burst)),
        }
    }

    /// The root that is trusted.
    #[must_use]
    pub fn trust(&self) -> &Trust {
        &self.trust
    }

    /// Notes that an address failed to prove who it is.
    pub fn failed(&self, address: IpAddr) {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        // An empty bucket is what `is_turned_away` looks for; the wait is told there.
        let _ = failures.take(address_key(address), self.start.elapsed());
    }

    /// Whether the address has failed too often of late.
    #[must_use]
    pub fn is_turned_away(&self, address: IpAddr) -> bool {
        let failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.is_empty(&address_key(address), self.start.elapsed())
    }

    /// Who asks.
    ///
    /// # Errors
    /// 401 without a grant, 403 with one that does not hold, 429 after too many of these.
    pub async fn enter(&self, headers: &HeaderMap, peer: Peer, engine: &Engine) -> Result<Member, Failure> {
        let member = self.check(headers, peer).inspect_err(|failure| {
            if failure.status != 429 {
                self.failed(peer.address);
            }
        })?;
        // A serial higher than any seen ends the earlier grants, and is durable before it counts.
        let (cluster, given) = (&member.grant.cluster, member.grant.serial);
        let known = engine.serials.read().unwrap_or_else(PoisonError::into_inner).get(cluster).copied();
        match known {
            Some(known) if given < known => {
                let cluster = cluster.clone();
                Err(EngineError::Refused(Refused::Superseded { cluster, given, known }).into())
            }
            Some(known) if given == known => Ok(member),
            _ => {
                engine.note(cluster.clone(), given).await?;
                Ok(member)
            }
        }
    }

    fn check(&self, headers: &HeaderMap, peer: Peer) -> Result<Member, Failure> {
        let Some(value) = headers.get(GRANT_HEADER) else {
            return Err(Failure::new(
                401,
                "no-grant",
                format!("the header `{GRANT_HEADER}` with the cluster's grant is missing"),
            ));
        };
        let cached = self.good.lock().unwrap_or_else(PoisonError::into_inner).get(value.as_bytes()).cloned();
        let now = wall_clock();
        let grant = match cached {
            Some(grant) if now <= grant.not_after => grant,
            _ => {
                // Verifying costs time: an address that keeps failing gets none of it.
                if self.is_turned_away(peer.address) {
                    return Err(Failure::rate_limited(
                        Duration::from_secs(1),
                        "too many failures from this address: correct the grant and try again later",
                    ));
                }
                let grant = Arc::new(self.verify(value.as_bytes(), now)?);
                let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
                if good.len() >= CACHE {
                    good.clear();
                }
                good.insert(value.as_bytes().to_vec(), grant.clone());
                grant
            }
        };
        if grant.cluster_key != peer.key {
            return Err(Failure::new(
                403,
                "wrong-key",
                format!(
                    "the TLS client certificate is not of the key that the grant of cluster {} names: use the \
                     key and the grant of one bundle",
                    grant.cluster
                ),
            ));
        }
        Ok(Member { grant })
    }

    fn verify(&self, header: &[u8], now: UnixTime) -> Result<VerifiedGrant, Failure> {
        let unreadable = || {
            let message = format!("the header `{GRANT_HEADER}` is not the base64 of a grant's JSON");
            Failure::new(400, "malformed", message)
        };
        let json = STANDARD.decode(header).map_err(|_| unreadable())?;
        let envelope: Envelope = serde_json::from_slice(&json).map_err(|_| unreadable())?;
        Ok(self.trust.verify_grant(&envelope, now)?)
    }
}
