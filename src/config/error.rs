//! What can be wrong with a configuration, and where a value came from.

use std::path::PathBuf;

/// What is wrong with the configuration, in one sentence.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A file is not TOML.
    #[error("cannot read the configuration file {}: {reason}", path.display())]
    InvalidFile {
        /// The file.
        path: PathBuf,
        /// Why, in the reader's words.
        reason: String,
    },
    /// The file itself cannot be had now, whatever stands in it.
    #[error("cannot read the configuration file {}: {reason}", path.display())]
    FileUnavailable {
        /// The file.
        path: PathBuf,
        /// Why, and which part of its path is to blame.
        reason: String,
    },
    /// A file that a setting names cannot be read.
    #[error("{key} {} cannot be read: {reason}", path.display())]
    ReferencedFileUnavailable {
        /// Dotted path of the setting.
        key: &'static str,
        /// The file.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// There is no such setting.
    #[error("unknown setting {key} from {origin}; {}", suggestion(hint.as_deref()))]
    Unknown {
        /// The name as given.
        key: String,
        /// Where it was given.
        origin: SettingOrigin,
        /// The known name that looks most like it.
        hint: Option<String>,
    },
    /// The setting has another name now.
    #[error("`{key}` (from {origin}) is now `{present}`{}", variable.as_ref().map(|name| format!(" ({name})")).unwrap_or_default())]
    Renamed {
        /// The name as given.
        key: String,
        /// Where it was given.
        origin: SettingOrigin,
        /// The present name.
        present: String,
        /// The present name as a variable, for one that was given as a variable.
        variable: Option<String>,
    },
    /// There was such a setting in an earlier release.
    #[error("the setting {key} (from {origin}) is no more: {instead}")]
    Removed {
        /// The name as given.
        key: String,
        /// Where it was given.
        origin: SettingOrigin,
        /// What replaces it.
        instead: &'static str,
    },
    /// A value is no text; it may be a secret, and is not shown.
    #[error("{origin} is not valid UTF-8, so it cannot be read")]
    NotUtf8 {
        /// Where it was given.
        origin: SettingOrigin,
    },
    /// One setting is given by two names that mean the same.
    #[error("the setting {key} is given by {} and, with another value, by {}; remove one of them", origins[0], origins[1])]
    Duplicate {
        /// Dotted path of the setting.
        key: String,
        /// Where it was given.
        origins: [SettingOrigin; 2],
    },
    /// A value is not allowed.
    #[error("{key} is {value:?} (from {origin}), but {reason}; allowed: {allowed}")]
    Value {
        /// Dotted path of the setting.
        key: String,
        /// The value as given; hidden for secrets.
        value: String,
        /// Where it was given.
        origin: SettingOrigin,
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
        origin: SettingOrigin,
        /// What it contradicts.
        reason: String,
    },
    /// A value below `[app]` is not what the program wants.
    #[error("{reason}")]
    Application {
        /// The setting, its source, and what is wanted.
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

/// What helps with a setting that there is not.
fn suggestion(hint: Option<&str>) -> String {
    match hint {
        Some(near) => format!("did you mean {near}?"),
        None => "`settings` lists those that there are".to_owned(),
    }
}

impl ConfigError {
    /// Whether what is written is right as far as it can be seen, and a file is missing.
    pub fn is_file_unavailable(&self) -> bool {
        matches!(self, Self::FileUnavailable { .. } | Self::ReferencedFileUnavailable { .. })
    }
}

/// Where a value was given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SettingOrigin {
    /// It was given nowhere.
    Default,
    /// The application, as a default of its own.
    Application,
    /// The configuration file.
    File(PathBuf),
    /// An environment variable.
    Environment(String),
    /// The command line.
    Flag(String),
    /// What the program lets no operator change.
    Override,
}

impl SettingOrigin {
    /// Whether it is more than a default: an operator gave it, or the program in an operator's place.
    pub(super) fn is_from_operator(&self) -> bool {
        !matches!(self, Self::Default | Self::Application)
    }
}

impl std::fmt::Display for SettingOrigin {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Default => f.write_str("the defaults"),
            Self::Application => f.write_str("the application's defaults"),
            Self::File(path) => write!(f, "the file {}", path.display()),
            Self::Environment(name) => write!(f, "the environment variable {name}"),
            Self::Flag(name) => write!(f, "the flag {name}"),
            Self::Override => f.write_str("the program's Config::set_override"),
        }
    }
}
