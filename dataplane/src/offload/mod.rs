//! Many packets as one, as the kernel's offloads have it: pure functions over bytes, no IO.
//!
//! ```text
//!  TUN ─► virtio_net_hdr + one big packet ─► Segments ─► packets of the tunnel's MTU ─► seal
//!  TUN ◄─ virtio_net_hdr + one big packet ◄─ Coalescer ◄─ packets of the tunnel's MTU ◄─ open
//! ```
//!
//! Segmentation ([`Segments`]) is what a network card does with TSO and USO: it cuts a TCP or UDP packet
//! of up to 64 KB into those that cross the network, and fills in checksums. Coalescing ([`Coalescer`]) is
//! the reverse, as in the kernel's generic receive offload: what it merges, segmentation takes apart again
//! into the same packets, byte by byte but for the IPv4 identification of packets that may not be
//! fragmented, which means nothing (RFC 6864 section 4.1).
//!
//! The layout of `virtio_net_hdr` is that of the Virtual I/O Device specification 1.2, section 5.1.6, in
//! the machine's byte order, which is what a TUN gives unless told otherwise.

pub mod checksum;
mod coalesce;
mod ecn;
mod segment;
mod shape;
mod vnet;

pub use coalesce::{ARENA_BYTES, Coalescer, MAX_MERGED, MAX_PACKETS, Merge, Merged};
pub use ecn::Ecn;
pub use segment::{MAX_HEADERS, Segments};
pub use vnet::{Gso, GsoKind, Partial, VNET_HEADER, VnetHeader};
