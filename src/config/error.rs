//! What can be wrong with a configuration, and where a value came from.

use std::path::PathBuf;

/// What is wrong with the configuration, in one sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file cannot be read or is not TOML.
    #[error("cannot read the configuration file {}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why, in the reader's words.
        reason: String,
    },
    /// There is no such setting.
    #[error("unknown setting {key} from {origin}{}", hint.as_ref().map(|near| format!("; did you mean {near}?")).unwrap_or_default())]
    Unknown {
        /// The name as given.
        key: String,
        /// Where it was given.
        origin: Origin,
        /// The known name that looks most like it.
        hint: Option<String>,
    },
    /// There was such a setting in an earlier release.
    #[error("the setting {key} (from {origin}) is no more: {instead}")]
    Removed {
        /// The name as given.
        key: String,
        /// Where it was given.
        origin: Origin,
        /// What replaces it.
        instead: &'static str,
    },
    /// A value is no text; it may be a secret, and is not shown.
    #[error("{origin} is not valid UTF-8, so it cannot be read")]
    NotText {
        /// Where it was given.
        origin: Origin,
    },
    /// One setting is given by two names that mean the same.
    #[error("the setting {key} is given by {} and, with another value, by {}; remove one of them", origins[0], origins[1])]
    Twice {
        /// Dotted path of the setting.
        key: String,
        /// Where it was given.
        origins: [Origin; 2],
    },
    /// A value is not allowed.
    #[error("{key} is {value:?} (from {origin}), but {reason}; allowed: {allowed}")]
    Value {
        /// Dotted path of the setting.
        key: String,
        /// The value as given; hidden for secrets.
        value: String,
        /// Where it was given.
        origin: Origin,
        /// What is wrong with it.
        reason: String,
        /// What may be given.
        allowed: &'static str,
    },
    /// Two values contradict each other.
    #[error("{key} is {value} (from {origin}), but {reason}")]
    Contradiction {
        /// The setting to change.
        key: String,
        /// Its value.
        value: String,
        /// Where it was given.
        origin: Origin,
        /// What it contradicts.
        reason: String,
    },
    /// A needed value is missing.
    #[error("{key} is missing: {reason}")]
    Missing {
        /// Dotted path of the setting.
        key: String,
        /// What needs it.
        reason: String,
    },
}

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Origin {
    /// Nobody gave it.
    Default,
    /// The configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// The command line.
    Flag(String),
}

impl std::fmt::Display for Origin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("the defaults"),
            Self::File(path) => write!(f, "the file {}", path.display()),
            Self::Environment(name) => write!(f, "the environment variable {name}"),
            Self::Flag(name) => write!(f, "the flag {name}"),
        }
    }
}
