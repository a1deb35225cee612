//! A client of this instance's control socket: status, events and commands.
//!
//! Blocking: each call runs on a thread of its own, and every wait has a deadline.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use crate::control::client::{ControlClient, ControlError};
use crate::control::events::FleetEvent;
use crate::control::protocol::{ControlReply, ControlRequest};
use crate::http::dashboard::flash::FlashMessage;
use crate::status::document::InstanceStatus;
use crate::sys::clock;

/// Longest time of a poll.
pub(super) const POLL_TIMEOUT: Duration = Duration::from_millis(900);

/// Longest time that a page waits for a command's result; the command may go on, and the page says so.
pub(super) const COMMAND_TIMEOUT: Duration = Duration::from_secs(15);

/// Events that are shown.
pub(super) const EVENTS_SHOWN: usize = 40;

/// The supervisor's reply to a poll.
#[derive(Debug)]
pub(super) struct SupervisorReply {
    pub(super) status: InstanceStatus,
    /// Events after the requested one.
    pub(super) events: Vec<FleetEvent>,
}

/// Reads the status and the events after the one with this number.
///
/// # Errors
/// The supervisor cannot be reached, or has not answered within [`POLL_TIMEOUT`].
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

/// Runs a command, and returns its result.
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
        // It is unknown whether the command was received: that of a stopped supervisor waits in its socket.
        Err(ControlError::Timeout) => FlashMessage::failed(format!(
            "no result after {} s: the {} may still run; see the events below",
            COMMAND_TIMEOUT.as_secs(),
            request.command()
        )),
        Err(error) => FlashMessage::failed(error.to_string()),
    }
}
