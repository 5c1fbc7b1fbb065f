//! Bad input of every kind: a clear error or a counted drop, no panic, and nothing that worked is lost.

mod broker;
mod calm;
mod claims;
mod clock;
mod doors;
mod namesakes;
mod plugin;
mod ports;
mod settings;
mod signer;
mod socket;
mod stray;
mod tls;

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Scenario, Setting};
use crate::signals;
use crate::world::World;

pub(in crate::scenario) use clock::with_clock;

pub(super) fn scenarios(setting: Setting) -> Vec<Scenario> {
    let scenario = |name, about, run: fn(&mut World) -> Result<()>| Scenario {
        setting,
        name,
        about,
        timeout: Duration::from_secs(120),
        run,
    };
    vec![
        scenario(
            "bad-settings",
            "each field of each file wrong in turn: named with file, line and key",
            settings::files,
        ),
        scenario(
            "bad-facts",
            "facts that go bad under a running agent: the last good ones stay, and it is said",
            settings::running,
        ),
        scenario(
            "bad-overlap",
            "a cluster that overlaps others, this one or the underlay is refused and named",
            claims::overlap,
        ),
        scenario(
            "bad-cluster-name",
            "two clusters of one name: the earlier stays, it is named",
            claims::names,
        ),
        scenario(
            "bad-node-name",
            "two nodes of one name: it is said and stays said, all others' traffic goes on",
            namesakes::nodes,
        ),
        scenario(
            "bad-broker",
            "the broker out of reach, or one address of it wrong: said, survived, mended by itself",
            broker::unreachable,
        ),
        scenario("bad-clock", "clocks an hour off, and one that went back an hour", clock::off),
        scenario("bad-udp", "random bytes at every UDP port: counted, nothing lost", ports::noise),
        scenario(
            "bad-socket",
            "garbage and idle clients at the unix socket: CNI and status go on",
            socket::noise,
        ),
        scenario(
            "bad-http",
            "garbage, slow and huge requests at the health port and the broker: both go on",
            doors::noise,
        ),
        scenario(
            "bad-stdin",
            "anything at the CNI plugin's standard input: an error of the spec",
            plugin::stdin,
        ),
    ]
}

/// Waits until `look` finds what it looks for, at most for `limit`; tells whether it did.
fn wait_for(limit: Duration, mut look: impl FnMut() -> Result<bool>) -> Result<bool> {
    let end = Instant::now() + limit;
    loop {
        if look()? {
            return Ok(true);
        }
        if Instant::now() > end {
            return Ok(false);
        }
        signals::sleep(Duration::from_millis(100))?;
    }
}
