//! The server-side code in both of its forms: libraries of functions, or one script per function.
//!
//! Both come from the same text, so there is one place where the behaviour is written. A library's name carries its
//! version, and its text never changes once it was released: other behaviour is another library.

use std::sync::LazyLock;

use fred::types::Value;
use ring::digest;

use crate::redis::caller::Caller;
use crate::redis::error::Error;
use crate::redis::migrations::checksum;

/// One library: a file of `migrations/`.
#[derive(Debug, Clone, Copy)]
pub struct Library {
    /// Its number among the migrations.
    pub number: &'static str,
    /// Its name, which carries its version.
    pub name: &'static str,
    /// Its text, as released.
    pub text: &'static str,
    /// Whether this program calls it; one that it does not call is there for programs of other versions.
    pub current: bool,
}

/// A [`Library`] by number and name.
macro_rules! library {
    ($number:literal, $name:literal, $current:literal) => {
        Library {
            number: $number,
            name: $name,
            text: include_str!(concat!("../../migrations/", $number, "_", $name, ".lua")),
            current: $current,
        }
    };
}

/// Every library there ever was, in the order of their numbers.
pub const ALL: &[Library] = &[
    library!("0001", "regatta_v1", false),
    library!("0002", "regatta_v2", true),
    library!("0003", "regatta_session_v1", true),
    library!("0004", "regatta_limit_v1", false),
    library!("0005", "regatta_counter_v1", true),
    library!("0006", "regatta_fleet_v1", true),
    library!("0007", "regatta_cluster_v1", false),
    library!("0008", "regatta_live_v1", false),
    library!("0009", "regatta_task_v1", false),
    library!("0010", "regatta_v3", false),
    library!("0011", "regatta_counter_v2", true),
    library!("0012", "regatta_fleet_v2", true),
    library!("0013", "regatta_live_v2", true),
    library!("0014", "regatta_task_v2", false),
    library!("0015", "regatta_v4", false),
    library!("0016", "regatta_once_v1", true),
    library!("0017", "regatta_limit_v2", true),
    library!("0018", "regatta_live_v3", true),
    library!("0019", "regatta_task_v3", true),
    library!("0020", "regatta_cluster_v2", false),
    library!("0021", "regatta_v5", true),
    library!("0022", "regatta_cluster_v3", true),
    library!("0023", "regatta_v6", true),
];

/// All of them, as `FUNCTION LIST` takes a pattern.
pub(super) const OURS: &str = "regatta_*";

/// How server-side code is called on this server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// By function name.
    Function,
    /// By a script's digest.
    Script,
    /// Not at all: neither is allowed, and plain commands must do.
    Plain,
}

/// One of the functions that this program calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Entry {
    Begin,
    BeginBatch,
    Commit,
    CommitBatch,
    SessionMove,
    SessionEnd,
    SessionList,
    SessionEverywhere,
    SessionRemember,
    SessionQuarantine,
    LimitRefund,
    LimitReset,
    LimitLook,
    LimitDraw,
    LimitMerge,
    LimitRenew,
    LimitRelease,
    FleetBeat,
    FleetLeave,
    Flush,
    ReadBatched,
    Take,
    Give,
    See,
    OnceFind,
    Claim,
    Renew,
    Keep,
    Forget,
    Undo,
    LivePublish,
    LiveHere,
    TaskEnqueue,
    TaskTake,
    TaskRest,
    TaskBegin,
    TaskRenew,
    TaskEnd,
    TaskCancel,
    TaskOverdue,
    TaskExpire,
    TaskSurvey,
}

