//! The plugin's configuration on standard input (CNI spec section 1, "Plugin configuration objects", and
//! section 3, "Deriving execution configuration from plugin configuration").

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use podspan_wire::DEFAULT_SOCKET;
use podspan_wire::local::Attachment;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use crate::environment::{is_identifier, is_interface_name};
use crate::error::{CniError, Code, brief, join, quote, shorten};
use crate::version::SpecVersion;

/// The most that is read of standard input, in bytes.
pub const MAX_INPUT: usize = 1024 * 1024;

/// How long the agent may take unless the configuration says otherwise.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_millis(500);

/// The longest and the shortest bound that the configuration may set, in milliseconds.
const TIMEOUT_MS: std::ops::RangeInclusive<u64> = 1..=10_000;
/// `sun_path` (unix(7)) holds 108 bytes with the terminating zero.
const MAX_SOCKET_PATH: usize = 107;
const OWN_KEYS: [&str; 4] = ["socket", "onFailure", "timeoutMs", "optOut"];

/// What becomes of a pod when the agent cannot help.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnFailure {
    /// The pod starts; the agent puts right what is missing when it is back. The default.
    #[default]
    Open,
    /// The pod does not start; the runtime is told to try again.
    Closed,
}

/// The plugin's own keys, valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The agent's unix socket.
    pub socket: PathBuf,
    /// What to do when the agent cannot help.
    pub on_failure: OnFailure,
    /// How long one command may take in all.
    pub timeout: Duration,
    /// Kubernetes namespaces whose pods are left alone.
    pub opt_out_namespaces: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            socket: DEFAULT_SOCKET.into(),
            on_failure: OnFailure::Open,
            timeout: DEFAULT_TIMEOUT,
            opt_out_namespaces: Vec::new(),
        }
    }
}

/// The configuration of one execution.
#[derive(Clone, Debug)]
pub struct NetConf {
    /// The spec's version that the runtime speaks.
    pub version: SpecVersion,
    /// The network's name.
    pub name: String,
    /// podspan's own keys, or what is wrong with them: DEL works in spite of it, everything else refuses.
    pub settings: Result<Settings, CniError>,
    /// The result of the earlier plugins, byte for byte; none if absent or `null`.
    pub prev_result: Option<Box<RawValue>>,
    /// `cni.dev/valid-attachments` of GC; none if absent. A runtime in Go writes an empty list as `null`.
    pub valid_attachments: Option<Vec<Attachment>>,
}

type Keys = BTreeMap<String, Box<RawValue>>;

fn type_name(raw: &RawValue) -> &'static str {
    match raw.get().bytes().next() {
        Some(b'{') => "an object",
        Some(b'[') => "a list",
        Some(b'"') => "a string",
        Some(b't' | b'f') => "a boolean",
        Some(b'n') => "null",
        _ => "a number",
    }
}

/// Reads the keys that every version of the spec has. The error comes with the version to print it in.
///
/// # Errors
/// Code 6 if it is no JSON object, 1 if the version is not spoken, 7 with all that is wrong otherwise.
pub fn parse(input: &[u8]) -> Result<NetConf, (SpecVersion, CniError)> {
    let keys = object(input).map_err(|error| (SpecVersion::NEWEST, error))?;
    let version = version(&keys).map_err(|error| (SpecVersion::NEWEST, error))?;

    let mut faults = Vec::new();
    let name = match read::<String>(&keys, "name", "a string", &mut faults) {
        Some(name) if is_identifier(&name) => name,
        Some(name) => {
            faults.push(format!(
                "name: {} is not a network name: start with a letter or digit, go on with those and '_', '.', '-'",
                quote(&name)
            ));
            name
        }
        None => {
            if !keys.contains_key("name") {
                faults.push("name: missing; the runtime takes it from the conflist".into());
            }
            String::new()
        }
    };
    let prev_result = match keys.get("prevResult") {
        None => None,
        Some(raw) if raw.get() == "null" => None,
        Some(raw) if raw.get().starts_with('{') => Some(raw.clone()),
        Some(raw) => {
            faults.push(format!("prevResult: expected an object, found {}", type_name(raw)));
            None
        }
    };
    let valid_attachments = valid_attachments(&keys, &mut faults);
    if !faults.is_empty() {
        return Err((version, invalid(&faults)));
    }
    Ok(NetConf { version, name, settings: settings(&keys), prev_result, valid_attachments })
}

/// Reads what VERSION has on standard input: a `cniVersion`, or nothing at all before 1.0.0. The answer
/// repeats it, whether it is spoken here or not.
///
/// # Errors
/// Code 6 if there is something that is no JSON object, 7 if `cniVersion` is no string.
pub fn parse_version_probe(input: &[u8]) -> Result<Option<String>, CniError> {
    if input.iter().all(u8::is_ascii_whitespace) {
        return Ok(None);
    }
    let mut faults = Vec::new();
    let version = read::<String>(&object(input)?, "cniVersion", "a string", &mut faults);
    if faults.is_empty() { Ok(version) } else { Err(invalid(&faults)) }
}

fn object(input: &[u8]) -> Result<Keys, CniError> {
    let decode = |details: String| {
        Err(CniError::new(
            Code::Decode,
            "the network configuration on standard input cannot be read",
            details,
        ))
    };
    if input.iter().all(u8::is_ascii_whitespace) {
        return decode("standard input is empty: the runtime must write the configuration to it".into());
    }
    if input.len() > MAX_INPUT {
        return decode(format!("it has more than {MAX_INPUT} bytes"));
    }
    match serde_json::from_slice(input) {
        Ok(keys) => Ok(keys),
        Err(error) => decode(format!("not a JSON object: {}", brief(&error))),
    }
}

