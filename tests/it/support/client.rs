//! A plain HTTP/1.1 client over one blocking socket, which tells refused from reset from cut short.
//!
//! A library's client would retry, reconnect and tidy up; here every failure has to be seen as it is.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use socket2::{Domain, Socket, Type};

use crate::support::stand_in;

/// Longest silence a client bears; above every deadline that a fleet promises in these tests.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(15);

/// How an exchange can fail.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No one listens.
    Refused,
    /// The connection was torn down.
    Reset,
    /// The peer closed before the first byte of an answer.
    Closed,
    /// The answer broke off.
    Short,
    /// Nothing came for longer than the client's patience.
    TimedOut,
    /// Anything else.
    Other(String),
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        match error.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::ConnectionAborted => Self::Reset,
            ErrorKind::WouldBlock | ErrorKind::TimedOut => Self::TimedOut,
            ErrorKind::UnexpectedEof => Self::Short,
            _ => Self::Other(error.to_string()),
        }
    }
}

/// One request.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    method: String,
    target: String,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Request {
    pub(crate) fn new(method: &str, target: &str) -> Self {
        Self { method: method.into(), target: target.into(), headers: Vec::new(), body: Vec::new() }
    }

    pub(crate) fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    pub(crate) fn post(target: &str) -> Self {
        Self::new("POST", target)
    }

    pub(crate) fn header(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }

    pub(crate) fn body(mut self, kind: &str, body: &[u8]) -> Self {
        self.body = body.to_vec();
        self.header("Content-Type", kind)
    }

    /// As it goes over the wire.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut text = format!("{} {} HTTP/1.1\r\nHost: localhost\r\n", self.method, self.target);
        for (name, value) in &self.headers {
            text += &format!("{name}: {value}\r\n");
        }
        if !self.body.is_empty() || self.method == "POST" {
            text += &format!("Content-Length: {}\r\n", self.body.len());
        }
        let mut bytes = (text + "\r\n").into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// One answer.
#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    headers: Vec<(String, String)>,
    pub(crate) body: Vec<u8>,
}

impl Response {
    /// All values of a header, in the order they came.
    pub(crate) fn all(&self, name: &str) -> Vec<&str> {
        let of_name = |(known, _): &&(String, String)| known.eq_ignore_ascii_case(name);
        self.headers.iter().filter(of_name).map(|(_, value)| value.as_str()).collect()
    }

