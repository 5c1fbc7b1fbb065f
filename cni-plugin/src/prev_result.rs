//! What the earlier plugins of the chain returned (CNI spec section 5, "Success").

use std::net::IpAddr;

use ipnetwork::IpNetwork;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::error::{CniError, Code, brief, join, quote};
use crate::version::SpecVersion;

/// What podspan reads of a result, in any version of the spec from 0.3.0 on; the rest is only passed on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodInterface {
    /// The pod's addresses on the interface.
    pub addresses: Vec<IpAddr>,
    /// The pod's gateways on the interface.
    pub gateways: Vec<IpAddr>,
}

#[derive(Deserialize)]
struct Raw {
    #[serde(default)]
    interfaces: Option<Vec<RawInterface>>,
    #[serde(default)]
    ips: Option<Vec<RawIp>>,
}

#[derive(Deserialize)]
struct RawInterface {
    #[serde(default)]
    name: String,
    #[serde(default)]
    sandbox: Option<String>,
}

#[derive(Deserialize)]
struct RawIp {
    address: String,
    #[serde(default)]
    gateway: Option<String>,
    #[serde(default)]
    interface: Option<i64>,
}

/// Reads the addresses and gateways of the interface `ifname` inside the pod: those of the interface with
/// this name and a sandbox, and those that name no interface.
///
/// # Errors
/// Code 7 with everything that is wrong.
pub fn parse(result: &RawValue, ifname: &str) -> Result<PodInterface, CniError> {
    let invalid =
        |details: String| CniError::new(Code::InvalidConfig, "prevResult is not a CNI result", details);
    let raw: Raw = serde_json::from_str(result.get()).map_err(|error| invalid(brief(&error)))?;
    let interfaces = raw.interfaces.unwrap_or_default();
    let (mut pod, mut faults) = (PodInterface::default(), Vec::new());
    for (i, ip) in raw.ips.unwrap_or_default().into_iter().enumerate() {
        // Before 1.0.0 a negative index, too, stood for none.
        let index = ip.interface.filter(|index| *index >= 0);
        let of_pod =
            match index.map(|index| usize::try_from(index).ok().and_then(|index| interfaces.get(index))) {
                None => true,
                Some(Some(interface)) => {
                    interface.name == ifname
                        && interface.sandbox.as_deref().is_some_and(|sandbox| !sandbox.is_empty())
                }
                Some(None) => {
                    faults.push(format!(
                        "ips[{i}].interface: {} is no index into {} interfaces",
                        index.unwrap_or_default(),
                        interfaces.len()
                    ));
                    continue;
                }
            };
        let address = ip.address.parse::<IpNetwork>();
        let gateway = ip.gateway.as_deref().filter(|text| !text.is_empty()).map(str::parse::<IpAddr>);
        if address.is_err() || !ip.address.contains('/') {
            faults.push(format!("ips[{i}].address: {} is not ADDRESS/LENGTH", quote(&ip.address)));
        }
        if let Some(Err(_)) = gateway {
            faults.push(format!(
                "ips[{i}].gateway: {} is not an address",
                quote(ip.gateway.as_deref().unwrap_or_default())
            ));
        }
        if of_pod {
            pod.addresses.extend(address.map(|network| network.ip()));
            pod.gateways.extend(gateway.and_then(Result::ok));
        }
    }
    if faults.is_empty() { Ok(pod) } else { Err(invalid(join(&faults))) }
}

/// The network namespace of the interface `ifname`, if the result names one.
pub(crate) fn sandbox(result: &RawValue, ifname: &str) -> Option<String> {
    let raw: Raw = serde_json::from_str(result.get()).ok()?;
    let mut interfaces = raw.interfaces.unwrap_or_default().into_iter();
    interfaces.find(|interface| interface.name == ifname)?.sandbox.filter(|path| !path.is_empty())
}

