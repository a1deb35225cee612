//! One connection in lock-step: a request, its whole answer, the next one.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use crate::Outcome;

/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(30);

/// A kept connection.
#[derive(Debug)]
pub(crate) struct Client {
    stream: BufReader<TcpStream>,
    /// Its cookie, once it has one.
    cookie: Option<String>,
    /// Bytes of all answers.
    pub(crate) received: u64,
}

impl Client {
    pub(crate) fn connect(address: SocketAddr) -> Outcome<Self> {
        let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Self { stream: BufReader::new(stream), cookie: None, received: 0 })
    }

    /// Sends a request without a body.
    pub(crate) fn send(&mut self, method: &str, path: &str) -> Outcome<()> {
        let mut head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n");
        if let Some(cookie) = &self.cookie {
            head.push_str(&format!("Cookie: {cookie}\r\n"));
        }
        if method != "GET" {
            head.push_str("Content-Length: 0\r\n");
        }
        head.push_str("\r\n");
        Ok(self.stream.get_mut().write_all(head.as_bytes())?)
    }

    /// Reads an answer; its status.
    pub(crate) fn answer(&mut self) -> Outcome<u16> {
        let (mut status, mut length) = (0, 0);
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else {
                if line.is_empty() {
                    break;
                }
                status = line.split(' ').nth(1).unwrap_or_default().parse()?;
                continue;
            };
            if name.eq_ignore_ascii_case("content-length") {
                length = value.trim().parse()?;
            } else if name.eq_ignore_ascii_case("set-cookie") {
                self.cookie = value.trim().split(';').next().map(str::to_owned);
            }
        }
        let mut body = vec![0; length];
        self.stream.read_exact(&mut body)?;
        self.received += length as u64;
        Ok(status)
    }

    /// Both; any other status than this one is an error.
    pub(crate) fn ask(&mut self, method: &str, path: &str, expected: u16) -> Outcome<()> {
        self.send(method, path)?;
        let status = self.answer()?;
        if status != expected {
            return Err(format!("{method} {path} was answered {status}, not {expected}").into());
        }
        Ok(())
    }

    /// One line, of a head or of a stream without an end.
    pub(crate) fn line(&mut self) -> Outcome<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err("the connection was closed".into());
        }
        self.received += line.len() as u64;
        line.truncate(line.trim_end().len());
        Ok(line)
    }
}
