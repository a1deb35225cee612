//! The program's own settings, the section `[app]`: merged from all sources, and deserialised into the program's type.
//!
//! No value is ever shown: which of them is a secret is not known here.

use std::collections::BTreeMap;
use std::fmt;

use config::{Map, Value, ValueKind};
use serde::de::DeserializeOwned;

use crate::config::error::{ConfigError, SettingOrigin};

/// The section's name.
pub(super) const SECTION: &str = "app";

/// The section `[app]`, whatever the program has in it; `Debug` shows the names only.
#[derive(Clone, Default)]
pub struct AppSettings(Map<String, Value>);

impl AppSettings {
    /// Lays the settings of a section over those there are.
    pub(super) fn merge(&mut self, section: Map<String, Value>, origin: &SettingOrigin) {
        merge(&mut self.0, section, &origin.to_string());
    }

    /// Lays one value over what there is at this path below the section.
    pub(super) fn set(&mut self, path: &str, value: &str, origin: &SettingOrigin) {
        let leaf = Value::new(None, ValueKind::String(value.to_owned()));
        let wrap = |value: Value, name: &str| {
            Value::new(None, ValueKind::Table(Map::from_iter([(name.to_owned(), value)])))
        };
        if let ValueKind::Table(section) = path.rsplit('.').fold(leaf, wrap).kind {
            self.merge(section, origin);
        }
    }

    /// Every value as text, by its full path.
    pub(super) fn raw_values(&self) -> BTreeMap<String, String> {
        let mut flat = BTreeMap::new();
        flatten(SECTION, &self.0, &mut flat);
        flat
    }

    /// The section as the program's own type; a number or flag may be written as text, as variables are.
    ///
    /// # Errors
    /// The first mistake, with the setting's path and its source.
    pub fn deserialize<S: DeserializeOwned>(&self) -> Result<S, ConfigError> {
        let section = Value::new(None, ValueKind::Table(self.0.clone()));
        S::deserialize(section).map_err(|error| ConfigError::Application { reason: describe(error, &self.0) })
    }
}

fn merge(below: &mut Map<String, Value>, above: Map<String, Value>, origin: &String) {
    for (name, value) in above {
        match (below.get_mut(&name).map(|present| &mut present.kind), value.kind) {
            (Some(ValueKind::Table(present)), ValueKind::Table(section)) => merge(present, section, origin),
            (_, ValueKind::Table(section)) => {
                let mut table = Map::new();
                merge(&mut table, section, origin);
                below.insert(name, Value::new(Some(origin), ValueKind::Table(table)));
            }
            (_, kind) => _ = below.insert(name, Value::new(Some(origin), kind)),
        }
    }
}

fn flatten(path: &str, section: &Map<String, Value>, flat: &mut BTreeMap<String, String>) {
    for (name, value) in section {
        let path = format!("{path}.{name}");
        match &value.kind {
            ValueKind::Table(section) => flatten(&path, section, flat),
            _ => _ = flat.insert(path, value.to_string()),
        }
    }
}

/// A mistake in words, without the value.
fn describe(error: config::ConfigError, section: &Map<String, Value>) -> String {
    let (key, origin, reason) = match error {
        config::ConfigError::Type { origin, unexpected, expected, key } => {
            (key, origin, format!("is {}, but wanted is {expected}", kind(&unexpected)))
        }
        config::ConfigError::At { error, origin, key } => match *error {
            config::ConfigError::Type { origin: inner, unexpected, expected, .. } => {
                (key, origin.or(inner), format!("is {}, but wanted is {expected}", kind(&unexpected)))
            }
            other => (key, origin, format!("is wrong: {}", without_values(&other.to_string()))),
        },
        other => return format!("[{SECTION}]: {}", without_values(&other.to_string())),
    };
    let Some(key) = key else { return format!("[{SECTION}] {reason}") };
    let origin = origin.or_else(|| origin_of(section, &key));
    let origin = origin.map(|origin| format!(" (from {origin})")).unwrap_or_default();
    format!("{SECTION}.{key}{origin} {reason}")
}

/// Where the value at this path was given.
fn origin_of(section: &Map<String, Value>, path: &str) -> Option<String> {
    let (name, rest) = path.split_once('.').map_or((path, None), |(name, rest)| (name, Some(rest)));
    let value = section.get(name.split('[').next()?)?;
    match (&value.kind, rest) {
        (ValueKind::Table(below), Some(rest)) => origin_of(below, rest),
        _ => value.origin().map(str::to_owned),
    }
}

