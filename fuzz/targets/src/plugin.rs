//! What the CNI plugin reads: its configuration, an earlier plugin's result, the agent's answer.

use podspan_cni::environment::Environment;
use podspan_cni::{agent, config, prev_result};
use serde_json::value::RawValue;

/// Standard input, `prevResult`, `CNI_*` and the agent's line.
pub fn cni(data: &[u8]) {
    if let Err(error) = agent::parse_answer(data) {
        assert!(error.to_string().len() < 8192, "an error is for a person");
    }
    let _ = config::parse_version_probe(data);
    match config::parse(data) {
        Ok(conf) => {
            if let Some(result) = &conf.prev_result {
                pass_on(result, &conf);
            }
            if let Err(error) = &conf.settings {
                well_formed(&error.to_json(conf.version));
            }
            let settings = conf.settings.unwrap_or_default();
            assert!(settings.timeout.as_millis() <= 10_000 && !settings.timeout.is_zero());
        }
        Err((version, error)) => well_formed(&error.to_json(version)),
    }
    let Ok(text) = std::str::from_utf8(data) else { return };
    let some = |at: usize| text.split('\n').nth(at).map(str::to_owned);
    let environment = Environment {
        command: some(0),
        container_id: some(1),
        netns: some(2),
        ifname: some(3),
        args: some(4),
    };
    let _ = environment.command();
    let _ = environment.args();
    if let Ok((attachment, _)) = environment.attachment(true) {
        assert!(!attachment.container_id.contains('/') && !attachment.interface.contains('/'));
    }
}

fn pass_on(result: &RawValue, conf: &config::NetConf) {
    let printed = prev_result::pass_on(result, conf.version);
    assert!(serde_json::from_str::<&RawValue>(&printed).is_ok(), "it prints JSON: {printed}");
    assert!(printed.ends_with(&result.get()[1..]), "nothing of it is lost: {printed}");
    if let Err(error) = prev_result::parse(result, "eth0") {
        well_formed(&error.to_json(conf.version));
    }
}

fn well_formed(error: &str) {
    assert!(error.len() < 16 * 1024, "an error is for a person: {error}");
    let error: serde_json::Value = serde_json::from_str(error).expect("an error is JSON");
    assert!(error["code"].as_u64().is_some() && error["msg"].as_str().is_some());
}
