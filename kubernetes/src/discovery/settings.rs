//! The settings of the `ClusterSet`, read one by one: whatever is wrong with one of them, the others count.
//! The object comes as plain JSON, since the schema that checked it is only as good as who may edit it.

use podspan_wire::Cidr;
use serde_json::Value;

use super::found::{About, Contradiction, Reason, quote};
use crate::crd::{CniMode, EndpointSource, ServiceReference};
use crate::names::CLUSTER_SET;

/// The least and largest tunnel MTU, bytes; as in the agent's settings.
const MTU: std::ops::RangeInclusive<u64> = 1280..=65455;

/// What a `ClusterSet` says, as far as it can be used.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settings {
    /// The pod CIDRs in place of those that are found.
    pub pod_cidrs: Option<Vec<Cidr>>,
    /// The service CIDRs in place of those that are found.
    pub service_cidrs: Option<Vec<Cidr>>,
    /// Which addresses of a Node are endpoints.
    pub from: EndpointSource,
    /// The Service whose addresses are.
    pub service: Option<ServiceReference>,
    /// The tunnel's MTU, bytes.
    pub mtu: Option<u32>,
    /// How podspan joins the nodes' CNI configuration.
    pub cni: Option<CniMode>,
}

/// Reads the settings; none if there is no object.
#[must_use]
pub fn settings(object: Option<&Value>) -> (Settings, Vec<Contradiction>) {
    let mut reader = Reader { wrong: Vec::new() };
    let mut settings = Settings::default();
    let Some(spec) = object.and_then(|object| object.get("spec")).filter(|spec| !spec.is_null()) else {
        return (settings, reader.wrong);
    };
    if !spec.is_object() {
        reader.fault("spec", "is no object");
        return (settings, reader.wrong);
    }
    settings.pod_cidrs = reader.cidrs(spec, "podCIDRs");
    settings.service_cidrs = reader.cidrs(spec, "serviceCIDRs");
    if let Some(endpoints) = present(spec, "endpoints") {
        settings.from = reader.parsed(endpoints, "endpoints", "from").unwrap_or_default();
        settings.service = reader.parsed(endpoints, "endpoints", "service");
        if !endpoints.is_object() {
            reader.fault("spec.endpoints", "is no object");
        }
    }
    if let Some(mtu) = present(spec, "mtu") {
        match mtu.as_u64().filter(|mtu| MTU.contains(mtu)) {
            Some(mtu) => settings.mtu = u32::try_from(mtu).ok(),
            None => reader
                .fault("spec.mtu", format!("is {} and not 1280 to 65455 bytes", quote(&mtu.to_string()))),
        }
    }
    if let Some(cni) = present(spec, "cni") {
        settings.cni = reader.parsed(cni, "cni", "mode");
    }
    (settings, reader.wrong)
}

fn present<'a>(object: &'a Value, key: &str) -> Option<&'a Value> {
    object.get(key).filter(|value| !value.is_null())
}

struct Reader {
    wrong: Vec<Contradiction>,
}

impl Reader {
    fn fault(&mut self, key: &str, what: impl std::fmt::Display) {
        self.wrong.push(Contradiction::problem(
            About::ClusterSet,
            Reason::InvalidSetting,
            format!("ClusterSet {CLUSTER_SET}: {key} {what}; it is not used"),
        ));
    }

    /// A list of CIDRs. Each bad one is named; if none is good, or the list is empty, it counts as not set.
    fn cidrs(&mut self, spec: &Value, key: &str) -> Option<Vec<Cidr>> {
        let value = present(spec, key)?;
        let Some(list) = value.as_array() else {
            self.fault(&format!("spec.{key}"), "is no list of CIDRs");
            return None;
        };
        let mut good: Vec<Cidr> = Vec::new();
        for (i, value) in list.iter().enumerate() {
            let at = format!("spec.{key}[{i}]");
            match value.as_str().map(str::parse::<Cidr>) {
                Some(Ok(cidr)) => match cidr.not_announceable() {
                    Some(why) => self.fault(&at, format!("({cidr}) {why}")),
                    None if !good.contains(&cidr) => good.push(cidr),
                    None => {}
                },
                Some(Err(error)) => self.fault(&at, format!("cannot be used: {error}")),
                None => self.fault(&at, format!("({}) is no text", quote(&value.to_string()))),
            }
        }
        (!good.is_empty()).then_some(good)
    }

    fn parsed<T: serde::de::DeserializeOwned>(
        &mut self,
        section: &Value,
        name: &str,
        key: &str,
    ) -> Option<T> {
        let value = present(section, key)?;
        match serde_json::from_value(value.clone()) {
            Ok(value) => Some(value),
            Err(error) => {
                let error = error.to_string();
                self.fault(
                    &format!("spec.{name}.{key}"),
                    format!("cannot be used: {}", error.chars().take(200).collect::<String>()),
                );
                None
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn each_setting_is_read_by_itself() {
        let cases = [
            (json!({"podCIDRs": ["10.1.0.0/16", "10.1.0.1/16"]}), vec!["spec.podCIDRs[1]"]),
            (json!({"podCIDRs": "10.1.0.0/16"}), vec!["spec.podCIDRs is no list"]),
            (json!({"serviceCIDRs": [5, "0.0.0.0/0"]}), vec!["serviceCIDRs[0]", "serviceCIDRs[1]"]),
            (json!({"endpoints": []}), vec!["spec.endpoints is no object"]),
            (json!({"endpoints": {"from": "nodeMagic"}}), vec!["spec.endpoints.from"]),
            (json!({"endpoints": {"service": {"name": 1}}}), vec!["spec.endpoints.service"]),
            (json!({"mtu": 1000}), vec!["spec.mtu"]),
            (json!({"mtu": "1400"}), vec!["spec.mtu"]),
            (json!({"cni": {"mode": "force"}}), vec!["spec.cni.mode"]),
            (json!([]), vec!["spec is no object"]),
            (json!({"unknown": 1, "mtu": null}), vec![]),
        ];
        for (spec, expected) in cases {
            let (_, wrong) = settings(Some(&json!({ "spec": spec })));
            assert_eq!(wrong.len(), expected.len(), "{spec}: {wrong:?}");
            for (wrong, part) in wrong.iter().zip(expected) {
                assert!(wrong.message.contains(part), "{spec}: {}", wrong.message);
                assert_eq!(wrong.reason, Reason::InvalidSetting);
            }
        }
    }

    #[test]
    fn what_is_sound_counts_beside_what_is_not() {
        let (read, wrong) = settings(Some(&json!({"spec": {
            "podCIDRs": ["nonsense", "10.1.0.0/16", "10.1.0.0/16"],
            "serviceCIDRs": ["nonsense"],
            "endpoints": {"from": "nodeExternalIP", "service": {"namespace": "podspan-system", "name": "wg"}},
            "mtu": 1380,
            "cni": {"mode": "dropIn"},
        }})));
        assert_eq!(read.pod_cidrs, Some(vec!["10.1.0.0/16".parse().unwrap()]));
        assert_eq!(read.service_cidrs, None, "nothing sound: as if it were not set");
        assert_eq!(read.from, EndpointSource::NodeExternalIp);
        assert_eq!(read.service.unwrap().name, "wg");
        assert_eq!((read.mtu, read.cni), (Some(1380), Some(CniMode::DropIn)));
        assert_eq!(wrong.len(), 2);
        assert_eq!(settings(None), (Settings::default(), vec![]));
    }
}
