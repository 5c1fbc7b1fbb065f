//! The manifests as users apply them, by kubectl and by `podspan join`, and an agent that leaves with them.

use std::time::Duration;

use anyhow::Result;
use serde_json::Value;

use super::joined::{BASE, Joined, apply_manifests, apply_node, until};
use crate::command::Cmd;
use crate::kube::KubeApi;
use crate::scenario::Findings;

const OVERLAYS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/overlays");
const SOON: Duration = Duration::from_secs(20);

const PRIMARY: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"pods\",\n  \"plugins\": [\n    { \"type\": \"bridge\" }\n  ]\n}\n";

/// Kind, name and `field` of every object that `kubectl apply -k` makes.
fn versions(api: &KubeApi, overlay: &str, field: &str) -> Result<Vec<(String, String, String)>> {
    let manifests = api.kubectl(&["kustomize", overlay])?;
    let list = api.kubectl_cmd(&["get", "-o", "json", "-f", "-"]).stdin(manifests).text()?;
    let list: Value = serde_json::from_str(&list)?;
    let items = list["items"].as_array().cloned().unwrap_or_default();
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    Ok(items
        .iter()
        .map(|item| (text(&item["kind"]), text(&item["metadata"]["name"]), text(&item["metadata"][field])))
        .collect())
}

/// Applied twice, by either hand, the manifests change nothing; and both hands mean the same.
pub(super) fn manifests(api: &mut KubeApi) -> Result<()> {
    let mut findings = Findings::default();
    let directory = api.directory("manifests")?;
    let set = directory.join("set");
    let bundle = directory.join("alpha.bundle");
    let cli = api.podspan()?.cli.clone();
    Cmd::new(&cli)
        .args(["clusterset", "create", "--name", "lab", "--broker", "192.0.2.11:30743", "--dir"])
        .arg(&set)
        .run_ok()?;
    Cmd::new(&cli)
        .args(["cluster", "grant", "alpha", "--pod-cidr", "10.61.0.0/16", "--dir"])
        .arg(&set)
        .arg("--out")
        .arg(&bundle)
        .run_ok()?;
    for name in ["broker-elsewhere", "broker-here"] {
        let overlay = format!("{OVERLAYS}/{name}");
        let apply = || api.kubectl(&["apply", "--server-side", "--force-conflicts", "-k", &overlay]);
        apply()?;
        apply_manifests(api)?;
        let first = versions(api, &overlay, "resourceVersion")?;
        apply()?;
        let second = versions(api, &overlay, "resourceVersion")?;
        findings.require(first.len() >= 15, || format!("{name}: only {} objects were seen", first.len()));
        findings.expect(&format!("{name}: what the second apply changed"), &first, &second);

        // Another field manager meets no conflict where it says the same, and changes nothing.
        let before = versions(api, &overlay, "generation")?;
        let join = || {
            let mut cmd =
                Cmd::new(&cli).args(["join", "--timeout", "0", "--kubeconfig"]).arg(api.kubeconfig());
            cmd = cmd.arg("--bundle").arg(&bundle);
            if name == "broker-here" {
                cmd = cmd.args(["--broker-here", "--broker-tls"]).arg(set.join("broker"));
            }
            cmd.within(api.netns()).run_ok()
        };
        join()?;
        findings.expect(
            &format!("{name}: what `podspan join` has otherwise"),
            &before,
            &versions(api, &overlay, "generation")?,
        );
        let joined = versions(api, &overlay, "resourceVersion")?;
        join()?;
        let again = versions(api, &overlay, "resourceVersion")?;
        findings.expect(&format!("{name}: what the second join changed"), &joined, &again);
    }
    api.kubectl(&["delete", "clustersets", "--all", "--wait=false"])?;
    api.kubectl(&["-n", "podspan-system", "delete", "secrets", "podspan-bundle", "podspan-broker-tls"])?;
    findings.conclude(8)
}

/// An agent that is told to stop stays in the kernel as long as its DaemonSet is there, and leaves no trace when that
/// is deleted, even if its rights went before.
pub(super) fn leave(api: &mut KubeApi) -> Result<()> {
    let mut findings = Findings::default();
    let mut joined = Joined::start(api, "leave")?;
    let agent = joined.agent(api, "l1")?;
    let directory = api.directory("leave/cni")?;
    let (conf, bin) = (directory.join("conf"), directory.join("bin"));
    for path in [&conf, &bin] {
        std::fs::create_dir_all(path)?;
    }
    let primary = conf.join("10-pods.conflist");
    std::fs::write(&primary, PRIMARY)?;
    let cni = format!(
        "[cni]\nconf-dir = \"{}\"\nbin-dir = \"{}\"\nplugin = \"{}\"\n",
        conf.display(),
        bin.display(),
        api.podspan()?.plugin.display()
    );
    agent.edit_settings(|text| text.replace("on-exit = \"remove\"\n", "") + &cni)?;
    joined.give_bundle(&agent)?;
    apply_node(api, &agent.host, 1)?;
    let chained = || std::fs::read_to_string(&primary).is_ok_and(|text| text.contains("\"podspan\""));
    let traces = || -> Result<String> {
        let host = &agent.host.netns;
        let mut found = String::new();
        for command in
            [&["ip", "link"][..], &["ip", "rule"], &["ip", "-6", "rule"], &["nft", "list", "tables"]]
        {
            let (program, args) = command.split_first().unwrap_or((&"true", &[]));
            let text = Cmd::new(program).args(args).within(host).text()?;
            for line in text.lines().filter(|line| line.contains("podspan") || line.contains("7183")) {
                found += line;
                found.push('\n');
            }
        }
        Ok(found)
    };
    let run = |joined: &mut Joined, api: &mut KubeApi| -> Result<()> {
        joined.start_agent(api, &agent)?;
        agent.until("it runs", SOON, |_| true)?;
        until("the CNI plugin", SOON, || Ok(if chained() { Ok(()) } else { Err("not chained".into()) }))?;
        Ok(())
    };

    run(&mut joined, api)?;
    joined.end_agent(api, &agent)?;
    findings
        .require(chained() && bin.join("podspan").exists(), || "the CNI plugin went with an update".into());
    findings.require(traces()?.contains("podspan0"), || "the interface went with an update".into());

    run(&mut joined, api)?;
    // Until the agent has seen what will be gone.
    crate::signals::sleep(Duration::from_secs(2))?;
    api.kubectl(&["delete", "clusterrolebinding", "podspan-agent"])?;
    api.kubectl(&["-n", "podspan-system", "delete", "rolebinding", "podspan-agent"])?;
    api.kubectl(&["-n", "podspan-system", "delete", "daemonset", "podspan-agent"])?;
    let left = until("the CNI entry goes while the agent still runs", SOON, || {
        Ok(if chained() { Err("still chained".into()) } else { Ok(()) })
    })?;
    println!("       the CNI entry was out after {:.1} s", left.as_secs_f64());
    findings.require(agent.answers(), || "the agent ended by itself".into());
    joined.end_agent(api, &agent)?;
    findings.expect("what is left in the kernel", String::new(), traces()?);
    findings.expect("the primary", PRIMARY.to_owned(), std::fs::read_to_string(&primary)?);
    findings.require(!bin.join("podspan").exists(), || "the CNI plugin is still there".into());
    findings.require(!agent.state_exists(), || "the state directory is still there".into());

    api.kubectl(&["apply", "--server-side", "--force-conflicts", "-k", BASE])?;
    joined.end(api)?;
    findings.conclude(7)
}
