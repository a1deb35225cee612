//! The server-side code in both of its forms: libraries of functions, or one script for each function.
//!
//! Both are made of the same text, so the behaviour is written once. A library's name has its version, and its text
//! never changes after its release: other behaviour is another library.

use std::sync::LazyLock;

use fred::types::Value;
use ring::digest;

use crate::config::settings::ScriptingMode;
use crate::digest::{hex, sha256_hex};
use crate::redis::breakers::CallKind;
use crate::redis::error::RedisError;
use crate::redis::invocation_mode::InvocationMode;
use crate::redis::transport::RedisTransport;

/// One library: a file of `migrations/`.
#[derive(Debug, Clone, Copy)]
pub struct Library {
    /// Its number among the migrations.
    pub number: &'static str,
    /// Its name, which carries its version.
    pub name: &'static str,
    /// Its text, as released.
    pub text: &'static str,
    /// Whether this program calls it; the others serve programs of other versions.
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

/// Every library so far, by number.
pub const LIBRARIES: &[Library] = &[
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

/// Matches all of them in `FUNCTION LIST`.
pub(super) const LIBRARY_PATTERN: &str = "regatta_*";

/// The digest of no script.
const NO_DIGEST: &str = "0000000000000000000000000000000000000000";

/// One of the functions that this program calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServerFunction {
    /// A request's begin, alone.
    Begin,
    /// The begins of a turn.
    BeginBatch,
    /// A session's changes, alone.
    Commit,
    /// The commits of a turn.
    CommitBatch,
    /// A new id for a session, or a new session.
    SessionRotate,
    /// The end of a session.
    SessionDestroy,
    /// A user's live sessions.
    SessionList,
    /// The end of a user's sessions.
    SessionDestroyAll,
    /// Lifetimes of one session.
    SessionSetLifetimes,
    /// A damaged session is put aside.
    SessionQuarantine,
    /// Quota is given back.
    LimitRefund,
    /// A limit becomes unused.
    LimitReset,
    /// The state of a limit.
    LimitStatus,
    /// Quota is charged in advance.
    LimitPrefetch,
    /// What was allowed during an outage is charged.
    LimitApplyDeferred,
    /// A permit lasts longer.
    LimitRenewPermit,
    /// A permit ends.
    LimitReleasePermit,
    /// An instance is alive.
    RegistryHeartbeat,
    /// An instance ends.
    RegistryDeregister,
    /// A batch of additions.
    CounterFlush,
    /// Values of batched counters.
    CounterReadBatched,
    /// Something is taken of a stock.
    CounterTake,
    /// Something is given back to a stock.
    CounterGiveBack,
    /// Items of a distinct counter.
    CounterInsert,
    /// The record of a request's names.
    IdempotencyFind,
    /// An attempt to execute a request.
    IdempotencyClaim,
    /// The attempt lasts longer.
    IdempotencyRenew,
    /// The response is stored.
    IdempotencyComplete,
    /// The attempt is given up.
    IdempotencyAbandon,
    /// A part of a begin is undone.
    RequestCompensate,
    /// A message of a topic.
    BroadcastPublish,
    /// How many subscribe to topics.
    BroadcastPresence,
    /// A task is queued.
    TaskEnqueue,
    /// A task is claimed.
    TaskClaim,
    /// A worker waits for no task any more.
    TaskWithdraw,
    /// An execution begins.
    TaskStart,
    /// An execution goes on.
    TaskRenew,
    /// An execution ends.
    TaskFinish,
    /// A task is cancelled.
    TaskCancel,
    /// Tasks whose lease has ended.
    TaskOverdue,
    /// A task expires.
    TaskExpire,
    /// Totals of all tasks.
    TaskStats,
}

/// Every function, in the order of the enum, with the names of its library and itself.
const SERVER_FUNCTIONS: &[(ServerFunction, &str, &str)] = &[
    (ServerFunction::Begin, "regatta_v5", "regatta_v5_begin"),
    (ServerFunction::BeginBatch, "regatta_v6", "regatta_v6_batch"),
    (ServerFunction::Commit, "regatta_v2", "regatta_v2_commit"),
    (ServerFunction::CommitBatch, "regatta_v6", "regatta_v6_commits"),
    (ServerFunction::SessionRotate, "regatta_v5", "regatta_v5_move"),
    (ServerFunction::SessionDestroy, "regatta_v5", "regatta_v5_end"),
    (ServerFunction::SessionList, "regatta_v5", "regatta_v5_list"),
    (ServerFunction::SessionDestroyAll, "regatta_v5", "regatta_v5_everywhere"),
    (ServerFunction::SessionSetLifetimes, "regatta_v5", "regatta_v5_remember"),
    (ServerFunction::SessionQuarantine, "regatta_session_v1", "regatta_session_v1_quarantine"),
    (ServerFunction::LimitRefund, "regatta_limit_v2", "regatta_limit_v2_refund"),
    (ServerFunction::LimitReset, "regatta_limit_v2", "regatta_limit_v2_reset"),
    (ServerFunction::LimitStatus, "regatta_limit_v2", "regatta_limit_v2_look"),
    (ServerFunction::LimitPrefetch, "regatta_limit_v2", "regatta_limit_v2_draw"),
    (ServerFunction::LimitApplyDeferred, "regatta_limit_v2", "regatta_limit_v2_merge"),
    (ServerFunction::LimitRenewPermit, "regatta_limit_v2", "regatta_limit_v2_renew"),
    (ServerFunction::LimitReleasePermit, "regatta_limit_v2", "regatta_limit_v2_release"),
    (ServerFunction::RegistryHeartbeat, "regatta_fleet_v2", "regatta_fleet_v2_beat"),
    (ServerFunction::RegistryDeregister, "regatta_fleet_v1", "regatta_fleet_v1_leave"),
    (ServerFunction::CounterFlush, "regatta_counter_v1", "regatta_counter_v1_flush"),
    (ServerFunction::CounterReadBatched, "regatta_counter_v1", "regatta_counter_v1_read"),
    (ServerFunction::CounterTake, "regatta_counter_v1", "regatta_counter_v1_take"),
    (ServerFunction::CounterGiveBack, "regatta_counter_v1", "regatta_counter_v1_give"),
    (ServerFunction::CounterInsert, "regatta_counter_v1", "regatta_counter_v1_see"),
    (ServerFunction::IdempotencyFind, "regatta_once_v1", "regatta_once_v1_find"),
    (ServerFunction::IdempotencyClaim, "regatta_counter_v2", "regatta_counter_v2_claim"),
    (ServerFunction::IdempotencyRenew, "regatta_counter_v1", "regatta_counter_v1_renew"),
    (ServerFunction::IdempotencyComplete, "regatta_counter_v1", "regatta_counter_v1_keep"),
    (ServerFunction::IdempotencyAbandon, "regatta_counter_v1", "regatta_counter_v1_forget"),
    (ServerFunction::RequestCompensate, "regatta_cluster_v3", "regatta_cluster_v3_undo"),
    (ServerFunction::BroadcastPublish, "regatta_live_v3", "regatta_live_v3_publish"),
    (ServerFunction::BroadcastPresence, "regatta_live_v2", "regatta_live_v2_here"),
    (ServerFunction::TaskEnqueue, "regatta_task_v3", "regatta_task_v3_enqueue"),
    (ServerFunction::TaskClaim, "regatta_task_v3", "regatta_task_v3_take"),
    (ServerFunction::TaskWithdraw, "regatta_task_v3", "regatta_task_v3_rest"),
    (ServerFunction::TaskStart, "regatta_task_v3", "regatta_task_v3_begin"),
    (ServerFunction::TaskRenew, "regatta_task_v3", "regatta_task_v3_renew"),
    (ServerFunction::TaskFinish, "regatta_task_v3", "regatta_task_v3_end"),
    (ServerFunction::TaskCancel, "regatta_task_v3", "regatta_task_v3_cancel"),
    (ServerFunction::TaskOverdue, "regatta_task_v3", "regatta_task_v3_overdue"),
    (ServerFunction::TaskExpire, "regatta_task_v3", "regatta_task_v3_expire"),
    (ServerFunction::TaskStats, "regatta_task_v3", "regatta_task_v3_survey"),
];

/// A function as a separate script.
struct FunctionScript {
    text: String,
    digest: String,
}

static SCRIPTS: LazyLock<Vec<FunctionScript>> = LazyLock::new(|| {
    let script =
        |(_, library, function): &(ServerFunction, &str, &str)| FunctionScript::new(library, function);
    SERVER_FUNCTIONS.iter().map(script).collect()
});

impl FunctionScript {
    fn new(library: &str, function: &str) -> Self {
        let source = library_by_name(library).map_or("", |library| library.text);
        let text = script_source(source, &format!("return registered['{function}'](KEYS, ARGV)"));
        let digest = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, text.as_bytes());
        Self { text, digest: hex(digest.as_ref()) }
    }
}

