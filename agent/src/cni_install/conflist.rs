//! A network configuration as text: what of it matters, and changes that leave every other byte as it is.
//!
//! The files belong to somebody else, and hold keys that podspan does not know, numbers that another program
//! must read back exactly, and a layout that a person chose. So nothing is parsed and printed again: the
//! places of the plugins are found in the text, and only there something is put in or taken out.

use std::collections::BTreeMap;
use std::ops::Range;

use podspan_cni::version::SpecVersion;
use serde_json::Value;
use serde_json::value::RawValue;

/// The plugin's `type`, which is also the name of its binary.
pub const PLUGIN: &str = "podspan";

/// What of a network configuration matters to the installer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Every version of the CNI spec that a runtime may use with it.
    pub versions: Vec<String>,
    /// What is in it.
    pub shape: Shape,
}

/// The two forms of a network configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Shape {
    /// A list (`.conflist`, CNI spec section 1, "Configuration format").
    List {
        /// The plugins in it; none if it has no such key, so that all come from the drop-in directory.
        plugins: Option<Vec<Plugin>>,
        /// `loadOnlyInlinedPlugins`: nothing is read from the drop-in directory.
        inlined_only: bool,
    },
    /// A single plugin (`.conf` or `.json`), the form before there were lists.
    Single {
        /// Its type.
        kind: String,
    },
}

/// One plugin of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plugin {
    /// Where it stands in the text, in bytes.
    pub place: Range<usize>,
    /// Whether it is podspan's.
    pub own: bool,
}

type Keys<'t> = BTreeMap<String, &'t RawValue>;

/// Reads a list.
///
/// # Errors
/// Why a runtime could not use it.
pub fn read_list(text: &str) -> Result<Network, String> {
    let keys = object(text)?;
    let inlined_only = match keys.get("loadOnlyInlinedPlugins").map(|raw| raw.get()) {
        None => false,
        // libcni takes the words too.
        Some(raw) => match raw.trim_matches('"').to_ascii_lowercase().as_str() {
            "true" => true,
            "false" => false,
            _ => return Err("loadOnlyInlinedPlugins is neither true nor false".into()),
        },
    };
    let plugins = match keys.get("plugins") {
        None if inlined_only => {
            return Err("it has no plugins, and loadOnlyInlinedPlugins is set".into());
        }
        None => None,
        Some(raw) => Some(plugins(text, raw)?),
    };
    Ok(Network {
        name: name(&keys)?,
        versions: versions(&keys)?,
        shape: Shape::List { plugins, inlined_only },
    })
}

/// Reads a single plugin's configuration.
///
/// # Errors
/// Why a runtime could not use it.
pub fn read_single(text: &str) -> Result<Network, String> {
    let keys = object(text)?;
    let kind = string(&keys, "type")?.filter(|kind| !kind.is_empty()).ok_or("it has no type")?;
    Ok(Network { name: name(&keys)?, versions: versions(&keys)?, shape: Shape::Single { kind } })
}

fn object(text: &str) -> Result<Keys<'_>, String> {
    serde_json::from_str(text)
        .map_err(|error| format!("not a JSON object: line {}, column {}", error.line(), error.column()))
}

fn string(keys: &Keys<'_>, key: &str) -> Result<Option<String>, String> {
    match keys.get(key) {
        None => Ok(None),
        Some(raw) => {
            serde_json::from_str(raw.get()).map(Some).map_err(|_| format!("its {key} is not a string"))
        }
    }
}

fn name(keys: &Keys<'_>) -> Result<String, String> {
    // CNI spec section 1: it becomes a name of files and directories.
    let good = |name: &String| {
        name.len() <= 200
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
    };
    match string(keys, "name")? {
        Some(name) if good(&name) => Ok(name),
        Some(_) => Err("its name is not one of the CNI spec: letters, digits, '_', '.' and '-'".into()),
        None => Err("it has no name".into()),
    }
}

