//! Section 1: network configuration format. Keys that podspan does not know are the runtime's or another
//! plugin's; its own must be right, and everything that is wrong is said at once.

use crate::fake_agent::FakeAgent;
use crate::namespace::Pod;
use crate::plugin::Call;

#[test]
fn unknown_keys_are_ignored() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let call = Call::new(&pod, &agent)
        .key("runtimeConfig", r#"{"portMappings":[]}"#)
        .key("capabilities", r#"{"x":true}"#)
        .key("args", r#"{"cni":{"labels":[1]}}"#)
        .key("ipMasq", "7")
        .key("dns", "{}")
        .key("example.net/other", "[[[]]]");
    call.run("ADD").succeeded();
}

#[test]
fn each_own_key_wrong_in_turn_is_named() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let call = Call::new(&pod, &agent);
    let cases = [
        ("onFailure", "7"),
        ("onFailure", "\"half-open\""),
        ("timeoutMs", "0"),
        ("timeoutMs", "10001"),
        ("timeoutMs", "-1"),
        ("timeoutMs", "1.5"),
        ("timeoutMs", "\"500\""),
        ("optOut", "[]"),
        ("optOut", r#"{"namespaces":"kube-system"}"#),
        ("optOut", r#"{"namespaces":[7]}"#),
        ("socket", "7"),
        ("socket", "\"agent.sock\""),
        ("socket", "\"\""),
    ];
    for (key, value) in cases {
        // The socket's key comes last and so wins over the good one.
        let output = call.clone().key(key, value).run("ADD");
        assert_eq!(output.code(), 7, "{key}={value}");
        assert!(output.stdout.contains(key), "{key}={value}: {output:?}");
    }
    let long = format!("\"/{}\"", "s".repeat(107));
    let output = call.clone().key("socket", &long).run("ADD");
    assert!(output.code() == 7 && output.stdout.contains("107"), "{output:?}");
    assert!(
        pod.namespace.podspan_routes().is_empty() && agent.requests().is_empty(),
        "something was touched"
    );
}

#[test]
fn everything_that_is_wrong_is_said_at_once() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let output = Call::new(&pod, &agent)
        .key("onFailure", "7")
        .key("timeoutMs", "\"x\"")
        .key("optOut", "1")
        .key("socket", "\"x\"")
        .run("ADD");
    assert_eq!(output.code(), 7);
    for key in ["onFailure", "timeoutMs", "optOut", "socket"] {
        assert!(output.stdout.contains(key), "{key}: {output:?}");
    }
}

#[test]
fn a_misspelt_own_key_is_code_2_with_key_and_value() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    for (key, value, meant) in [
        ("onfailure", "\"closed\"", "onFailure"),
        ("timeoutms", "5", "timeoutMs"),
        ("optOut", r#"{"namespace":["a"]}"#, "namespaces"),
    ] {
        let output = Call::new(&pod, &agent).key(key, value).run("ADD");
        assert_eq!(output.code(), 2, "{key}");
        assert!(output.stdout.contains(key) && output.stdout.contains(meant), "{output:?}");
    }
}

#[test]
fn the_networks_name_must_be_one() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    for name in ["", "-x", "a b", "a/b"] {
        let config =
            Call::new(&pod, &agent).config().replace(r#""name":"pods""#, &format!(r#""name":"{name}""#));
        let output = crate::bad_input::with_input("ADD", config.as_bytes());
        assert_eq!(output.code(), 7, "{name:?}");
        assert!(output.stdout.contains("name"), "{output:?}");
    }
}

#[test]
fn pods_of_a_namespace_that_is_opted_out_are_left_alone() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let mut call = Call::new(&pod, &agent).key("optOut", r#"{"namespaces":["kube-system","quiet"]}"#);
    call.args = "IgnoreUnknown=1;K8S_POD_NAMESPACE=quiet;K8S_POD_NAME=p".into();
    let output = call.run("ADD");
    assert_eq!(Some(output.succeeded().stdout.trim_end()), call.prev_result.as_deref());
    call.run("CHECK").succeeded_silently();
    assert!(pod.namespace.podspan_routes().is_empty() && agent.requests().is_empty());

    call.args = "K8S_POD_NAMESPACE=shop;PODSPAN=off".into();
    call.run("ADD").succeeded();
    assert!(pod.namespace.podspan_routes().is_empty() && agent.requests().is_empty());

    call.args = "K8S_POD_NAMESPACE=shop".into();
    call.run("ADD").succeeded();
    assert_eq!(pod.namespace.podspan_routes().len(), 3);
}