fn version(keys: &Keys) -> Result<SpecVersion, CniError> {
    let mut faults = Vec::new();
    // CNI spec section 1: before there were versions there was none; that is read as 0.1.0.
    let text = read::<String>(keys, "cniVersion", "a string", &mut faults);
    if !faults.is_empty() {
        return Err(invalid(&faults));
    }
    let text = text.unwrap_or_else(|| "0.1.0".into());
    SpecVersion::parse(&text).ok_or_else(|| {
        CniError::new(
            Code::IncompatibleVersion,
            format!("cniVersion {} is not spoken here", quote(&text)),
            format!(
                "podspan is a chained plugin and speaks {}: set one of them in the conflist",
                SpecVersion::listed()
            ),
        )
    })
}

fn invalid(faults: &[String]) -> CniError {
    CniError::new(Code::InvalidConfig, "the network configuration is not valid", join(faults))
}

/// The value of a key; a value of another type goes to the faults. `null` counts as absent.
fn read<T: DeserializeOwned>(keys: &Keys, key: &str, expected: &str, faults: &mut Vec<String>) -> Option<T> {
    let raw = keys.get(key).filter(|raw| raw.get() != "null")?;
    match serde_json::from_str(raw.get()) {
        Ok(value) => Some(value),
        Err(_) => {
            faults.push(format!("{key}: expected {expected}, found {} {}", type_name(raw), quote(raw.get())));
            None
        }
    }
}

fn valid_attachments(keys: &Keys, faults: &mut Vec<String>) -> Option<Vec<Attachment>> {
    #[derive(Deserialize)]
    struct Valid {
        #[serde(rename = "containerID")]
        container_id: String,
        ifname: String,
    }
    // libcni sends the list under both names; the second stood in an early text of the spec.
    let (key, raw) = ["cni.dev/valid-attachments", "cni.dev/attachments"]
        .into_iter()
        .find_map(|key| keys.get(key).map(|raw| (key, raw)))?;
    if raw.get() == "null" {
        return Some(Vec::new());
    }
    let Ok(list) = serde_json::from_str::<Vec<Valid>>(raw.get()) else {
        faults.push(format!(
            "{key}: expected a list of {{\"containerID\": .., \"ifname\": ..}}, found {}",
            quote(raw.get())
        ));
        return None;
    };
    for valid in &list {
        if !is_identifier(&valid.container_id) || !is_interface_name(&valid.ifname) {
            faults.push(format!(
                "{key}: {} / {} is not a container id and an interface name",
                quote(&valid.container_id),
                quote(&valid.ifname)
            ));
        }
    }
    let attachment = |valid: Valid| Attachment { container_id: valid.container_id, interface: valid.ifname };
    Some(list.into_iter().map(attachment).collect())
}

fn settings(keys: &Keys) -> Result<Settings, CniError> {
    let (mut settings, mut faults, mut unsupported) = (Settings::default(), Vec::new(), Vec::new());
    // Unknown keys belong to the runtime or to somebody else, but not when only the case is wrong.
    for (key, raw) in keys {
        if let Some(own) = OWN_KEYS.into_iter().find(|own| own != key && own.eq_ignore_ascii_case(key)) {
            unsupported.push(format!("{key} = {}: did you mean {own}?", shorten(raw.get())));
        }
    }
    if let Some(socket) = read::<String>(keys, "socket", "a string", &mut faults) {
        if !Path::new(&socket).is_absolute() || socket.contains('\0') {
            faults.push(format!("socket: {} is not an absolute path", quote(&socket)));
        } else if socket.len() > MAX_SOCKET_PATH {
            faults.push(format!(
                "socket: the path has {} bytes, at most {MAX_SOCKET_PATH} are possible",
                socket.len()
            ));
        }
        settings.socket = socket.into();
    }
    if let Some(choice) = read::<String>(keys, "onFailure", "a string", &mut faults) {
        match choice.as_str() {
            "open" => settings.on_failure = OnFailure::Open,
            "closed" => settings.on_failure = OnFailure::Closed,
            _ => faults.push(format!("onFailure: {} is neither \"open\" nor \"closed\"", quote(&choice))),
        }
    }
    let expected = "a whole number of milliseconds from 1 to 10000";
    if let Some(milliseconds) = read::<u64>(keys, "timeoutMs", expected, &mut faults) {
        if !TIMEOUT_MS.contains(&milliseconds) {
            faults.push(format!("timeoutMs: {milliseconds} is not {expected}"));
        }
        settings.timeout = Duration::from_millis(milliseconds);
    }
    if let Some(opt_out) = read::<Keys>(keys, "optOut", "an object", &mut faults) {
        for (key, raw) in opt_out.iter().filter(|(key, _)| *key != "namespaces") {
            unsupported.push(format!(
                "optOut.{} = {}: only \"namespaces\" is known",
                shorten(key),
                shorten(raw.get())
            ));
        }
        if let Some(raw) = opt_out.get("namespaces").filter(|raw| raw.get() != "null") {
            match serde_json::from_str::<Vec<String>>(raw.get()) {
                Ok(namespaces) => settings.opt_out_namespaces = namespaces,
                Err(_) => faults.push(format!(
                    "optOut.namespaces: expected a list of strings, found {} {}",
                    type_name(raw),
                    quote(raw.get())
                )),
            }
        }
    }
    if !faults.is_empty() {
        faults.extend(unsupported);
        return Err(invalid(&faults));
    }
    if !unsupported.is_empty() {
        let message = "a key of the network configuration is not supported";
        return Err(CniError::new(Code::UnsupportedField, message, join(&unsupported)));
    }
    Ok(settings)
}
