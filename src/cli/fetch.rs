//! One question to a running fleet, for commands that only look.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use crate::bootstrap::exit_code;
use crate::bootstrap::exit_code::CommandFailure;
use crate::control::client::{ControlClient, ControlError};
use crate::control::protocol::{ControlReply, ControlRequest};
use crate::status::document::{InstanceStatus, VERSION};
use crate::sys::clock;

/// Asks the fleet with this run folder how it is; the document may have fields that this program does not know.
///
/// # Errors
/// Exit code 69 when none runs there.
pub(super) fn fetch_status(run_dir: &Path, timeout: Duration) -> Result<Value, CommandFailure> {
    let deadline = clock::monotonic() + timeout;
    let reply = ControlClient::connect(run_dir).and_then(|mut client| {
        client.send(&ControlRequest::Status)?;
        client.receive(Some(deadline))
    });
    status_from_reply(reply.map_err(|error| to_failure(&error))?)
}

/// The status in a reply.
///
/// # Errors
/// When the fleet refuses to answer.
pub(super) fn status_from_reply(reply: ControlReply) -> Result<Value, CommandFailure> {
    match reply {
        ControlReply::Status(document) => Ok(document),
        ControlReply::Result(result) => {
            Err(CommandFailure { code: result.exit_code, message: result.message })
        }
        _ => Err(failed("the fleet answered something else than its status".to_owned())),
    }
}

/// What this program makes of a status.
///
/// # Errors
/// When it has another version.
pub(super) fn parse_status(document: Value) -> Result<InstanceStatus, CommandFailure> {
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

/// What to tell the operator if there is no answer.
pub(super) fn to_failure(error: &ControlError) -> CommandFailure {
    let code = if matches!(error, ControlError::NotRunning { .. }) {
        exit_code::UNAVAILABLE
    } else {
        exit_code::FAILED
    };
    CommandFailure::new(code, error)
}

fn failed(message: String) -> CommandFailure {
    CommandFailure { code: exit_code::FAILED, message }
}
