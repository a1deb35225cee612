//! The sources of settings laid over each other; each value remembers where it came from.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use config::{FileFormat, Source, Value, ValueKind};

use crate::config::setting_info::SETTINGS;
use crate::config::settings::RedisUrl;
use crate::config::suggestion::suggestion;
use crate::config::value::InvalidValue;
use crate::config::{ConfigError, ConfigFile, ConfigInputs, SettingOrigin, environment, path, setting_info};

struct SourcedValue {
    items: Vec<String>,
    origin: SettingOrigin,
}

impl SourcedValue {
    fn text(&self) -> String {
        self.items.join(", ")
    }
}

/// All sources, the stronger over the weaker.
pub(super) struct SettingSources {
    values: BTreeMap<String, SourcedValue>,
    /// What relative paths begin at.
    folder: PathBuf,
    /// Whether a setting that does not exist is a mistake.
    strict: bool,
}

impl SettingSources {
    pub(super) fn collect(inputs: &ConfigInputs) -> Result<Self, ConfigError> {
        Self::merge(inputs, true)
    }

    /// The same, but what is no setting is passed over.
    pub(super) fn collect_lenient(inputs: &ConfigInputs) -> Result<Self, ConfigError> {
        Self::merge(inputs, false)
    }

    fn merge(inputs: &ConfigInputs, strict: bool) -> Result<Self, ConfigError> {
        let mut layers = Self { values: BTreeMap::new(), folder: inputs.folder.clone(), strict };
        layers.defaults();
        layers.text(&inputs.application, &SettingOrigin::Application, "the application's defaults".into())?;
        layers.file(inputs)?;
        layers.environment(inputs)?;
        for (key, value, flag) in &inputs.flags {
            layers.insert(key.clone(), vec![value.clone()], SettingOrigin::Flag(flag.clone()))?;
        }
        layers.resolve_limits();
        Ok(layers)
    }

    fn defaults(&mut self) {
        for key in SETTINGS.iter().filter(|key| !key.default.is_empty() && !key.path.contains('*')) {
            let given = SourcedValue { items: vec![key.default.to_owned()], origin: SettingOrigin::Default };
            self.values.insert(key.path.to_owned(), given);
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
            self.values.insert(
                path.into(),
                SourcedValue { items: vec![value.into()], origin: SettingOrigin::Default },
            );
        }
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
            flatten(key, value, &mut flat);
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
        for name in self.names("limits") {
            let path = |field: &str| format!("limits.{name}.{field}");
            let an_operators = |field: &str| {
                self.values.get(&path(field)).is_some_and(|given| given.origin.is_from_operator())
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
                let is_built_in = |given: &SourcedValue| match field {
                    "routes" => given.origin == SettingOrigin::Default,
                    _ => !given.origin.is_from_operator(),
                };
                if self.values.get(&path(field)).is_some_and(is_built_in) {
                    self.values.remove(&path(field));
                }
            }
        }
    }

    fn environment(&mut self, inputs: &ConfigInputs) -> Result<(), ConfigError> {
        let settings =
            if self.strict { environment::settings(inputs)? } else { environment::lenient_settings(inputs) };
        settings.into_iter().try_for_each(|one| self.insert(one.path, vec![one.value], one.origin))
    }

    fn insert(&mut self, path: String, items: Vec<String>, origin: SettingOrigin) -> Result<(), ConfigError> {
        // In a file a name is either a value or a section: who wants `listen.steering` too needs another name for it.
        let path = if path == "listen.address" { "listen".into() } else { path };
        if setting_info::lookup(&path).is_none() {
            if !self.strict {
                return Ok(());
            }
            if let Some(present) = setting_info::present_name(&path) {
                let variable = matches!(origin, SettingOrigin::Environment(_))
                    .then(|| environment::variable_name(&present));
                return Err(ConfigError::Renamed { key: path, origin, present, variable });
            }
            if let Some(instead) = setting_info::removal_hint(&path) {
                return Err(ConfigError::Removed { key: path, origin, instead });
            }
            let hint = suggestion(&path).map(|near| match &origin {
                SettingOrigin::Environment(_) => format!("{near} ({})", environment::variable_name(&near)),
                _ => near,
            });
            return Err(ConfigError::Unknown { key: path, origin, hint });
        }
        self.values.insert(path, SourcedValue { items, origin });
        Ok(())
    }

    /// Whether anything gives it, be it the default.
    pub(super) fn has(&self, path: &str) -> bool {
        self.values.contains_key(path)
    }

    /// Every value as text.
    pub(super) fn raw_values(&self) -> BTreeMap<String, String> {
        self.values.iter().map(|(path, given)| (path.clone(), given.text())).collect()
    }

