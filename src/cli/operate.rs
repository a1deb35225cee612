//! Verbs for a running fleet: asks, shows how far it is, and ends with the fleet's own sentence and exit code.

use std::io;
use std::io::IsTerminal;
use std::io::Write;
use std::path::Path;

use indicatif::ProgressBar;
use indicatif::ProgressStyle;

use crate::cli::args::Manner;
use crate::cli::args::Verb;
use crate::cli::events;
use crate::cli::exit;
use crate::cli::exit::Failure;
use crate::cli::exit::say;
use crate::config;
use crate::config::Inputs;
use crate::control::client::Client;
use crate::control::client::Error;
use crate::control::protocol;
use crate::control::protocol::Progress;
use crate::control::protocol::Reply;
use crate::control::protocol::Request;
use crate::control::protocol::Verdict;
use crate::sys::time;
use crate::telemetry;

/// How the bar of a rollout looks; a total of 0 is not known yet.
const BAR: &str = "{bar:30} {pos}/{len}  {msg}";

/// Has the running fleet do it.
pub(super) fn operate(inputs: &Inputs, verb: Verb) -> Result<u8, Failure> {
    let run_dir = config::run_dir(inputs).map_err(|error| Failure::new(exit::USAGE, &error))?;
    let (request, manner) = match verb {
        Verb::Events { follow, after, json } => return events::events(&run_dir, follow, after, json),
        Verb::Reload { manner } => (Request::Reload { wait: !manner.no_wait }, manner),
        Verb::Upgrade { binary, manner } => {
            // The fleet has a working folder of its own.
            let binary = binary.map(|binary| config::path::absolute(&binary, &inputs.folder));
            (Request::Upgrade { binary, wait: !manner.no_wait }, manner)
        }
        Verb::Scale { count, manner } => {
            (Request::Scale { workers: count.into(), wait: !manner.no_wait }, manner)
        }
        Verb::Restart { slot, manner } => {
            (Request::Restart { slot: slot.into(), wait: !manner.no_wait }, manner)
        }
        Verb::Stop { now, manner } => (Request::Stop { now, wait: !manner.no_wait }, manner),
    };
    let mut show = Show::new(manner.json);
    match carry_out(&run_dir, &request, &manner, &mut show) {
        Ok(verdict) => show.verdict(verdict),
        Err(error) => {
            let failure = explain(&error, &request, &manner);
            match show {
                Show::Json => {
                    show.verdict(Verdict { code: failure.code, ..Verdict::failed(failure.sentence) })
                }
                Show::Bar(_) | Show::Lines => Err(failure),
            }
        }
    }
}

/// Asks and waits for the verdict.
fn carry_out(run_dir: &Path, request: &Request, manner: &Manner, show: &mut Show) -> Result<Verdict, Error> {
    let deadline = time::monotonic() + manner.timeout;
    let mut client = Client::connect(run_dir)?;
    client.ask(request)?;
    let verdict = loop {
        match client.reply(Some(deadline))? {
            Reply::Verdict(verdict) => break verdict,
            other => show.reply(&other),
        }
    };
    if verdict.ok && matches!(request, Request::Stop { wait: true, .. }) {
        // The supervisor has said its last word; it has ended when the kernel closes its end.
        while client.reply(Some(deadline)).is_ok() {}
    }
    Ok(verdict)
}

/// What to tell someone whose request has no verdict.
pub(super) fn explain(error: &Error, request: &Request, manner: &Manner) -> Failure {
    let verb = request.verb();
    match error {
        Error::NoFleet { .. } => Failure::new(exit::UNAVAILABLE, error),
        Error::Timeout => Failure {
            code: exit::FAILED,
            sentence: format!(
                "no verdict within {}; the {verb} goes on in the fleet, `events --follow` shows how",
                humantime::format_duration(manner.timeout)
            ),
        },
        Error::Closed => Failure {
            code: exit::FAILED,
            sentence: format!("the fleet ended before the {verb} had a verdict; its log says why"),
        },
        other => Failure::new(exit::FAILED, other),
    }
}

/// Where replies are shown until the verdict comes.
enum Show {
    /// Each as a line of JSON.
    Json,
    /// On a terminal.
    Bar(ProgressBar),
    /// Lines beside the verdict, for a log.
    Lines,
}

impl Show {
    fn new(json: bool) -> Self {
        if json {
            return Self::Json;
        }
        if !io::stderr().is_terminal() {
            return Self::Lines;
        }
        let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
        // It draws on standard error, which leaves standard output to the verdict.
        Self::Bar(ProgressBar::new(0).with_style(style))
    }

    fn reply(&mut self, reply: &Reply) {
        match (self, reply) {
            (Self::Json, reply) => print(reply),
            (Self::Bar(bar), Reply::Progress(Progress { done, total, text })) => {
                bar.set_length(*total as u64);
                bar.set_position(*done as u64);
                bar.set_message(telemetry::visible(text));
            }
            (Self::Lines, Reply::Progress(Progress { done, total, text })) => {
                let _ = writeln!(io::stderr(), "{done}/{total} {}", telemetry::visible(text));
            }
            (Self::Bar(_) | Self::Lines, _) => {}
        }
    }

    fn verdict(self, verdict: Verdict) -> Result<u8, Failure> {
        if let Self::Bar(bar) = &self {
            bar.finish_and_clear();
        }
        match self {
            Self::Json => {
                let code = verdict.code;
                print(&Reply::Verdict(verdict));
                Ok(code)
            }
            Self::Bar(_) | Self::Lines if verdict.ok => {
                say(telemetry::visible(&verdict.sentence));
                Ok(exit::OK)
            }
            // A verdict that is not ok never has the exit code of success.
            Self::Bar(_) | Self::Lines => {
                Err(Failure { code: verdict.code.max(exit::FAILED), sentence: verdict.sentence })
            }
        }
    }
}

/// A reply as a line of JSON, as the fleet sent it.
fn print(reply: &Reply) {
    if let Ok(line) = protocol::encode_reply(reply) {
        // A reader that has left is no reason to fail.
        let _ = io::stdout().write_all(&line);
    }
}
