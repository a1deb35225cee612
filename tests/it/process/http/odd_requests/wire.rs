//! Odd requests over HTTP/1, directly or through a proxy.

use std::net::SocketAddr;
use std::time::Duration;

use crate::process::http::odd_requests::case::{Case, is_right};
use crate::support::client::{Connection, Failure};

/// How long is waited for what should not come.
const SILENCE: Duration = Duration::from_millis(400);

/// What an open connection is asked.
const PROBE: &[u8] = b"GET /hello HTTP/1.1\r\nHost: fleet.test\r\nConnection: close\r\n\r\n";

/// What comes of a case, if it is wrong.
pub(super) fn ask(case: &Case, address: SocketAddr, right: &str, cookie: &str) -> Option<String> {
    let mut connection = Connection::open(address).unwrap();
    // It may be refused before all of it is sent.
    let _ = connection.send(&case.bytes(cookie));
    if case.ends {
        connection.end();
    }
    let (found, text) = listen(&mut connection, right);
    let own = case.said.iter().filter(|_| right == case.right);
    let told = own.filter(|said| !text.contains(*said)).map(|said| format!("not told: {said}"));
    let told = told
        .chain(case.unsaid.iter().filter(|said| text.contains(*said)).map(|said| format!("told: {said}")));
    let told: Vec<_> = told.collect();
    let wrong = !is_right(right, &found) || !told.is_empty();
    wrong.then(|| format!("[{}] {found:?} and not {right}; {}\n{text}", case.name, told.join(", ")))
}

/// Statuses as they come, and what the connection is afterwards.
fn listen(connection: &mut Connection, right: &str) -> (Vec<String>, String) {
    let alternatives: Vec<Vec<&str>> = right.split('|').map(|one| one.split_whitespace().collect()).collect();
    let is_status = |word: &&&str| word.starts_with(|letter: char| letter.is_ascii_digit());
    let statuses = |words: &Vec<&str>| words.iter().filter(is_status).count();
    let most = alternatives.iter().map(statuses).max().unwrap_or(0);
    let may = |end: &str| alternatives.iter().any(|words| words.last() == Some(&end));
    let (mut found, mut text) = (Vec::new(), String::new());
    loop {
        let position = found.len();
        let is_head =
            alternatives.iter().any(|words| words.get(position).is_some_and(|word| word.ends_with('h')));
        let is_done = position >= most;
        if is_done && may("open") && !may("close") {
            found.push(probe(connection));
            return (found, text);
        }
        // What is not sure to come is not waited for as long.
        let waits = may("wait") || (is_done && (!may("close") || may("open")));
        connection.set_timeout(if waits { SILENCE } else { Duration::from_secs(8) });
        match connection.receive(is_head) {
            Ok(response) => {
                text += &format!("{response:?}").to_lowercase().replace("\", \"", ": ");
                text += &response.text().to_lowercase();
                found.push(response.status.to_string());
            }
            Err(Failure::Closed) => found.push("close".into()),
            Err(Failure::TimedOut) if found.is_empty() => found.push("wait".into()),
            Err(Failure::TimedOut) if may("open") => found.push(probe(connection)),
            Err(Failure::TimedOut) => {}
            Err(failure) => found.push(format!("{failure:?}")),
        }
        if found.len() == position || !found[position].starts_with(|letter: char| letter.is_ascii_digit()) {
            return (found, text);
        }
    }
}

/// Whether the connection is of use.
fn probe(connection: &mut Connection) -> String {
    connection.set_timeout(Duration::from_secs(8));
    let _ = connection.send(PROBE);
    match connection.receive(false) {
        Ok(response) if response.status == 200 && response.text().starts_with("Handled by") => "open".into(),
        Ok(response) => format!("poisoned by {}", response.status),
        Err(Failure::Closed) => "close".into(),
        Err(failure) => format!("{failure:?}"),
    }
}
