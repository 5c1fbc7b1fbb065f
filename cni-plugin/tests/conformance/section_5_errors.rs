//! Section 5, "Error": what an error looks like.

use crate::bad_input::with_input;
use crate::fake_agent::FakeAgent;
use crate::namespace::Pod;
use crate::plugin::{Call, VERSIONS, execute};

#[test]
fn an_error_is_one_json_object_in_the_runtimes_version() {
    let (pod, agent) = (Pod::new(), FakeAgent::serving());
    for version in VERSIONS {
        let mut call = Call::new(&pod, &agent).version(&pod, version);
        call.prev_result = None;
        let output = call.run("ADD");
        assert_eq!(output.code(), 7);
        let error = output.error();
        assert_eq!(error["cniVersion"], version);
        let mut keys: Vec<_> = error.as_object().unwrap().keys().collect();
        keys.sort();
        assert_eq!(keys, ["cniVersion", "code", "details", "msg"]);
        assert_eq!(output.stdout.lines().count(), 1);
    }
}

#[test]
fn a_command_that_is_missing_or_unknown_is_code_4() {
    for command in ["", "add", "UPDATE", "ADD "] {
        let output = with_input(command, b"{}");
        assert_eq!(output.code(), 4, "{command:?}");
        assert!(output.stdout.contains("CNI_COMMAND"), "{output:?}");
    }
    let output = execute(&mut std::process::Command::new(crate::plugin::binary()), &[], b"");
    assert_eq!(output.code(), 4);
}
