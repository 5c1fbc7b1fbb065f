//! Section 2, GC: clean up stale resources (1.1.0).

use podspan_wire::local::Request;

use crate::fake_agent::{Behaviour, FakeAgent};
use crate::namespace::Pod;
use crate::plugin::{Call, VERSIONS};

fn attach(agent: &FakeAgent, pod: &Pod, ids: &[&str]) -> Call {
    let mut call = Call::new(pod, agent);
    for id in ids {
        call.container_id = (*id).into();
        call.run("ADD").succeeded();
    }
    call
}

fn gc(mut call: Call) -> Call {
    // GC has no attachment parameters and no prevResult.
    call.container_id.clear();
    call.ifname.clear();
    call.netns.clear();
    call.prev_result = None;
    call
}

#[test]
fn what_is_not_valid_any_more_is_forgotten_and_the_rest_kept() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let call = gc(attach(&agent, &pod, &["a", "b", "c"]));
    let valid = r#"[{"containerID":"a","ifname":"eth0"},{"containerID":"c","ifname":"eth0","x":1},{"containerID":"other","ifname":"net1"}]"#;
    call.clone().key("cni.dev/valid-attachments", valid).run("GC").succeeded_silently();
    assert_eq!(agent.known(), 2);
    assert!(matches!(
        agent.requests().last(),
        Some(Request::Collect { network, valid }) if network == "pods" && valid.len() == 3
    ));
    // libcni's second name for it, and its null for an empty list.
    call.clone()
        .key("cni.dev/attachments", r#"[{"containerID":"a","ifname":"eth0"}]"#)
        .run("GC")
        .succeeded_silently();
    assert_eq!(agent.known(), 1);
    call.key("cni.dev/valid-attachments", "null").run("GC").succeeded_silently();
    assert_eq!(agent.known(), 0);
}

#[test]
fn without_the_key_it_is_an_error_and_nothing_is_removed() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let output = gc(attach(&agent, &pod, &["a"])).run("GC");
    assert_eq!(output.code(), 7);
    assert!(output.stdout.contains("cni.dev/valid-attachments"), "{output:?}");
    assert_eq!(agent.known(), 1);
}

#[test]
fn a_list_that_is_none_is_an_error_and_nothing_is_removed() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let call = gc(attach(&agent, &pod, &["a"]));
    for bad in ["7", "{}", "[7]", r#"[{"containerID":"a"}]"#, r#"[{"containerID":"../a","ifname":"eth0"}]"#] {
        let output = call.clone().key("cni.dev/valid-attachments", bad).run("GC");
        assert_eq!(output.code(), 7, "{bad}");
        assert!(output.stdout.contains("cni.dev/valid-attachments"), "{output:?}");
    }
    assert_eq!(agent.known(), 1);
}

#[test]
fn versions_before_1_1_0_have_no_gc() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    for version in &VERSIONS[..4] {
        let mut call = gc(Call::new(&pod, &agent)).key("cni.dev/valid-attachments", "[]");
        call.version = (*version).into();
        assert_eq!(call.run("GC").code(), 1, "{version}");
    }
    assert!(agent.requests().is_empty());
}

#[test]
fn without_the_agent_the_policy_decides() {
    let pod = Pod::new();
    let agent = FakeAgent::new(Behaviour::Close);
    let call = gc(Call::new(&pod, &agent)).key("cni.dev/valid-attachments", "[]");
    assert!(call.run("GC").succeeded_silently().stderr.contains("Nothing was collected"));
    assert_eq!(call.key("onFailure", "\"closed\"").run("GC").code(), 11);
}
