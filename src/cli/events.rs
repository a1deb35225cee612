//! Prints what happened in a running fleet, and what happens.

use std::io;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use ::time::OffsetDateTime;
use ::time::format_description::BorrowedFormatItem;
use ::time::macros::format_description;

use crate::cli::exit;
use crate::cli::exit::Failure;
use crate::control::client::Client;
use crate::control::client::Error;
use crate::control::events::Event;
use crate::control::protocol;
use crate::control::protocol::Reply;
use crate::control::protocol::Request;
use crate::sys::time;
use crate::telemetry;

/// How long the fleet may take to tell what it remembers.
const PATIENCE: Duration = Duration::from_secs(10);

const STAMP: &[BorrowedFormatItem<'static>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// Why no more events are printed.
enum End {
    /// The fleet has told all that was asked for.
    Told,
    /// The fleet refused, with this code and sentence.
    Refused(Failure),
    /// No one reads them.
    Unread,
}

/// Prints the events after number `after`; with `follow` until the fleet ends or no one reads them.
pub(super) fn events(run_dir: &Path, follow: bool, after: Option<u64>, json: bool) -> Result<u8, Failure> {
    let mut last = after;
    let mut met = false;
    loop {
        let before = last;
        match listen(run_dir, follow, &mut last, json) {
            Ok(End::Refused(failure)) => return Err(failure),
            Ok(End::Told | End::Unread) => return Ok(exit::OK),
            // The connection may have been lost alone: what is missing is asked for again.
            Err(Error::Closed) if follow && (last != before || !met) => met = true,
            Err(Error::NoFleet { .. } | Error::Closed) if met => {
                let _ = writeln!(io::stderr(), "the fleet has ended");
                return Ok(exit::OK);
            }
            Err(error @ Error::NoFleet { .. }) => return Err(Failure::new(exit::UNAVAILABLE, &error)),
            Err(error) => return Err(Failure::new(exit::FAILED, &error)),
        }
    }
}

/// Prints what one connection tells; `last` is the number of the event printed last.
fn listen(run_dir: &Path, follow: bool, last: &mut Option<u64>, json: bool) -> Result<End, Error> {
    let mut client = Client::connect(run_dir)?;
    client.ask(&Request::Events { after: *last, follow })?;
    let deadline = time::monotonic() + PATIENCE;
    loop {
        let reply = client.reply((!follow).then_some(deadline))?;
        match &reply {
            Reply::Event(event) => *last = Some(event.seq),
            Reply::Verdict(verdict) if !verdict.ok => {
                return Ok(End::Refused(Failure { code: verdict.code, sentence: verdict.sentence.clone() }));
            }
            _ => {}
        }
        if !print(&reply, json) {
            return Ok(End::Unread);
        }
        if reply.is_final() {
            return Ok(End::Told);
        }
    }
}

/// Prints a reply; false when no one reads it.
fn print(reply: &Reply, json: bool) -> bool {
    let mut out = io::stdout();
    match (json, reply) {
        (true, reply) => protocol::encode_reply(reply).is_ok_and(|line| out.write_all(&line).is_ok()),
        (false, Reply::Event(event)) => writeln!(out, "{}", line(event)).is_ok(),
        (false, _) => true,
    }
}

/// An event for people: number, time, kind, text.
fn line(event: &Event) -> String {
    let nanos = i128::from(event.at_ms) * 1_000_000;
    let at = OffsetDateTime::from_unix_timestamp_nanos(nanos).ok().and_then(|at| at.format(STAMP).ok());
    let (kind, text) = (telemetry::visible(&event.kind), telemetry::visible(&event.text));
    format!("{:>6}  {}  {kind:<20} {text}", event.seq, at.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line() {
        let event =
            Event { seq: 7, ..Event::new("worker_ready", 1_700_000_000_123, "worker 42 serves slot 3") };
        assert_eq!(
            line(&event),
            "     7  2023-11-14T22:13:20.123Z  worker_ready         worker 42 serves slot 3"
        );
        let forged = Event::new("x\x1b[2J", 0, "it said\nbye\x07");
        assert!(line(&forged).ends_with("x\\x1b[2J             it said\\nbye\\x07"), "{}", line(&forged));
        let absurd = Event::new("x", u64::MAX, "y");
        assert!(line(&absurd).ends_with("y"), "a time beyond the calendar is left out");
    }
}
