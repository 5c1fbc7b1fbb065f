//! What runtimes remember of pods' interfaces: libcni keeps the result of every ADD until the DEL, for containerd and
//! CRI-O in `/var/lib/cni/results`, a file each (`cachedInfo` in libcni's `api.go`). So pods are known that were there
//! before podspan was in the chain.

use podspan_wire::local::AttachmentDetail;
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::environment::Environment;
use crate::prev_result;

/// Where runtimes keep them.
pub const DIRECTORY: &str = "/var/lib/cni/results";

/// `kind` of the only form there is.
const KIND: &str = "cniCacheV1";

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Raw {
    kind: String,
    container_id: String,
    if_name: String,
    network_name: String,
    /// Written since libcni 1.2; before, the result alone has it.
    #[serde(default)]
    netns: Option<String>,
    #[serde(default)]
    cni_args: Option<Vec<(String, String)>>,
    #[serde(default)]
    result: Option<Box<RawValue>>,
}

/// Reads one. `None` if nothing is to be done for the pod: it has opted out, or has no interface of its own.
///
/// # Errors
/// What is wrong with it, for a person.
pub fn parse(text: &str) -> Result<Option<AttachmentDetail>, String> {
    let raw: Raw = serde_json::from_str(text).map_err(|error| error.to_string())?;
    if raw.kind != KIND {
        return Err(format!("its kind is {:?}, not {KIND:?}", raw.kind));
    }
    let Some(result) = raw.result else { return Err("it holds no result".into()) };
    let sandbox = || prev_result::sandbox(&result, &raw.if_name);
    let Some(netns) = raw.netns.filter(|path| !path.is_empty()).or_else(sandbox) else { return Ok(None) };
    let arguments = raw.cni_args.unwrap_or_default();
    let environment = Environment {
        container_id: Some(raw.container_id),
        ifname: Some(raw.if_name),
        netns: Some(netns.clone()),
        args: Some(arguments.iter().map(|(key, value)| format!("{key}={value};")).collect()),
        ..Environment::default()
    };
    let (attachment, _) = environment.attachment(true).map_err(|error| error.to_string())?;
    let args = environment.args().map_err(|error| error.to_string())?;
    if args.off {
        return Ok(None);
    }
    let interface = prev_result::parse(&result, &attachment.interface).map_err(|error| error.to_string())?;
    Ok(Some(AttachmentDetail {
        attachment,
        netns,
        network: raw.network_name,
        addresses: interface.addresses,
        gateways: interface.gateways,
        pod: args.pod_name(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As containerd 1.6 writes it, with `bridge` and `host-local`.
    const CONTAINERD: &str = r#"{"kind":"cniCacheV1","containerId":"0a1b","config":"e30=","ifName":"eth0",
        "networkName":"cbr0","cniArgs":[["K8S_POD_NAMESPACE","shop"],["K8S_POD_NAME","web-0"],["IgnoreUnknown","1"]],
        "capabilityArgs":{"io.kubernetes.cri.pod-annotations":{"a":"b"}},
        "result":{"cniVersion":"1.0.0","dns":{},
            "interfaces":[{"mac":"2a:1b:2c:3d:4e:5f","name":"cbr0"},{"mac":"3a:1b:2c:3d:4e:5f","name":"veth1"},
                {"mac":"4a:1b:2c:3d:4e:5f","name":"eth0","sandbox":"/var/run/netns/cni-1"}],
            "ips":[{"address":"10.1.1.5/24","gateway":"10.1.1.1","interface":2},
                {"address":"fd00:10:1:1::5/64","gateway":"fd00:10:1:1::1","interface":2}],
            "routes":[{"dst":"0.0.0.0/0"}]}}"#;

    #[test]
    fn what_containerd_keeps_is_read() {
        let detail = parse(CONTAINERD).unwrap().unwrap();
        assert_eq!(
            (detail.attachment.container_id.as_str(), detail.attachment.interface.as_str()),
            ("0a1b", "eth0")
        );
        assert_eq!((detail.netns.as_str(), detail.network.as_str()), ("/var/run/netns/cni-1", "cbr0"));
        assert_eq!(detail.pod.as_deref(), Some("shop/web-0"));
        let texts: Vec<String> =
            detail.addresses.iter().chain(&detail.gateways).map(ToString::to_string).collect();
        assert_eq!(texts, ["10.1.1.5", "fd00:10:1:1::5", "10.1.1.1", "fd00:10:1:1::1"]);
        // Newer ones name the namespace beside the result.
        let newer = CONTAINERD.replace(r#""networkName""#, r#""netns":"/run/netns/other","networkName""#);
        assert_eq!(parse(&newer).unwrap().unwrap().netns, "/run/netns/other");
    }

    #[test]
    fn who_has_opted_out_or_has_no_namespace_is_left_alone() {
        let off = CONTAINERD.replace(r#"["IgnoreUnknown","1"]"#, r#"["PODSPAN","off"]"#);
        assert_eq!(parse(&off), Ok(None));
        let host = CONTAINERD.replace(r#","sandbox":"/var/run/netns/cni-1""#, "");
        assert_eq!(parse(&host), Ok(None));
    }

    #[test]
    fn what_cannot_be_read_is_an_error() {
        for (from, to, why) in [
            ("cniCacheV1", "cniCacheV9", "cniCacheV9"),
            (r#""result""#, r#""results""#, "no result"),
            ("0a1b", "../x", "CNI_CONTAINERID"),
            ("10.1.1.5/24", "10.1.1.5", "ADDRESS/LENGTH"),
            (r#""kind""#, "kind", "key must be a string"),
        ] {
            let error = parse(&CONTAINERD.replace(from, to)).unwrap_err();
            assert!(error.contains(why), "{why}: {error}");
        }
    }
}
