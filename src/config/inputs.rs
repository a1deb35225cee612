//! Everything outside the program that decides its configuration, as values.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fmt, io};

use serde::{Deserialize, Serialize};

use crate::config::error::ConfigError;
use crate::config::{path, text};
use crate::sys;

/// File read when none is named, if it is there.
const DEFAULT_FILE: &str = "regatta.toml";

/// Longest configuration file, bytes.
const FILE_MAX: u64 = 4 << 20;

/// Variable by which a program that takes a fleet over finds its state; no setting.
const HANDOFF: &str = "REGATTA_HANDOFF";

/// Everything outside the program that decides its configuration.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConfigInputs {
    /// The environment.
    pub environment: BTreeMap<String, String>,
    /// Names of variables that are no text, or whose value is none.
    #[serde(default)]
    pub unreadable: Vec<String>,
    /// The file named on the command line; `None`: `regatta.toml` if it exists.
    #[serde(with = "sys::path::path_serde::optional")]
    pub file: Option<PathBuf>,
    /// What stood in that file.
    pub content: ConfigFile,
    /// Flags as (setting, value, the flag as typed).
    pub flags: Vec<(String, String, String)>,
    /// The folder that relative paths begin at: the working folder, by the name the operator knows it by.
    #[serde(with = "sys::path::path_serde")]
    pub folder: PathBuf,
    /// Settings that the application brings along, as TOML; weaker than all of the above.
    #[serde(default)]
    pub application: String,
    /// Single settings that it brings along, as (setting, value); stronger than its TOML.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub application_values: Vec<(String, String)>,
    /// What it lets no operator change, as (setting, value).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<(String, String)>,
    /// What its variables begin with, instead of `REGATTA`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub env_prefix: Option<String>,
    /// Whether neither file nor environment is read for settings.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub hermetic: bool,
}

/// What stood in the configuration file.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConfigFile {
    /// It was not read yet: [`crate::config::load`] does.
    #[default]
    #[serde(rename = "Unread")]
    NotRead,
    /// There was no file, and none was named.
    #[serde(rename = "Absent")]
    Missing,
    /// This, whatever has become of the file since.
    #[serde(rename = "Text")]
    Contents {
        /// The file.
        #[serde(with = "sys::path::path_serde")]
        path: PathBuf,
        /// Its text.
        text: String,
        /// The file that the path led to; none in what older programs hand over.
        #[serde(default, with = "sys::path::path_serde::optional")]
        real: Option<PathBuf>,
    },
}

impl fmt::Debug for ConfigFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotRead => f.write_str("Unread"),
            Self::Missing => f.write_str("Absent"),
            Self::Contents { path, text, .. } => write!(f, "Text({}, {} bytes)", path.display(), text.len()),
        }
    }
}