fn versions(keys: &Keys<'_>) -> Result<Vec<String>, String> {
    // CNI spec section 1: before there were versions there was none; that is read as 0.1.0.
    let mut versions: Vec<String> = match keys.get("cniVersions") {
        None => Vec::new(),
        Some(raw) => {
            serde_json::from_str(raw.get()).map_err(|_| "its cniVersions is not a list of strings")?
        }
    };
    match string(keys, "cniVersion")? {
        Some(version) => versions.push(version),
        None if versions.is_empty() => versions.push("0.1.0".into()),
        None => {}
    }
    versions.sort_unstable();
    versions.dedup();
    Ok(versions)
}

fn plugins(text: &str, list: &RawValue) -> Result<Vec<Plugin>, String> {
    let entries: Vec<&RawValue> =
        serde_json::from_str(list.get()).map_err(|_| "its plugins are not a list")?;
    let mut plugins = Vec::with_capacity(entries.len());
    for (index, entry) in entries.into_iter().enumerate() {
        let keys = object(entry.get()).map_err(|_| format!("its plugin {index} is not an object"))?;
        let kind = string(&keys, "type")?.ok_or_else(|| format!("its plugin {index} has no type"))?;
        // The entry borrows from the text.
        let start = entry.get().as_ptr().addr() - text.as_ptr().addr();
        plugins.push(Plugin { place: start..start + entry.get().len(), own: kind == PLUGIN });
    }
    Ok(plugins)
}

impl Network {
    /// The versions that the plugin does not speak; an ADD in one of them would fail.
    #[must_use]
    pub fn unspoken(&self) -> Vec<&str> {
        self.versions.iter().map(String::as_str).filter(|v| SpecVersion::parse(v).is_none()).collect()
    }

    /// Whether podspan's entry is in it.
    #[must_use]
    pub fn has_own(&self) -> bool {
        match &self.shape {
            Shape::List { plugins, .. } => plugins.iter().flatten().any(|plugin| plugin.own),
            Shape::Single { kind } => kind == PLUGIN,
        }
    }

    /// Whether plugins of others are in it, so that a pod gets an interface for podspan to stand behind.
    #[must_use]
    pub fn has_others(&self) -> bool {
        match &self.shape {
            Shape::List { plugins: None, .. } => true,
            Shape::List { plugins: Some(plugins), .. } => plugins.iter().any(|plugin| !plugin.own),
            // Runtimes bring their own loopback; a network of nothing else is none.
            Shape::Single { kind } => kind != PLUGIN && kind != "loopback",
        }
    }
}

/// The list with `entry` behind its other plugins, exactly once. What stands there already is replaced, if
/// it differs; a list that is as wanted comes back byte for byte.
///
/// # Errors
/// If it is no list, or there is nothing in it to stand behind.
pub fn with_entry(text: &str, entry: &str) -> Result<String, String> {
    let own = own_places(text)?;
    if let [(index, place)] = own.as_slice()
        && *index > 0
    {
        let there: Option<Value> = serde_json::from_str(&text[place.clone()]).ok();
        if there == serde_json::from_str(entry).ok() {
            return Ok(text.to_owned());
        }
        return Ok(format!("{}{entry}{}", &text[..place.start], &text[place.end..]));
    }
    let text = without_entries(text)?;
    let Shape::List { plugins: Some(plugins), .. } = read_list(&text)?.shape else {
        return Err("it has no list of plugins".into());
    };
    let Some(last) = plugins.last() else {
        return Err("its list of plugins is empty".into());
    };
    // As the entries before it are set apart, so is this one.
    let separator = match plugins.len().checked_sub(2).and_then(|before| plugins.get(before)) {
        Some(before) => text[before.place.end..last.place.start].to_owned(),
        None => {
            let before = &text[..last.place.start];
            let bracket = before.trim_end().len();
            format!(",{}", &before[bracket..])
        }
    };
    Ok(format!("{}{separator}{entry}{}", &text[..last.place.end], &text[last.place.end..]))
}

