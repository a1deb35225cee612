//! The sources of settings laid over each other; each value remembers where it came from.

use std::collections::BTreeMap;
use std::path::PathBuf;

use config::{FileFormat, Source, Value, ValueKind};

use crate::config::app_settings::{AppSettings, SECTION};
use crate::config::environment::VariablePrefix;
use crate::config::error::{ConfigError, SettingOrigin};
use crate::config::inputs::{ConfigFile, ConfigInputs};
use crate::config::setting::{GivenSettings, GivenValue, SettingInfo};
use crate::config::{environment, lookup};

/// Lays the sources over each other.
struct SettingSources {
    given: GivenSettings,
    /// Whether a setting that does not exist is a mistake.
    strict: bool,
    /// What variables begin with, for hints.
    prefix: VariablePrefix,
}

/// All sources, the stronger over the weaker.
///
/// # Errors
/// A file that cannot be read, a name that is no setting, or a variable that cannot be one.
pub(super) fn collect(inputs: &ConfigInputs) -> Result<GivenSettings, ConfigError> {
    SettingSources::merge(inputs, true)
}

/// The same, but what is no setting is passed over.
///
/// # Errors
/// When the file cannot be read.
pub(super) fn collect_lenient(inputs: &ConfigInputs) -> Result<GivenSettings, ConfigError> {
    SettingSources::merge(inputs, false)
}

/// What holds without any source.
pub(super) fn built_in() -> GivenSettings {
    let given = GivenSettings {
        values: BTreeMap::new(),
        app: AppSettings::default(),
        folder: PathBuf::new(),
        default_run_dir: PathBuf::new(),
        default_data_dir: PathBuf::new(),
    };
    let mut sources = SettingSources { given, strict: true, prefix: VariablePrefix::default() };
    sources.defaults();
    sources.given
}

impl SettingSources {
    fn merge(inputs: &ConfigInputs, strict: bool) -> Result<GivenSettings, ConfigError> {
        let given = GivenSettings {
            values: BTreeMap::new(),
            app: AppSettings::default(),
            folder: inputs.folder.clone(),
            default_run_dir: inputs.default_run_dir(),
            default_data_dir: inputs.default_data_dir(),
        };
        let mut layers = Self { given, strict, prefix: VariablePrefix::new(inputs) };
        layers.defaults();
        layers.text(&inputs.application, &SettingOrigin::Application, "the application's defaults".into())?;
        for (key, value) in &inputs.application_values {
            layers.insert(key.clone(), vec![value.clone()], SettingOrigin::Application)?;
        }
        layers.file(inputs)?;
        layers.environment(inputs)?;
        for (key, value, flag) in &inputs.flags {
            layers.insert(key.clone(), vec![value.clone()], SettingOrigin::Flag(flag.clone()))?;
        }
        for (key, value) in &inputs.overrides {
            layers.insert(key.clone(), vec![value.clone()], SettingOrigin::Override)?;
        }
        layers.resolve_limits();
        Ok(layers.given)
    }

    fn defaults(&mut self) {
        for setting in lookup::all().filter(|one| !one.default.is_empty() && !one.path.contains('*')) {
            self.put(
                setting.path.to_owned(),
                vec![setting.default.to_owned()],
                SettingOrigin::Default,
                setting,
            );
        }
        // Generous: it is there to stop a runaway client, not to shape traffic. And where no state is used it costs
        // nothing, because it does not hold there.
        let policy = [
            ("limits.default.rate", "1000/s"),
            ("limits.default.burst", "2000"),
            ("limits.default.routes", "state"),
            // What a stranger may have kept; `http/idempotency` puts its requests under it.
            ("limits.idempotency.rate", "30/min"),
            ("limits.idempotency.burst", "30"),
            ("limits.idempotency.routes", "layer"),
            ("limits.idempotency.on_redis_full", "closed"),
        ];
        for (path, value) in policy {
            if let Some(setting) = lookup::lookup(path) {
                self.put(path.to_owned(), vec![value.to_owned()], SettingOrigin::Default, setting);
            }
        }
    }

    fn put(&mut self, path: String, items: Vec<String>, origin: SettingOrigin, info: &'static SettingInfo) {
        self.given.values.insert(path, GivenValue { items, origin, info });
    }

    fn file(&mut self, inputs: &ConfigInputs) -> Result<(), ConfigError> {
        let read = match &inputs.content {
            ConfigFile::NotRead => inputs.read_file()?,
            read => read.clone(),
        };
        let ConfigFile::Contents { path, text, .. } = read else { return Ok(()) };
        self.text(&text, &SettingOrigin::File(path.clone()), path)
    }

    /// Every setting of a text in TOML.
    fn text(&mut self, text: &str, origin: &SettingOrigin, path: PathBuf) -> Result<(), ConfigError> {
        let source = config::File::from_str(text, FileFormat::Toml);
        let failed = |reason: String| ConfigError::InvalidFile { path, reason };
        let values = source.collect().map_err(|source| failed(without_quoted_lines(&source.to_string())))?;
        let mut flat = Vec::new();
        for (key, value) in values {
            match value.kind {
                ValueKind::Table(section) if key == SECTION => self.given.app.merge(section, origin),
                kind => flatten(key, Value::new(None, kind), &mut flat),
            }
        }
        // Of two mistakes the same one is told every time; the reader's order is a hash's.
        flat.sort_unstable();
        flat.into_iter().try_for_each(|(key, items)| self.insert(key, items, origin.clone()))
    }

