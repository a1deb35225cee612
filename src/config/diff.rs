//! What another configuration changes, and how much of the fleet has to be renewed for it.

use std::collections::{BTreeMap, BTreeSet};

use crate::config::error::ConfigError;
use crate::config::inputs::ConfigInputs;
pub use crate::config::setting::Reloadability;
use crate::config::{lookup, sources};

/// Every setting that was given or has a default, as text; `Debug` shows the names only.
#[derive(Clone, PartialEq, Eq)]
pub struct SettingValues(BTreeMap<String, String>);

/// Collects the settings without checking them.
///
/// # Errors
/// When a file cannot be read, or a name is unknown.
pub fn collect_values(inputs: &ConfigInputs) -> Result<SettingValues, ConfigError> {
    Ok(SettingValues(sources::collect(inputs)?.raw_values()))
}

/// Collects the settings that this program knows by their present names, and leaves out all others: those of an
/// earlier release, whose names may have changed.
///
/// # Errors
/// When a file cannot be read.
pub fn collect_known_values(inputs: &ConfigInputs) -> Result<SettingValues, ConfigError> {
    Ok(SettingValues(sources::collect_lenient(inputs)?.raw_values()))
}

impl std::fmt::Debug for SettingValues {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl SettingValues {
    /// Settings that differ, by name, and what each of them takes.
    pub fn changes(&self, newer: &Self) -> BTreeMap<String, Reloadability> {
        let names: BTreeSet<_> = self.0.keys().chain(newer.0.keys()).collect();
        let differs = |name: &&&String| self.0.get(**name) != newer.0.get(**name);
        names.iter().filter(differs).map(|name| ((*name).clone(), self.reloadability(newer, name))).collect()
    }

    fn reloadability(&self, newer: &Self, name: &str) -> Reloadability {
        let given = |values: &Self| values.0.contains_key(name);
        // Between the private Redis and another one lies the start of a process, and all sessions.
        let replaces_private = name == "redis.url" && given(self) != given(newer);
        match lookup::lookup(name) {
            _ if replaces_private => Reloadability::Restart,
            Some(setting) => setting.reloadability,
            None => Reloadability::Reload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(flags: &[(&str, &str)]) -> SettingValues {
        let flag =
            |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned(), "--set".to_owned());
        let inputs = ConfigInputs { flags: flags.iter().map(flag).collect(), ..ConfigInputs::default() };
        collect_values(&inputs).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn changes_are_named_with_what_they_take() {
        let old = given(&[("listen", "127.0.0.1:1"), ("log.filter", "info"), ("drain.grace", "1s")]);
        let new = given(&[("listen", "127.0.0.1:2"), ("log.filter", "debug"), ("drain.grace", "2s")]);
        let changes: Vec<_> = old.changes(&new).into_iter().collect();
        let expected = [
            ("drain.grace", Reloadability::Reload),
            ("listen", Reloadability::Reload),
            ("log.filter", Reloadability::Upgrade),
        ];
        assert_eq!(changes, expected.map(|(name, applies)| (name.to_owned(), applies)));
        assert!(old.changes(&old).is_empty());
    }

    #[test]
    fn another_redis_is_a_reload_and_a_private_one_instead_is_a_restart() {
        let (none, one) = (given(&[]), given(&[("redis.url", "redis://a:1")]));
        let other = given(&[("redis.url", "redis://b:1")]);
        assert_eq!(one.changes(&other)["redis.url"], Reloadability::Reload);
        assert_eq!(none.changes(&one)["redis.url"], Reloadability::Restart);
    }
}
