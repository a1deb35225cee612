//! One question to a running fleet, for commands that only look.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::cli::exit;
use crate::cli::exit::Failure;
use crate::control::client::Client;
use crate::control::client::Error;
use crate::control::protocol::Reply;
use crate::control::protocol::Request;
use crate::control::status::Status;
use crate::control::status::VERSION;
use crate::sys::time;

/// Asks the fleet with this run folder how it is; the document may have fields that this program does not know.
///
/// # Errors
/// Exit code 69 when none runs there.
pub(super) fn status(run_dir: &Path, patience: Duration) -> Result<Value, Failure> {
    let deadline = time::monotonic() + patience;
    let asked = Client::connect(run_dir).and_then(|mut client| {
        client.ask(&Request::Status)?;
        client.reply(Some(deadline))
    });
    document(asked.map_err(|error| failure(&error))?)
}

/// The status in a reply.
///
/// # Errors
/// When the fleet refuses to answer.
pub(super) fn document(reply: Reply) -> Result<Value, Failure> {
    match reply {
        Reply::Status(document) => Ok(document),
        Reply::Verdict(verdict) => Err(Failure { code: verdict.code, sentence: verdict.sentence }),
        _ => Err(failed("the fleet answered something else than its status".to_owned())),
    }
}

/// What this program makes of a status.
///
/// # Errors
/// When it has another version.
pub(super) fn understand(document: Value) -> Result<Status, Failure> {
    let version = document.get("version").and_then(Value::as_u64);
    if version != Some(u64::from(VERSION)) {
        let theirs = version.map_or("none".to_owned(), |version| version.to_string());
        return Err(failed(format!(
            "the fleet's status has version {theirs}, this program reads {VERSION}: use the fleet's own program, or status --json"
        )));
    }
    serde_json::from_value(document)
        .map_err(|error| failed(format!("the fleet's status is not understood: {error}; try status --json")))
}

/// What to tell someone who got no answer.
pub(super) fn failure(error: &Error) -> Failure {
    let code = if matches!(error, Error::NoFleet { .. }) { exit::UNAVAILABLE } else { exit::FAILED };
    Failure::new(code, error)
}

fn failed(sentence: String) -> Failure {
    Failure { code: exit::FAILED, sentence }
}