/// A reader's message without the value that it quotes.
fn without_values(message: &str) -> String {
    let quoting = ["unknown variant", "invalid type", "invalid value", "invalid length"];
    if message.starts_with("enum ") {
        // The reader of enums quotes without marks, last.
        return message.rsplit_once(' ').map_or("no such variant", |(start, _)| start).to_owned();
    }
    match quoting.into_iter().find(|words| message.starts_with(words)) {
        Some(words) => match message.split_once(", expected") {
            Some((_, expected)) => format!("{words}, expected{expected}"),
            None => words.to_owned(),
        },
        None => message.to_owned(),
    }
}

/// What stands there, without saying it: the reader writes the kind and then, quoted, the value.
fn kind(value: &impl fmt::Display) -> String {
    let text = value.to_string();
    let kind = text.split(['`', '"']).next().unwrap_or_default();
    format!("a {}", kind.trim_end())
}

/// Equal if the values are, whatever source they came from.
impl PartialEq for AppSettings {
    fn eq(&self, other: &Self) -> bool {
        self.raw_values() == other.raw_values()
    }
}

impl Eq for AppSettings {}

impl fmt::Debug for AppSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.raw_values().keys()).finish()
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use crate::config;
    use crate::config::settings::Config;
    use crate::config::{ConfigError, ConfigFile, ConfigInputs};

    #[derive(Debug, Deserialize, PartialEq)]
    #[serde(deny_unknown_fields)]
    struct Shop {
        database_url: String,
        #[serde(default)]
        pool: Pool,
        #[serde(default)]
        hosts: Vec<String>,
        #[serde(default)]
        mode: Option<Mode>,
    }

    #[derive(Debug, Deserialize, PartialEq)]
    enum Mode {
        Quick,
    }

    #[derive(Debug, Default, Deserialize, PartialEq)]
    struct Pool {
        size: u32,
        lazy: bool,
    }

    fn load(
        application: &str,
        file: &str,
        variables: &[(&str, &str)],
        flags: &[(&str, &str)],
    ) -> Result<Config, ConfigError> {
        let content = ConfigFile::Contents { path: "regatta.toml".into(), text: file.into(), real: None };
        let owned = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let flag =
            |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned(), "--set".to_owned());
        config::load(&ConfigInputs {
            content,
            application: application.into(),
            environment: variables.iter().map(owned).collect(),
            flags: flags.iter().map(flag).collect(),
            ..ConfigInputs::default()
        })
    }

    #[test]
    fn every_source_lays_its_values_over_the_weaker_ones() {
        let config = load(
            "[app]\ndatabase_url = 'program'\nhosts = ['a', 'b']\n[app.pool]\nsize = 1\nlazy = true",
            "[app]\ndatabase_url = 'file'\n[app.pool]\nsize = 2",
            &[("REGATTA_APP__DATABASE_URL", "variable"), ("REGATTA_APP__POOL__SIZE", "3")],
            &[("app.pool.size", "4")],
        );
        let shop: Shop = config.unwrap().app.deserialize().unwrap();
        let pool = Pool { size: 4, lazy: true };
        let hosts = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(shop, Shop { database_url: "variable".into(), pool, hosts, mode: None });
    }

    #[test]
    fn a_mistake_names_path_and_source_and_never_the_value() {
        let mistake = |file: &str, variables: &[(&str, &str)]| {
            let config = load("", file, variables, &[]).unwrap();
            config.app.deserialize::<Shop>().unwrap_err().to_string()
        };
        let text = mistake("[app]\ndatabase_url = 'x'", &[("REGATTA_APP__POOL__SIZE", "hunter22")]);
        for part in ["app.pool.size", "a string", "REGATTA_APP__POOL__SIZE"] {
            assert!(text.contains(part), "{text}");
        }
        assert!(!text.contains("hunter22"), "{text}");
        let text = mistake("[app]\ndatabase_url = 'x'\nhosts = 3", &[]);
        assert!(text.contains("app.hosts") && text.contains("regatta.toml"), "{text}");
        let text = mistake("[app]\ndatabase_url = 'x'\nmode = 'hunter22'", &[]);
        assert!(text.contains("app.mode") && !text.contains("hunter22"), "{text}");
        assert!(mistake("", &[]).contains("database_url"));
        assert!(mistake("[app]\ndatabase_url = 'x'\nbilge = 1", &[]).contains("bilge"));
    }

    #[test]
    fn changes_are_known_by_their_paths() {
        let inputs = |size: &str| ConfigInputs {
            flags: vec![("app.pool.size".into(), size.into(), "--set".into())],
            ..ConfigInputs::default()
        };
        let values = |size| config::diff::collect_values(&inputs(size)).unwrap();
        let changes = values("1").changes(&values("2"));
        assert_eq!(changes.keys().collect::<Vec<_>>(), ["app.pool.size"]);
        let config = config::load(&inputs("1")).unwrap();
        assert_eq!(format!("{:?}", config.app), "{\"app.pool.size\"}");
    }
}
