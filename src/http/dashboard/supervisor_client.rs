//! This machine's supervisor, asked over its control socket: how it is, what happened, and what it is to do.
//!
//! Blocking, so everything here runs on a thread of its own, and every wait has a deadline.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use crate::control::client::{ControlClient, ControlError};
use crate::control::events::FleetEvent;
use crate::control::protocol::{ControlReply, ControlRequest};
use crate::http::dashboard::flash::FlashMessage;
use crate::status::document::InstanceStatus;
use crate::sys::clock;

/// Longest time to learn how it is.
pub(super) const POLL_TIMEOUT: Duration = Duration::from_millis(900);

/// Longest time for which a page waits for a verdict; what takes longer may go on, and the page says so.
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_secs(15);

/// Events that are shown.
pub(super) const EVENTS_SHOWN: usize = 40;

/// What a supervisor said when it was asked how it is.
#[derive(Debug)]
pub(super) struct SupervisorReply {
    pub(super) status: InstanceStatus,
    /// What happened after the last event that was known.
    pub(super) events: Vec<FleetEvent>,
}

/// Asks how it is and what happened after the event with this number.
///
/// # Errors
/// When it cannot be asked, or has not answered within [`LOOK`].
pub(super) fn poll(run_dir: &Path, after: Option<u64>) -> Result<SupervisorReply, ControlError> {
    let deadline = Some(clock::monotonic() + POLL_TIMEOUT);
    let mut client = ControlClient::connect(run_dir)?;
    client.send(&ControlRequest::Status)?;
    let status = loop {
        if let ControlReply::Status(document) = client.receive(deadline)? {
            break serde_json::from_value(document).map_err(|error| {
                ControlError::Protocol(crate::control::protocol::ProtocolError::Reply {
                    reason: error.to_string(),
                })
            })?;
        }
    };
    client.send(&ControlRequest::Events { after, follow: false })?;
    let mut events = VecDeque::new();
    loop {
        match client.receive(deadline)? {
            ControlReply::Event(event) => {
                events.push_back(event);
                if events.len() > EVENTS_SHOWN {
                    events.pop_front();
                }
            }
            reply if reply.is_final() => break,
            _ => {}
        }
    }
    Ok(SupervisorReply { status, events: events.into() })
}

/// Has it do something, and says how it went.
pub(super) fn run_command(run_dir: &Path, request: &ControlRequest) -> FlashMessage {
    let deadline = Some(clock::monotonic() + COMMAND_TIMEOUT);
    let result = || {
        let mut client = ControlClient::connect(run_dir)?;
        client.send(request)?;
        loop {
            if let ControlReply::Result(result) = client.receive(deadline)? {
                return Ok(result);
            }
        }
    };
    match result() {
        Ok(result) => FlashMessage { ok: result.ok, text: result.message },
        // Not even whether it was heard is known: a supervisor that is stopped has it in its socket.
        Err(ControlError::Timeout) => FlashMessage::failed(format!(
            "no verdict after {} s: the {} may go on, or be done later; the log below tells",
            COMMAND_TIMEOUT.as_secs(),
            request.command()
        )),
        Err(error) => FlashMessage::failed(error.to_string()),
    }
}