/// The result to print after ADD: the earlier plugins' own text, untouched, as CNI spec section 2 asks of
/// a chained plugin that changes nothing of it. Only a `cniVersion` that was left out is put in front.
#[must_use]
pub fn pass_on(result: &RawValue, version: SpecVersion) -> String {
    #[derive(Deserialize)]
    struct Version {
        #[serde(rename = "cniVersion")]
        version: Option<serde::de::IgnoredAny>,
    }
    let text = result.get();
    let has_version = serde_json::from_str::<Version>(text).map_or(true, |found| found.version.is_some());
    match text.strip_prefix('{') {
        Some(rest) if !has_version => {
            let comma = if rest.trim_start().starts_with('}') { "" } else { "," };
            format!("{{\"cniVersion\":\"{version}\"{comma}{rest}")
        }
        _ => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> Box<RawValue> {
        RawValue::from_string(text.into()).unwrap()
    }

    const BRIDGE: &str = r#"{"cniVersion":"0.4.0","interfaces":[{"name":"cni0"},{"name":"veth1"},
        {"name":"eth0","sandbox":"/run/netns/p"},{"name":"net1","sandbox":"/run/netns/p"}],
        "ips":[{"version":"4","interface":2,"address":"10.1.1.2/24","gateway":"10.1.1.1"},
               {"version":"6","interface":2,"address":"fd00:1::2/64","gateway":"fd00:1::1"},
               {"version":"4","interface":3,"address":"10.9.9.2/24","gateway":"10.9.9.1"},
               {"version":"4","interface":0,"address":"10.1.1.1/24"}],"dns":{}}"#;

    #[test]
    fn only_the_addresses_of_the_pods_own_interface_count() {
        let pod = parse(&raw(BRIDGE), "eth0").unwrap();
        assert_eq!(pod.addresses, ["10.1.1.2", "fd00:1::2"].map(|text| text.parse::<IpAddr>().unwrap()));
        assert_eq!(pod.gateways, ["10.1.1.1", "fd00:1::1"].map(|text| text.parse::<IpAddr>().unwrap()));
        assert_eq!(parse(&raw(BRIDGE), "net1").unwrap().addresses.len(), 1);
        assert_eq!(parse(&raw(BRIDGE), "cni0").unwrap(), PodInterface::default());
    }

    #[test]
    fn results_without_interfaces_or_addresses_are_fine() {
        assert_eq!(parse(&raw("{}"), "eth0").unwrap(), PodInterface::default());
        assert_eq!(
            parse(&raw(r#"{"interfaces":null,"ips":null}"#), "eth0").unwrap(),
            PodInterface::default()
        );
        let pod = parse(&raw(r#"{"ips":[{"address":"10.1.1.2/24"}]}"#), "eth0").unwrap();
        assert_eq!((pod.addresses.len(), pod.gateways.len()), (1, 0));
    }

    #[test]
    fn every_fault_is_named() {
        let error = parse(
            &raw(r#"{"ips":[{"address":"x"},{"address":"10.0.0.1/8","gateway":"y"},{"address":"10.0.0.1/8","interface":7}]}"#),
            "eth0",
        )
        .unwrap_err();
        assert_eq!(error.code, Code::InvalidConfig);
        for place in ["ips[0].address", "ips[1].gateway", "ips[2].interface"] {
            assert!(error.details.contains(place), "{error}");
        }
        assert!(parse(&raw(r#"{"ips":7}"#), "eth0").is_err());
    }

    #[test]
    fn a_result_is_passed_on_byte_for_byte() {
        let odd = r#"{ "cniVersion": "1.0.0", "x": 1.10000000000000000001, "big": 123456789012345678901234567890, "x": [ ] }"#;
        assert_eq!(pass_on(&raw(odd), SpecVersion::V1_0_0), odd);
        assert_eq!(pass_on(&raw("{ }"), SpecVersion::V0_4_0), r#"{"cniVersion":"0.4.0" }"#);
        assert_eq!(pass_on(&raw(r#"{"ips":[]}"#), SpecVersion::V1_1_0), r#"{"cniVersion":"1.1.0","ips":[]}"#);
    }
}
