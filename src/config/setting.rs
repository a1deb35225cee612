//! One setting as a row, the macro that makes sections of rows, and the values that were given for them.
//!
//! Guarantees that a row is everything there is to say about a setting: the field with its documentation, its name,
//! default, what is allowed, and how much of the fleet a change renews. It knows no setting by name.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use crate::config::app_settings::AppSettings;
use crate::config::error::{ConfigError, SettingOrigin};
use crate::config::path;
use crate::config::redis_url::RedisUrl;
use crate::config::value::basic::InvalidValue;

/// What it takes for a changed setting to hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Reloadability {
    /// New workers: a reload.
    Reload,
    /// A new supervisor in the same process: an upgrade.
    Upgrade,
    /// A new fleet: stop and start.
    Restart,
}

/// One setting as an operator sees it.
#[derive(Debug, Clone, Copy)]
pub struct SettingInfo {
    /// Dotted path, as in the file: `workers.count`. A `*` stands for a name of the operator's choice.
    pub path: &'static str,
    /// Value when none is given; empty when there is none.
    pub default: &'static str,
    /// What holds where there is no default, for the reference; empty: nothing.
    pub unset: &'static str,
    /// What may be given, for error messages and the printed reference.
    pub allowed: &'static str,
    /// What it does: a sentence, and after an empty line what the reference says in its place.
    pub doc: &'static str,
    /// What a change takes.
    pub reloadability: Reloadability,
    /// The conventional variable that is read too; empty: none.
    pub variable: &'static str,
    /// Names that it had.
    pub formerly: &'static [&'static str],
    /// Whether its value is never shown.
    pub secret: bool,
}

impl SettingInfo {
    /// What the rows of the table leave out.
    pub(super) const BLANK: Self = Self {
        path: "",
        default: "",
        unset: "",
        allowed: "",
        doc: "",
        reloadability: Reloadability::Reload,
        variable: "",
        formerly: &[],
        secret: false,
    };

    /// What it does, in one sentence.
    pub fn summary(&self) -> String {
        join_lines(self.doc.split("\n\n").next().unwrap_or_default())
    }

    /// What the reference says of it.
    pub fn reference(&self) -> String {
        let paragraph = self.doc.split_once("\n\n").map(|(_, rest)| join_lines(rest));
        paragraph.filter(|text| !text.is_empty()).unwrap_or_else(|| self.summary())
    }
}

fn join_lines(text: &str) -> String {
    text.lines().map(str::trim).filter(|line| !line.is_empty()).collect::<Vec<_>>().join(" ")
}

