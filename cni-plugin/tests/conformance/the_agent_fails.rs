//! ADD with an agent that is down, slow or mad: bounded, and `onFailure` decides what becomes of the pod.

use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use crate::fake_agent::{Behaviour, FakeAgent};
use crate::namespace::Pod;
use crate::plugin::{Call, Output};

/// Generous towards a busy machine; the bound itself is 200 ms.
const BOUND: Duration = Duration::from_millis(1200);

fn both_policies(pod: &Pod, call: &Call, what: &str) -> Output {
    let call = call.clone().key("timeoutMs", "200");
    let open = call.run("ADD");
    assert_eq!(Some(open.succeeded().stdout.trim_end()), call.prev_result.as_deref(), "{what}");
    assert!(open.stderr.contains("agent") && open.stderr.contains("onFailure is open"), "{what}: {open:?}");
    assert!(open.took < BOUND, "{what}: {open:?}");
    let closed = call.key("onFailure", "\"closed\"").run("ADD");
    assert_eq!(closed.code(), 11, "{what}: {closed:?}");
    assert!(closed.took < BOUND, "{what}: {closed:?}");
    assert!(pod.namespace.podspan_routes().is_empty(), "{what}");
    closed
}

#[test]
fn absent() {
    let pod = Pod::new();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    let error = both_policies(&pod, &Call::at(&pod, &socket), "no socket");
    assert!(error.stdout.contains(socket.to_str().unwrap()), "{error:?}");
    // A socket that a killed agent left behind.
    drop(UnixListener::bind(&socket).unwrap());
    both_policies(&pod, &Call::at(&pod, &socket), "a socket without an agent");
    let file = directory.path().join("file");
    std::fs::write(&file, "").unwrap();
    both_policies(&pod, &Call::at(&pod, &file), "a file");
    both_policies(&pod, &Call::at(&pod, std::path::Path::new("/nonexistent/agent.sock")), "no directory");
}

#[test]
fn never_accepts_and_its_backlog_is_full() {
    let pod = Pod::new();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let mut waiting = Vec::new();
    loop {
        let stream = nix::sys::socket::socket(
            nix::sys::socket::AddressFamily::Unix,
            nix::sys::socket::SockType::Stream,
            nix::sys::socket::SockFlag::SOCK_NONBLOCK,
            None,
        )
        .unwrap();
        let address = nix::sys::socket::UnixAddr::new(&socket).unwrap();
        match nix::sys::socket::connect(std::os::fd::AsRawFd::as_raw_fd(&stream), &address) {
            Ok(()) => waiting.push(UnixStream::from(stream)),
            Err(nix::Error::EAGAIN) => break,
            Err(error) => panic!("{error}"),
        }
        assert!(waiting.len() < 10_000, "the backlog never fills");
    }
    both_policies(&pod, &Call::at(&pod, &socket), "a full backlog");
}

#[test]
fn hangs_closes_floods_drips_or_talks_nonsense() {
    let pod = Pod::new();
    let misbehaviour = [
        Behaviour::Hang,
        Behaviour::Close,
        Behaviour::Flood,
        Behaviour::Drip,
        Behaviour::Say(Vec::new()),
        Behaviour::Say(b"{".to_vec()),
        Behaviour::Say(vec![0xff; 100]),
        Behaviour::Say(br#"{"answer":"routes","cidrs":["10.0.0.1/8"],"mtu":1420}"#.to_vec()),
        Behaviour::Say(br#"{"answer":"routes","cidrs":7,"mtu":-1}"#.to_vec()),
        Behaviour::Say(br#"{"answer":"done"}"#.to_vec()),
        Behaviour::Say(br#"{"answer":"unknown"}"#.to_vec()),
        Behaviour::Say(br#"{"answer":"error","message":"the agent's disk is full"}"#.to_vec()),
    ];
    for behaviour in misbehaviour {
        let agent = FakeAgent::new(behaviour.clone());
        let closed = both_policies(&pod, &Call::new(&pod, &agent), &format!("{behaviour:?}"));
        if let Behaviour::Say(line) = &behaviour
            && line.ends_with(b"full\"}")
        {
            assert!(closed.stdout.contains("the agent's disk is full"), "{closed:?}");
        }
    }
}

#[test]
fn a_pod_that_started_without_the_agent_is_left_to_it_as_a_note_until_it_goes() {
    let pod = Pod::new();
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("agent.sock");
    let call = Call::at(&pod, &socket);
    call.run("ADD").succeeded();
    let kept = podspan_cni::pending::list(&socket).unwrap();
    assert_eq!(kept.details.len(), 1);
    assert_eq!(kept.details[0].attachment.container_id, call.container_id);
    assert_eq!(kept.details[0].netns, call.netns);
    call.run("DEL").succeeded_silently();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "DEL leaves nothing");

    call.clone().key("onFailure", "\"closed\"").run("ADD").code();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "the pod did not start");

    call.run("ADD").succeeded();
    let mut gc = call.key("cni.dev/valid-attachments", "[]");
    gc.prev_result = None;
    gc.run("GC").succeeded_silently();
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0, "GC leaves nothing");
}
