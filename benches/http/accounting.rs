//! Commands and round trips of one request, counted one request at a time.
//!
//! Under load several requests share a read of Redis's socket, so round trips are counted where nothing can be
//! shared: one connection, one request after the other. `MONITOR` tells a client's commands from a script's own.

use std::collections::BTreeMap;

use crate::Outcome;
use crate::client::Client;
use crate::contender::Contender;
use crate::load::{Route, float};

/// Marks the end of the sample in what `MONITOR` shows.
const END: &str = "end-of-sample";

/// What one request costs, on average over the sample.
#[derive(Debug, Clone)]
pub(crate) struct Accounting {
    /// Commands the application sent.
    pub(crate) sent: f64,
    /// Commands executed inside scripts and functions.
    pub(crate) inside: f64,
    /// Times Redis read from a socket: round trips, since nothing is shared.
    pub(crate) round_trips: f64,
    /// The commands by name, as `FCALL 1.00, get 1.00 (in script)`.
    pub(crate) names: String,
}

/// Asks for the route once with each of these cookies.
pub(crate) fn count(contender: &Contender, route: Route, cookies: &[String]) -> Outcome<Accounting> {
    let mut client = Client::new(contender.address);
    // The first request on a connection may be special, and a session's first visit in its present form; not counted.
    for cookie in cookies {
        client.ask(route.path(), Some(cookie))?;
    }
    let mut link = contender.redis().connect()?;
    let mut monitor = contender.redis().connect()?;
    monitor.ask("MONITOR")?;
    let before = link.reads()?;
    for cookie in cookies {
        let answer = client.ask(route.path(), Some(cookie))?;
        if answer.status != 200 {
            return Err(format!("{} answered {} to a sample", contender.name, answer.status).into());
        }
    }
    // The question itself is read from a socket too.
    let reads = link.reads()? - before - 1;
    link.ask(&format!("ECHO {END}"))?;

    let mut names: BTreeMap<String, u64> = BTreeMap::new();
    loop {
        let line = monitor.line()?;
        if line.contains(END) {
            break;
        }
        if let Some(name) = command(&line) {
            *names.entry(name).or_default() += 1;
        }
    }
    Ok(averages(&names, reads, cookies.len() as u64))
}

/// The command of a line such as `+1700000000.123456 [0 unix:/path] "INCR" "total"`; none for the benchmark's own.
fn command(line: &str) -> Option<String> {
    let (source, call) = line.split_once("] \"")?;
    let name = call.split('"').next()?.to_ascii_uppercase();
    match name.as_str() {
        "INFO" | "MONITOR" => None,
        _ if source.ends_with(" lua") => Some(format!("{name} in script")),
        _ => Some(name),
    }
}

fn averages(names: &BTreeMap<String, u64>, reads: u64, requests: u64) -> Accounting {
    let each = |count: u64| float(count) / float(requests);
    let total = |inside: bool| names.iter().filter(move |(name, _)| name.ends_with(" in script") == inside);
    let text: Vec<String> = names.iter().map(|(name, count)| format!("{name} {:.2}", each(*count))).collect();
    Accounting {
        sent: each(total(false).map(|(_, count)| count).sum()),
        inside: each(total(true).map(|(_, count)| count).sum()),
        round_trips: each(reads),
        names: text.join(", "),
    }
}
