//! Rules as kube-proxy writes them, in its iptables mode and in its nftables mode: destination translation
//! of service addresses to a random endpoint, masquerade of what is marked 0x4000, and the drop of what
//! connection tracking calls invalid.

use std::fmt::Write;
use std::net::IpAddr;

use podspan_wire::Cidr;

use super::{Cloud, Endpoints, Family};
use crate::topology::{POD_PORT, SERVICE_PORT};

/// A cluster's services in one family.
pub(super) struct Services {
    family: Family,
    pod_cidr: Cidr,
    cluster_cidr: bool,
    /// Name, address, endpoints.
    services: Vec<(String, IpAddr, Vec<IpAddr>)>,
}

const MARK: &str = "0x4000/0x4000";

impl Services {
    pub(super) fn new(cloud: &Cloud, family: Family, cluster_cidr: bool, endpoints: Endpoints<'_>) -> Self {
        let services = cloud.services().into_iter().map(|service| {
            let to = endpoints(&service, family);
            (service.name, service.address.of(family), to)
        });
        Self { family, pod_cidr: cloud.pod_cidr.of(family), cluster_cidr, services: services.collect() }
    }

    /// For `iptables-restore --noflush`; chains are named after the service, not by a hash.
    pub(super) fn iptables(&self) -> String {
        let mut chains = String::new();
        let mut rules = String::new();
        for (name, address, endpoints) in &self.services {
            for protocol in ["tcp", "udp"] {
                let service = format!("KUBE-SVC-{name}-{protocol}");
                let host = Cidr::host(*address);
                add(&mut chains, format_args!(":{service} - [0:0]"));
                add(
                    &mut rules,
                    format_args!(
                        "-A KUBE-SERVICES -d {host} -p {protocol} --dport {SERVICE_PORT} -j {service}"
                    ),
                );
                if self.cluster_cidr {
                    let from = self.pod_cidr;
                    add(
                        &mut rules,
                        format_args!(
                            "-A {service} ! -s {from} -d {host} -p {protocol} --dport {SERVICE_PORT} -j KUBE-MARK-MASQ"
                        ),
                    );
                }
                for (i, endpoint) in endpoints.iter().enumerate() {
                    let chain = format!("KUBE-SEP-{name}-{protocol}-{i}");
                    let to = std::net::SocketAddr::new(*endpoint, POD_PORT);
                    let left = endpoints.len() - i;
                    #[expect(clippy::cast_precision_loss, reason = "a handful of endpoints")]
                    let probability = 1.0 / left as f64;
                    let chance = match left {
                        1 => String::new(),
                        _ => format!("-m statistic --mode random --probability {probability:.10} "),
                    };
                    add(&mut chains, format_args!(":{chain} - [0:0]"));
                    add(&mut rules, format_args!("-A {service} {chance}-j {chain}"));
                    // A pod that reaches itself through the service must see the node as the client.
                    add(
                        &mut rules,
                        format_args!("-A {chain} -s {} -j KUBE-MARK-MASQ", Cidr::host(*endpoint)),
                    );
                    add(
                        &mut rules,
                        format_args!("-A {chain} -p {protocol} -m {protocol} -j DNAT --to-destination {to}"),
                    );
                }
            }
        }
        format!(
            "*nat\n:KUBE-SERVICES - [0:0]\n:KUBE-MARK-MASQ - [0:0]\n:KUBE-POSTROUTING - [0:0]\n{chains}\
             -I PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -I OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES\n\
             -I POSTROUTING -m comment --comment \"kubernetes postrouting rules\" -j KUBE-POSTROUTING\n\
             -A KUBE-MARK-MASQ -j MARK --or-mark 0x4000\n\
             -A KUBE-POSTROUTING -m mark ! --mark {MARK} -j RETURN\n\
             -A KUBE-POSTROUTING -j MARK --xor-mark 0x4000\n\
             -A KUBE-POSTROUTING -j MASQUERADE --random-fully\n\
             {rules}COMMIT\n\
             *filter\n:KUBE-FORWARD - [0:0]\n\
             -I FORWARD -m comment --comment \"kubernetes forwarding rules\" -j KUBE-FORWARD\n\
             -A KUBE-FORWARD -m conntrack --ctstate INVALID -j DROP\n\
             -A KUBE-FORWARD -m mark --mark {MARK} -j ACCEPT\n\
             -A KUBE-FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT\n\
             COMMIT\n"
        )
    }

