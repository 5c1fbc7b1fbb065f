//! The network configuration (CNI specification section 1) and what of it is sent to a plugin (section 3,
//! "Deriving request configuration from plugin configuration").

use anyhow::{Context, Result, bail};
use serde_json::{Map, Value};

/// A network configuration list.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NetworkConfig {
    pub(crate) version_text: String,
    pub(crate) version: (u64, u64, u64),
    pub(crate) name: String,
    pub(crate) disable_check: bool,
    pub(crate) disable_gc: bool,
    /// At least one, each with a `type`.
    pub(crate) plugins: Vec<Map<String, Value>>,
}

impl NetworkConfig {
    /// Reads the text of a `.conflist` file.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let value: Map<String, Value> =
            serde_json::from_str(text).context("the conflist is no JSON object")?;
        let string = |key: &str| value.get(key).and_then(Value::as_str).map(str::to_owned);
        let version_text = string("cniVersion").context("the conflist has no cniVersion")?;
        let version = parse_version(&version_text)
            .with_context(|| format!("cniVersion {version_text:?} is not MAJOR.MINOR.PATCH"))?;
        let name = string("name").filter(|name| is_name(name)).context(
            "the conflist's name must start with a letter or digit and go on with these, '_', '.' or '-'",
        )?;
        let plugins =
            value.get("plugins").and_then(Value::as_array).context("the conflist has no plugins")?;
        if plugins.is_empty() {
            bail!("the conflist's list of plugins is empty");
        }
        let plugins = plugins
            .iter()
            .map(|plugin| {
                let plugin = plugin.as_object().context("a plugin of the conflist is no object")?;
                plugin_type(plugin)?;
                Ok(plugin.clone())
            })
            .collect::<Result<_>>()?;
        let flag = |key: &str| value.get(key).and_then(Value::as_bool).unwrap_or(false);
        Ok(Self {
            version_text,
            version,
            name,
            disable_check: flag("disableCheck"),
            disable_gc: flag("disableGC"),
            plugins,
        })
    }

    /// What a plugin gets on its standard input. `capabilities` is the runtime's own key and is removed.
    pub(super) fn request(
        &self,
        plugin: &Map<String, Value>,
        previous: Option<&Value>,
        valid: Option<&[Value]>,
    ) -> Value {
        let mut request = plugin.clone();
        request.remove("capabilities");
        request.insert("cniVersion".into(), self.version_text.clone().into());
        request.insert("name".into(), self.name.clone().into());
        if let Some(previous) = previous {
            request.insert("prevResult".into(), previous.clone());
        }
        if let Some(valid) = valid {
            request.insert("cni.dev/valid-attachments".into(), valid.into());
        }
        Value::Object(request)
    }
}

/// The `type` of a plugin: the name of its program, never a path.
pub(super) fn plugin_type(plugin: &Map<String, Value>) -> Result<&str> {
    plugin
        .get("type")
        .and_then(Value::as_str)
        .filter(|name| !name.is_empty() && !name.contains('/'))
        .context("a plugin of the conflist has no type, or one that is no file name")
}

fn parse_version(text: &str) -> Option<(u64, u64, u64)> {
    let mut numbers = text.split('.').map(|part| part.parse().ok());
    let version = (numbers.next()??, numbers.next()??, numbers.next()??);
    numbers.next().is_none().then_some(version)
}

fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.chars().all(|c| c.is_ascii_alphanumeric() || "_.-".contains(c))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_request_has_the_name_the_version_and_the_previous_result() {
        let text = r#"{"cniVersion":"1.1.0","name":"pods","plugins":[{"type":"a","x":1,"capabilities":{"y":true}}]}"#;
        let config = NetworkConfig::parse(text).unwrap();
        assert_eq!(config.version, (1, 1, 0));
        let request = config.request(&config.plugins[0], Some(&json!({"ips": []})), None);
        assert_eq!(
            request,
            json!({"cniVersion": "1.1.0", "name": "pods", "type": "a", "x": 1, "prevResult": {"ips": []}})
        );
    }

    #[test]
    fn bad_configurations_are_named() {
        for (text, what) in [
            ("[]", "no JSON object"),
            (r#"{"name":"a","plugins":[]}"#, "no cniVersion"),
            (r#"{"cniVersion":"1","name":"a","plugins":[]}"#, "not MAJOR.MINOR.PATCH"),
            (r#"{"cniVersion":"1.0.0","name":"-a","plugins":[]}"#, "name must start"),
            (r#"{"cniVersion":"1.0.0","name":"a","plugins":[]}"#, "empty"),
            (r#"{"cniVersion":"1.0.0","name":"a","plugins":[{"type":"../x"}]}"#, "no type"),
        ] {
            let error = NetworkConfig::parse(text).unwrap_err().to_string();
            assert!(error.contains(what), "{text}: {error}");
        }
    }
}
