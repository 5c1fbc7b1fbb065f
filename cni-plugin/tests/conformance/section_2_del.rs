//! Section 2, DEL: remove container from network. It completes whatever is already gone.

use podspan_wire::local::Request;

use crate::fake_agent::{Behaviour, FakeAgent};
use crate::namespace::Pod;
use crate::plugin::{Call, VERSIONS};

#[test]
fn del_undoes_add_and_twice_is_fine_in_every_version() {
    for version in VERSIONS {
        let (pod, agent) = (Pod::new(), FakeAgent::serving());
        let before = pod.namespace.other_routes();
        let call = Call::new(&pod, &agent).version(&pod, version);
        call.run("ADD").succeeded();
        assert_eq!((agent.known(), pod.namespace.podspan_routes().len()), (1, 3));
        for _ in 0..2 {
            call.run("DEL").succeeded_silently();
            assert_eq!((agent.known(), pod.namespace.podspan_routes().len()), (0, 0), "{version}");
        }
        assert_eq!(pod.namespace.other_routes(), before);
    }
}

#[test]
fn del_without_netns_and_without_prev_result_still_detaches() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let mut call = Call::new(&pod, &agent);
    call.run("ADD").succeeded();
    call.netns.clear();
    call.prev_result = None;
    call.run("DEL").succeeded_silently();
    assert_eq!(agent.known(), 0);
    assert!(
        matches!(agent.requests().last(), Some(Request::Detach(a)) if a.container_id == call.container_id)
    );
}

#[test]
fn del_of_a_namespace_that_is_gone() {
    let agent = FakeAgent::serving();
    let pod = Pod::new();
    let call = Call::new(&pod, &agent);
    call.run("ADD").succeeded();
    drop(pod);
    call.run("DEL").succeeded_silently();
    assert_eq!(agent.known(), 0);
}

#[test]
fn del_of_an_attachment_that_never_was() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let mut call = Call::new(&pod, &agent);
    call.container_id = "never".into();
    call.ifname = "eth9".into();
    call.run("DEL").succeeded_silently();
}

#[test]
fn del_with_the_agent_down_or_broken_succeeds_within_the_bound() {
    let pod = Pod::new();
    let misbehaviour = [Behaviour::Hang, Behaviour::Close, Behaviour::Say(b"{".to_vec()), Behaviour::Flood];
    for behaviour in misbehaviour {
        let agent = FakeAgent::new(behaviour.clone());
        for policy in ["open", "closed"] {
            let call =
                Call::new(&pod, &agent).key("timeoutMs", "200").key("onFailure", &format!("{policy:?}"));
            let output = call.run("DEL");
            output.succeeded_silently();
            assert!(output.stderr.contains("agent"), "{behaviour:?}: {output:?}");
            assert!(output.took.as_millis() < 1500, "{behaviour:?}: {output:?}");
        }
    }
    let nowhere =
        Call::at(&pod, std::path::Path::new("/nonexistent/agent.sock")).key("onFailure", "\"closed\"");
    nowhere.run("DEL").succeeded_silently();
}

#[test]
fn del_works_with_broken_settings() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    Call::new(&pod, &agent).run("ADD").succeeded();
    let output = Call::new(&pod, &agent).key("timeoutMs", "\"x\"").run("DEL");
    output.succeeded_silently();
    assert!(output.stderr.contains("timeoutMs"), "{output:?}");
    assert!(pod.namespace.podspan_routes().is_empty());
}

#[test]
fn del_never_touches_the_nodes_own_namespace() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let mut call = Call::new(&pod, &agent);
    // The process's own namespace is a pod's here, with routes as podspan's own table on a node has.
    call.run("ADD").succeeded();
    call.netns = "/proc/self/ns/net".into();
    let mut command = std::process::Command::new("nsenter");
    command.arg(format!("--net={}", pod.namespace.path().display())).arg(crate::plugin::binary());
    let environment = [
        ("CNI_COMMAND", "DEL"),
        ("CNI_CONTAINERID", "c"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_NETNS", "/proc/self/ns/net"),
    ];
    crate::plugin::execute(&mut command, &environment, call.config().as_bytes()).succeeded_silently();
    assert_eq!(pod.namespace.podspan_routes().len(), 3);
}

#[test]
fn required_parameters_of_del() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let mut call = Call::new(&pod, &agent);
    call.container_id.clear();
    call.ifname.clear();
    let output = call.run("DEL");
    assert_eq!(output.code(), 4);
    assert!(output.stdout.contains("CNI_CONTAINERID") && output.stdout.contains("CNI_IFNAME"), "{output:?}");
}
