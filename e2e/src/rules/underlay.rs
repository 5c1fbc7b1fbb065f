//! Rules of the underlay itself: the router that forwards nothing but what the underlay owns, and the NAT
//! router of a private network.

use std::fmt::Write;

use super::Script;
use crate::topology::{Dual, Lan, Topology};
use podspan_wire::Cidr;

/// Name of the router's counter for packets that came in by `interface` and that the underlay does not own.
pub(crate) fn leak_counter(interface: &str) -> String {
    format!("leak-{interface}")
}

/// The router's table: a packet passes only if its source belongs to the subnet behind the interface by
/// which it came and its destination to some other subnet of the underlay. Anything else is counted as a
/// leak and dropped before routing.
pub(crate) fn router(topology: &Topology) -> Script {
    router_between(&topology.underlay())
}

/// The same for subnets and the interfaces behind which they are.
pub(crate) fn router_between(underlay: &[(&'static str, Dual<Cidr>)]) -> Script {
    let set = |v6: bool| {
        let pick = |net: &Dual<Cidr>| if v6 { net.v6 } else { net.v4 };
        underlay.iter().map(|(_, net)| pick(net).to_string()).collect::<Vec<_>>().join(", ")
    };
    let mut counters = String::new();
    let mut rules = String::new();
    for (interface, net) in underlay {
        let counter = leak_counter(interface);
        let _ = writeln!(counters, "counter {counter} {{ }}");
        let _ = write!(
            rules,
            "iifname \"{interface}\" ip saddr {} ip daddr @underlay4 accept\n\
             iifname \"{interface}\" ip6 saddr {} ip6 daddr @underlay6 accept\n\
             iifname \"{interface}\" counter name {counter} drop\n",
            net.v4, net.v6
        );
    }
    Script::Nft(format!(
        "table inet underlay {{\n{counters}\
         set underlay4 {{ type ipv4_addr; flags interval; elements = {{ {} }}; }}\n\
         set underlay6 {{ type ipv6_addr; flags interval; elements = {{ {} }}; }}\n\
         chain owned {{ type filter hook prerouting priority raw; policy drop;\n\
         iifname lo accept\n\
         iifname {} accept\n\
         fib daddr type {{ local, broadcast, multicast, anycast }} accept\n\
         {rules}}}\n}}\n",
        set(false),
        set(true),
        // What comes from there has passed this chain already.
        crate::impair::INTERFACE
    ))
}

/// The NAT router of a private network: what goes out is masqueraded, only answers come in.
pub(crate) fn nat(lan: &Lan) -> Script {
    Script::Nft(format!(
        "table ip nat-router {{\n\
         chain postrouting {{ type nat hook postrouting priority srcnat; \
         oifname outside ip saddr {0} masquerade; }}\n\
         chain forward {{ type filter hook forward priority filter; policy drop;\n\
         iifname inside oifname outside ip saddr {0} accept\nct state established,related accept\n}}\n}}\n",
        lan.subnet.v4
    ))
}
