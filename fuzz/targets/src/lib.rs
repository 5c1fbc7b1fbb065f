//! What the fuzz targets do with their input: one function per decoder, each with what must hold whatever
//! the input is. A panic is a finding. `fuzz/` joins them to libFuzzer; the test here replays the corpus
//! with the ordinary compiler.

mod cipher;
mod control;
mod offload;
mod packets;
mod plugin;

pub use cipher::cipher;
pub use control::{api, bundle, cidr, grant, local, names, record};
pub use offload::{coalesce, segments};
pub use packets::packets;
pub use plugin::cni;

/// A target.
pub type Target = fn(&[u8]);

/// All targets, by the name of their corpus.
pub const TARGETS: [(&str, Target); 12] = [
    ("grant", grant),
    ("record", record),
    ("bundle", bundle),
    ("api", api),
    ("local", local),
    ("cidr", cidr),
    ("names", names),
    ("cni", cni),
    ("packets", packets),
    ("segments", segments),
    ("coalesce", coalesce),
    ("cipher", cipher),
];
