//! The world with podspan.

mod bad_input;
mod delivery;
mod heal;
mod leave;
mod lies;
mod offload;
mod reach;
mod restart;
mod size;
mod takeover;
mod wire;

use super::{Scenario, Setting};

pub(super) use bad_input::with_clock;
pub(super) use takeover::follow;

/// What is shown under every variant of the clusters' own rules.
pub(super) fn reach(setting: Setting) -> Vec<Scenario> {
    reach::scenarios(setting)
}

/// What is shown once.
pub(super) fn rest(setting: Setting) -> Vec<Scenario> {
    let mut all = size::scenarios(setting);
    all.extend(wire::scenarios(setting));
    all.extend(lies::scenarios(setting));
    all.extend(heal::scenarios(setting));
    all.extend(restart::scenarios(setting));
    all.extend(takeover::scenarios(setting));
    all.extend(offload::scenarios(setting));
    all.extend(delivery::scenarios(setting));
    all.extend(leave::scenarios(setting));
    all.extend(bad_input::scenarios(setting));
    all
}