/// The list without podspan's entries: what [`with_entry`] put in is taken out byte for byte.
///
/// # Errors
/// If it is no list.
pub fn without_entries(text: &str) -> Result<String, String> {
    let Shape::List { plugins, .. } = read_list(text)?.shape else { return Err("it is no list".into()) };
    let plugins = plugins.unwrap_or_default();
    let mut left = String::with_capacity(text.len());
    let (mut upto, mut kept) = (0, false);
    for (index, plugin) in plugins.iter().enumerate() {
        if !plugin.own {
            kept = true;
            continue;
        }
        // With the comma before it; an entry that nothing stands before, with the comma behind it.
        let gap = if kept {
            plugins[index - 1].place.end..plugin.place.end
        } else {
            let end = plugins.get(index + 1).map_or(plugin.place.end, |next| next.place.start);
            plugin.place.start..end
        };
        left.push_str(&text[upto..gap.start]);
        upto = gap.end;
    }
    left.push_str(&text[upto..]);
    Ok(left)
}

fn own_places(text: &str) -> Result<Vec<(usize, Range<usize>)>, String> {
    let Shape::List { plugins, .. } = read_list(text)?.shape else { return Err("it is no list".into()) };
    Ok(plugins
        .unwrap_or_default()
        .into_iter()
        .enumerate()
        .filter(|(_, plugin)| plugin.own)
        .map(|(index, plugin)| (index, plugin.place))
        .collect())
}