/// The library of this name.
pub fn library_by_name(name: &str) -> Option<&'static Library> {
    LIBRARIES.iter().find(|library| library.name == name)
}

/// A library as a script: the first line, which only libraries have, is removed; both forms of registration are caught;
/// `last` is run.
///
/// Flags of a function have no counterpart in a script, which is checked at its first write and not before.
pub fn script_source(source: &str, last: &str) -> String {
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

/// SHA-256 of a text, hex, as if every line ended with LF: a checkout with CRLF line ends is the same file.
pub fn checksum(text: &str) -> String {
    let normal = text.replace("\r\n", "\n");
    sha256_hex(normal.as_bytes())
}

impl ServerFunction {
    /// Whether repeating a call changes nothing and returns the same.
    pub(super) fn is_repeatable(self) -> bool {
        matches!(
            self,
            Self::CounterFlush
                | Self::CounterInsert
                | Self::IdempotencyFind
                | Self::IdempotencyClaim
                | Self::IdempotencyRenew
                | Self::IdempotencyComplete
                | Self::LimitStatus
                | Self::LimitApplyDeferred
                | Self::LimitRenewPermit
                | Self::SessionList
                | Self::RequestCompensate
        )
    }

    /// Which breakers a call passes and whether it may be repeated.
    pub(super) fn call_kind(self) -> CallKind {
        match self {
            Self::CounterTake
            | Self::CounterGiveBack
            | Self::CounterInsert
            | Self::IdempotencyFind
            | Self::IdempotencyClaim => CallKind::Begin,
            Self::CounterReadBatched | Self::TaskOverdue | Self::TaskStats => CallKind::Read,
            // A full server executes these, and repeating them changes nothing.
            Self::TaskRenew
            | Self::TaskFinish
            | Self::TaskCancel
            | Self::TaskExpire
            | Self::SessionDestroy
            | Self::SessionDestroyAll
            | Self::SessionList => CallKind::Delete,
            _ => CallKind::Write,
        }
    }

    /// Command and first argument of a call.
    ///
    /// # Errors
    /// `Unsupported` without server-side code.
    pub(super) fn invocation(self, mode: InvocationMode) -> Result<(&'static str, Value), RedisError> {
        let at = self as usize;
        match mode {
            InvocationMode::Function => Ok(("FCALL", Value::from_static_str(SERVER_FUNCTIONS[at].2))),
            InvocationMode::Script => Ok(("EVALSHA", Value::from_static_str(SCRIPTS[at].digest.as_str()))),
            InvocationMode::Plain => Err(RedisError::Unsupported { what: SERVER_FUNCTIONS[at].2 }),
        }
    }
}

/// Finds out how code is called here: by name, else by digest, else not at all. Changes nothing but the script cache.
pub(super) async fn detect_mode(
    transport: &RedisTransport,
    requested: ScriptingMode,
) -> Result<InvocationMode, RedisError> {
    match requested {
        ScriptingMode::Fcall => return Ok(InvocationMode::Function),
        ScriptingMode::Evalsha => return Ok(InvocationMode::Script),
        ScriptingMode::Plain => return Ok(InvocationMode::Plain),
        ScriptingMode::Auto => {}
    }
    // The migration ledger is written by EVAL in every mode.
    if !is_permitted(transport.call("EVAL", ["return 1", "0"]).await)? {
        return Ok(InvocationMode::Plain);
    }
    let named = is_permitted(transport.call("FUNCTION", ["LIST", "LIBRARYNAME", LIBRARY_PATTERN]).await)?
        && is_permitted(transport.call("FCALL", ["regatta_none", "0"]).await)?;
    if named {
        return Ok(InvocationMode::Function);
    }
    let by_digest = is_permitted(transport.call("SCRIPT", ["LOAD", "return 1"]).await)?
        && is_permitted(transport.call("EVALSHA", [NO_DIGEST, "0"]).await)?;
    Ok(if by_digest { InvocationMode::Script } else { InvocationMode::Plain })
}

/// Whether a command may be called here; an error that names missing code counts as permission.
fn is_permitted(reply: Result<Value, RedisError>) -> Result<bool, RedisError> {
    match reply {
        Ok(_) => Ok(true),
        Err(error) if error.is_function_missing() => Ok(true),
        Err(error) if error.is_unknown_command() => Ok(false),
        Err(error) => Err(error),
    }
}

/// Loads the libraries that this program calls if the server lacks them.
///
/// # Errors
/// `Diverged` when a library of that name has other code; otherwise the server's error.
pub(super) async fn ensure(transport: &RedisTransport, mode: InvocationMode) -> Result<(), RedisError> {
    if mode != InvocationMode::Function {
        return load(transport, mode).await;
    }
    let listed = transport.call("FUNCTION", ["LIST", "LIBRARYNAME", LIBRARY_PATTERN, "WITHCODE"]).await?;
    for library in LIBRARIES.iter().filter(|library| library.current) {
        install_or_compare(transport, library.name, library.text, library_code(&listed, library.name))
            .await?;
    }
    Ok(())
}

/// Loads one library if the server lacks it, whether this program calls it or not.
///
/// Does nothing without functions: scripts have no name under which they could be missing.
///
/// # Errors
/// As [`ensure`].
pub(super) async fn apply_library(
    transport: &RedisTransport,
    mode: InvocationMode,
    name: &str,
    text: &str,
) -> Result<(), RedisError> {
    if mode != InvocationMode::Function {
        return Ok(());
    }
    install_or_compare(transport, name, text, installed_source(transport, name).await?).await
}

/// Loads a library, or compares it with the one that was found.
async fn install_or_compare(
    transport: &RedisTransport,
    name: &str,
    text: &str,
    found: Option<String>,
) -> Result<(), RedisError> {
    match found {
        None => load_library(transport, text).await,
        Some(found) if checksum(&found) == checksum(text) => Ok(()),
        Some(found) => Err(RedisError::Diverged {
            what: format!("the library {name}"),
            expected: checksum(text),
            found: checksum(&found),
        }),
    }
}

/// A library's text on the server, if it is there.
pub(super) async fn installed_source(
    transport: &RedisTransport,
    name: &str,
) -> Result<Option<String>, RedisError> {
    let listed = transport.call("FUNCTION", ["LIST", "LIBRARYNAME", name, "WITHCODE"]).await?;
    Ok(library_code(&listed, name))
}

/// Replaces a library under its name, for every program that calls it: allowed only before its release.
pub(super) async fn replace_library(transport: &RedisTransport, text: &str) -> Result<(), RedisError> {
    transport.call("FUNCTION", ["LOAD", "REPLACE", text]).await.map(|_| ())
}

/// Loads the code that this program calls. Another worker that loads it at the same time does no harm: it is the same.
pub(super) async fn load(transport: &RedisTransport, mode: InvocationMode) -> Result<(), RedisError> {
    match mode {
        InvocationMode::Function => {
            for library in LIBRARIES.iter().filter(|library| library.current) {
                load_library(transport, library.text).await?;
            }
        }
        InvocationMode::Plain => {}
        InvocationMode::Script => {
            for script in SCRIPTS.iter() {
                transport.call("SCRIPT", ["LOAD", script.text.as_str()]).await?;
            }
        }
    }
    Ok(())
}

async fn load_library(transport: &RedisTransport, text: &str) -> Result<(), RedisError> {
    match transport.call("FUNCTION", ["LOAD", text]).await {
        Err(RedisError::Rejected { reason, .. }) if reason.contains("already exists") => Ok(()),
        other => other.map(|_| ()),
    }
}

/// A library's text in the reply to `FUNCTION LIST … WITHCODE`.
fn library_code(listed: &Value, name: &str) -> Option<String> {
    let Value::Array(libraries) = listed else { return None };
    let library =
        libraries.iter().find(|library| library_field(library, "library_name").as_deref() == Some(name))?;
    library_field(library, "library_code")
}

/// A field of one library in the reply to `FUNCTION LIST`.
fn library_field(library: &Value, name: &str) -> Option<String> {
    let Value::Array(pairs) = library else { return None };
    let mut pairs = pairs.iter();
    pairs.find(|field| field.as_str().as_deref() == Some(name))?;
    pairs.next()?.as_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_do_not_change_a_checksum_and_anything_else_does() {
        assert_eq!(checksum("a\nb\n"), checksum("a\r\nb\r\n"));
        assert_ne!(checksum("a\nb\n"), checksum("a\nb"));
    }

    #[test]
    fn every_library_names_itself() {
        for library in LIBRARIES {
            assert!(library.text.starts_with(&format!("#!lua name={}\n", library.name)), "{}", library.name);
        }
    }

    #[test]
    fn every_entry_is_registered_by_a_current_library() {
        for (index, (entry, library, function)) in SERVER_FUNCTIONS.iter().enumerate() {
            assert_eq!(*entry as usize, index);
            let library = library_by_name(library).unwrap();
            assert!(library.current && function.starts_with(library.name));
            let with_flags = library.text.contains(&format!("\nregister('{function}', "));
            let plainly = library.text.contains(&format!("\nredis.register_function('{function}', "));
            assert!(with_flags || plainly, "{function}");
        }
    }

    /// An entry of a batch that is executed alone does what a separate call of version 5 does.
    #[test]
    fn versions_5_and_6_begin_alike() {
        let part = |name: &str, first: &str, behind: &str| {
            let (_, text) = library_by_name(name).unwrap().text.split_once(first).unwrap();
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
        assert_eq!((digests.len(), digests[0].len()), (SERVER_FUNCTIONS.len(), 40));
        assert!(SCRIPTS.iter().all(|script| !script.text.contains("#!lua")));
    }
}