/// Neither the environment nor the file's text: they hold secrets.
impl fmt::Debug for ConfigInputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inputs")
            .field("file", &self.file)
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl ConfigInputs {
    /// The same with the file's text read into it, so that they stay what they are whatever happens to the file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn capture_file(self) -> Result<Self, ConfigError> {
        let content = match self.content {
            ConfigFile::NotRead => self.read_file()?,
            read => read,
        };
        Ok(Self { content, ..self })
    }

    /// The same with the file as it is now, for a fleet that has run with `before`.
    ///
    /// # Errors
    /// When the file cannot be read. One that was there must be: a fleet never goes back to the defaults because its
    /// file was moved, emptied, or lies behind a link that leads nowhere.
    pub fn recapture_file(self, before: &Self) -> Result<Self, ConfigError> {
        let read = Self { content: ConfigFile::NotRead, ..self }.capture_file()?;
        match (&before.content, &read.content) {
            (ConfigFile::Contents { path: old, .. }, ConfigFile::Missing) => {
                let path = read.file_path();
                let missing = sys::path::error_detail(&path, &io::ErrorKind::NotFound.into());
                let was = if *old == path {
                    String::new()
                } else {
                    format!(" (the fleet has read {})", old.display())
                };
                let reason = format!(
                    "it was there and cannot be found now: {missing}{was}; put it back, or leave a file that says \
                     nothing but a comment if the defaults are wanted"
                );
                Err(ConfigError::FileUnavailable { path, reason })
            }
            (ConfigFile::Contents { text: old, .. }, ConfigFile::Contents { path, text, .. })
                if text.trim().is_empty() && !old.trim().is_empty() =>
            {
                let reason = "it is empty now and was not before; a file that says nothing but a comment means that \
                              the defaults are wanted";
                Err(ConfigError::FileUnavailable { path: path.clone(), reason: reason.to_owned() })
            }
            _ => Ok(read),
        }
    }

    /// The same with nothing read yet.
    pub fn release_file(self) -> Self {
        Self { content: ConfigFile::NotRead, ..self }
    }

    /// Where the configuration file is, or would be.
    pub fn file_path(&self) -> PathBuf {
        path::absolute(self.file.as_deref().unwrap_or(Path::new(DEFAULT_FILE)), &self.folder)
    }

    /// The configuration file that was read, as it is written and where that led; none where there was none.
    pub fn loaded_file(&self) -> Option<(&Path, &Path)> {
        match &self.content {
            ConfigFile::Contents { path, real, .. } => Some((path, real.as_deref().unwrap_or(path))),
            ConfigFile::NotRead | ConfigFile::Missing => None,
        }
    }

    pub(super) fn read_file(&self) -> Result<ConfigFile, ConfigError> {
        if self.hermetic && self.file.is_none() {
            return Ok(ConfigFile::Missing);
        }
        let path = self.file_path();
        let lost = |reason| ConfigError::FileUnavailable { path: path.clone(), reason };
        match sys::path::read(&path, FILE_MAX) {
            Ok(sys::path::FileContent { bytes, real, .. }) => {
                let text = text::decode_utf8(bytes).map_err(|reason| lost(reason.to_owned()))?;
                Ok(ConfigFile::Contents { path, text, real: Some(real) })
            }
            Err(error) if self.file.is_none() && error.kind() == io::ErrorKind::NotFound => {
                Ok(ConfigFile::Missing)
            }
            Err(error) => Err(lost(sys::path::error_detail(&path, &error))),
        }
    }

    /// The environment and working folder of this process, without file or flags.
    pub fn from_process() -> Self {
        let (environment, unreadable) = split(process_environment());
        let folder = path::working_folder(&environment);
        Self { environment, unreadable, folder, ..Self::default() }
    }

    /// Whether colours are welcome on a terminal: not where `NO_COLOR` is set or the terminal knows none.
    pub fn allows_colours(&self) -> bool {
        let given = |name: &str| self.environment.get(name).map_or("", String::as_str);
        given("NO_COLOR").is_empty() && given("TERM") != "dumb"
    }

    /// `$XDG_RUNTIME_DIR/regatta`, else `/run/regatta` for root, else `.regatta` here.
    ///
    /// Only if that folder is this user's own: `sudo` may leave root the variable of the user who calls it.
    pub(super) fn default_run_dir(&self) -> PathBuf {
        let given = self.environment.get("XDG_RUNTIME_DIR").map(Path::new);
        match given
            .filter(|dir| dir.is_absolute() && owner(dir).is_some_and(|owner| Some(owner) == current_user()))
        {
            Some(dir) => dir.join("regatta"),
            None if current_user() == Some(0) => PathBuf::from("/run/regatta"),
            None => self.folder.join(".regatta"),
        }
    }

    /// systemd's `$STATE_DIRECTORY`, else `.regatta` here: what must outlive a reboot is not kept in `/run`.
    pub(super) fn default_data_dir(&self) -> PathBuf {
        match self.environment.get("STATE_DIRECTORY").filter(|dir| !dir.is_empty()) {
            Some(dirs) => path::absolute(Path::new(dirs.split(':').next().unwrap_or(dirs)), &self.folder),
            None => self.folder.join(".regatta"),
        }
    }
}

/// What can be read of an environment, and the names of the variables of which something cannot.
pub(super) fn split(
    environment: impl IntoIterator<Item = (OsString, OsString)>,
) -> (BTreeMap<String, String>, Vec<String>) {
    let (mut readable, mut unreadable) = (BTreeMap::new(), Vec::new());
    for (name, value) in environment {
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => _ = readable.insert(name, value),
            (Ok(name), Err(_)) => unreadable.push(name),
            (Err(name), _) => unreadable.push(name.as_bytes().escape_ascii().to_string()),
        }
    }
    unreadable.sort_unstable();
    (readable, unreadable)
}

