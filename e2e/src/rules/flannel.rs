//! The rules of flannel's iptables mode (its `pkg/trafficmngr/iptables`): masquerade what leaves the
//! cluster CIDR, and what comes from elsewhere to a pod of another node.

use super::{Cloud, Family, Node};

/// For `iptables-restore --noflush`.
pub(super) fn rules(cloud: &Cloud, node: &Node, family: Family) -> String {
    let (cluster, own) = (cloud.pod_cidr.of(family), node.pod_cidr.of(family));
    let multicast = match family {
        Family::V4 => "224.0.0.0/4",
        Family::V6 => "ff00::/8",
    };
    let masq = r#"-m comment --comment "flanneld masq""#;
    let forward = r#"-m comment --comment "flanneld forward""#;
    let rule = |matches: String, target: &str| format!("-A FLANNEL-POSTRTG {matches} {masq} -j {target}\n");
    let mut text = format!("*nat\n:FLANNEL-POSTRTG - [0:0]\n-A POSTROUTING {masq} -j FLANNEL-POSTRTG\n");
    // What kube-proxy has marked it masquerades itself.
    text += &rule("-m mark --mark 0x4000/0x4000".into(), "RETURN");
    text += &rule(format!("-s {own} -d {cluster}"), "RETURN");
    text += &rule(format!("-s {cluster} -d {own}"), "RETURN");
    text += &rule(format!("! -s {cluster} -d {own}"), "RETURN");
    text += &rule(format!("-s {cluster} ! -d {multicast}"), "MASQUERADE --random-fully");
    // Meets what a gateway forwards from another cluster to a pod of another node, too.
    text += &rule(format!("! -s {cluster} -d {cluster}"), "MASQUERADE --random-fully");
    text += "COMMIT\n*filter\n:FLANNEL-FWD - [0:0]\n";
    text += &format!("-A FORWARD {forward} -j FLANNEL-FWD\n");
    text += &format!("-A FLANNEL-FWD -s {cluster} {forward} -j ACCEPT\n");
    text += &format!("-A FLANNEL-FWD -d {cluster} {forward} -j ACCEPT\n");
    text + "COMMIT\n"
}
