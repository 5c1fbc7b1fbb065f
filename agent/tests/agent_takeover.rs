//! One agent follows another: the binaries, on a node without any broker or peer. What packets fare meanwhile is
//! in the tests of the data plane and in the lab.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on must fail")]

mod agent_node;

use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::{Duration, Instant, SystemTime};

use agent_node::{Agent, Node, text};
use nix::sys::signal::Signal;
use podspan_agent::state::StateDir;
use podspan_agent::takeover::talk::Talk;
use podspan_agent::takeover::{Ask, Begin, PROTOCOL, Reply};
use podspan_wire::local::Request;

const SOON: Duration = Duration::from_secs(10);

/// Starts an agent and does not wait.
fn spawn(node: &Node) -> Agent {
    Agent(node.command(&[]).stdout(Stdio::null()).spawn().unwrap())
}

/// Waits until the agent of this process answers at the socket, with all that it should have.
fn wait_until_it_runs(node: &Node, agent: &mut Agent) {
    let end = Instant::now() + SOON;
    loop {
        assert_eq!(agent.0.try_wait().unwrap(), None, "the agent has ended");
        if node.ask(&Request::Ready).is_some() {
            break;
        }
        assert!(Instant::now() < end, "the agent does not run");
        std::thread::sleep(Duration::from_millis(10));
    }
    assert_eq!(node.status().workers.len(), 2);
    assert!(node.status().workers.iter().all(|worker| worker.failed.is_none()));
    assert!(StateDir::open(&node.path("state")).is_err(), "somebody holds the lock");
    node.netns.run("ip -o link show podspan0");
    let ports = node.netns.run("ss -Hlnut");
    assert!(ports.contains(":9840") && ports.contains(":51840"), "{ports}");
}

/// What stands in the kernel, once the agent has brought it about.
fn stands(node: &Node) -> Vec<String> {
    let end = Instant::now() + SOON;
    while !node.netns.run("ip -o link show podspan0").contains(",UP,")
        || !node.status().kernel.failing.is_empty()
    {
        assert!(Instant::now() < end, "it does not come to stand");
        std::thread::sleep(Duration::from_millis(50));
    }
    node.netns.snapshot().lines().map(str::to_owned).collect()
}

/// What stands in the kernel once nothing more is added to it: an agent that has just begun brings it about piece by
/// piece, and none of the pieces says that it is the last.
fn stands_for_good(node: &Node) -> Vec<String> {
    let end = Instant::now() + SOON;
    let mut before = stands(node);
    let mut since = Instant::now();
    while since.elapsed() < Duration::from_secs(1)
        || !before.iter().any(|line| line.contains("inet 10.1.1.0/32"))
    {
        assert!(Instant::now() < end, "it does not come to stand: {before:#?}");
        std::thread::sleep(Duration::from_millis(50));
        let now = stands(node);
        if now != before {
            (before, since) = (now, Instant::now());
        }
    }
    before
}

