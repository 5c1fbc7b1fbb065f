//! The agent's binary from start to end, in a network namespace without any broker.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod agent_node;

use std::os::unix::fs::PermissionsExt as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use agent_node::{Agent, Node, text};
use nix::sys::signal::Signal;
use podspan_wire::local::{Answer, Attachment, AttachmentDetail, Request};

#[test]
fn from_start_to_clean() {
    let node = Node::new();
    let before = node.netns.snapshot();
    let agent = node.start(&[]);
    node.wait_for_problem("no broker answers");
    assert_eq!(node.status().workers.len(), 2);
    assert!(node.link());

    // A clean under way of the agent is refused; the agent goes on.
    let refused = node.run(&["clean"]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused).contains("another podspan-agent runs"), "{}", text(&refused));
    assert!(node.link() && node.ask(&Request::Ready).is_some());

    // A disk that takes nothing: pods are attached, and a person is told.
    let taken = node.path("state").join(".attachments.json.tmp");
    std::fs::create_dir(&taken).unwrap();
    let attached = node.ask(&Request::Attach(AttachmentDetail {
        attachment: Attachment { container_id: "c".into(), interface: "eth0".into() },
        netns: format!("/run/netns/{}", node.netns.name()),
        network: "pods".into(),
        addresses: Vec::new(),
        gateways: Vec::new(),
        pod: None,
    }));
    assert!(matches!(attached, Some(Answer::Routes(_))), "{attached:?}");
    node.wait_for_problem("attachments.json");
    std::fs::remove_dir(&taken).unwrap();

    // Renewing the bundle is noticed.
    let bundle = std::fs::read_to_string(node.path("alpha.bundle")).unwrap();
    std::fs::write(node.path("alpha.bundle"), bundle.replace("192.0.2.1:7443", "192.0.2.2:7443")).unwrap();
    node.wait_for_problem("restart the agent to use it");
    std::fs::write(node.path("alpha.bundle"), bundle).unwrap();

    // Killed, the agent is back at once; the interface stays all the while.
    agent.stop(Signal::SIGKILL);
    assert!(node.link());
    let begun = Instant::now();
    let agent = node.start(&[]);
    assert!(begun.elapsed() < Duration::from_secs(2), "{:?}", begun.elapsed());
    assert!(agent.stop(Signal::SIGTERM));
    assert!(node.link(), "--on-exit keep");
    assert!(!node.path("run/agent.sock").exists());

    let cleaned = node.run(&["clean"]);
    assert!(cleaned.status.success(), "{}", text(&cleaned));
    assert!(text(&cleaned).contains("removed interface podspan0"), "{}", text(&cleaned));
    assert!(!node.path("state").exists());
    assert_eq!(before, node.netns.snapshot());
    let again = node.run(&["clean"]);
    assert!(again.status.success() && text(&again).is_empty(), "{}", text(&again));
}

#[test]
fn a_signal_at_any_time_of_the_start_leaves_nothing() {
    let node = Node::new();
    let before = node.netns.snapshot();
    for milliseconds in [0, 5, 15, 30, 60, 120, 250, 500] {
        let mut agent = Agent(node.command(&["--on-exit", "remove"]).stdout(Stdio::null()).spawn().unwrap());
        std::thread::sleep(Duration::from_millis(milliseconds));
        agent.signal(Signal::SIGTERM);
        agent.wait(Duration::from_secs(20));
        assert!(!node.link(), "after {milliseconds} ms");
        assert!(!node.path("run/agent.sock").exists(), "after {milliseconds} ms");
    }
    assert_eq!(before, node.netns.snapshot());
    assert!(!node.path("state/known.json").exists());
}

#[test]
fn a_start_that_fails_says_why_and_leaves_what_was_there() {
    let node = Node::new();
    let refused = |why: &str| {
        let output = node.run(&[]);
        assert_eq!(output.status.code(), Some(1), "{}", text(&output));
        assert!(text(&output).contains(why), "{why:?} in {}", text(&output));
        assert!(!node.path("run/agent.sock").exists());
    };
    // Something else has the interface's name.
    node.netns.run("ip link add podspan0 type bridge");
    refused("podspan0");
    assert!(node.netns.run("ip -d link show podspan0").contains("bridge"), "it is not ours to remove");
    node.netns.run("ip link del podspan0");
    // The state cannot be read: nothing is made in the kernel.
    std::fs::create_dir_all(node.path("state/known.json")).unwrap();
    refused("known.json");
    assert!(!node.link());
    std::fs::remove_dir(node.path("state/known.json")).unwrap();
    std::fs::set_permissions(node.path("alpha.bundle"), std::fs::Permissions::from_mode(0o644)).unwrap();
    refused("chmod 0600");
    assert!(!node.link());
}
