//! Prints what happened in a running fleet, and what happens.

use std::io;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use ::time::OffsetDateTime;
use ::time::format_description::BorrowedFormatItem;
use ::time::macros::format_description;

use crate::bootstrap::exit_code;
use crate::bootstrap::exit_code::CommandFailure;
use crate::control::client::{ControlClient, ControlError};
use crate::control::events::FleetEvent;
use crate::control::protocol;
use crate::control::protocol::{ControlReply, ControlRequest};
use crate::logging;
use crate::sys::clock;

/// How long the fleet may take to tell what it remembers.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

const STAMP: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// Why no more events are printed.
enum EventStreamEnd {
    /// The fleet has told all that was asked for.
    Complete,
    /// The fleet refused, with this code and sentence.
    Rejected(CommandFailure),
    /// No one reads them.
    OutputClosed,
}

/// Prints the events after number `after`; with `follow` until the fleet or the reader of the output ends.
pub(super) fn events(
    run_dir: &Path,
    follow: bool,
    after: Option<u64>,
    json: bool,
) -> Result<u8, CommandFailure> {
    let mut last = after;
    let mut met = false;
    loop {
        let before = last;
        match stream_events(run_dir, follow, &mut last, json) {
            Ok(EventStreamEnd::Rejected(failure)) => return Err(failure),
            Ok(EventStreamEnd::Complete | EventStreamEnd::OutputClosed) => return Ok(exit_code::OK),
            // The connection may have been lost alone: what is missing is asked for again.
            Err(ControlError::Disconnected) if follow && (last != before || !met) => met = true,
            Err(ControlError::NotRunning { .. } | ControlError::Disconnected) if met => {
                let _ = writeln!(io::stderr(), "the fleet has ended");
                return Ok(exit_code::OK);
            }
            Err(error @ ControlError::NotRunning { .. }) => {
                return Err(CommandFailure::new(exit_code::UNAVAILABLE, &error));
            }
            Err(error) => return Err(CommandFailure::new(exit_code::FAILED, &error)),
        }
    }
}

/// Prints what one connection tells; `last` is the number of the event printed last.
fn stream_events(
    run_dir: &Path,
    follow: bool,
    last: &mut Option<u64>,
    json: bool,
) -> Result<EventStreamEnd, ControlError> {
    let mut client = ControlClient::connect(run_dir)?;
    client.send(&ControlRequest::Events { after: *last, follow })?;
    let deadline = clock::monotonic() + REPLY_TIMEOUT;
    loop {
        let reply = client.receive((!follow).then_some(deadline))?;
        match &reply {
            ControlReply::Event(event) => *last = Some(event.sequence),
            ControlReply::Result(result) if !result.ok => {
                return Ok(EventStreamEnd::Rejected(CommandFailure {
                    code: result.exit_code,
                    message: result.message.clone(),
                }));
            }
            _ => {}
        }
        if !print(&reply, json) {
            return Ok(EventStreamEnd::OutputClosed);
        }
        if reply.is_final() {
            return Ok(EventStreamEnd::Complete);
        }
    }
}

/// Prints a reply; false when the output is closed.
fn print(reply: &ControlReply, json: bool) -> bool {
    let mut out = io::stdout();
    match (json, reply) {
        (true, reply) => protocol::encode_reply(reply).is_ok_and(|line| out.write_all(&line).is_ok()),
        (false, ControlReply::Event(event)) => writeln!(out, "{}", line(event)).is_ok(),
        (false, _) => true,
    }
}

/// An event for people: number, time, kind, text.
fn line(event: &FleetEvent) -> String {
    let nanos = i128::from(event.timestamp_ms) * 1_000_000;
    let at = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok().and_then(|at| at.format(STAMP).ok());
    let (kind, text) =
        (logging::escape_for_terminal(&event.kind), logging::escape_for_terminal(&event.message));
    format!("{:>6}  {}  {kind:<20} {text}", event.sequence, at.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let event = FleetEvent {
            sequence: 7,
            ..FleetEvent::new("worker_ready", 1_700_000_000_123, "worker 42 serves slot 3")
        };
        assert_eq!(
            line(&event),
            "     7  2023-11-14T22:13:20.123Z  worker_ready         worker 42 serves slot 3"
        );
        let forged = FleetEvent::new("x\x1b[2J", 0, "it said\nbye\x07");
        assert!(line(&forged).ends_with("x\\x1b[2J             it said\\nbye\\x07"), "{}", line(&forged));
        let absurd = FleetEvent::new("x", u64::MAX, "y");
        assert!(line(&absurd).ends_with("y"), "a time beyond the calendar is left out");
    }
}
