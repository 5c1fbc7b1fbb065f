//! The dataplane on real interfaces and sockets: two network namespaces joined by a veth pair. Needs root;
//! without it the tests fail and say so. Not built with the feature `sim`, under which boringtun's clock
//! stands still.
#![cfg(not(feature = "sim"))]
// Helpers of tests are tests too, though clippy does not see it.
#![allow(clippy::unwrap_used)]

mod lanes;
mod measure;
mod node;
mod offload;
mod overload;
mod takeover;
mod world;

use podspan_dataplane::Offload;

/// The tests of `node` and `offload` with offloads off, with some and with all of them; a kernel without USO is one that is
/// not asked for it.
macro_rules! with_offloads {
    ($($module:ident: $offload:expr;)*) => {
        $(mod $module {
            use super::{Offload, node, offload};

            #[test]
            fn pods_reach_each_other_over_both_underlays_in_both_families() {
                node::pods_reach_each_other_over_both_underlays_in_both_families($offload);
            }

            #[test]
            fn a_restart_keeps_the_interface_and_costs_less_than_two_seconds() {
                node::a_restart_keeps_the_interface_and_costs_less_than_two_seconds($offload);
            }

            #[test]
            fn an_interface_that_is_down_or_deleted_is_survived() {
                node::an_interface_that_is_down_or_deleted_is_survived($offload);
            }

            #[test]
            fn garbage_at_the_port_is_counted_and_harms_nobody() {
                node::garbage_at_the_port_is_counted_and_harms_nobody($offload);
            }

            #[test]
            fn every_outer_packet_carries_the_mark() {
                node::every_outer_packet_carries_the_mark($offload);
            }

            #[test]
            fn offloads_do_what_they_are_for() {
                offload::offloads_do_what_they_are_for($offload);
            }

            #[test]
            fn datagrams_keep_their_borders_and_their_order() {
                offload::datagrams_keep_their_borders_and_their_order($offload);
            }

            #[test]
            fn packets_of_pods_are_forwarded_whole() {
                offload::packets_of_pods_are_forwarded_whole($offload);
            }

            #[test]
            fn marks_of_congestion_cross_the_tunnel() {
                offload::marks_of_congestion_cross_the_tunnel($offload);
            }

            #[test]
            fn an_underlay_too_narrow_for_the_tunnel_costs_speed_and_nothing_else() {
                offload::an_underlay_too_narrow_for_the_tunnel_costs_speed_and_nothing_else($offload);
            }
        })*
    };
}

with_offloads! {
    no_offload: Offload::NONE;
    tso_only: Offload { tso: true, ..Offload::NONE };
    gso_only: Offload { gso: true, ..Offload::NONE };
    gro_only: Offload { gro: true, ..Offload::NONE };
    all_but_uso: Offload { uso: false, ..Offload::ALL };
    all_offloads: Offload::ALL;
}