    /// For `nft -f`.
    pub(super) fn nft(&self) -> String {
        let ip = match self.family {
            Family::V4 => "ip",
            Family::V6 => "ip6",
        };
        let mut chains = String::new();
        let mut map = Vec::new();
        for (name, address, endpoints) in &self.services {
            for protocol in ["tcp", "udp"] {
                let service = format!("service-{name}-{protocol}");
                let mut body = String::new();
                if self.cluster_cidr {
                    let from = self.pod_cidr;
                    add(
                        &mut body,
                        format_args!(
                            "{ip} daddr {address} {protocol} dport {SERVICE_PORT} {ip} saddr != {from} jump mark-for-masquerade"
                        ),
                    );
                }
                let choices: Vec<_> = (0..endpoints.len())
                    .map(|i| format!("{i} : goto endpoint-{name}-{protocol}-{i}"))
                    .collect();
                if !choices.is_empty() {
                    let (count, choices) = (choices.len(), choices.join(", "));
                    add(&mut body, format_args!("numgen random mod {count} vmap {{ {choices} }}"));
                }
                for (i, endpoint) in endpoints.iter().enumerate() {
                    let to = std::net::SocketAddr::new(*endpoint, POD_PORT);
                    add(
                        &mut chains,
                        format_args!(
                            "chain endpoint-{name}-{protocol}-{i} {{\n{ip} saddr {endpoint} jump mark-for-masquerade\n\
                             meta l4proto {protocol} dnat to {to}\n}}"
                        ),
                    );
                }
                add(&mut chains, format_args!("chain {service} {{\n{body}}}"));
                map.push(format!("{address} . {protocol} . {SERVICE_PORT} : goto {service}"));
            }
        }
        let map = map.join(",\n");
        format!(
            "table {ip} kube-proxy {{\n\
             chain mark-for-masquerade {{ mark set mark or 0x4000; }}\n\
             chain masquerading {{\nmark and 0x4000 == 0 return\nmark set mark xor 0x4000\n\
             masquerade fully-random\n}}\n\
             {chains}\
             map service-ips {{\ntype {ip}v{v}_addr . inet_proto . inet_service : verdict;\nelements = {{\n{map}\n}}\n}}\n\
             chain services {{ {ip} daddr . meta l4proto . th dport vmap @service-ips; }}\n\
             chain nat-prerouting {{ type nat hook prerouting priority dstnat; jump services; }}\n\
             chain nat-output {{ type nat hook output priority -100; jump services; }}\n\
             chain nat-postrouting {{ type nat hook postrouting priority srcnat; jump masquerading; }}\n\
             chain filter-forward {{ type filter hook forward priority -110; ct state invalid drop; }}\n\
             }}\n",
            v = if ip == "ip" { 4 } else { 6 },
        )
        .replace("ip6v6_addr", "ipv6_addr")
    }
}

/// Writing to a string cannot fail.
fn add(text: &mut String, line: std::fmt::Arguments<'_>) {
    let _ = writeln!(text, "{line}");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::topology::{Service, Topology};

    fn services(family: Family, cluster_cidr: bool) -> Services {
        let endpoints = |service: &Service, family: Family| {
            let all: [IpAddr; 2] = match family {
                Family::V4 => [[10, 1, 1, 2].into(), [10, 1, 1, 3].into()],
                Family::V6 => ["fd00:10:1:1::2".parse().unwrap(), "fd00:10:1:1::3".parse().unwrap()],
            };
            all[..service.pods.len().min(2)].to_vec()
        };
        Services::new(&Topology::standard().clouds[0], family, cluster_cidr, &endpoints)
    }

    #[test]
    fn chain_names_fit_iptables() {
        let text = services(Family::V4, true).iptables();
        for line in text.lines().filter_map(|line| line.strip_prefix(':')) {
            // The kernel's limit is 29 with its end mark (XT_EXTENSION_MAXNAMELEN).
            assert!(line.split(' ').next().unwrap().len() <= 28, "{line}");
        }
        assert!(text.contains("--to-destination 10.1.1.2:8080"), "{text}");
        assert!(text.contains("--probability 0.5000000000"), "{text}");
    }

    #[test]
    fn only_with_a_cluster_cidr_are_clients_from_elsewhere_masqueraded() {
        let marks = |with| services(Family::V4, with).iptables().matches("! -s 10.1.0.0/16").count();
        assert_eq!((marks(true), marks(false)), (8, 0));
        let marks = |with| services(Family::V6, with).nft().matches("saddr != fd00:10:1::/48").count();
        assert_eq!((marks(true), marks(false)), (8, 0));
    }
}
