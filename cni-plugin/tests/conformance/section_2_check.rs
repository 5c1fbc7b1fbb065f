//! Section 2, CHECK: the container's networking is as expected (0.4.0 and later).

use std::time::Duration;

use crate::fake_agent::{Behaviour, FakeAgent, SOME_ROUTES, some_routes};
use crate::namespace::Pod;
use crate::plugin::{Call, VERSIONS};

#[test]
fn a_pod_that_stands_as_add_left_it_passes() {
    for version in &VERSIONS[2..] {
        let (pod, agent) = (Pod::new(), FakeAgent::serving());
        let call = Call::new(&pod, &agent).version(&pod, version);
        call.run("ADD").succeeded();
        call.run("CHECK").succeeded_silently();
    }
}

#[test]
fn versions_before_0_4_0_have_no_check() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    for version in &VERSIONS[..2] {
        let output = Call::new(&pod, &agent).version(&pod, version).run("CHECK");
        assert_eq!(output.code(), 1, "{version}");
        assert_eq!(output.error()["cniVersion"], **version);
    }
}

#[test]
fn each_missing_or_changed_route_is_named() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let call = Call::new(&pod, &agent);
    let damage: [(&str, &[&str]); 4] = [
        ("10.2.0.0/16", &["route", "del", "10.2.0.0/16"]),
        (
            "10.102.0.0/16",
            &["route", "replace", "10.102.0.0/16", "via", "10.1.1.1", "mtu", "900", "proto", "112"],
        ),
        ("fd00:2::/48", &["-6", "route", "del", "fd00:2::/48"]),
        ("10.77.0.0/16", &["route", "add", "10.77.0.0/16", "via", "10.1.1.1", "proto", "112"]),
    ];
    for (cidr, command) in damage {
        call.run("ADD").succeeded();
        call.run("CHECK").succeeded_silently();
        pod.namespace.ip(command);
        let output = call.run("CHECK");
        assert_eq!(output.code(), 101, "{cidr}");
        assert!(output.stdout.contains(cidr), "{output:?}");
        let others = SOME_ROUTES.iter().filter(|route| !route.starts_with(cidr));
        for other in others {
            let other = other.split(' ').next().unwrap();
            assert!(!output.stdout.contains(other), "{other} is fine: {output:?}");
        }
    }
}

#[test]
fn a_route_that_a_later_plugin_changed_to_its_own_is_allowed() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let call = Call::new(&pod, &agent);
    call.run("ADD").succeeded();
    pod.namespace.ip(&["route", "replace", "10.2.0.0/16", "via", "10.1.1.1", "proto", "static"]);
    call.run("CHECK").succeeded_silently();
}

#[test]
fn check_needs_prev_result() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let mut call = Call::new(&pod, &agent);
    call.prev_result = None;
    assert_eq!(call.run("CHECK").code(), 7);
}

#[test]
fn a_pod_that_the_agent_does_not_know_is_made_known_and_given_time() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let call = Call::new(&pod, &agent).key("timeoutMs", "3000");
    call.run("ADD").succeeded();
    agent.forget_all();
    call.run("CHECK").succeeded_silently();
    assert_eq!(agent.known(), 1);

    agent.forget_all();
    pod.namespace.ip(&["route", "del", "10.2.0.0/16"]);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(Duration::from_millis(300));
            pod.namespace.ip(&[
                "route",
                "add",
                "10.2.0.0/16",
                "via",
                "10.1.1.1",
                "mtu",
                "1420",
                "proto",
                "112",
            ]);
        });
        call.run("CHECK").succeeded_silently();
    });

    agent.forget_all();
    pod.namespace.ip(&["route", "del", "10.2.0.0/16"]);
    let output = call.key("timeoutMs", "200").run("CHECK");
    assert_eq!(output.code(), 101);
    assert!(output.took < Duration::from_millis(1500), "{output:?}");
}

#[test]
fn other_clusters_came_and_went_since_add() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let call = Call::new(&pod, &agent);
    call.run("ADD").succeeded();
    let mut routes = some_routes();
    routes.cidrs = ["10.3.0.0/16".parse().unwrap()].into_iter().collect();
    agent.set_routes(routes);
    let output = call.run("CHECK");
    assert_eq!(output.code(), 101);
    assert!(output.stdout.contains("missing: 10.3.0.0/16"), "{output:?}");
    assert!(output.stdout.contains("no longer wanted: 10.2.0.0/16"), "{output:?}");
}

#[test]
fn without_the_agent_the_policy_decides() {
    let pod = Pod::new();
    let agent = FakeAgent::new(Behaviour::Close);
    let call = Call::new(&pod, &agent);
    let open = call.run("CHECK");
    open.succeeded_silently();
    assert!(open.stderr.contains("not checked"), "{open:?}");
    assert_eq!(call.key("onFailure", "\"closed\"").run("CHECK").code(), 11);
}