/// Every entry, in the order of the enum, with its library's and its own name.
const ENTRIES: &[(Entry, &str, &str)] = &[
    (Entry::Begin, "regatta_v5", "regatta_v5_begin"),
    (Entry::BeginBatch, "regatta_v6", "regatta_v6_batch"),
    (Entry::Commit, "regatta_v2", "regatta_v2_commit"),
    (Entry::CommitBatch, "regatta_v6", "regatta_v6_commits"),
    (Entry::SessionMove, "regatta_v5", "regatta_v5_move"),
    (Entry::SessionEnd, "regatta_v5", "regatta_v5_end"),
    (Entry::SessionList, "regatta_v5", "regatta_v5_list"),
    (Entry::SessionEverywhere, "regatta_v5", "regatta_v5_everywhere"),
    (Entry::SessionRemember, "regatta_v5", "regatta_v5_remember"),
    (Entry::SessionQuarantine, "regatta_session_v1", "regatta_session_v1_quarantine"),
    (Entry::LimitRefund, "regatta_limit_v2", "regatta_limit_v2_refund"),
    (Entry::LimitReset, "regatta_limit_v2", "regatta_limit_v2_reset"),
    (Entry::LimitLook, "regatta_limit_v2", "regatta_limit_v2_look"),
    (Entry::LimitDraw, "regatta_limit_v2", "regatta_limit_v2_draw"),
    (Entry::LimitMerge, "regatta_limit_v2", "regatta_limit_v2_merge"),
    (Entry::LimitRenew, "regatta_limit_v2", "regatta_limit_v2_renew"),
    (Entry::LimitRelease, "regatta_limit_v2", "regatta_limit_v2_release"),
    (Entry::FleetBeat, "regatta_fleet_v2", "regatta_fleet_v2_beat"),
    (Entry::FleetLeave, "regatta_fleet_v1", "regatta_fleet_v1_leave"),
    (Entry::Flush, "regatta_counter_v1", "regatta_counter_v1_flush"),
    (Entry::ReadBatched, "regatta_counter_v1", "regatta_counter_v1_read"),
    (Entry::Take, "regatta_counter_v1", "regatta_counter_v1_take"),
    (Entry::Give, "regatta_counter_v1", "regatta_counter_v1_give"),
    (Entry::See, "regatta_counter_v1", "regatta_counter_v1_see"),
    (Entry::OnceFind, "regatta_once_v1", "regatta_once_v1_find"),
    (Entry::Claim, "regatta_counter_v2", "regatta_counter_v2_claim"),
    (Entry::Renew, "regatta_counter_v1", "regatta_counter_v1_renew"),
    (Entry::Keep, "regatta_counter_v1", "regatta_counter_v1_keep"),
    (Entry::Forget, "regatta_counter_v1", "regatta_counter_v1_forget"),
    (Entry::Undo, "regatta_cluster_v3", "regatta_cluster_v3_undo"),
    (Entry::LivePublish, "regatta_live_v3", "regatta_live_v3_publish"),
    (Entry::LiveHere, "regatta_live_v2", "regatta_live_v2_here"),
    (Entry::TaskEnqueue, "regatta_task_v3", "regatta_task_v3_enqueue"),
    (Entry::TaskTake, "regatta_task_v3", "regatta_task_v3_take"),
    (Entry::TaskRest, "regatta_task_v3", "regatta_task_v3_rest"),
    (Entry::TaskBegin, "regatta_task_v3", "regatta_task_v3_begin"),
    (Entry::TaskRenew, "regatta_task_v3", "regatta_task_v3_renew"),
    (Entry::TaskEnd, "regatta_task_v3", "regatta_task_v3_end"),
    (Entry::TaskCancel, "regatta_task_v3", "regatta_task_v3_cancel"),
    (Entry::TaskOverdue, "regatta_task_v3", "regatta_task_v3_overdue"),
    (Entry::TaskExpire, "regatta_task_v3", "regatta_task_v3_expire"),
    (Entry::TaskSurvey, "regatta_task_v3", "regatta_task_v3_survey"),
];

/// A function as a script of its own.
struct Script {
    text: String,
    digest: String,
}

static SCRIPTS: LazyLock<Vec<Script>> = LazyLock::new(|| {
    let script = |(_, library, function): &(Entry, &str, &str)| Script::new(library, function);
    ENTRIES.iter().map(script).collect()
});

impl Script {
    fn new(library: &str, function: &str) -> Self {
        let source = named(library).map_or("", |library| library.text);
        let text = script(source, &format!("return registered['{function}'](KEYS, ARGV)"));
        let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
        Self { text, digest: hex(digest.as_ref()) }
    }
}

/// The library of this name.
pub fn named(name: &str) -> Option<&'static Library> {
    ALL.iter().find(|library| library.name == name)
}

