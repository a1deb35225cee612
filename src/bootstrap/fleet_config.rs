//! Where a program's settings come from, as the program says it.

use std::path::PathBuf;

use crate::config::ConfigInputs;

/// Where settings come from; a mistake is one sentence with setting and source, and nothing is started.
///
/// Defaults of the library are weaker than those of the program, and these than file, environment and flags, in this
/// order; only [`Config::set_override`] is stronger than what an operator gives.
///
/// ```no_run
/// # async fn app(_: regatta::Context) -> axum::Router { axum::Router::new() }
/// use regatta::{Config, Fleet};
///
/// let config = Config::new()
///     .env_prefix("SHOP")
///     .defaults("[limits.signup]\nrate = '6/min'\nroutes = '/signup'\nmethods = 'POST'")
///     .set_default("drain.timeout", "10s");
/// Fleet::new(app).config(config).run();
/// ```
///
/// An appliance whose configuration nothing outside of it changes:
///
/// ```no_run
/// # async fn app(_: regatta::Context) -> axum::Router { axum::Router::new() }
/// use regatta::{Config, Fleet};
///
/// let config = Config::new().hermetic().file("/etc/shop.toml").set_override("listen", "127.0.0.1:8000");
/// Fleet::new(app).config(config).run();
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Config {
    file: Option<PathBuf>,
    env_prefix: Option<String>,
    hermetic: bool,
    defaults: String,
    set_defaults: Vec<(String, String)>,
    overrides: Vec<(String, String)>,
}

impl Config {
    /// Settings from `regatta.toml`, `REGATTA_*`, `PORT`, `REDIS_URL` and the other variables that platforms set.
    pub fn new() -> Self {
        Self::default()
    }

    /// This file instead of `regatta.toml`; it has to exist. A file named on the command line is read in its place.
    pub fn file(mut self, path: impl Into<PathBuf>) -> Self {
        self.file = Some(path.into());
        self
    }

    /// Variables that begin with this and `_`, instead of `REGATTA_`.
    pub fn env_prefix(mut self, prefix: impl Into<String>) -> Self {
        self.env_prefix = Some(prefix.into());
        self
    }

    /// Neither file nor environment; flags hold.
    pub fn hermetic(mut self) -> Self {
        self.hermetic = true;
        self
    }

    /// Defaults of the program, written as in the configuration file. What an operator gives is stronger.
    pub fn defaults(mut self, toml: impl Into<String>) -> Self {
        self.defaults = toml.into();
        self
    }

    /// A default of the program for one setting, as in `workers.count`; stronger than [`Config::defaults`].
    #[allow(clippy::needless_pass_by_value, reason = "callers write a value, not a reference to one")]
    pub fn set_default(mut self, setting: &str, value: impl ToString) -> Self {
        self.set_defaults.push((setting.to_owned(), value.to_string()));
        self
    }

    /// A value that no operator can change, for tests and appliances.
    #[allow(clippy::needless_pass_by_value, reason = "callers write a value, not a reference to one")]
    pub fn set_override(mut self, setting: &str, value: impl ToString) -> Self {
        self.overrides.push((setting.to_owned(), value.to_string()));
        self
    }

    /// What was given outside of the program, with what the program says laid under and over it.
    pub(crate) fn apply(&self, inputs: ConfigInputs) -> ConfigInputs {
        ConfigInputs {
            file: inputs.file.or_else(|| self.file.clone()),
            application: self.defaults.clone(),
            application_values: self.set_defaults.clone(),
            overrides: self.overrides.clone(),
            env_prefix: self.env_prefix.clone(),
            hermetic: self.hermetic,
            ..inputs
        }
    }
}
