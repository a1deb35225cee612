//! What another configuration changes, and how much of the fleet has to be renewed for it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;

use crate::config::Error;
use crate::config::Inputs;
use crate::config::layers::Layers;

/// What it takes for a changed setting to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Applies {
    /// New workers: a reload.
    AtReload,
    /// A new supervisor in the same process: an upgrade.
    AtUpgrade,
    /// A new fleet: stop and start.
    AtRestart,
}

/// Every setting that somebody gave or that has a default, as text; `Debug` shows the names only.
#[derive(Clone, PartialEq, Eq)]
pub struct Values(BTreeMap<String, String>);

/// Collects the settings without checking them.
///
/// # Errors
/// When a file cannot be read, or a name is unknown.
pub fn values(inputs: &Inputs) -> Result<Values, Error> {
    Ok(Values(Layers::collect(inputs)?.texts()))
}

impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.0.keys()).finish()
    }
}

impl Values {
    /// Settings that differ, by name, and what each of them takes.
    pub fn changes(&self, newer: &Self) -> BTreeMap<String, Applies> {
        let names: BTreeSet<_> = self.0.keys().chain(newer.0.keys()).collect();
        let differs = |name: &&&String| self.0.get(**name) != newer.0.get(**name);
        names.iter().filter(differs).map(|name| ((*name).clone(), self.applies(newer, name))).collect()
    }

    fn applies(&self, newer: &Self, name: &str) -> Applies {
        let given = |values: &Self| values.0.contains_key(name);
        match name {
            "listen" | "admin.listen" | "run_dir" | "data_dir" | "redis.maxmemory" => Applies::AtRestart,
            // Between the private Redis and another one lies the start of a process, and all sessions.
            "redis.url" if given(self) != given(newer) => Applies::AtRestart,
            "log.stats_interval" => Applies::AtReload,
            _ if name.starts_with("log.") => Applies::AtUpgrade,
            _ => Applies::AtReload,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn given(flags: &[(&str, &str)]) -> Values {
        let flag =
            |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned(), "--set".to_owned());
        let inputs = Inputs { flags: flags.iter().map(flag).collect(), ..Inputs::default() };
        values(&inputs).unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn changes_are_named_with_what_they_take() {
        let old = given(&[("listen", "127.0.0.1:1"), ("log.level", "info"), ("drain.grace", "1s")]);
        let new = given(&[("listen", "127.0.0.1:2"), ("log.level", "debug"), ("drain.grace", "2s")]);
        let changes: Vec<_> = old.changes(&new).into_iter().collect();
        let expected = [
            ("drain.grace", Applies::AtReload),
            ("listen", Applies::AtRestart),
            ("log.level", Applies::AtUpgrade),
        ];
        assert_eq!(changes, expected.map(|(name, applies)| (name.to_owned(), applies)));
        assert!(old.changes(&old).is_empty());
    }

    #[test]
    fn another_redis_is_a_reload_and_a_private_one_instead_is_a_restart() {
        let (none, one) = (given(&[]), given(&[("redis.url", "redis://a:1")]));
        let other = given(&[("redis.url", "redis://b:1")]);
        assert_eq!(one.changes(&other)["redis.url"], Applies::AtReload);
        assert_eq!(none.changes(&one)["redis.url"], Applies::AtRestart);
    }
}