/// A library as a script: its first line, which only libraries have, goes; registering is caught, in both of its
/// forms; `last` is run.
///
/// What flags allow a function, a script may do without: it is asked at its first write, not before.
pub fn script(source: &str, last: &str) -> String {
    let body = source.split_once('\n').map_or("", |(_, body)| body);
    format!(
        "local registered = {{}}\n\
         local redis = {{ call = redis.call, pcall = redis.pcall, error_reply = redis.error_reply,\n\
         register_function = function(name, callback)\n\
         if type(name) == 'table' then registered[name.function_name] = name.callback\n\
         else registered[name] = callback end end }}\n\
         {body}\n{last}\n"
    )
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Entry {
    /// Whether twice is the same as once, the answer included.
    pub(super) fn is_repeatable(self) -> bool {
        matches!(
            self,
            Self::Flush
                | Self::See
                | Self::OnceFind
                | Self::Claim
                | Self::Renew
                | Self::Keep
                | Self::LimitLook
                | Self::LimitMerge
                | Self::LimitRenew
                | Self::SessionList
                | Self::Undo
        )
    }

    /// Command and first argument of a call.
    ///
    /// # Errors
    /// `Unsupported` where there is no server-side code.
    pub(super) fn call(self, form: Form) -> Result<(&'static str, Value), Error> {
        let at = self as usize;
        match form {
            Form::Function => Ok(("FCALL", Value::from_static_str(ENTRIES[at].2))),
            Form::Script => Ok(("EVALSHA", Value::from_static_str(SCRIPTS[at].digest.as_str()))),
            Form::Plain => Err(Error::Unsupported { what: ENTRIES[at].2 }),
        }
    }
}

/// Puts the code that this program calls on the server where it is not there.
///
/// # Errors
/// `Diverged` when other code has a library's name; otherwise what the server said.
pub(super) async fn ensure(caller: &Caller, form: Form) -> Result<(), Error> {
    if form != Form::Function {
        return load(caller, form).await;
    }
    let listed = caller.call("FUNCTION", ["LIST", "LIBRARYNAME", OURS, "WITHCODE"]).await?;
    for library in ALL.iter().filter(|library| library.current) {
        put(caller, library.name, library.text, code(&listed, library.name)).await?;
    }
    Ok(())
}

/// Puts one library on the server if it is not there, be it one that this program calls or not.
///
/// Where there are no functions, code has no name under which it could be missed: there is nothing to do.
///
/// # Errors
/// As [`ensure`].
pub(super) async fn apply(caller: &Caller, form: Form, name: &str, text: &str) -> Result<(), Error> {
    if form != Form::Function {
        return Ok(());
    }
    put(caller, name, text, found(caller, name).await?).await
}

/// Loads a library, or compares it with what was found.
async fn put(caller: &Caller, name: &str, text: &str, found: Option<String>) -> Result<(), Error> {
    match found {
        None => load_library(caller, text).await,
        Some(found) if checksum(&found) == checksum(text) => Ok(()),
        Some(found) => Err(Error::Diverged {
            what: format!("the library {name}"),
            expected: checksum(text),
            found: checksum(&found),
        }),
    }
}

/// A library's text on the server, if it is there.
pub(super) async fn found(caller: &Caller, name: &str) -> Result<Option<String>, Error> {
    let listed = caller.call("FUNCTION", ["LIST", "LIBRARYNAME", name, "WITHCODE"]).await?;
    Ok(code(&listed, name))
}

/// Replaces a library under its name, for everybody who calls it: only ever one that was not released.
pub(super) async fn replace(caller: &Caller, text: &str) -> Result<(), Error> {
    caller.call("FUNCTION", ["LOAD", "REPLACE", text]).await.map(|_| ())
}

/// Loads the code that this program calls. Another worker that does so at the same time does no harm: it is the same.
pub(super) async fn load(caller: &Caller, form: Form) -> Result<(), Error> {
    match form {
        Form::Function => {
            for library in ALL.iter().filter(|library| library.current) {
                load_library(caller, library.text).await?;
            }
        }
        Form::Plain => {}
        Form::Script => {
            for script in SCRIPTS.iter() {
                caller.call("SCRIPT", ["LOAD", script.text.as_str()]).await?;
            }
        }
    }
    Ok(())
}

async fn load_library(caller: &Caller, text: &str) -> Result<(), Error> {
    match caller.call("FUNCTION", ["LOAD", text]).await {
        Err(Error::Refused { reason, .. }) if reason.contains("already exists") => Ok(()),
        other => other.map(|_| ()),
    }
}

/// A library's text in the answer to `FUNCTION LIST … WITHCODE`.
fn code(listed: &Value, name: &str) -> Option<String> {
    let Value::Array(libraries) = listed else { return None };
    let library = libraries.iter().find(|library| field(library, "library_name").as_deref() == Some(name))?;
    field(library, "library_code")
}

/// A field of what `FUNCTION LIST` says of one library.
fn field(library: &Value, wanted: &str) -> Option<String> {
    let Value::Array(pairs) = library else { return None };
    let mut pairs = pairs.iter();
    pairs.find(|field| field.as_str().as_deref() == Some(wanted))?;
    pairs.next()?.as_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_library_names_itself() {
        for library in ALL {
            assert!(library.text.starts_with(&format!("#!lua name={}\n", library.name)), "{}", library.name);
        }
    }

    #[test]
    fn every_entry_is_registered_by_a_current_library() {
        for (index, (entry, library, function)) in ENTRIES.iter().enumerate() {
            assert_eq!(*entry as usize, index);
            let library = named(library).unwrap();
            assert!(library.current && function.starts_with(library.name));
            let with_flags = library.text.contains(&format!("\nregister('{function}', "));
            let plainly = library.text.contains(&format!("\nredis.register_function('{function}', "));
            assert!(with_flags || plainly, "{function}");
        }
    }

    /// A batch's entry that is executed alone does what a call of its own does, which is version 5's.
    #[test]
    fn versions_5_and_6_begin_alike() {
        let part = |name: &str, first: &str, behind: &str| {
            let (_, text) = named(name).unwrap().text.split_once(first).unwrap();
            text.split_once(behind).unwrap().0
        };
        let [five, six] = ["regatta_v5", "regatta_v6"]
            .map(|name| part(name, "\n-- GCRA.", "\n-- What lies under a session's key"));
        assert_eq!(five, six);
        let rest = "\n-- Whether the client may have one session more";
        let five = part("regatta_v5", rest, "\n-- Many begins in one call.");
        assert_eq!(five, part("regatta_v6", rest, "\n-- What batches of begins and of commits"));
    }

    #[test]
    fn scripts_differ_and_have_no_library_line() {
        let mut digests: Vec<_> = SCRIPTS.iter().map(|script| script.digest.as_str()).collect();
        digests.dedup();
        assert_eq!((digests.len(), digests[0].len()), (ENTRIES.len(), 40));
        assert!(SCRIPTS.iter().all(|script| !script.text.contains("#!lua")));
    }
}