/// Waits until that stands which stood `before`.
fn wait_until_it_stands(node: &Node, before: &[String]) {
    let end = Instant::now() + SOON;
    loop {
        let now = stands(node);
        let other: Vec<_> = now.iter().filter(|line| !before.contains(line)).collect();
        if other.is_empty() && now.len() == before.len() {
            return;
        }
        assert!(Instant::now() < end, "{} lines before, {} now, new {other:#?}", before.len(), now.len());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn three_agents_follow_each_other_and_nothing_is_removed_in_between() {
    let node = Node::new();
    let mut agent = node.start(&[]);
    node.wait_for_problem("no broker answers");
    let before = stands_for_good(&node);
    for _ in 0..3 {
        let begun = Instant::now();
        let mut next = spawn(&node);
        assert!(agent.wait(SOON), "it ends with success");
        println!("after {:?}", begun.elapsed());
        wait_until_it_runs(&node, &mut next);
        agent = next;
    }
    node.wait_for_problem("no broker answers");
    wait_until_it_stands(&node, &before);
    assert!(agent.stop(Signal::SIGTERM));
    assert!(node.run(&["clean"]).status.success());
}

/// What a killed agent leaves for a moment: its threads end one by one, and as long as the last of them is there,
/// the lock is held and the socket takes connections. Here a test holds both.
#[test]
fn an_agent_that_is_just_dying_is_waited_for() {
    let node = Node::new();
    assert!(node.start(&[]).stop(Signal::SIGTERM));
    // What cannot be taken over is not the other's to refuse when it is dead.
    let path = node.path("state/lanes.json");
    let mut lanes: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
    let later = podspan_wire::UnixTime::from(SystemTime::now()).after(Duration::from_secs(3600));
    lanes["used"] = serde_json::to_value(later).unwrap();
    std::fs::write(&path, lanes.to_string()).unwrap();

    let dying = (
        StateDir::open(&node.path("state")).unwrap(),
        std::os::unix::net::UnixListener::bind(node.path("run/agent.sock")).unwrap(),
    );
    let refused = node.run(&[]);
    assert_eq!(refused.status.code(), Some(1), "it does not die");
    assert!(text(&refused).contains("the clock went back"), "{}", text(&refused));

    let mut agent = spawn(&node);
    std::thread::sleep(Duration::from_millis(500));
    drop(dying);
    wait_until_it_runs(&node, &mut agent);
    assert!(agent.stop(Signal::SIGTERM));
}

#[test]
fn an_agent_that_is_set_up_otherwise_is_refused() {
    let node = Node::new();
    let mut agent = node.start(&[]);
    let settings = std::fs::read_to_string(node.path("agent.toml")).unwrap();
    for (from, to, why) in [
        ("tunnel.lanes = 2", "tunnel.lanes = 1", "it has 2 lanes, not 1"),
        ("tunnel.lanes = 2", "tunnel.lanes = 3", "keys for 2 lanes, not for 3"),
        ("tunnel.lanes = 2", "tunnel.lanes = 2\ntunnel.port = 5000", "its first UDP port is 51840, not 5000"),
        (
            "tunnel.lanes = 2",
            "tunnel.lanes = 2\ntunnel.interface = \"other\"",
            "its interface is podspan0, not other",
        ),
    ] {
        std::fs::write(node.path("agent.toml"), settings.replace(from, to)).unwrap();
        let refused = node.run(&[]);
        assert_eq!(refused.status.code(), Some(1));
        assert!(text(&refused).contains("another podspan-agent runs"), "{}", text(&refused));
        assert!(text(&refused).contains(why), "{}", text(&refused));
    }
    std::fs::write(node.path("agent.toml"), &settings).unwrap();
    wait_until_it_runs(&node, &mut agent);
    assert!(agent.stop(Signal::SIGTERM));
}

/// The heir of a test: asks up to the `steps`th step.
fn ask(node: &Node, steps: usize) -> Talk {
    let now = SystemTime::now().into();
    let keys = StateDir::peek(&node.path("state"), Some(2), now).unwrap().lanes;
    let begin = Begin {
        protocol: PROTOCOL,
        version: "0".into(),
        pid: std::process::id(),
        interface: "podspan0".into(),
        port: 51840,
        lanes: keys.iter().map(podspan_dataplane::LaneSecret::public).collect(),
    };
    let mut talk = Talk::new(UnixStream::connect(node.path("run/agent.sock")).unwrap());
    for (step, ask) in [Ask::Begin(begin), Ask::Cut, Ask::Control, Ask::Commit].iter().enumerate().take(steps)
    {
        talk.say(ask, &[]).unwrap();
        let (reply, fds) = talk.hear::<Reply>(SOON).unwrap();
        let expected = match (step, reply) {
            (0, Reply::Lent { masks, sessions, .. }) => {
                masks.len() == 2 && sessions.is_empty() && fds.len() == 6
            }
            (1, Reply::Cut) | (3, Reply::Committed) => fds.is_empty(),
            (2, Reply::Control { health: true }) => fds.len() == 3,
            _ => false,
        };
        assert!(expected, "step {step}");
    }
    talk
}

#[test]
fn an_heir_that_dies_at_any_step_leaves_the_agent_as_it_was() {
    let node = Node::new();
    let mut agent = node.start(&[]);
    node.wait_for_problem("no broker answers");
    let before = stands_for_good(&node);
    for steps in 1..=4 {
        drop(ask(&node, steps));
        // Its control half starts anew, and what is asked meanwhile is answered then.
        wait_until_it_runs(&node, &mut agent);
        node.wait_for_problem("no broker answers");
        wait_until_it_stands(&node, &before);
    }
    // One that takes its time is not kept out by another that comes meanwhile.
    let slow = ask(&node, 1);
    assert!(node.ask(&Request::Ready).is_some(), "it goes on all the while");
    drop(slow);
    let mut next = spawn(&node);
    assert!(agent.wait(SOON));
    wait_until_it_runs(&node, &mut next);
    // Told to stop in the middle, it waits for the end of it.
    let heir = ask(&node, 2);
    next.signal(Signal::SIGTERM);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(next.0.try_wait().unwrap(), None);
    drop(heir);
    assert!(next.wait(SOON));
}

#[test]
fn whoever_is_killed_when_the_other_goes_on() {
    let node = Node::new();
    let mut agent = node.start(&[]);
    for milliseconds in [0, 10, 20, 30, 40, 60, 80, 120, 200, 500, 1100] {
        for old in [false, true] {
            let mut next = spawn(&node);
            std::thread::sleep(Duration::from_millis(milliseconds));
            match old {
                true => agent.signal(Signal::SIGKILL),
                false => next.signal(Signal::SIGKILL),
            }
            // An agent that had handed over has ended, or is about to.
            let both = |agent: &mut Agent, next: &mut Agent| {
                agent.0.try_wait().unwrap().is_none() && next.0.try_wait().unwrap().is_none()
            };
            let end = Instant::now() + SOON;
            while both(&mut agent, &mut next) {
                assert!(Instant::now() < end, "both live on, {milliseconds} ms");
                std::thread::sleep(Duration::from_millis(10));
            }
            // One that had made up its mind to end does so.
            std::thread::sleep(Duration::from_millis(200));
            if agent.0.try_wait().unwrap().is_some() && next.0.try_wait().unwrap().is_none() {
                agent = next;
            } else if agent.0.try_wait().unwrap().is_some() {
                // The old one had ended, and the new one was killed then.
                assert!(!old, "{milliseconds} ms");
                agent = node.start(&[]);
            }
            wait_until_it_runs(&node, &mut agent);
        }
    }
}
