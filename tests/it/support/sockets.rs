//! A WebSocket's client, frame by frame (RFC 6455): it sends what it is told to, right or wrong, and shows what comes.

use std::net::SocketAddr;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ring::digest;

use crate::support::client::{Connection, Failure, Request, Response};

/// What a server adds to the key before it hashes it (RFC 6455 §1.3).
const GUID: &str = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11";

/// Opcodes (§5.2).
pub(crate) const CONTINUATION: u8 = 0x0;
pub(crate) const TEXT: u8 = 0x1;
pub(crate) const BINARY: u8 = 0x2;
pub(crate) const CLOSE: u8 = 0x8;
pub(crate) const PING: u8 = 0x9;
pub(crate) const PONG: u8 = 0xa;

/// One frame, without its mask.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Frame {
    /// The last of its message.
    pub(crate) fin: bool,
    /// The three reserved bits, 0 to 7.
    pub(crate) reserved: u8,
    pub(crate) opcode: u8,
    pub(crate) payload: Vec<u8>,
}

impl std::fmt::Debug for Frame {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let shown = String::from_utf8_lossy(&self.payload[..self.payload.len().min(80)]).into_owned();
        let (opcode, fin, length) = (self.opcode, self.fin, self.payload.len());
        write!(f, "Frame(opcode {opcode:x}, fin {fin}, {length} B, {shown:?}, code {:?})", self.code())
    }
}

impl Frame {
    /// A whole message, or a control frame.
    pub(crate) fn new(opcode: u8, payload: impl Into<Vec<u8>>) -> Self {
        Self { fin: true, reserved: 0, opcode, payload: payload.into() }
    }

    pub(crate) fn text(text: &str) -> Self {
        Self::new(TEXT, text)
    }

    pub(crate) fn ping(payload: impl Into<Vec<u8>>) -> Self {
        Self::new(PING, payload)
    }

    pub(crate) fn close(code: u16, reason: &str) -> Self {
        Self::new(CLOSE, [&code.to_be_bytes()[..], reason.as_bytes()].concat())
    }

    /// The same, with more to come.
    pub(crate) fn unfinished(mut self) -> Self {
        self.fin = false;
        self
    }

    /// The same with these reserved bits.
    pub(crate) fn reserved(mut self, bits: u8) -> Self {
        self.reserved = bits;
        self
    }

    /// A close frame's code (§7.4).
    pub(crate) fn code(&self) -> Option<u16> {
        let code = self.payload.first_chunk::<2>().filter(|_| self.opcode == CLOSE)?;
        Some(u16::from_be_bytes(*code))
    }

    /// A close frame's reason.
    pub(crate) fn reason(&self) -> String {
        String::from_utf8_lossy(self.payload.get(2..).unwrap_or_default()).into_owned()
    }

    /// As it goes over the wire; clients have to mask.
    pub(crate) fn bytes(&self, mask: Option<[u8; 4]>) -> Vec<u8> {
        let mut bytes = self.head(self.payload.len() as u64, mask);
        let mask = mask.unwrap_or_default();
        bytes.extend(self.payload.iter().zip(mask.iter().cycle()).map(|(byte, mask)| byte ^ mask));
        bytes
    }

    /// Only its beginning, which may promise any length.
    pub(crate) fn head(&self, length: u64, mask: Option<[u8; 4]>) -> Vec<u8> {
        let mut bytes = vec![u8::from(self.fin) << 7 | self.reserved << 4 | self.opcode];
        let masked = u8::from(mask.is_some()) << 7;
        match length {
            0..=125 => bytes.push(masked | length as u8),
            126..=0xffff => {
                bytes.push(masked | 126);
                bytes.extend((length as u16).to_be_bytes());
            }
            _ => {
                bytes.push(masked | 127);
                bytes.extend(length.to_be_bytes());
            }
        }
        bytes.extend(mask.iter().flatten());
        bytes
    }
}

/// An open WebSocket.
#[derive(Debug)]
pub(crate) struct WebSocketClient {
    connection: Connection,
    /// The server's consent.
    pub(crate) response: Response,
    /// The message after which it begins, as the server says first of all.
    pub(crate) after: String,
}

impl WebSocketClient {
    /// Opens one, which has to succeed.
    #[track_caller]
    pub(crate) fn open(address: SocketAddr, target: &str) -> Self {
        Self::try_open(address, target, &[]).unwrap_or_else(|answer| panic!("{target}: {answer:?}"))
    }

    /// Opens one with more headers; the answer if it is none of consent.
    #[track_caller]
    pub(crate) fn try_open(
        address: SocketAddr,
        target: &str,
        headers: &[(&str, &str)],
    ) -> Result<Self, Response> {
        let mut socket = Self::try_handshake(address, target, headers)?;
        let greeting = socket.json();
        socket.after = greeting["after"].as_str().unwrap_or_else(|| panic!("{greeting}")).to_owned();
        Ok(socket)
    }

    /// Opens one that greets no one, which has to succeed.
    #[track_caller]
    pub(crate) fn handshake(address: SocketAddr, target: &str) -> Self {
        Self::try_handshake(address, target, &[]).unwrap_or_else(|answer| panic!("{target}: {answer:?}"))
    }

