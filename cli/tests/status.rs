//! `podspan status` against an agent that the test plays.

#![allow(clippy::unwrap_used, reason = "a test may fail by panicking")]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use podspan_wire::local::{Answer, Request};
use podspan_wire::status::Status;
use support::{Bench, golden};

const SAMPLE: &str = include_str!("golden/status.json");
const ALONE: &str = include_str!("golden/status-alone.json");

fn answer(sample: &str) -> Vec<u8> {
    let status: Status = serde_json::from_str(sample).unwrap();
    let mut line = serde_json::to_vec(&Answer::Status(Box::new(status))).unwrap();
    line.push(b'\n');
    line
}

#[test]
fn prints_a_page() {
    let bench = Bench::new();
    let agent = bench.play_agent("a.sock", answer(SAMPLE));
    golden("status.txt", &bench.ok("status --socket a.sock"));
    let question: Request = serde_json::from_str(&agent.join().unwrap()).unwrap();
    assert_eq!(question, Request::Status);
}

#[test]
fn prints_a_page_of_every_node() {
    let bench = Bench::new();
    let agent = bench.play_agent("a.sock", answer(SAMPLE));
    let page = bench.ok("status --socket a.sock --all");
    agent.join().unwrap();
    assert!(page.contains("beta-2"), "{page}");
    assert!(!page.contains("--all"), "{page}");
}

#[test]
fn prints_a_page_of_a_node_that_is_alone() {
    let bench = Bench::new();
    let agent = bench.play_agent("a.sock", answer(ALONE));
    golden("status-alone.txt", &bench.ok("status --socket a.sock"));
    agent.join().unwrap();
}

#[test]
fn a_page_has_no_colour_and_no_control_characters_of_others() {
    let bench = Bench::new();
    let agent = bench.play_agent("a.sock", answer(SAMPLE));
    let page = bench.ok("status --socket a.sock");
    agent.join().unwrap();
    assert!(SAMPLE.contains("\\u001b"), "the sample has lost its hostile text");
    assert!(page.chars().all(|c| c == '\n' || !c.is_control()), "{page:?}");
    assert!(page.is_ascii(), "{page}");
}

#[test]
fn json_is_the_agents_document() {
    let bench = Bench::new();
    let agent = bench.play_agent("a.sock", answer(SAMPLE));
    let printed: serde_json::Value =
        serde_json::from_str(&bench.ok("status --socket a.sock --output json")).unwrap();
    agent.join().unwrap();
    assert_eq!(printed, serde_json::from_str::<serde_json::Value>(SAMPLE).unwrap());
}

#[test]
fn exit_codes() {
    for (sample, words, code) in [
        (SAMPLE, "status --socket a.sock", 0),
        (SAMPLE, "status --socket a.sock --exit-code", 1),
        (ALONE, "status --socket a.sock --exit-code", 0),
    ] {
        let bench = Bench::new();
        let agent = bench.play_agent("a.sock", answer(sample));
        assert_eq!(bench.run(words).code, code, "{words}");
        agent.join().unwrap();
    }
    assert_eq!(Bench::new().run("status --socket a.sock --output yaml").code, 2);
}

#[test]
fn an_agent_that_is_not_there_is_named() {
    let bench = Bench::new();
    let ran = bench.run("status --socket a.sock");
    assert_eq!((ran.code, ran.stdout.as_str()), (3, ""));
    assert!(ran.stderr.contains("there is no socket a.sock"), "{}", ran.stderr);
    assert!(ran.stderr.contains("systemctl status podspan-agent"), "{}", ran.stderr);

    // A socket that was left behind.
    drop(UnixListener::bind(bench.path("a.sock")).unwrap());
    let ran = bench.run("status --socket a.sock");
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("nobody listens"), "{}", ran.stderr);
}

#[test]
fn bad_answers_are_errors() {
    let with = |bytes: &[u8], expected: &str| {
        let bench = Bench::new();
        let agent = bench.play_agent("a.sock", bytes.to_vec());
        let ran = bench.run("status --socket a.sock");
        agent.join().unwrap();
        assert_eq!((ran.code, ran.stdout.as_str()), (3, ""), "{expected}");
        assert!(ran.stderr.contains(expected), "{}", ran.stderr);
        assert!(ran.stderr.trim_end().chars().all(|c| !c.is_control()), "{:?}", ran.stderr);
    };
    with(b"", "hung up without an answer");
    with(b"{\"answer\":", "in the middle of its answer");
    with(b"\xff\x00garbage\n", "cannot be read");
    with(b"{\"answer\":\"status\"}\n", "cannot be read");
    with(b"{\"answer\":\"done\"}\n", "another question");
    with(b"{\"answer\":\"error\",\"message\":\"busy\\u001b[2J\"}\n", "the agent refused: busy?[2J");
    let mut long = vec![b'x'; 65 * 1024 * 1024];
    long.push(b'\n');
    with(&long, "more than");
}

#[test]
fn a_silent_agent_is_not_waited_for_forever() {
    let bench = Bench::new();
    let listener = UnixListener::bind(bench.path("a.sock")).unwrap();
    let start = Instant::now();
    let ran = bench.run("status --socket a.sock");
    drop(listener);
    assert_eq!(ran.code, 3);
    assert!(ran.stderr.contains("did not answer within 5 s"), "{}", ran.stderr);
    assert!(start.elapsed() < Duration::from_secs(15), "{:?}", start.elapsed());
}

#[test]
fn watch_goes_on_through_a_restart() {
    let bench = Bench::new();
    let listener = UnixListener::bind(bench.path("a.sock")).unwrap();
    let mut child = bench
        .command("status --socket a.sock --watch=1 --output json")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    // First a client that is hung up on, then two that are answered.
    for reply in [&b""[..], &answer(ALONE), &answer(ALONE)] {
        let (mut stream, _) = listener.accept().unwrap();
        BufReader::new(stream.try_clone().unwrap()).read_line(&mut String::new()).unwrap();
        stream.write_all(reply).unwrap();
    }
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for _ in 0..2 {
        serde_json::from_str::<Status>(&lines.next().unwrap().unwrap()).unwrap();
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let bench = Bench::new();
    let agent = bench.play_agent("a.sock", answer(SAMPLE));
    let mut child = bench
        .command("status --socket a.sock")
        .stdout(std::process::Stdio::piped())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    agent.join().unwrap();
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(String::from_utf8_lossy(&output.stderr), "");
}