/// A list of the single plugin `text` and `entry`. The plugin is taken over as it stands, and its keys
/// `cniVersion` and `name` once more for the list, as libcni does it.
///
/// # Errors
/// If it is no single plugin's configuration.
pub fn list_of_single(text: &str, entry: &str) -> Result<String, String> {
    read_single(text)?;
    let keys = object(text)?;
    let mut list = String::from("{\n");
    for key in ["cniVersion", "cniVersions", "name", "disableCheck", "disableGC"] {
        if let Some(raw) = keys.get(key) {
            list.push_str(&format!("  \"{key}\": {},\n", raw.get()));
        }
    }
    list.push_str(&format!("  \"plugins\": [\n    {},\n    {entry}\n  ]\n}}\n", text.trim()));
    Ok(list)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENTRY: &str = r#"{ "type": "podspan" }"#;
    const LIST: &str = "{\n  \"cniVersion\": \"1.0.0\",\n  \"name\": \"pods\",\n  \"x\": 1e400,\n  \"plugins\": [\n    {\"type\": \"bridge\",  \"mtu\": 1.50},\n    { \"type\": \"portmap\" }\n  ]\n}\n";

    #[test]
    fn an_entry_goes_in_and_out_without_a_trace() {
        let with = with_entry(LIST, ENTRY).unwrap();
        assert!(
            with.contains("{ \"type\": \"portmap\" },\n    { \"type\": \"podspan\" }\n  ]"),
            "set apart as the others are: {with}"
        );
        assert_eq!(with_entry(&with, ENTRY).unwrap(), with, "once only");
        assert_eq!(without_entries(&with).unwrap(), LIST);
        assert_eq!(without_entries(LIST).unwrap(), LIST);
        let one = r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"}]}"#;
        let with = with_entry(one, ENTRY).unwrap();
        assert_eq!(
            with,
            r#"{"cniVersion":"1.0.0","name":"n","plugins":[{"type":"ptp"},{ "type": "podspan" }]}"#
        );
        assert_eq!(without_entries(&with).unwrap(), one);
    }

    #[test]
    fn an_entry_that_differs_is_replaced_and_doubles_go() {
        let list = |plugins: &str| format!(r#"{{"name":"n","cniVersion":"1.0.0","plugins":[{plugins}]}}"#);
        let a = r#"{"type":"a"}"#;
        for (before, after) in [
            (
                format!(r#"{a},{{"type":"podspan","timeoutMs":1}}, {{"type":"b"}}"#),
                format!(r#"{a},{ENTRY}, {{"type":"b"}}"#),
            ),
            // Only laid out in another way.
            (format!(r#"{a},{{"type":"podspan"}}"#), format!(r#"{a},{{"type":"podspan"}}"#)),
            // First in the chain it would have nothing to stand behind.
            (format!(r#"{ENTRY} , {a}"#), format!(r#"{a},{ENTRY}"#)),
            (format!(r#"{ENTRY},{a},{ENTRY},{{"type":"pod\u0073pan"}}"#), format!(r#"{a},{ENTRY}"#)),
        ] {
            assert_eq!(with_entry(&list(&before), ENTRY).unwrap(), list(&after), "{before}");
        }
        assert_eq!(without_entries(&list(&format!("{ENTRY},{ENTRY}, {a}"))).unwrap(), list(a));
        assert_eq!(
            without_entries(&list(&format!("{a} ,{ENTRY}\n,{ENTRY} "))).unwrap(),
            list(&format!("{a} "))
        );
        assert!(with_entry(&list(ENTRY), ENTRY).is_err(), "nothing to stand behind");
    }

    #[test]
    fn a_single_plugin_becomes_a_list_of_two() {
        let single = "{\"cniVersion\": \"0.4.0\", \"name\": \"n\",\n \"type\": \"bridge\", \"rare\": 0.10}\n";
        let list = list_of_single(single, ENTRY).unwrap();
        let network = read_list(&list).unwrap();
        assert_eq!((network.name.as_str(), network.versions.as_slice()), ("n", &["0.4.0".to_owned()][..]));
        let Shape::List { plugins: Some(plugins), .. } = network.shape else { panic!() };
        assert_eq!(&list[plugins[0].place.clone()], single.trim());
        assert_eq!(plugins.iter().map(|plugin| plugin.own).collect::<Vec<_>>(), [false, true]);
    }

    #[test]
    fn what_no_runtime_could_use_is_named() {
        for (text, expected) in [
            ("", "not a JSON object: line 1"),
            ("[]", "not a JSON object"),
            ("{\"plugins\": [], \"cniVersion\": \"1.0.0\"", "not a JSON object"),
            ("{\"plugins\": []}", "no name"),
            ("{\"name\": \"../x\", \"plugins\": []}", "its name"),
            ("{\"name\": 1, \"plugins\": []}", "its name is not a string"),
            ("{\"name\": \"n\", \"plugins\": {}}", "not a list"),
            ("{\"name\": \"n\", \"plugins\": [1]}", "plugin 0 is not an object"),
            ("{\"name\": \"n\", \"plugins\": [{}]}", "plugin 0 has no type"),
            ("{\"name\": \"n\", \"loadOnlyInlinedPlugins\": \"True\"}", "no plugins"),
            ("{\"name\": \"n\", \"cniVersions\": 1, \"plugins\": []}", "cniVersions"),
        ] {
            let error = read_list(text).unwrap_err();
            assert!(error.contains(expected), "{text}: {error}");
        }
        assert!(read_single("{\"name\": \"n\"}").unwrap_err().contains("no type"));
    }

    #[test]
    fn versions_that_the_plugin_does_not_speak() {
        let of = |keys: &str| {
            let text = format!("{{\"name\":\"n\",{keys} \"plugins\":[]}}");
            read_list(&text).unwrap().unspoken().join(",")
        };
        assert_eq!(of("\"cniVersion\":\"1.1.0\","), "");
        assert_eq!(of(""), "0.1.0");
        assert_eq!(of("\"cniVersion\":\"0.2.0\","), "0.2.0");
        assert_eq!(of("\"cniVersion\":\"1.0.0\",\"cniVersions\":[\"0.4.0\",\"2.0.0\"],"), "2.0.0");
    }
}
