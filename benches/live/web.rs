//! One request at a time, with the time of the first byte.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::Outcome;
use crate::events::parse::Answer;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(10);

/// One answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) head: Answer,
    pub(crate) status: u16,
    pub(crate) body: String,
    /// From the first byte sent (the connection was there) to the first one received.
    pub(crate) first_byte: Duration,
}

impl Reply {
    pub(crate) fn json(&self) -> Outcome<serde_json::Value> {
        serde_json::from_str(&self.body).map_err(|error| format!("{error}: {}", self.body).into())
    }
}

/// Asks over a connection of its own.
pub(crate) fn ask(address: SocketAddr, head: &str, body: &str) -> Outcome<Reply> {
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = if body.is_empty() { String::new() } else { format!("Content-Length: {}\r\n", body.len()) };
    let begin = Instant::now();
    stream.write_all(format!("{head}\r\nHost: localhost\r\n{length}\r\n{body}").as_bytes())?;
    let (mut answer, mut said, mut first_byte) = (Answer::new(), Vec::new(), None);
    let mut piece = [0; 64 << 10];
    while !answer.is_done() {
        let count = stream.read(&mut piece)?;
        first_byte.get_or_insert_with(|| begin.elapsed());
        if count == 0 && answer.ends_with_connection() {
            break;
        }
        if count == 0 {
            return Err(format!("{head}: the answer broke off").into());
        }
        answer.take(&piece[..count], |body| said.extend_from_slice(body))?;
    }
    let status = answer.status().unwrap_or_default();
    let body = String::from_utf8_lossy(&said).into_owned();
    Ok(Reply { head: answer, status, body, first_byte: first_byte.unwrap_or_default() })
}

/// `GET` as a browser asks for a page.
pub(crate) fn page(address: SocketAddr, path: &str) -> Outcome<Reply> {
    let reply = ask(address, &format!("GET {path} HTTP/1.1\r\nAccept: text/html"), "")?;
    if reply.status != 200 {
        return Err(format!("{path}: {}: {}", reply.status, reply.body).into());
    }
    Ok(reply)
}

/// `POST` of JSON.
pub(crate) fn post(address: SocketAddr, path: &str, body: &serde_json::Value) -> Outcome<Reply> {
    let head = format!("POST {path} HTTP/1.1\r\nContent-Type: application/json");
    ask(address, &head, &body.to_string())
}
