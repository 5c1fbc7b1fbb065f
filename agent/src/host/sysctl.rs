//! Which sysctls podspan wants changed: a pure decision over what was read.
//!
//! Keys are paths below `/proc/sys`, such as `net/ipv4/ip_forward`: dots would be ambiguous in the names of
//! VLAN interfaces. Those of podspan's own interface go with it; all others are *foreign*: their values are
//! written to the state directory before they are changed, and put back by [`clean`](super::clean).

use super::model::Observed;

/// IPv6 needs links of at least this MTU (RFC 8200, section 5).
const IPV6_MIN_MTU: u32 = 1280;

const IP_FORWARD: &str = "net/ipv4/ip_forward";
const IP6_FORWARD: &str = "net/ipv6/conf/all/forwarding";

/// A sysctl to be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// The path below `/proc/sys`.
    pub key: String,
    /// The value it has.
    pub before: String,
    /// The value it should have.
    pub value: String,
    /// Whether it is not of podspan's own interface, so that it must be remembered and put back.
    pub foreign: bool,
    /// Other sysctls that the kernel changes along with this one, with the values they have: remembered too.
    pub effects: Vec<(String, String)>,
}

/// Why no IPv6 can be had on the interface, if so; for a person, it is no failure.
#[must_use]
pub fn ipv6_off(interface: &str, mtu: u32, observed: &Observed) -> Option<String> {
    let read = |key: &str| observed.sysctls.get(key).map(String::as_str);
    let Some(all) = read("net/ipv6/conf/all/disable_ipv6") else {
        return Some(
            "IPv6: the kernel runs without it (ipv6.disable=1), so only IPv4 goes to remote clusters".into(),
        );
    };
    if all == "1" || read("net/ipv6/conf/default/disable_ipv6") == Some("1") {
        return Some(
            "IPv6: switched off on this host (sysctl net.ipv6.conf.*.disable_ipv6), so only IPv4 goes to remote clusters"
                .into(),
        );
    }
    if mtu < IPV6_MIN_MTU {
        return Some(format!(
            "IPv6: needs an MTU of {IPV6_MIN_MTU} and {interface} has {mtu}, so only IPv4 goes to remote clusters"
        ));
    }
    None
}

/// The keys whose values [`decide`] and [`ipv6_off`] look at.
#[must_use]
pub fn keys(interface: &str, underlay: &[String], interfaces: &[String]) -> Vec<String> {
    let mut keys: Vec<String> = [
        IP_FORWARD,
        IP6_FORWARD,
        "net/ipv4/conf/all/rp_filter",
        "net/ipv4/conf/all/accept_redirects",
        "net/ipv4/conf/default/forwarding",
        "net/ipv6/conf/all/disable_ipv6",
        "net/ipv6/conf/default/disable_ipv6",
        "net/ipv6/conf/default/forwarding",
    ]
    .map(String::from)
    .into();
    for (key, _) in own_ipv4(interface).into_iter().chain(own_ipv6(interface)) {
        keys.push(key);
    }
    keys.extend(underlay.iter().map(|name| rp_filter(name)));
    for name in interfaces {
        keys.push(format!("net/ipv4/conf/{name}/forwarding"));
        keys.push(format!("net/ipv6/conf/{name}/forwarding"));
        keys.push(format!("net/ipv6/conf/{name}/accept_ra"));
    }
    keys.sort_unstable();
    keys.dedup();
    keys
}

fn rp_filter(interface: &str) -> String {
    format!("net/ipv4/conf/{interface}/rp_filter")
}

