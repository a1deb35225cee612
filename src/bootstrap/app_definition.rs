//! What a program brings along for its fleet.

use std::ffi::OsString;

use crate::application::AppFactory;
use crate::bootstrap::fleet_config;
use crate::config::ConfigInputs;
use crate::supervisor::ProbeWords;

/// What a program brings along.
#[derive(Clone, Copy)]
pub struct AppDefinition<'a> {
    /// Its application.
    pub app: &'a AppFactory,
    /// Where its settings come from.
    pub config: &'a fleet_config::Config,
    /// Its version, if it says one.
    pub version: Option<&'a str>,
    /// What it makes of the words that a fleet was started with.
    pub parse: &'a ArgumentParser<'a>,
    /// With which words it asks a new program whether that could take over.
    pub probe_words: ProbeWords,
    /// Whether it wants the library's subscriber of log events.
    pub subscriber: bool,
}

impl std::fmt::Debug for AppDefinition<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AppDefinition").finish_non_exhaustive()
    }
}

/// Reads the words that a fleet was started with; a mistake is one sentence.
pub(super) type ArgumentParser<'a> = dyn Fn(&[OsString]) -> Result<ConfigInputs, String> + 'a;
