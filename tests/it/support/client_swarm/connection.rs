//! One connection of a client: HTTP/1.1 over a raw socket, so that every failure is seen as it is.

use std::io;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;

/// Longest wait of a client for anything; above every wait that the program allows itself.
const TIMEOUT: Duration = Duration::from_secs(30);

/// One answer, as far as a client looks at it.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    /// Names in small letters.
    headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Answer {
    /// A header's value, empty when it is missing.
    pub(super) fn header(&self, name: &str) -> &str {
        let found = self.headers.iter().find(|(known, _)| known == name);
        found.map_or("", |(_, value)| value.as_str())
    }

    /// Whether the server ends the connection with it.
    pub(super) fn closes(&self) -> bool {
        self.header("connection").eq_ignore_ascii_case("close")
    }

    fn head(text: &str) -> Option<Self> {
        let mut lines = text.split("\r\n");
        let status = lines.next()?.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
        let header = |line: &str| {
            let (name, value) = line.split_once(':')?;
            Some((name.to_ascii_lowercase(), value.trim().to_owned()))
        };
        Some(Self { status, headers: lines.filter_map(header).collect(), body: String::new() })
    }
}

/// Why there was no answer, in one word or two.
pub(super) fn word(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::ConnectionRefused => "connection refused",
        ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => "reset",
        ErrorKind::UnexpectedEof => "closed without an answer",
        ErrorKind::TimedOut => "timed out",
        ErrorKind::InvalidData => "no HTTP",
        ErrorKind::AddrNotAvailable => "no local port",
        _ => "other failure",
    }
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Connection {
    /// Connects from this address, or from one of the kernel's choice.
    pub(super) async fn open(address: SocketAddr, source: Option<IpAddr>) -> io::Result<Self> {
        let socket = TcpSocket::new_v4()?;
        if let Some(source) = source {
            socket.bind(SocketAddr::new(source, 0))?;
        }
        let stream = within(socket.connect(address)).await?;
        stream.set_nodelay(true)?;
        Ok(Self { stream, read: Vec::new() })
    }

    /// Whether the server has ended it: a client that sends a request then has not looked.
    pub(super) fn is_closed(&self) -> bool {
        let mut byte = [0];
        !matches!(self.stream.try_read(&mut byte), Err(error) if error.kind() == ErrorKind::WouldBlock)
    }

    /// Sends a request and reads its answer.
    pub(super) async fn request(&mut self, request: &[u8]) -> io::Result<Answer> {
        within(async {
            self.stream.write_all(request).await?;
            self.answer().await
        })
        .await
    }

    async fn answer(&mut self) -> io::Result<Answer> {
        let end = loop {
            if let Some(at) = self.read.windows(4).position(|four| four == b"\r\n\r\n") {
                break at;
            }
            self.more().await?;
        };
        let head = String::from_utf8_lossy(&self.read[..end]).into_owned();
        let mut answer = Answer::head(&head).ok_or(ErrorKind::InvalidData)?;
        let length: usize = answer.header("content-length").parse().map_err(|_| ErrorKind::InvalidData)?;
        let whole = end + 4 + length;
        while self.read.len() < whole {
            self.more().await?;
        }
        answer.body = String::from_utf8_lossy(&self.read[end + 4..whole]).into_owned();
        self.read.drain(..whole);
        Ok(answer)
    }

    async fn more(&mut self) -> io::Result<()> {
        let mut piece = [0; 8192];
        match self.stream.read(&mut piece).await? {
            0 => Err(ErrorKind::UnexpectedEof.into()),
            count => {
                self.read.extend_from_slice(&piece[..count]);
                Ok(())
            }
        }
    }
}

async fn within<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(TIMEOUT, work).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}
