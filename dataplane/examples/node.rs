//! One end of a tunnel between two network namespaces, for measurements by hand: see `docs/performance.md`.
//!
//! `node NUMBER PEER-ADDRESS LANES [OFFLOAD...]`: NUMBER is 1 or 2; offloads are tso, uso, gso, gro; all of them
//! if none is named, and `off` is none. Keys are derived from the number; the interface
//! `podspan0` is left to be set up by whoever runs this. Ends when its standard input ends.

use std::io::Read as _;

use podspan_dataplane::{
    DEFAULT_HANDSHAKE_LIMIT, Dataplane, LaneSecret, Offload, PeerSpec, RouteSpec, Settings, TableSpec,
};
use podspan_wire::Lane;

const PORT: u16 = 51840;

fn secrets(number: u8, lanes: usize) -> Vec<LaneSecret> {
    (0..lanes).map(|lane| LaneSecret::from_bytes([number + lane as u8 * 8; 32])).collect()
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let [number, peer, lanes, offload @ ..] = words.as_slice() else {
        return Err("usage: node NUMBER PEER-ADDRESS LANES [OFFLOAD...]".into());
    };
    let (number, lanes): (u8, usize) = (number.parse()?, lanes.parse()?);
    let has = |name: &str| offload.is_empty() || offload.iter().any(|word| word == name);
    let offload = Offload { tso: has("tso"), uso: has("uso"), gso: has("gso"), gro: has("gro") };
    let other = 3 - number;
    let dataplane = Dataplane::start(Settings {
        interface: "podspan0".into(),
        port: PORT,
        fwmark: 0,
        lanes: secrets(number, lanes),
        persist: false,
        handshake_limit: DEFAULT_HANDSHAKE_LIMIT,
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
            endpoints: vec![peer.parse()?],
            learned: vec![],
            persistent_keepalive: None,
            dial: true,
        }],
        routes: vec![route(format!("10.20{other}.0.0/24"))?, route(format!("fd00:20{other}::/64"))?],
    })?;
    println!("ready");
    std::io::stdin().read_to_end(&mut Vec::new())?;
    println!("{:#?}", dataplane.status());
    Ok(())
}