/// Makes sections of settings, in the order of the reference.
///
/// A `struct` becomes the section's type, with a function `read` that fills it from what was given; every field is one
/// of `required`, `optional`, `list`, `file`, each with the setting's path, its parser, default, what is allowed, what
/// a change takes and, as in `formerly = &["…"]`, the rest of [`SettingInfo`]; or `custom`, whose function reads it in
/// its own way; or `section`, another struct of the table; or `values`, a function without a setting of its own. `rows`
/// are settings that such a function reads.
macro_rules! settings {
    ($($(#[$meta:meta])* $kind:ident $name:ident { $($body:tt)* })*) => {
        $($crate::config::setting::settings!(@$kind $(#[$meta])* $name { $($body)* });)*
    };
    (@struct $(#[$meta:meta])* $name:ident {
        $($(#[doc = $doc:literal])* $field:ident: $type:ty = $kind:ident($($row:tt)*);)*
    }) => {
        $(#[$meta])*
        pub struct $name {
            $($(#[doc = $doc])* pub $field: $type,)*
        }

        impl $name {
            /// The rows of this section.
            pub(super) const ROWS: &[$crate::config::setting::SettingInfo] = &[
                $($crate::config::setting::settings!(@info $kind [$($doc),*] $($row)*),)*
            ];

            /// Reads the section.
            pub(super) fn read(
                given: &$crate::config::setting::GivenSettings,
            ) -> Result<Self, $crate::config::error::ConfigError> {
                Ok(Self { $($field: $crate::config::setting::settings!(@read $kind given $type, $($row)*),)* })
            }
        }
    };
    (@rows $(#[$meta:meta])* $name:ident {
        $($(#[doc = $doc:literal])* $path:literal($($row:tt)*);)*
    }) => {
        $(#[$meta])*
        pub(super) const $name: &[$crate::config::setting::SettingInfo] = &[
            $($crate::config::setting::settings!(@row [$($doc),*] $path, $($row)*),)*
        ];
    };

    (@info section [$($doc:literal),*]) => { $crate::config::setting::SettingInfo::BLANK };
    (@info values [$($doc:literal),*] $function:expr) => { $crate::config::setting::SettingInfo::BLANK };
    (@info $kind:ident [$($doc:literal),*] $path:literal $(, $parser:expr)?; $($row:tt)*) => {
        $crate::config::setting::settings!(@row [$($doc),*] $path, $($row)*)
    };
    (@row [$($doc:literal),*] $path:literal, $default:expr, $allowed:expr, $reload:ident
        $(, $extra:ident = $value:expr)*) => {
        $crate::config::setting::SettingInfo {
            path: $path,
            default: $default,
            allowed: $allowed,
            doc: concat!($($doc, "\n"),*),
            reloadability: $crate::config::setting::Reloadability::$reload,
            $($extra: $value,)*
            ..$crate::config::setting::SettingInfo::BLANK
        }
    };

    (@read section $given:ident $type:ty,) => { <$type>::read($given)? };
    (@read values $given:ident $type:ty, $function:expr) => { ($function)($given)? };
    (@read file $given:ident $type:ty, $path:literal; $($row:tt)*) => { $given.file($path)? };
    (@read custom $given:ident $type:ty, $path:literal, $function:expr; $($row:tt)*) => { $function($given, $path)? };
    (@read $kind:ident $given:ident $type:ty, $path:literal, $parser:expr; $($row:tt)*) => {
        $given.$kind($path, $parser)?
    };
}
pub(super) use settings;

/// A value, where it came from, and the setting it is for.
pub(super) struct GivenValue {
    pub(super) items: Vec<String>,
    pub(super) origin: SettingOrigin,
    pub(super) info: &'static SettingInfo,
}

impl GivenValue {
    pub(super) fn text(&self) -> String {
        self.items.join(", ")
    }

    /// The value as it may be shown.
    fn displayed(&self) -> String {
        match self.info.path {
            _ if self.info.secret => "***".to_owned(),
            "redis.url" => RedisUrl::redact(&self.text()),
            _ => self.text(),
        }
    }
}

/// The value that holds for each setting, of all that were given.
pub(super) struct GivenSettings {
    pub(super) values: BTreeMap<String, GivenValue>,
    /// The program's own settings.
    pub(super) app: AppSettings,
    /// What relative paths begin at.
    pub(super) folder: PathBuf,
    /// Where the run folder is if no setting says it.
    pub(super) default_run_dir: PathBuf,
    /// Where the data folder is if no setting says it.
    pub(super) default_data_dir: PathBuf,
}

impl GivenSettings {
    /// Whether anything gives it, be it the default.
    pub(super) fn has(&self, path: &str) -> bool {
        self.values.contains_key(path)
    }

    /// Every value as text.
    pub(super) fn raw_values(&self) -> BTreeMap<String, String> {
        let ours = self.values.iter().map(|(path, given)| (path.clone(), given.text()));
        ours.chain(self.app.raw_values()).collect()
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
        value.map(Some).map_err(|reason| invalid_value(path, given, reason))
    }

    /// A file that may be named.
    pub(super) fn file(&self, path: &str) -> Result<Option<PathBuf>, ConfigError> {
        self.optional(path, |text| path::file(text, &self.folder))
    }

    /// A folder that may be named.
    pub(super) fn folder(&self, path: &str) -> Result<Option<PathBuf>, ConfigError> {
        self.optional(path, |text| path::folder(text, &self.folder))
    }

    /// The folder of lock and control socket.
    pub(super) fn run_dir(&self, path: &str) -> Result<PathBuf, ConfigError> {
        Ok(self.folder(path)?.unwrap_or_else(|| self.default_run_dir.clone()))
    }

    /// The folder of the private Redis.
    pub(super) fn data_dir(&self, path: &str) -> Result<PathBuf, ConfigError> {
        Ok(self.folder(path)?.unwrap_or_else(|| self.default_data_dir.clone()))
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
        parse(&items).map_err(|reason| invalid_value(path, given, reason))
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
            value: given.map(GivenValue::displayed).unwrap_or_default(),
            origin: given.map_or(SettingOrigin::Default, |given| given.origin.clone()),
            reason,
        }
    }
}

fn invalid_value(path: &str, given: &GivenValue, reason: InvalidValue) -> ConfigError {
    let (value, allowed) = (given.displayed(), given.info.allowed);
    ConfigError::Value { key: path.into(), value, origin: given.origin.clone(), reason, allowed }
}
