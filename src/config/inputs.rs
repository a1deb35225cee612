//! Everything outside the program that decides its configuration, as values.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use serde::Deserialize;
use serde::Serialize;

use crate::config::Error;
use crate::config::environment;
use crate::config::text;

/// File read when none is named, if it is there.
const DEFAULT_FILE: &str = "regatta.toml";

/// Variable by which a program that takes a fleet over finds its state; no setting, and nobody's business but ours.
const HANDOFF: &str = "REGATTA_HANDOFF";

/// Everything outside the program that decides its configuration.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Inputs {
    /// The environment.
    pub environment: BTreeMap<String, String>,
    /// Names of variables that are no text, or whose value is none.
    #[serde(default)]
    pub unreadable: Vec<String>,
    /// The file named on the command line; `None`: `regatta.toml` if it exists.
    pub file: Option<PathBuf>,
    /// What stood in that file.
    pub content: Content,
    /// Flags as (setting, value, the flag as typed).
    pub flags: Vec<(String, String, String)>,
    /// The working folder.
    pub folder: PathBuf,
}

/// What stood in the configuration file.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Content {
    /// Nobody has looked yet: [`crate::config::load`] does.
    #[default]
    Unread,
    /// There was no file, and none was named.
    Absent,
    /// This, whatever has become of the file since.
    Text {
        /// The file.
        path: PathBuf,
        /// Its text.
        text: String,
    },
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unread => f.write_str("Unread"),
            Self::Absent => f.write_str("Absent"),
            Self::Text { path, text } => write!(f, "Text({}, {} bytes)", path.display(), text.len()),
        }
    }
}

/// Neither the environment nor the file's text: they hold secrets.
impl fmt::Debug for Inputs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Inputs")
            .field("file", &self.file)
            .field("folder", &self.folder)
            .finish_non_exhaustive()
    }
}

impl Inputs {
    /// The same with the file's text read into it, so that they stay what they are whatever happens to the file.
    ///
    /// # Errors
    /// When the file cannot be read.
    pub fn freeze(self) -> Result<Self, Error> {
        let content = match self.content {
            Content::Unread => self.read()?,
            read => read,
        };
        Ok(Self { content, ..self })
    }

    /// The same with the file as it is now.
    pub fn thaw(self) -> Self {
        Self { content: Content::Unread, ..self }
    }

    /// Where the configuration file is, or would be.
    pub fn path(&self) -> PathBuf {
        self.folder.join(self.file.as_deref().unwrap_or(Path::new(DEFAULT_FILE)))
    }

    pub(super) fn read(&self) -> Result<Content, Error> {
        let path = match &self.file {
            Some(path) => self.folder.join(path),
            None => match self.folder.join(DEFAULT_FILE) {
                path if path.exists() => path,
                _ => return Ok(Content::Absent),
            },
        };
        let read = std::fs::read(&path).map_err(|source| source.to_string());
        match read.and_then(|bytes| text::of_bytes(bytes).map_err(str::to_owned)) {
            Ok(text) => Ok(Content::Text { path, text }),
            Err(reason) => Err(Error::File { path, reason }),
        }
    }

    /// The environment and working folder of this process, without file or flags.
    pub fn of_process() -> Self {
        let (environment, unreadable) = environment::split(environment_of_process());
        Self {
            environment,
            unreadable,
            folder: std::env::current_dir().unwrap_or_else(|_| PathBuf::from(".")),
            ..Self::default()
        }
    }

    /// Whether colours are welcome on a terminal: not where `NO_COLOR` is set or the terminal knows none.
    pub fn colours(&self) -> bool {
        let given = |name: &str| self.environment.get(name).map_or("", String::as_str);
        given("NO_COLOR").is_empty() && given("TERM") != "dumb"
    }

    /// `$XDG_RUNTIME_DIR/regatta`, else `/run/regatta` for root, else `.regatta` here.
    pub(super) fn default_run_dir(&self) -> PathBuf {
        match self.environment.get("XDG_RUNTIME_DIR").filter(|dir| !dir.is_empty()) {
            Some(dir) => Path::new(dir).join("regatta"),
            None if is_root() => PathBuf::from("/run/regatta"),
            None => self.folder.join(".regatta"),
        }
    }

    /// systemd's `$STATE_DIRECTORY`, else `.regatta` here: what must outlive a reboot is not kept in `/run`.
    pub(super) fn default_data_dir(&self) -> PathBuf {
        match self.environment.get("STATE_DIRECTORY").filter(|dir| !dir.is_empty()) {
            Some(dirs) => PathBuf::from(dirs.split(':').next().unwrap_or(dirs)),
            None => self.folder.join(".regatta"),
        }
    }
}

/// The whole environment of this process, for a program that it becomes; without the variable of a handoff.
pub fn environment_of_process() -> Vec<(OsString, OsString)> {
    std::env::vars_os().filter(|(name, _)| name != HANDOFF).collect()
}

/// What the program before this one, in the same process, has left in the environment, if it has.
pub fn handoff_of_process() -> Option<String> {
    std::env::var(HANDOFF).ok()
}

/// The variable by which [`handoff_of_process`] finds `value`.
pub fn handoff_variable(value: String) -> (OsString, OsString) {
    (HANDOFF.into(), value.into())
}

/// Whether this process is root's: `/proc/self` belongs to the effective user, proc(5).
fn is_root() -> bool {
    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;
    use crate::config::schema::Count;

    #[test]
    fn frozen_inputs_stay_what_they_were_through_a_handoff() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("regatta.toml");
        let count = |inputs: &Inputs| config::load(inputs).unwrap().workers.count;
        std::fs::write(&path, "[workers]\ncount = 3").unwrap();
        let inputs = Inputs { folder: folder.path().into(), ..Inputs::default() };
        let frozen = inputs.clone().freeze().unwrap();
        std::fs::write(&path, "[workers]\ncount = 5").unwrap();
        let text = serde_json::to_string(&frozen).unwrap();
        let frozen: Inputs = serde_json::from_str(&text).unwrap();
        assert_eq!(count(&frozen), Count::Fixed(3));
        assert_eq!(count(&inputs), Count::Fixed(5));
        assert_eq!(count(&frozen.thaw()), Count::Fixed(5));
        std::fs::remove_file(&path).unwrap();
        assert_eq!(inputs.clone().freeze().unwrap().content, Content::Absent);
        let named = Inputs { file: Some("missing.toml".into()), ..inputs };
        assert!(named.freeze().unwrap_err().to_string().contains("missing.toml"));
    }
}
