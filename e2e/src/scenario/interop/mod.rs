//! Interoperation: podspan's node, single lane and with all offloads, with programs that know nothing of podspan.

mod checks;
mod flood;
mod meter;
mod place;
mod slow;

use std::time::Duration;

use super::Scenario;
use crate::tunnel::Kind;

pub(crate) use place::Interop;

/// There is one kind of such places.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct InteropSetting;

/// The programs that podspan is tried with.
pub(crate) const PEERS: [Kind; 2] = [Kind::WireguardGo, Kind::Boringtun];

/// All scenarios. The last ones wait for what goes on from the start.
pub(crate) fn all() -> Vec<Scenario<Interop>> {
    let scenario = |name, about, run| Scenario {
        setting: InteropSetting,
        name,
        about,
        timeout: Duration::from_secs(240),
        run,
    };
    vec![
        scenario(
            "wireguard-go/handshake",
            "either side begins; data passes unchanged both ways, v4 and v6",
            |place| checks::handshake(place, Kind::WireguardGo),
        ),
        scenario(
            "boringtun-cli/handshake",
            "either side begins; data passes unchanged both ways, v4 and v6",
            |place| checks::handshake(place, Kind::Boringtun),
        ),
        scenario(
            "wireguard-go/roaming",
            "the peer's port, its address and podspan's address change; packets follow",
            |place| checks::roaming(place, Kind::WireguardGo),
        ),
        scenario(
            "boringtun-cli/roaming",
            "the peer's port, its address and podspan's address change; packets follow",
            |place| checks::roaming(place, Kind::Boringtun),
        ),
        scenario(
            "wireguard-go/cookie",
            "a side under load asks for a cookie, and the handshake comes through with it",
            |place| checks::cookie(place, Kind::WireguardGo),
        ),
        scenario(
            "boringtun-cli/cookie",
            "a side under load asks for a cookie, and the handshake comes through with it",
            |place| checks::cookie(place, Kind::Boringtun),
        ),
        scenario(
            "wireguard-go/keepalive",
            "keepalives as often as configured, and one after data that nothing answers",
            |place| checks::keepalive(place, Kind::WireguardGo),
        ),
        scenario(
            "boringtun-cli/keepalive",
            "keepalives as often as configured, and one after data that nothing answers",
            |place| checks::keepalive(place, Kind::Boringtun),
        ),
        scenario("rekey", "new keys after 120 s, whoever began, and no packet is lost", slow::rekey),
    ]
}
