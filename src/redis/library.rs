//! The server-side code in both of its forms: a library of functions, or one script per function.
//!
//! Both come from the same text, so there is one place where the behaviour is written.

use std::sync::LazyLock;

use fred::types::Value;
use ring::digest;

use crate::redis::error::Error;
use crate::redis::link::Caller;
use crate::redis::migrations::checksum;

/// The library's text, as released.
pub const SOURCE: &str = include_str!("../../migrations/0001_regatta_v1.lua");
/// The library's name, which carries its version.
pub const NAME: &str = "regatta_v1";

/// How server-side code is called on this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// By function name.
    Function,
    /// By a script's digest.
    Script,
}

/// One of the library's functions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    Begin,
    Commit,
}

/// A function as a script of its own.
struct Script {
    text: String,
    digest: String,
}

static BEGIN: LazyLock<Script> = LazyLock::new(|| Script::new("regatta_v1_begin"));
static COMMIT: LazyLock<Script> = LazyLock::new(|| Script::new("regatta_v1_commit"));

impl Script {
    fn new(function: &str) -> Self {
        let text = script(&format!("return registered['{function}'](KEYS, ARGV)"));
        let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
        Self { text, digest: hex(digest.as_ref()) }
    }
}

/// The library as a script: its first line, which only libraries have, goes; registering is caught; `last` is run.
pub fn script(last: &str) -> String {
    let body = SOURCE.split_once('\n').map_or("", |(_, body)| body);
    format!(
        "local registered = {{}}\n\
         local redis = {{ call = redis.call, pcall = redis.pcall,\n\
         register_function = function(name, callback) registered[name] = callback end }}\n\
         {body}\n{last}\n"
    )
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Entry {
    fn script(self) -> &'static Script {
        match self {
            Self::Begin => &BEGIN,
            Self::Commit => &COMMIT,
        }
    }

    /// Command and first argument of a call.
    pub(super) fn call(self, form: Form) -> (&'static str, Value) {
        match (form, self) {
            (Form::Function, Self::Begin) => ("FCALL", Value::from_static_str("regatta_v1_begin")),
            (Form::Function, Self::Commit) => ("FCALL", Value::from_static_str("regatta_v1_commit")),
            (Form::Script, entry) => ("EVALSHA", Value::from_static_str(entry.script().digest.as_str())),
        }
    }
}

/// Puts our code on the server if it is not there.
///
/// # Errors
/// `Diverged` when other code has our library's name; otherwise what the server said.
pub(super) async fn ensure(caller: &Caller, form: Form) -> Result<(), Error> {
    match form {
        Form::Script => return load(caller, form).await,
        Form::Function => {}
    }
    let listed = caller.call("FUNCTION", ["LIST", "LIBRARYNAME", NAME, "WITHCODE"]).await?;
    match code(&listed) {
        None => load(caller, form).await,
        Some(found) if checksum(&found) == checksum(SOURCE) => Ok(()),
        Some(found) => Err(Error::Diverged {
            what: format!("the library {NAME}"),
            expected: checksum(SOURCE),
            found: checksum(&found),
        }),
    }
}

/// Loads our code. Another worker that loads it at the same time does no harm: it is the same.
pub(super) async fn load(caller: &Caller, form: Form) -> Result<(), Error> {
    match form {
        Form::Function => match caller.call("FUNCTION", ["LOAD", SOURCE]).await {
            Err(Error::Refused { reason, .. }) if reason.contains("already exists") => Ok(()),
            other => other.map(|_| ()),
        },
        Form::Script => {
            for entry in [Entry::Begin, Entry::Commit] {
                caller.call("SCRIPT", ["LOAD", entry.script().text.as_str()]).await?;
            }
            Ok(())
        }
    }
}

/// The library's text in the answer to `FUNCTION LIST … WITHCODE`.
fn code(listed: &Value) -> Option<String> {
    let Value::Array(libraries) = listed else { return None };
    let Some(Value::Array(pairs)) = libraries.first() else { return None };
    let mut pairs = pairs.iter();
    pairs.find(|name| name.as_str().as_deref() == Some("library_code"))?;
    pairs.next()?.as_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_library_names_itself_and_registers_what_is_called() {
        assert!(SOURCE.starts_with(&format!("#!lua name={NAME}\n")));
        for entry in [Entry::Begin, Entry::Commit] {
            let (_, name) = entry.call(Form::Function);
            assert!(SOURCE.contains(&format!("register_function('{}'", name.as_string().unwrap())));
        }
    }

    #[test]
    fn the_two_scripts_are_different_and_have_no_library_line() {
        assert_ne!(BEGIN.digest, COMMIT.digest);
        assert_eq!(BEGIN.digest.len(), 40);
        assert!(!BEGIN.text.contains("#!lua"));
    }
}
