//! The configuration of an application under test: neither file nor environment.

use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering::Relaxed;

use serde::Serialize;
use serde_json::Value;

use crate::config;
use crate::config::settings::Config;
use crate::config::{ConfigFile, ConfigInputs};
use crate::sys::{process, random};

/// Number of the next application's prefix.
static PREFIX: AtomicU32 = AtomicU32::new(0);

/// Reads the settings of one application.
pub(super) fn load(application: String, settings: Vec<(String, String)>) -> Config {
    let flag = |(path, value)| (path, value, "TestAppBuilder::set".to_owned());
    let own = ("redis.prefix".to_owned(), prefix());
    let inputs = ConfigInputs {
        content: ConfigFile::Missing,
        application,
        flags: std::iter::once(own).chain(settings).map(flag).collect(),
        folder: std::env::temp_dir(),
        ..ConfigInputs::default()
    };
    config::load(&inputs).unwrap_or_else(|error| panic!("{error}"))
}

/// Unlike that of any other application, be it of another test program on the same Redis.
fn prefix() -> String {
    let number = PREFIX.fetch_add(1, Relaxed);
    format!("test-{}-{:x}-{number}", process::pid(), random::number().unwrap_or(0))
}

/// The section `[app]` with this value, as TOML.
pub(super) fn app_section(value: &impl Serialize) -> String {
    let value = serde_json::to_value(value);
    match value.unwrap_or_else(|error| panic!("the settings cannot be written: {error}")) {
        Value::Object(section) => format!("app = {}\n", inline(&Value::Object(section))),
        other => panic!("the settings are no section: {other}"),
    }
}

/// A value as TOML writes it within a line. Texts are written as in JSON, whose escapes TOML knows.
fn inline(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let present = fields.iter().filter(|(_, value)| !value.is_null());
            let fields: Vec<_> = present
                .map(|(name, value)| format!("{} = {}", Value::from(name.as_str()), inline(value)))
                .collect();
            format!("{{ {} }}", fields.join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(inline).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Shop {
        name: String,
        pool: Pool,
        hosts: Vec<String>,
        hint: Option<String>,
    }

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Pool {
        size: u32,
        share: f64,
        lazy: bool,
    }

    #[test]
    fn settings_of_any_shape_come_back_as_they_were() {
        let pool = Pool { size: 3, share: 0.5, lazy: true };
        let name = "a \"quoted\"\n\\ name \u{1}ä".to_owned();
        let shop = Shop { name, pool, hosts: vec!["a".into(), "b".into()], hint: None };
        let config = load(app_section(&shop), vec![("drain.exit".into(), "1s".into())]);
        assert_eq!(config.app.deserialize::<Shop>().unwrap(), shop);
        assert_eq!(config.drain.exit.as_secs(), 1);
        assert_ne!(prefix(), prefix());
    }
}