    /// The same with more headers; the answer if it is none of consent.
    #[track_caller]
    pub(crate) fn try_handshake(
        address: SocketAddr,
        target: &str,
        headers: &[(&str, &str)],
    ) -> Result<Self, Response> {
        let mut connection = Connection::open(address).unwrap();
        let key = BASE64_STANDARD.encode(rand::random::<[u8; 16]>());
        let request = Request::get(target)
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", &key);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(name, value));
        let response = connection.request(&request).unwrap();
        if response.status != 101 {
            return Err(response);
        }
        let hash = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, (key + GUID).as_bytes());
        assert_eq!(response.header("Sec-WebSocket-Accept"), BASE64_STANDARD.encode(hash));
        assert!(response.header("Upgrade").eq_ignore_ascii_case("websocket"), "{response:?}");
        Ok(Self { connection, response, after: String::new() })
    }

    /// Bears silence only for this long.
    pub(crate) fn set_timeout(&self, time: Duration) {
        self.connection.set_timeout(time);
    }

    /// Sends a frame, masked as a client has to; whether the other end still takes it.
    pub(crate) fn send(&mut self, frame: &Frame) -> Result<(), Failure> {
        self.send_raw(&frame.bytes(Some(rand::random())))
    }

    /// Sends any bytes.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.connection.send(bytes)
    }

    /// The next frame, whichever it is; a server's are never masked.
    pub(crate) fn frame(&mut self) -> Result<Frame, Failure> {
        let head = self.connection.read(2)?;
        assert_eq!(head[1] & 0x80, 0, "a server must not mask (RFC 6455 §5.1)");
        let length = match head[1] & 0x7f {
            126 => u64::from(u16::from_be_bytes(*self.connection.read(2)?.first_chunk().unwrap())),
            127 => u64::from_be_bytes(*self.connection.read(8)?.first_chunk().unwrap()),
            short => u64::from(short),
        };
        assert!(length <= 16 << 20, "{length} B in a frame");
        let payload = self.connection.read(length as usize)?;
        Ok(Frame { fin: head[0] >> 7 == 1, reserved: head[0] >> 4 & 7, opcode: head[0] & 0xf, payload })
    }

    /// The next frame that is neither ping nor pong; pings are answered.
    pub(crate) fn next(&mut self) -> Result<Frame, Failure> {
        loop {
            let frame = self.frame()?;
            match frame.opcode {
                PING => self.send(&Frame::new(PONG, frame.payload))?,
                PONG => {}
                _ => return Ok(frame),
            }
        }
    }

    /// The next message, which has to be a text in one frame.
    #[track_caller]
    pub(crate) fn text(&mut self) -> String {
        let frame = self.next().unwrap_or_else(|failure| panic!("{failure:?} instead of a text"));
        assert!(frame.opcode == TEXT && frame.fin, "{frame:?}");
        String::from_utf8(frame.payload).unwrap()
    }

    /// The next message as JSON.
    #[track_caller]
    pub(crate) fn json(&mut self) -> serde_json::Value {
        let text = self.text();
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error}: {text}"))
    }

    /// Reads on until the server says why it closes, answers it, and sees the connection's end.
    ///
    /// `None`: it ended without a close frame.
    pub(crate) fn closed(&mut self) -> Option<Frame> {
        let frame = loop {
            match self.next() {
                Ok(frame) if frame.opcode == CLOSE => break frame,
                Ok(_) => {}
                Err(Failure::TimedOut) => panic!("the server does not close"),
                Err(_) => return None,
            }
        };
        // The server may have closed already: then no one needs the answer.
        drop(self.send(&Frame::new(CLOSE, frame.payload.clone())));
        let rest = self.connection.rest();
        assert!(matches!(&rest, Ok(rest) if rest.is_empty()), "after its close frame: {rest:?}");
        Some(frame)
    }

    /// The code with which the server closes, `None` if it says none.
    pub(crate) fn close_code(&mut self) -> Option<u16> {
        self.closed()?.code()
    }
}

#[test]
fn frames_are_written_as_the_standard_has_them() {
    // RFC 6455 §5.7.
    assert_eq!(Frame::text("Hello").bytes(None), b"\x81\x05Hello");
    let masked = [0x81, 0x85, 0x37, 0xfa, 0x21, 0x3d, 0x7f, 0x9f, 0x4d, 0x51, 0x58];
    assert_eq!(Frame::text("Hello").bytes(Some([0x37, 0xfa, 0x21, 0x3d])), masked);
    assert_eq!(Frame::text("Hel").unfinished().bytes(None), b"\x01\x03Hel");
    assert_eq!(Frame::new(BINARY, [0; 256]).bytes(None)[..4], [0x82, 126, 1, 0]);
    assert_eq!(Frame::new(BINARY, [0; 65536]).bytes(None)[..10], [0x82, 127, 0, 0, 0, 0, 0, 1, 0, 0]);
    assert_eq!(Frame::new(CONTINUATION, "lo").reserved(4).bytes(None), b"\xc0\x02lo");
    assert_eq!(Frame::close(1012, "bye").bytes(None), b"\x88\x05\x03\xf4bye");
    assert_eq!(Frame::close(1012, "bye").code(), Some(1012));
    assert_eq!(Frame::close(1012, "bye").reason(), "bye");
    assert_eq!(Frame::ping("").bytes(None), b"\x89\x00");
}
