//! Section 2, STATUS: whether the plugin can serve ADD (1.1.0). Only the agent of this node counts.

use std::path::Path;

use crate::fake_agent::{Behaviour, FakeAgent};
use crate::namespace::Pod;
use crate::plugin::{Call, VERSIONS};

fn status(mut call: Call) -> Call {
    call.container_id.clear();
    call.ifname.clear();
    call.netns.clear();
    call.prev_result = None;
    call
}

#[test]
fn ready_with_the_agent() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    for policy in ["\"open\"", "\"closed\""] {
        status(Call::new(&pod, &agent)).key("onFailure", policy).run("STATUS").succeeded_silently();
    }
}

#[test]
fn without_the_agent_ready_if_open_and_51_if_closed() {
    let pod = Pod::new();
    for behaviour in [Behaviour::Hang, Behaviour::Close, Behaviour::Say(b"?".to_vec())] {
        let agent = FakeAgent::new(behaviour);
        let call = status(Call::new(&pod, &agent)).key("timeoutMs", "200");
        call.run("STATUS").succeeded_silently();
        let closed = call.key("onFailure", "\"closed\"").run("STATUS");
        assert_eq!(closed.code(), 51);
        assert!(closed.took.as_millis() < 1500, "{closed:?}");
    }
    let nowhere = status(Call::at(&pod, Path::new("/nonexistent/agent.sock")));
    nowhere.run("STATUS").succeeded_silently();
    assert_eq!(nowhere.key("onFailure", "\"closed\"").run("STATUS").code(), 51);
}

#[test]
fn an_agent_that_is_not_ready_is_50_if_closed() {
    let pod = Pod::new();
    let agent = FakeAgent::new(Behaviour::Say(br#"{"answer":"error","message":"still starting"}"#.to_vec()));
    let call = status(Call::new(&pod, &agent));
    assert!(call.run("STATUS").succeeded_silently().stderr.contains("still starting"));
    let closed = call.key("onFailure", "\"closed\"").run("STATUS");
    assert_eq!(closed.code(), 50);
    assert!(closed.stdout.contains("still starting"), "{closed:?}");
}

#[test]
fn versions_before_1_1_0_have_no_status() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    for version in &VERSIONS[..4] {
        let mut call = status(Call::new(&pod, &agent));
        call.version = (*version).into();
        assert_eq!(call.run("STATUS").code(), 1, "{version}");
    }
}
