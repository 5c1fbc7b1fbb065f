//! kindnet's masquerade table (its `pkg/masq`): everything that goes neither to a pod of the cluster nor to
//! the node itself, in a chain ten before the usual priority of source translation.

use super::Cloud;

/// For `nft -f`.
pub(super) fn table(cloud: &Cloud) -> String {
    let elements = |v6: bool| {
        let cidrs = cloud.nodes.iter().map(|n| if v6 { n.pod_cidr.v6 } else { n.pod_cidr.v4 });
        cidrs.map(|cidr| cidr.to_string()).collect::<Vec<_>>().join(", ")
    };
    format!(
        r#"table inet kindnet-ipmasq {{
    set noMasqV4 {{ type ipv4_addr; flags interval; auto-merge; elements = {{ {} }}; }}
    set noMasqV6 {{ type ipv6_addr; flags interval; auto-merge; elements = {{ {} }}; }}
    chain postrouting {{
        type nat hook postrouting priority srcnat - 10; policy accept;
        ct state established,related accept
        fib daddr type local accept
        ip daddr @noMasqV4 accept
        ip6 daddr @noMasqV6 accept
        masquerade
    }}
}}
"#,
        elements(false),
        elements(true)
    )
}
