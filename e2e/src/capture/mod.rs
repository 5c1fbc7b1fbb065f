//! What goes over the underlay: tcpdump on the router's links, and a look at every packet of it.

mod inspect;
mod pcap;
mod tcpdump;

pub(crate) use inspect::{Expected, Needle, Report};
pub(crate) use tcpdump::Capture;
