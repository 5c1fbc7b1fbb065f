//! Counts of what is on the wire, by message type of WireGuard (paper, section 5.4), as nftables counts it at podspan's end.

use anyhow::{Context, Result};

use crate::command::Cmd;
use crate::netns::Netns;

/// Which messages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Initiation,
    Cookie,
    /// A data message without data.
    Keepalive,
    /// Any data message. Many may be counted as one.
    Data,
}

/// Which way, from podspan's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Out,
    In,
}

const MESSAGES: [(Message, &str, &str); 4] = [
    (Message::Initiation, "initiation", "udp length 156 @th,64,8 1"),
    (Message::Cookie, "cookie", "udp length 72 @th,64,8 3"),
    (Message::Keepalive, "keepalive", "udp length 40 @th,64,8 4"),
    (Message::Data, "data", "meta l4proto udp @th,64,8 4"),
];

/// Counts from now on, in one namespace.
#[derive(Debug)]
pub(super) struct Meter {
    netns: Netns,
}

impl Meter {
    /// Counts what is for podspan's own address `own`, or from it; anew if it did before.
    pub(super) fn start(netns: &Netns, own: &str) -> Result<Self> {
        let mut text = String::from("table inet wire\ndelete table inet wire\ntable inet wire {\n");
        for (_, name, _) in MESSAGES {
            text.push_str(&format!("counter in_{name} {{}}\ncounter out_{name} {{}}\n"));
        }
        for (hook, way, address) in [("input", "in", "daddr"), ("output", "out", "saddr")] {
            text.push_str(&format!("chain on_{hook} {{\ntype filter hook {hook} priority 0;\n"));
            for (_, name, rule) in MESSAGES {
                text.push_str(&format!("ip {address} {own} {rule} counter name {way}_{name}\n"));
            }
            text.push_str("}\n");
        }
        text.push_str("}\n");
        Cmd::new("nft").args(["-f", "-"]).stdin(text).within(netns).run_ok()?;
        Ok(Self { netns: netns.clone() })
    }

    /// How many there were so far.
    pub(super) fn count(&self, way: Way, message: Message) -> Result<u64> {
        let way = if way == Way::In { "in" } else { "out" };
        let name = MESSAGES.iter().find(|(known, ..)| *known == message).map_or("", |(_, name, _)| name);
        let name = format!("{way}_{name}");
        let text = Cmd::new("nft").args(["-j", "list", "counters", "table", "inet", "wire"]);
        let text = text.within(&self.netns).text()?;
        let document: serde_json::Value = serde_json::from_str(&text).context("what nft writes")?;
        let objects = document["nftables"].as_array().context("what nft writes")?;
        let counter = objects.iter().map(|object| &object["counter"]).find(|counter| counter["name"] == name);
        counter
            .and_then(|counter| counter["packets"].as_u64())
            .with_context(|| format!("there is no counter {name}"))
    }
}
