//! A question with the address of somebody else, sent by a real kernel.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::net::{IpAddr, UdpSocket};
use std::time::Duration;

use podspan_agent::pod_delivery::questions;
use podspan_wire::PROBE_PORT;

mod host_support;
use host_support::{Netns, veth};

#[test]
fn it_goes_out_with_a_source_that_this_host_does_not_have() {
    let (gateway, node) = (Netns::new("gateway"), Netns::new("node"));
    veth(&gateway, "eth0", &node, "eth0");
    for (netns, v4, v6) in
        [(&gateway, "192.0.2.1/24", "2001:db8::1/64"), (&node, "192.0.2.2/24", "2001:db8::2/64")]
    {
        netns.run(&format!("ip addr add {v4} dev eth0"));
        netns.run(&format!("ip addr add {v6} dev eth0"));
    }
    node.run("ip addr add 10.1.2.0/32 dev lo");
    node.run("ip addr add fd00:1:2::/128 dev lo");
    gateway.run("ip route add 10.1.2.0/24 via 192.0.2.2");
    gateway.run("ip route add fd00:1:2::/64 via 2001:db8::2");
    for (foreign, to) in [("10.9.1.0", "10.1.2.0"), ("fd00:9:1::", "fd00:1:2::")] {
        let (foreign, to): (IpAddr, IpAddr) = (foreign.parse().unwrap(), to.parse().unwrap());
        let listener = node.within_thread(move || UdpSocket::bind((to, PROBE_PORT)).unwrap());
        listener.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        gateway.within_thread(move || {
            let socket = questions::open(foreign).unwrap();
            assert_eq!(socket.local_addr().unwrap().ip(), foreign);
            assert_eq!(socket.send_to(b"question", (to, PROBE_PORT)).unwrap(), 8);
            // As the agent does, which has a socket at its own address too.
            assert!(UdpSocket::bind(("192.0.2.1", PROBE_PORT)).is_ok());
        });
        let mut buffer = [0; 64];
        let (length, from) = listener.recv_from(&mut buffer).unwrap();
        assert_eq!((&buffer[..length], from.ip(), from.port()), (&b"question"[..], foreign, PROBE_PORT));
    }
}