/// The whole environment of this process, for a program that it becomes; without the variable of a handoff.
pub fn process_environment() -> Vec<(OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| name != HANDOFF).collect()
}

/// What the program before this one, in the same process, has left in the environment, if it has.
pub fn process_handoff() -> Option<String> {
    std::env::var(HANDOFF).ok()
}

/// The variable by which [`process_handoff`] finds `value`.
pub fn handoff_variable(value: String) -> (OsString, OsString) {
    (HANDOFF.into(), value.into())
}

/// The user this process acts as: `/proc/self` belongs to the effective user, proc(5).
fn current_user() -> Option<u32> {
    owner(Path::new("/proc/self"))
}

fn owner(path: &Path) -> Option<u32> {
    std::fs::metadata(path).ok().map(|found| found.uid())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::config::settings::WorkerCount;

    #[test]
    fn frozen_inputs_stay_what_they_were_through_a_handoff() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("regatta.toml");
        let count = |inputs: &ConfigInputs| config::load(inputs).unwrap().workers.count;
        std::fs::write(&path, "[workers]\ncount = 3").unwrap();
        let inputs = ConfigInputs { folder: folder.path().into(), ..ConfigInputs::default() };
        let frozen = inputs.clone().capture_file().unwrap();
        std::fs::write(&path, "[workers]\ncount = 5").unwrap();
        let text = serde_json::to_string(&frozen).unwrap();
        let frozen: ConfigInputs = serde_json::from_str(&text).unwrap();
        assert_eq!(count(&frozen), WorkerCount::Fixed(3));
        assert_eq!(count(&inputs), WorkerCount::Fixed(5));
        assert_eq!(count(&frozen.release_file()), WorkerCount::Fixed(5));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(inputs.clone().capture_file().unwrap().content, ConfigFile::Missing);
        let named = ConfigInputs { file: Some("missing.toml".into()), ..inputs };
        assert!(named.capture_file().unwrap_err().to_string().contains("missing.toml"));
    }

    #[test]
    fn a_file_that_was_there_is_never_replaced_by_the_defaults() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("regatta.toml");
        let inputs = ConfigInputs { folder: folder.path().into(), ..ConfigInputs::default() };
        let without = inputs.clone().capture_file().unwrap();
        assert_eq!(without.content, ConfigFile::Missing);
        std::fs::write(&path, "[workers]\ncount = 3").unwrap();
        let before = inputs.clone().recapture_file(&without).unwrap();
        assert_eq!(before.loaded_file().unwrap().0, path, "one that comes is used");
        let error = |before: &ConfigInputs| inputs.clone().recapture_file(before).unwrap_err().to_string();
        std::fs::write(&path, " \n").unwrap();
        assert!(error(&before).contains("it is empty now"), "{}", error(&before));
        std::fs::write(&path, "# nothing").unwrap();
        let empty = inputs.clone().recapture_file(&before).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert!(error(&empty).contains("it was there"), "{}", error(&empty));
        std::os::unix::fs::symlink("gone", &path).unwrap();
        assert!(error(&without).contains("gone, which is not there"), "{}", error(&without));
        std::fs::remove_file(&path).unwrap();
        assert!(inputs.clone().recapture_file(&without).is_ok());
    }

    #[test]
    fn the_runtime_folder_of_another_user_is_not_taken() {
        let folder = tempfile::tempdir().unwrap();
        let with = |dir: &str| {
            let environment = BTreeMap::from([("XDG_RUNTIME_DIR".to_owned(), dir.to_owned())]);
            ConfigInputs { environment, folder: "/srv".into(), ..ConfigInputs::default() }.default_run_dir()
        };
        assert_eq!(with(folder.path().to_str().unwrap()), folder.path().join("regatta"));
        // The folder of another user is found by an integration test that can make one.
        for none in ["", "relative", "/nowhere/at/all"] {
            assert!(
                [Path::new("/run/regatta"), Path::new("/srv/.regatta")].contains(&with(none).as_path()),
                "{none}"
            );
        }
    }
}