    /// Takes back what the program itself says of a policy where it does not go with what an operator says.
    ///
    /// - An operator's rate, or number of concurrent requests, is a new measure: burst, prefetch, cost and the other measure
    ///   are not the built-in ones.
    /// - An operator's routes say where the policy holds: built-in methods do not narrow it.
    /// - An operator's measure makes the built-in policy `default` one like any other, that holds everywhere.
    fn resolve_limits(&mut self) {
        for name in self.given.names("limits") {
            let path = |field: &str| format!("limits.{name}.{field}");
            let an_operators = |field: &str| {
                self.given.values.get(&path(field)).is_some_and(|given| given.origin.is_from_operator())
            };
            let (rate, concurrency) = (an_operators("rate"), an_operators("concurrency"));
            let mut stale = Vec::new();
            if rate || concurrency {
                stale.extend(["rate", "burst", "prefetch", "cost", "concurrency", "concurrency_lease"]);
            }
            if an_operators("routes") {
                stale.push("methods");
            }
            if name == "default" && (rate || concurrency) {
                stale.push("routes");
            }
            for field in stale {
                let is_built_in = |given: &GivenValue| match field {
                    "routes" => given.origin == SettingOrigin::Default,
                    _ => !given.origin.is_from_operator(),
                };
                if self.given.values.get(&path(field)).is_some_and(is_built_in) {
                    self.given.values.remove(&path(field));
                }
            }
        }
    }

    fn environment(&mut self, inputs: &ConfigInputs) -> Result<(), ConfigError> {
        if inputs.hermetic {
            return Ok(());
        }
        let settings =
            if self.strict { environment::settings(inputs)? } else { environment::lenient_settings(inputs) };
        settings.into_iter().try_for_each(|one| self.insert(one.path, vec![one.value], one.origin))
    }

    fn insert(&mut self, path: String, items: Vec<String>, origin: SettingOrigin) -> Result<(), ConfigError> {
        // In a file a name is either a value or a section: a file with `listen.steering` needs another name for `listen`.
        let path = if path == "listen.address" { "listen".into() } else { path };
        if let Some((SECTION, below)) = path.split_once('.') {
            items.iter().for_each(|value| self.given.app.set(below, value, &origin));
            return Ok(());
        }
        match lookup::lookup(&path) {
            Some(setting) => self.put(path, items, origin, setting),
            None if self.strict => return Err(unknown_setting(path, origin, &self.prefix)),
            None => {}
        }
        Ok(())
    }
}

/// What is wrong with a name that is none: it was one, or another one was meant.
fn unknown_setting(key: String, origin: SettingOrigin, prefix: &VariablePrefix) -> ConfigError {
    let is_variable = matches!(origin, SettingOrigin::Environment(_));
    if let Some(present) = lookup::present_name(&key) {
        let variable = is_variable.then(|| prefix.variable_name(&present));
        return ConfigError::Renamed { key, origin, present, variable };
    }
    if let Some(instead) = lookup::removal_hint(&key) {
        return ConfigError::Removed { key, origin, instead };
    }
    let hint = lookup::suggestion(&key).map(|near| match is_variable {
        true => format!("{near} ({})", prefix.variable_name(&near)),
        false => near,
    });
    ConfigError::Unknown { key, origin, hint }
}

/// A reader's complaint without the lines of the file that it shows: there may be a secret in them.
fn without_quoted_lines(message: &str) -> String {
    let is_shown =
        |line: &str| line.trim_start_matches(|c: char| c.is_ascii_digit() || c == ' ').starts_with('|');
    let kept = message.lines().map(str::trim).filter(|line| !line.is_empty() && !is_shown(line));
    kept.collect::<Vec<_>>().join(": ")
}

fn flatten(path: String, value: Value, flat: &mut Vec<(String, Vec<String>)>) {
    match value.kind {
        // A section that says nothing is a mistake, or a policy without a rate: either way it is named.
        ValueKind::Table(table) if table.is_empty() => flat.push((path, Vec::new())),
        ValueKind::Table(table) => {
            for (name, value) in table {
                flatten(format!("{path}.{name}"), value, flat);
            }
        }
        ValueKind::Array(items) => flat.push((path, items.iter().map(ToString::to_string).collect())),
        _ => flat.push((path, vec![value.to_string()])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steering(text: &str, variable: Option<&str>) -> Result<(String, String), ConfigError> {
        let path = "regatta.toml".into();
        let environment = variable.map(|value| ("REGATTA_LISTEN__STEERING".to_owned(), value.to_owned()));
        let content = ConfigFile::Contents { path, text: text.into(), real: None };
        let environment = environment.into_iter().collect();
        let layers = collect(&ConfigInputs { environment, content, ..ConfigInputs::default() })?;
        Ok((layers.values["listen"].text(), layers.values["listen.steering"].text()))
    }

    #[test]
    fn listen_is_a_value_or_a_section() {
        let is = |text, variable, address: &str, mode: &str| {
            assert_eq!(steering(text, variable).unwrap(), (address.to_owned(), mode.to_owned()), "{text}");
        };
        is("", None, "0.0.0.0:3000", "kernel");
        is("listen = \"[::]:80\"", Some("client-ip"), "[::]:80", "client-ip");
        is("[listen]\nsteering = \"client-ip\"", None, "0.0.0.0:3000", "client-ip");
        let both = "[listen]\naddress = [\"[::]:80\", \"0.0.0.0:80\"]\nsteering = \"client-ip\"";
        is(both, Some("kernel"), "[::]:80, 0.0.0.0:80", "kernel");
        assert!(steering("[listen]\nsteer = 1", None).unwrap_err().to_string().contains("listen.steering?"));
    }
}
