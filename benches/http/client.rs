//! A small HTTP/1.1 client: one connection, one request at a time, just what the benchmark has to see.

use std::io;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// Longest wait for a connection or a byte of an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// One answer.
#[derive(Debug)]
pub(crate) struct Answer {
    /// Its status.
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    /// Its body as text.
    pub(crate) body: String,
}

impl Answer {
    /// The first header of this (lower-case) name.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The `name=value` part of its first cookie.
    pub(crate) fn cookie(&self) -> Option<String> {
        let cookie = self.header("set-cookie")?;
        Some(cookie.split(';').next().unwrap_or(cookie).to_owned())
    }

    /// The views in `PID: 7 | Views: 42`.
    pub(crate) fn views(&self) -> Option<u64> {
        self.body.rsplit_once("Views: ")?.1.trim().parse().ok()
    }

    /// The process in `PID: 7 | Views: 42` or `Handled by worker 7`.
    pub(crate) fn pid(&self) -> Option<u32> {
        let text =
            self.body.strip_prefix("PID: ").or_else(|| self.body.strip_prefix("Handled by worker "))?;
        text.split_whitespace().next()?.parse().ok()
    }
}

/// One connection, kept open while the server allows it.
#[derive(Debug)]
pub(crate) struct Client {
    address: SocketAddr,
    patience: Duration,
    connection: Option<BufReader<TcpStream>>,
    /// Whom it asks for, as a proxy does.
    pub(crate) forwarded_for: Option<String>,
}

impl Client {
    /// Nothing is opened before the first request.
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, patience: PATIENCE, connection: None, forwarded_for: None }
    }

    /// Asks for a path, with a cookie if there is one.
    pub(crate) fn ask(&mut self, path: &str, cookie: Option<&str>) -> io::Result<Answer> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => connect(self.address, self.patience)?,
        };
        let cookie = cookie.map(|cookie| format!("Cookie: {cookie}\r\n")).unwrap_or_default();
        let client = self.forwarded_for.as_ref();
        let client = client.map(|client| format!("X-Forwarded-For: {client}\r\n")).unwrap_or_default();
        let host = self.address;
        let request = format!("GET {path} HTTP/1.1\r\nHost: {host}\r\nAccept: */*\r\n{client}{cookie}\r\n");
        connection.get_mut().write_all(request.as_bytes())?;
        let answer = read_answer(&mut connection)?;
        if answer.header("connection").is_none_or(|value| !value.eq_ignore_ascii_case("close")) {
            self.connection = Some(connection);
        }
        Ok(answer)
    }
}

/// One request on a connection of its own.
pub(crate) fn ask_once(address: SocketAddr, path: &str) -> io::Result<Answer> {
    ask_within(address, path, PATIENCE)
}

/// One request on a connection of its own, given up when nothing comes for this long.
pub(crate) fn ask_within(address: SocketAddr, path: &str, patience: Duration) -> io::Result<Answer> {
    Client { address, patience, connection: None, forwarded_for: None }.ask(path, None)
}

fn connect(address: SocketAddr, patience: Duration) -> io::Result<BufReader<TcpStream>> {
    let stream = TcpStream::connect_timeout(&address, patience)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(patience))?;
    Ok(BufReader::new(stream))
}

fn read_answer(connection: &mut BufReader<TcpStream>) -> io::Result<Answer> {
    let wrong = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_owned());
    let line = read_line(connection)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| wrong("no status line"))?;
    let mut headers = Vec::new();
    loop {
        let line = read_line(connection)?;
        if line.is_empty() {
            break;
        }
        let (name, value) = line.split_once(':').ok_or_else(|| wrong("a header without a colon"))?;
        headers.push((name.to_ascii_lowercase(), value.trim().to_owned()));
    }
    let mut answer = Answer { status, headers, body: String::new() };
    // None of the contenders streams these routes, so a body without a length is a mistake worth seeing.
    let length = answer.header("content-length").and_then(|length| length.parse().ok());
    let mut body = vec![0; length.ok_or_else(|| wrong("no content-length"))?];
    connection.read_exact(&mut body)?;
    answer.body = String::from_utf8(body).map_err(|_| wrong("a body that is not text"))?;
    Ok(answer)
}

fn read_line(connection: &mut BufReader<TcpStream>) -> io::Result<String> {
    let mut line = String::new();
    if connection.read_line(&mut line)? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    line.truncate(line.trim_end().len());
    Ok(line)
}
