//! One end of a tunnel between two network namespaces, for measurements by hand: see `docs/performance.md`.
//!
//! `node NUMBER PEER-ADDRESS LANES [OFFLOAD...] [KEY=VALUE...]`: NUMBER is 1 or 2; PEER-ADDRESS is `-` if the peer is to
//! dial; offloads are tso, uso, gso, gro; all of them if none is named, and `off` is none. Keys are derived from the number;
//! the interface `podspan0` is left to be set up by whoever runs this. Options:
//!
//! - `keepalive=SECONDS`: as WireGuard's persistent keepalive;
//! - `handshake-limit=N`: handshakes per second before cookies are asked for.
//!
//! Each line on the standard input is answered with one line of counters. Ends when its standard input ends.

use std::io::BufRead as _;

use podspan_dataplane::{
    DEFAULT_HANDSHAKE_LIMIT, Dataplane, LaneSecret, Offload, PeerSpec, RouteSpec, Settings, Status, TableSpec,
};
use podspan_wire::Lane;

const PORT: u16 = 51840;

fn secrets(number: u8, lanes: usize) -> Vec<LaneSecret> {
    (0..lanes).map(|lane| LaneSecret::from_bytes([number + lane as u8 * 8; 32])).collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let (options, words): (Vec<&str>, Vec<&str>) =
        words.iter().map(String::as_str).partition(|word| word.contains('='));
    let [number, peer, lanes, offload @ ..] = words.as_slice() else {
        return Err("usage: node NUMBER PEER-ADDRESS LANES [OFFLOAD...] [KEY=VALUE...]".into());
    };
    let (mut keepalive, mut handshake_limit) = (None, DEFAULT_HANDSHAKE_LIMIT);
    for (key, value) in options.iter().filter_map(|option| option.split_once('=')) {
        match key {
            "keepalive" => keepalive = Some(value.parse()?),
            "handshake-limit" => handshake_limit = value.parse()?,
            _ => return Err(format!("there is no option {key}").into()),
        }
    }
    let (number, lanes): (u8, usize) = (number.parse()?, lanes.parse()?);
    let has = |name: &str| offload.is_empty() || offload.contains(&name);
    let offload = Offload { tso: has("tso"), uso: has("uso"), gso: has("gso"), gro: has("gro") };
    let other = 3 - number;
    let dataplane = Dataplane::start(Settings {
        interface: "podspan0".into(),
        port: PORT,
        fwmark: 0,
        lanes: secrets(number, lanes),
        persist: false,
        handshake_limit,
        offload,
    })?;
    let id: podspan_wire::NodeId = format!("cloud{other}/node").parse()?;
    let lane = |(i, secret): (usize, &LaneSecret)| Lane { key: secret.public(), port: PORT + i as u16 };
    let route = |cidr: String| {
        Ok::<_, Box<dyn std::error::Error>>(RouteSpec {
            cidr: cidr.parse()?,
            owner: Some(id.clone()),
            gateways: vec![],
        })
    };
    dataplane.set_table(TableSpec {
        peers: vec![PeerSpec {
            id: id.clone(),
            lanes: secrets(other, lanes).iter().enumerate().map(lane).collect(),
            endpoints: if *peer == "-" { vec![] } else { vec![peer.parse()?] },
            learned: vec![],
            persistent_keepalive: keepalive,
            dial: *peer != "-",
            weight: 10,
            relays: false,
        }],
        routes: vec![route(format!("10.20{other}.0.0/24"))?, route(format!("fd00:20{other}::/64"))?],
        clusters: vec![],
    })?;
    println!("ready");
    for line in std::io::stdin().lock().lines() {
        line?;
        println!("{}", counters(&dataplane.status()));
    }
    Ok(())
}

/// Sums over all workers and tunnels, as `KEY=VALUE` with spaces between.
fn counters(status: &Status) -> String {
    let workers = || status.workers.iter();
    let lanes = || status.peers.iter().flat_map(|peer| &peer.lanes);
    let calls: u64 = workers()
        .map(|worker| worker.calls)
        .map(|calls| calls.poll + calls.tun_read + calls.tun_write + calls.udp_receive + calls.udp_send)
        .sum();
    let endpoint = lanes().find_map(|lane| lane.endpoint).map(|endpoint| endpoint.to_string());
    format!(
        "calls={calls} handshakes={} cookies={} established={} rx-packets={} tx-packets={} endpoint={}",
        workers().map(|worker| worker.handshakes).sum::<u64>(),
        workers().map(|worker| worker.cookies).sum::<u64>(),
        lanes().filter(|lane| lane.established).count(),
        lanes().map(|lane| lane.rx_packets).sum::<u64>(),
        lanes().map(|lane| lane.tx_packets).sum::<u64>(),
        endpoint.unwrap_or_default(),
    )
}