    /// A value that always has one, be it the default.
    pub(super) fn required<T>(
        &self,
        path: &str,
        parse: impl Fn(&str) -> Result<T, InvalidValue>,
    ) -> Result<T, ConfigError> {
        match self.optional(path, parse)? {
            Some(value) => Ok(value),
            None => Err(ConfigError::Missing { key: path.into(), reason: "it has no default".into() }),
        }
    }

    /// A value that may be missing.
    pub(super) fn optional<T>(
        &self,
        path: &str,
        parse: impl Fn(&str) -> Result<T, InvalidValue>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(given) = self.values.get(path) else { return Ok(None) };
        let value = match given.items.as_slice() {
            [only] => parse(only.trim()),
            _ => Err("one value is wanted, not several".into()),
        };
        value.map(Some).map_err(|reason| self.invalid_value(path, given, reason))
    }

    /// A file that may be named.
    pub(super) fn file_at(&self, path: &str) -> Result<Option<PathBuf>, ConfigError> {
        self.optional(path, |text| path::file(text, &self.folder))
    }

    /// A folder that may be named.
    pub(super) fn folder_at(&self, path: &str) -> Result<Option<PathBuf>, ConfigError> {
        self.optional(path, |text| path::folder(text, &self.folder))
    }

    /// Several values: a list in the file, or one text separated by commas.
    pub(super) fn list<T: Default>(
        &self,
        path: &str,
        parse: impl Fn(&[String]) -> Result<T, InvalidValue>,
    ) -> Result<T, ConfigError> {
        let Some(given) = self.values.get(path) else { return Ok(T::default()) };
        let split = |item: &String| item.split(',').map(|part| part.trim().to_owned()).collect::<Vec<_>>();
        let items: Vec<String> = given.items.iter().flat_map(split).filter(|item| !item.is_empty()).collect();
        parse(&items).map_err(|reason| self.invalid_value(path, given, reason))
    }

    /// The names an operator chose below `section`, sorted.
    pub(super) fn names(&self, section: &str) -> BTreeSet<String> {
        let below = |path: &String| {
            let rest = path.strip_prefix(section)?.strip_prefix('.')?;
            rest.split_once('.').map(|(name, _)| name.to_owned())
        };
        self.values.keys().filter_map(below).collect()
    }

    /// Checks a name an operator chose below `section`.
    pub(super) fn check_name(
        &self,
        section: &str,
        name: &str,
        parse: impl Fn(&str) -> Result<String, InvalidValue>,
    ) -> Result<(), ConfigError> {
        let Err(reason) = parse(name) else { return Ok(()) };
        let key = format!("{section}.{name}");
        let first = self.values.iter().find(|(path, _)| path.starts_with(&key));
        let origin = first.map_or(SettingOrigin::Default, |(_, given)| given.origin.clone());
        let allowed = "names of 1 to 32 letters, digits, - or _";
        Err(ConfigError::Value { key, value: name.into(), origin, reason, allowed })
    }

    /// An error about `path` that another value causes.
    pub(super) fn contradiction(&self, path: &str, reason: String) -> ConfigError {
        let given = self.values.get(path);
        ConfigError::Contradiction {
            key: path.into(),
            value: given.map(|given| displayed_value(path, given)).unwrap_or_default(),
            origin: given.map_or(SettingOrigin::Default, |given| given.origin.clone()),
            reason,
        }
    }

    fn invalid_value(&self, path: &str, given: &SourcedValue, reason: InvalidValue) -> ConfigError {
        let key = setting_info::lookup(path);
        let (value, allowed) = (displayed_value(path, given), key.map_or("", |key| key.allowed));
        ConfigError::Value { key: path.into(), value, origin: given.origin.clone(), reason, allowed }
    }
}

/// A value as it may be shown.
fn displayed_value(path: &str, given: &SourcedValue) -> String {
    match path {
        _ if setting_info::is_secret(path) => "***".to_owned(),
        "redis.url" => RedisUrl(given.text()).to_string(),
        _ => given.text(),
    }
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
    use crate::config::inputs::ConfigFile;

    fn steering(text: &str, variable: Option<&str>) -> Result<(String, String), ConfigError> {
        let path = "regatta.toml".into();
        let environment = variable.map(|value| ("REGATTA_LISTEN__STEERING".to_owned(), value.to_owned()));
        let content = ConfigFile::Contents { path, text: text.into(), real: None };
        let environment = environment.into_iter().collect();
        let layers =
            SettingSources::collect(&ConfigInputs { environment, content, ..ConfigInputs::default() })?;
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
