//! What was lent is looked at before it is used: the other process may have been set up otherwise.

use super::LentLane;
use super::relay::Relay;
use crate::settings::{Settings, StartError};
use crate::tun::Queue;
use crate::worker::LaneSocket;

/// A lane that can be used, and the mask of the indices that its sender uses.
pub(crate) struct Adopted {
    pub(crate) socket: LaneSocket,
    pub(crate) queue: Queue,
    pub(crate) relay: Relay,
    pub(crate) mask: u32,
}

/// Checks and sets up what was lent for the lane of this number.
pub(crate) fn adopt(settings: &Settings, number: usize, lane: LentLane) -> Result<Adopted, StartError> {
    let port = settings.port + number as u16;
    let system = |what| move |error| StartError::System { what, error };
    Ok(Adopted {
        socket: LaneSocket::adopt(lane.socket, number, port, settings.fwmark, settings.offload)?,
        queue: Queue::adopt(lane.queue, &settings.interface, settings.offload)?,
        relay: Relay::adopt(lane.relay).map_err(system("the relay cannot be used"))?,
        mask: lane.mask,
    })
}
