//! Anything at all on standard input and in the environment: an error, never a panic.

use std::process::{Command, Stdio};

use crate::fake_agent::FakeAgent;
use crate::namespace::Pod;
use crate::plugin::{Call, Output, binary, execute};

const COMMANDS: [&str; 6] = ["ADD", "DEL", "CHECK", "GC", "STATUS", "VERSION"];

/// Calls the plugin with this standard input and a complete environment that leads nowhere.
pub fn with_input(command: &str, input: &[u8]) -> Output {
    let environment = [
        ("CNI_COMMAND", command),
        ("CNI_CONTAINERID", "c"),
        ("CNI_NETNS", "/run/netns/psp-cni-nowhere"),
        ("CNI_IFNAME", "eth0"),
        ("CNI_PATH", "/opt/cni/bin"),
    ];
    execute(&mut Command::new(binary()), &environment, input)
}

#[test]
fn what_is_no_json_is_code_6() {
    let inputs: [&[u8]; 9] = [
        b"x",
        b"{",
        b"[]",
        b"7",
        b"\"a\"",
        b"null",
        b"{\"cniVersion\":\"1.1.0\",",
        b"\xff\xfe\x00\x01",
        b"{\"cniVersion\":\"1.1.0\"}{}",
    ];
    for command in COMMANDS {
        for input in inputs {
            let output = with_input(command, input);
            assert_eq!(output.code(), 6, "{command} {}", String::from_utf8_lossy(input));
        }
    }
    for command in &COMMANDS[..5] {
        let output = with_input(command, b"");
        assert_eq!(output.code(), 6, "{command}");
        assert!(output.stdout.contains("standard input is empty"), "{output:?}");
    }
}

#[test]
fn every_truncation_of_a_good_configuration_is_code_6() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    let config = Call::new(&pod, &agent).key("optOut", r#"{"namespaces":["a"]}"#).config();
    for length in (1..config.len()).step_by(7) {
        assert_eq!(with_input("ADD", &config.as_bytes()[..length]).code(), 6, "{length}");
    }
}

#[test]
fn more_than_a_mebibyte_is_code_6() {
    let config = format!(r#"{{"cniVersion":"1.1.0","name":"n","x":"{}"}}"#, "x".repeat(1024 * 1024));
    for command in COMMANDS {
        let output = with_input(command, config.as_bytes());
        assert_eq!(output.code(), 6, "{command}");
        assert!(output.stdout.contains("1048576"), "{output:?}");
    }
}

#[test]
fn deeply_nested_json_overflows_no_stack() {
    let deep = "[".repeat(400_000) + &"]".repeat(400_000);
    for key in ["x", "prevResult", "optOut", "cni.dev/valid-attachments", "cniVersion", "name", "socket"] {
        let config = format!(r#"{{"cniVersion":"1.1.0","name":"n","{key}":{deep}}}"#);
        for command in COMMANDS {
            let output = with_input(command, config.as_bytes());
            if !output.success {
                output.code();
            }
        }
    }
    let deep = "{\"a\":".repeat(150_000) + "1" + &"}".repeat(150_000);
    with_input("ADD", format!(r#"{{"cniVersion":"1.1.0","name":"n","prevResult":{deep}}}"#).as_bytes())
        .code();
}

#[test]
fn random_bytes_never_panic() {
    // xorshift: the same bytes in every run.
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    for round in 0..60 {
        let input: Vec<u8> = (0..round * 7)
            .map(|_| {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                seed as u8
            })
            .collect();
        let output = with_input("ADD", &input);
        assert_eq!(output.code(), 6);
    }
}

#[test]
fn environment_that_is_not_utf_8_is_code_4() {
    use std::os::unix::ffi::OsStrExt as _;
    let odd = std::ffi::OsStr::from_bytes(b"c\xff");
    for name in ["CNI_CONTAINERID", "CNI_IFNAME", "CNI_COMMAND"] {
        let mut command = Command::new("env");
        let environment =
            [("CNI_COMMAND", "ADD"), ("CNI_CONTAINERID", "c"), ("CNI_IFNAME", "eth0"), ("CNI_NETNS", "/x")];
        let mut assignment = std::ffi::OsString::from(format!("{name}="));
        assignment.push(odd);
        command.arg(assignment).arg(binary());
        let config = br#"{"cniVersion":"1.1.0","name":"n","type":"podspan","prevResult":{}}"#;
        let output = execute(&mut command, &environment, config);
        assert_eq!(output.code(), 4, "{name}");
        if name == "CNI_CONTAINERID" {
            assert!(output.stdout.contains(name), "{output:?}");
        }
    }
}

#[test]
fn closed_standard_streams_do_not_panic() {
    for redirect in ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "| true", "2>/dev/full", ">/dev/full"] {
        let script = format!("CNI_COMMAND=VERSION '{}' {redirect}; code=$?; exit $code", binary());
        let status = Command::new("sh")
            .args(["-c", &script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status()
            .unwrap();
        // 101 is a panic that unwinds, a signal (128 and more, or none) one that aborts.
        assert!(matches!(status.code(), Some(0 | 1)), "{redirect}: {status:?}");
    }
}