fn own_ipv4(interface: &str) -> [(String, &'static str); 2] {
    // Loose, since a remote pod's packets may come in by a gateway and go out by another. The kernel takes
    // the larger of this and conf/all: 2 is loose whatever stands there.
    [(rp_filter(interface), "2"), (format!("net/ipv4/conf/{interface}/forwarding"), "1")]
}

fn own_ipv6(interface: &str) -> [(String, &'static str); 4] {
    let key = |name| format!("net/ipv6/conf/{interface}/{name}");
    [
        (key("disable_ipv6"), "0"),
        (key("accept_ra"), "0"),
        // IN6_ADDR_GEN_MODE_NONE: no link-local address, the far end could not answer it.
        (key("addr_gen_mode"), "1"),
        (key("forwarding"), "1"),
    ]
}

/// The writes that are missing, in the order in which they must be made. `interface` is podspan's own, if it
/// exists; `ipv6` tells whether IPv6 is wanted and can be had.
#[must_use]
pub fn decide(interface: Option<&str>, underlay: &[String], ipv6: bool, observed: &Observed) -> Vec<Write> {
    let read = |key: &str| observed.sysctls.get(key).map(String::as_str);
    let mut writes = Vec::new();
    let mut want = |key: String, value: &str, foreign: bool, effects: Vec<(String, String)>| {
        // What does not exist (an interface without IPv6, a kernel without the option) cannot be wanted.
        if let Some(before) = read(&key)
            && before != value
            && !writes.iter().any(|write: &Write| write.key == key)
        {
            writes.push(Write { before: before.to_owned(), value: value.to_owned(), foreign, effects, key });
        }
    };
    if read(IP_FORWARD) == Some("0") {
        // The kernel sets every interface's forwarding along with it, and turns the redirects of "all".
        let mut effects = already_forwarding("ipv4", observed);
        let redirects = "net/ipv4/conf/all/accept_redirects";
        effects.extend(read(redirects).map(|value| (redirects.to_owned(), value.to_owned())));
        want(IP_FORWARD.to_owned(), "1", true, effects);
    }
    for name in underlay {
        let all = read("net/ipv4/conf/all/rp_filter");
        let own = read(&rp_filter(name));
        if own != Some("2") && all != Some("2") && (own == Some("1") || all == Some("1")) {
            want(rp_filter(name), "2", true, Vec::new());
        }
    }
    if ipv6 && read(IP6_FORWARD) == Some("0") {
        // A forwarding host ignores router advertisements unless accept_ra is 2, and drops the default route
        // it learned from them at once: so this comes first.
        for name in
            observed.interfaces.iter().filter(|name| *name != "lo" && Some(name.as_str()) != interface)
        {
            let key = format!("net/ipv6/conf/{name}/accept_ra");
            if read(&key) == Some("1") {
                want(key, "2", true, Vec::new());
            }
        }
        want(IP6_FORWARD.to_owned(), "1", true, already_forwarding("ipv6", observed));
    }
    // What was changed for a reason that can no longer be read off, such as accept_ra once the host forwards.
    // What is podspan's interface now may have been another of its name then: its own values hold.
    let own = |key: &str| interface.is_some_and(|name| key.split('/').nth(3) == Some(name));
    for (key, value) in &observed.remembered {
        if !own(key) && !key.ends_with("/forwarding") && (ipv6 || !key.starts_with("net/ipv6/")) {
            want(key.clone(), value, true, Vec::new());
        }
    }
    if let Some(interface) = interface {
        for (key, value) in own_ipv4(interface) {
            want(key, value, false, Vec::new());
        }
        if ipv6 {
            for (key, value) in own_ipv6(interface) {
                want(key, value, false, Vec::new());
            }
        }
    }
    writes
}

/// What would be lost when the family's global switch is turned off again: whatever forwards now.
fn already_forwarding(family: &str, observed: &Observed) -> Vec<(String, String)> {
    observed
        .interfaces
        .iter()
        .map(String::as_str)
        .chain(["default"])
        .map(|name| format!("net/{family}/conf/{name}/forwarding"))
        .filter_map(|key| observed.sysctls.get(&key).map(|value| (key, value.clone())))
        .filter(|(_, value)| value != "0")
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(pairs: &[(&str, &str)], interfaces: &[&str]) -> Observed {
        Observed {
            sysctls: pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect(),
            interfaces: interfaces.iter().map(|name| (*name).to_owned()).collect(),
            ..Observed::default()
        }
    }

    fn changed(writes: &[Write]) -> Vec<(&str, &str)> {
        writes.iter().map(|write| (write.key.as_str(), write.value.as_str())).collect()
    }

    #[test]
    fn rp_filter_of_the_underlay_is_loosened_only_where_it_is_strict() {
        // (all, eth0, changed?): the kernel takes the larger of the two.
        for (all, own, expected) in [
            ("0", "0", false),
            ("0", "1", true),
            ("1", "0", true),
            ("1", "1", true),
            ("2", "1", false),
            ("1", "2", false),
            ("0", "2", false),
        ] {
            let observed = observed(
                &[("net/ipv4/conf/all/rp_filter", all), ("net/ipv4/conf/eth0/rp_filter", own)],
                &["eth0"],
            );
            let writes = decide(None, &["eth0".to_owned()], false, &observed);
            let expected: &[_] = if expected { &[("net/ipv4/conf/eth0/rp_filter", "2")] } else { &[] };
            assert_eq!(changed(&writes), expected, "all={all} eth0={own}");
            assert!(writes.iter().all(|write| write.foreign));
        }
    }

    #[test]
    fn forwarding_is_switched_on_only_where_it_is_off_and_remembers_what_goes_along() {
        let on = observed(&[(IP_FORWARD, "1"), (IP6_FORWARD, "1")], &["eth0"]);
        assert!(decide(None, &[], true, &on).is_empty());

        let off = observed(
            &[
                (IP_FORWARD, "0"),
                ("net/ipv4/conf/all/accept_redirects", "0"),
                ("net/ipv4/conf/eth0/forwarding", "1"),
                ("net/ipv4/conf/eth1/forwarding", "0"),
            ],
            &["eth0", "eth1"],
        );
        let writes = decide(None, &[], false, &off);
        assert_eq!(changed(&writes), [(IP_FORWARD, "1")]);
        assert_eq!(
            writes[0].effects,
            [
                ("net/ipv4/conf/eth0/forwarding".to_owned(), "1".to_owned()),
                ("net/ipv4/conf/all/accept_redirects".to_owned(), "0".to_owned()),
            ]
        );
    }

    #[test]
    fn router_advertisements_are_kept_before_forwarding_is_switched_on() {
        let off = observed(
            &[
                (IP6_FORWARD, "0"),
                ("net/ipv6/conf/eth0/accept_ra", "1"),
                ("net/ipv6/conf/eth1/accept_ra", "0"),
                ("net/ipv6/conf/lo/accept_ra", "1"),
            ],
            &["lo", "eth0", "eth1"],
        );
        assert_eq!(
            changed(&decide(None, &[], true, &off)),
            [("net/ipv6/conf/eth0/accept_ra", "2"), (IP6_FORWARD, "1")]
        );
        assert!(decide(None, &[], false, &off).is_empty(), "without IPv6 nothing of it is touched");
    }

    #[test]
    fn what_was_changed_before_is_kept_that_way() {
        let mut observed = observed(
            &[(IP_FORWARD, "0"), (IP6_FORWARD, "1"), ("net/ipv6/conf/eth0/accept_ra", "1")],
            &["eth0"],
        );
        observed.remembered =
            [(IP_FORWARD, "1"), ("net/ipv6/conf/eth0/accept_ra", "2"), ("net/ipv6/conf/gone/accept_ra", "2")]
                .map(|(key, value)| (key.to_owned(), value.to_owned()))
                .into();
        let writes = decide(None, &[], true, &observed);
        assert_eq!(changed(&writes), [(IP_FORWARD, "1"), ("net/ipv6/conf/eth0/accept_ra", "2")]);
        assert_eq!(changed(&decide(None, &[], false, &observed)), [(IP_FORWARD, "1")]);
        assert_eq!(
            changed(&decide(Some("eth0"), &[], true, &observed)),
            [(IP_FORWARD, "1"), ("net/ipv6/conf/eth0/accept_ra", "0")],
            "the own interface has values of its own"
        );
    }

    #[test]
    fn the_own_interface_is_loose_and_forwards_and_is_not_remembered() {
        let fresh = observed(
            &[
                ("net/ipv4/conf/podspan0/rp_filter", "1"),
                ("net/ipv4/conf/podspan0/forwarding", "0"),
                ("net/ipv6/conf/podspan0/accept_ra", "1"),
                ("net/ipv6/conf/podspan0/addr_gen_mode", "0"),
                ("net/ipv6/conf/podspan0/disable_ipv6", "0"),
                ("net/ipv6/conf/podspan0/forwarding", "1"),
            ],
            &["podspan0"],
        );
        let writes = decide(Some("podspan0"), &[], true, &fresh);
        assert_eq!(
            changed(&writes),
            [
                ("net/ipv4/conf/podspan0/rp_filter", "2"),
                ("net/ipv4/conf/podspan0/forwarding", "1"),
                ("net/ipv6/conf/podspan0/accept_ra", "0"),
                ("net/ipv6/conf/podspan0/addr_gen_mode", "1"),
            ]
        );
        assert!(writes.iter().all(|write| !write.foreign && write.effects.is_empty()));
    }

    #[test]
    fn ipv6_is_off_for_three_reasons() {
        let all = "net/ipv6/conf/all/disable_ipv6";
        assert!(ipv6_off("podspan0", 1400, &observed(&[], &[])).unwrap().contains("runs without"));
        assert!(ipv6_off("podspan0", 1400, &observed(&[(all, "1")], &[])).unwrap().contains("switched off"));
        assert!(ipv6_off("podspan0", 1279, &observed(&[(all, "0")], &[])).unwrap().contains("MTU"));
        assert_eq!(ipv6_off("podspan0", 1280, &observed(&[(all, "0")], &[])), None);
    }

    #[test]
    fn every_key_that_is_decided_on_is_read() {
        let names = ["lo".to_owned(), "eth0".to_owned(), "podspan0".to_owned()];
        let keys = keys("podspan0", &names[1..2], &names);
        // With every key present and at a value podspan does not want, each write's key is among them.
        let observed = Observed {
            sysctls: keys
                .iter()
                .map(|key| {
                    (
                        key.clone(),
                        if key.ends_with("rp_filter")
                            || key.ends_with("accept_ra")
                            || key.ends_with("disable_ipv6")
                        {
                            "1"
                        } else {
                            "0"
                        }
                        .to_owned(),
                    )
                })
                .collect(),
            interfaces: names.to_vec(),
            ..Observed::default()
        };
        let writes = decide(Some("podspan0"), &names[1..2], true, &observed);
        assert_eq!(writes.len(), 10, "{writes:#?}");
    }
}
