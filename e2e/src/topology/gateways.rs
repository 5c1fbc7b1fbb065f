//! Two clouds, one of which has more gateways than the standard topology's: for how flows are spread over them.
//!
//! | cloud | nodes |
//! | --- | --- |
//! | alpha | alpha-1 gateway, alpha-2 |
//! | beta | beta-1 to beta-5 gateways, beta-6 |
//!
//! Addresses are as in the standard topology. Every node has one pod: `alpha/pod3` is on alpha-2 and `beta/pod11` on
//! beta-6, between which no tunnel leads straight, since neither is a gateway.

use super::{Topology, standard};

impl Topology {
    /// The topology of the scenarios about many gateways.
    pub(super) fn five_gateways() -> Self {
        let mut topology = Self {
            clouds: vec![
                // As in the standard topology: what asymmetric paths must get through.
                standard::public_cloud("alpha", 1, standard::alpha_net(), &[true, false], 1),
                standard::public_cloud(
                    "beta",
                    2,
                    standard::beta_net(),
                    &[true, true, true, true, true, false],
                    0,
                ),
            ],
            ..Self::standard()
        };
        for node in topology.clouds.iter_mut().flat_map(|cloud| &mut cloud.nodes) {
            node.pods.truncate(1);
        }
        topology
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_ends_of_the_flows_are_where_the_scenarios_look_for_them() {
        let topology = Topology::five_gateways();
        let of_pod = |id: &str| topology.pods().find(|pod| pod.id() == id).map(|pod| pod.node.clone());
        assert_eq!(of_pod("alpha/pod3").as_deref(), Some("alpha-2"));
        assert_eq!(of_pod("beta/pod11").as_deref(), Some("beta-6"));
        let gateways: Vec<_> =
            topology.nodes().filter(|node| node.gateway).map(|node| node.name.as_str()).collect();
        assert_eq!(gateways, ["alpha-1", "beta-1", "beta-2", "beta-3", "beta-4", "beta-5"]);
        assert_eq!(topology.pods().count(), 8);
    }
}
