//! This machine's supervisor, asked over its control socket: how it is, what happened, and what it is to do.
//!
//! Blocking, so everything here runs on a thread of its own, and every wait has a deadline.

use std::collections::VecDeque;
use std::path::Path;
use std::time::Duration;

use crate::control::client::Client;
use crate::control::client::Error;
use crate::control::events::Event;
use crate::control::protocol::Reply;
use crate::control::protocol::Request;
use crate::control::status::Status;
use crate::http::dashboard::said::Said;
use crate::sys::time;

/// Longest time to learn how it is.
pub(super) const LOOK: Duration = Duration::from_millis(900);

/// Longest time for which a page waits for a verdict; what takes longer may go on, and the page says so.
pub(super) const ACT: Duration = Duration::from_secs(15);

/// Events that are shown.
pub(super) const SHOWN: usize = 40;

/// What a supervisor said when it was asked how it is.
#[derive(Debug)]
pub(super) struct Told {
    pub(super) status: Status,
    /// What happened after the last event that was known.
    pub(super) events: Vec<Event>,
}

/// Asks how it is and what happened after the event with this number.
///
/// # Errors
/// When it cannot be asked, or has not answered within [`LOOK`].
pub(super) fn look(run_dir: &Path, after: Option<u64>) -> Result<Told, Error> {
    let deadline = Some(time::monotonic() + LOOK);
    let mut client = Client::connect(run_dir)?;
    client.ask(&Request::Status)?;
    let status = loop {
        if let Reply::Status(document) = client.reply(deadline)? {
            break serde_json::from_value(document).map_err(|error| {
                Error::Protocol(crate::control::protocol::Error::Reply { reason: error.to_string() })
            })?;
        }
    };
    client.ask(&Request::Events { after, follow: false })?;
    let mut events = VecDeque::new();
    loop {
        match client.reply(deadline)? {
            Reply::Event(event) => {
                events.push_back(event);
                if events.len() > SHOWN {
                    events.pop_front();
                }
            }
            reply if reply.is_final() => break,
            _ => {}
        }
    }
    Ok(Told { status, events: events.into() })
}

/// Has it do something, and says how it went.
pub(super) fn act(run_dir: &Path, request: &Request) -> Said {
    let deadline = Some(time::monotonic() + ACT);
    let verdict = || {
        let mut client = Client::connect(run_dir)?;
        client.ask(request)?;
        loop {
            if let Reply::Verdict(verdict) = client.reply(deadline)? {
                return Ok(verdict);
            }
        }
    };
    match verdict() {
        Ok(verdict) => Said { ok: verdict.ok, text: verdict.sentence },
        // Not even whether it was heard is known: a supervisor that is stopped has it in its socket.
        Err(Error::Timeout) => Said::failed(format!(
            "no verdict after {} s: the {} may go on, or be done later; the log below tells",
            ACT.as_secs(),
            request.verb()
        )),
        Err(error) => Said::failed(error.to_string()),
    }
}