    /// A header's value, empty when it is missing.
    pub(crate) fn header(&self, name: &str) -> &str {
        self.all(name).first().copied().unwrap_or("")
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.text()))
    }

    /// The worker that answered, by its header.
    #[track_caller]
    pub(crate) fn worker(&self) -> u32 {
        let id = self.header("X-Worker-Id");
        id.parse().unwrap_or_else(|_| panic!("X-Worker-Id is {id:?} in {self:?}"))
    }

    /// Whether the connection can be used again.
    pub(crate) fn keeps_alive(&self) -> bool {
        !self.all("Connection").iter().any(|value| value.eq_ignore_ascii_case("close"))
    }

    /// Worker and number of views of the plain page `PID: <pid> | Views: <n>\n`.
    #[track_caller]
    pub(crate) fn view(&self) -> (u32, u64) {
        let text = self.text();
        let parts = text.strip_prefix("PID: ").and_then(|rest| rest.strip_suffix('\n'));
        let (pid, views) = parts
            .and_then(|rest| rest.split_once(" | Views: "))
            .unwrap_or_else(|| panic!("{self:?} is no visit"));
        assert_eq!((self.status, pid), (200, self.header("X-Worker-Id")), "{text}");
        (pid.parse().unwrap(), views.parse().unwrap())
    }

    /// That this is a problem document (RFC 9457) of this status, and nothing that only looks like one.
    #[track_caller]
    pub(crate) fn assert_problem(&self, status: u16) -> serde_json::Value {
        assert_eq!(self.status, status, "{self:?}");
        assert_eq!(self.header("Content-Type"), "application/problem+json", "{self:?}");
        let problem = self.json();
        assert_eq!(problem["status"], status, "{problem}");
        assert!(problem["title"].is_string() && problem["type"].is_string(), "{problem}");
        problem
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub(crate) fn open(address: SocketAddr) -> Result<Self, Failure> {
        Self::from_stream(stand_in::connect(address)?)
    }

    /// From an address of the client's choice.
    pub(crate) fn open_from(from: IpAddr, address: SocketAddr) -> Result<Self, Failure> {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        socket.bind(&SocketAddr::new(from, 0).into())?;
        socket.connect_timeout(&address.into(), TIMEOUT)?;
        Self::from_stream(socket.into())
    }

    fn from_stream(stream: TcpStream) -> Result<Self, Failure> {
        stream.set_read_timeout(Some(TIMEOUT))?;
        stream.set_write_timeout(Some(TIMEOUT))?;
        // A Unix socket has no such option.
        let _ = stream.set_nodelay(true);
        Ok(Self { stream: BufReader::new(stream) })
    }

    /// Whether the peer has closed it, as far as it is known here without waiting.
    pub(crate) fn is_closed(&self) -> bool {
        let msg_flags = MsgFlags::MSG_PEEK | MsgFlags::MSG_DONTWAIT;
        match recv(self.stream.get_ref().as_raw_fd(), &mut [0], msg_flags) {
            Ok(waiting) => waiting == 0,
            Err(error) => error != Errno::EAGAIN,
        }
    }

    /// Bears silence only for this long.
    pub(crate) fn set_timeout(&self, time: Duration) {
        self.stream.get_ref().set_read_timeout(Some(time)).unwrap();
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.stream.get_mut().write_all(bytes).map_err(Failure::from)
    }

    /// Ends the client's side; the other one may go on.
    pub(crate) fn end(&self) {
        let _ = self.stream.get_ref().shutdown(Shutdown::Write);
    }

    /// Sends a request and waits for its answer.
    pub(crate) fn request(&mut self, request: &Request) -> Result<Response, Failure> {
        self.send(&request.bytes())?;
        self.receive(request.method == "HEAD")
    }

    /// The next answer.
    pub(crate) fn receive(&mut self, without_body: bool) -> Result<Response, Failure> {
        if self.stream.fill_buf()?.is_empty() {
            return Err(Failure::Closed);
        }
        let status_line = self.line()?;
        let status = status_line.split(' ').nth(1).and_then(|status| status.parse().ok());
        let status = status.ok_or_else(|| Failure::Other(format!("no status in {status_line:?}")))?;
        let mut response = Response { status, headers: Vec::new(), body: Vec::new() };
        loop {
            let line = self.line()?;
            let Some((name, value)) = line.split_once(':') else { break };
            response.headers.push((name.to_owned(), value.trim().to_owned()));
        }
        if !without_body && !matches!(status, 100..=199 | 204 | 304) {
            response.body = self.body(&response)?;
        }
        Ok(response)
    }

    fn body(&mut self, response: &Response) -> Result<Vec<u8>, Failure> {
        if response.header("Transfer-Encoding").eq_ignore_ascii_case("chunked") {
            return self.chunks();
        }
        let mut body = Vec::new();
        match response.header("Content-Length").parse() {
            Ok(length) => {
                body.resize(length, 0);
                self.stream.read_exact(&mut body)?;
            }
            Err(_) => _ = self.stream.read_to_end(&mut body)?,
        }
        Ok(body)
    }

    fn chunks(&mut self) -> Result<Vec<u8>, Failure> {
        let mut body = Vec::new();
        while let Some(chunk) = self.chunk()? {
            body.extend(chunk);
        }
        Ok(body)
    }

    /// The next chunk of a body that comes in chunks; none at its end.
    pub(crate) fn chunk(&mut self) -> Result<Option<Vec<u8>>, Failure> {
        let size = self.line()?;
        let size = usize::from_str_radix(size.split(';').next().unwrap_or("").trim(), 16)
            .map_err(|_| Failure::Other(format!("{size:?} is no size of a chunk")))?;
        let chunk = self.read(size)?;
        if !self.line()?.is_empty() {
            return Err(Failure::Other("a chunk without its end".into()));
        }
        Ok((size > 0).then_some(chunk))
    }

    fn line(&mut self) -> Result<String, Failure> {
        let mut line = Vec::new();
        self.stream.read_until(b'\n', &mut line)?;
        let text = line.strip_suffix(b"\r\n").ok_or(Failure::Short)?;
        Ok(String::from_utf8_lossy(text).into_owned())
    }

    /// So many bytes.
    pub(crate) fn read(&mut self, count: usize) -> Result<Vec<u8>, Failure> {
        let mut bytes = vec![0; count];
        self.stream.read_exact(&mut bytes)?;
        Ok(bytes)
    }

    /// Everything until the peer closes; a reset after the last byte counts as closing.
    pub(crate) fn rest(&mut self) -> Result<Vec<u8>, Failure> {
        let mut bytes = Vec::new();
        match self.stream.read_to_end(&mut bytes).map_err(Failure::from) {
            Ok(_) | Err(Failure::Reset) => Ok(bytes),
            Err(failure) => Err(failure),
        }
    }
}

/// One request over a connection of its own.
pub(crate) fn once(address: SocketAddr, request: Request) -> Result<Response, Failure> {
    Connection::open(address)?.request(&request.header("Connection", "close"))
}

/// `GET` over a connection of its own, which has to succeed as an exchange, whatever its status.
#[track_caller]
pub(crate) fn get(address: SocketAddr, target: &str) -> Response {
    once(address, Request::get(target)).unwrap_or_else(|failure| panic!("GET {target}: {failure:?}"))
}

/// A visitor who keeps every cookie, and takes a new connection for every request.
#[derive(Debug, Clone, Default)]
pub(crate) struct CookieClient {
    pub(crate) cookies: BTreeMap<String, String>,
}

impl CookieClient {
    /// The `Cookie` header that is sent.
    pub(crate) fn cookie_header(&self) -> String {
        let pairs: Vec<_> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        pairs.join("; ")
    }

    /// Sends a request with the cookies and keeps those that come back.
    pub(crate) fn try_request(&mut self, address: SocketAddr, request: Request) -> Result<Response, Failure> {
        let request = match self.cookies.is_empty() {
            true => request,
            false => request.header("Cookie", &self.cookie_header()),
        };
        let response = once(address, request)?;
        for cookie in response.all("Set-Cookie") {
            let (pair, attributes) = cookie.split_once(';').unwrap_or((cookie, ""));
            let (name, value) = pair.split_once('=').unwrap();
            match attributes.to_ascii_lowercase().contains("max-age=0") {
                true => _ = self.cookies.remove(name),
                false => _ = self.cookies.insert(name.to_owned(), value.to_owned()),
            }
        }
        Ok(response)
    }

    #[track_caller]
    pub(crate) fn request(&mut self, address: SocketAddr, request: Request) -> Response {
        self.try_request(address, request).unwrap_or_else(|failure| panic!("{failure:?}"))
    }

    /// Opens the plain page; worker and number of views.
    #[track_caller]
    pub(crate) fn view(&mut self, address: SocketAddr) -> (u32, u64) {
        self.request(address, Request::get("/")).view()
    }
}
