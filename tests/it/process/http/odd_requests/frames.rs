//! Odd requests over HTTP/2, frame by frame.
//!
//! `HEADERS stream [end] [more] name=value …`, `CONTINUATION stream [more] name=value …`, `DATA stream [end] text`,
//! `RST stream code`, `RAW` and hexadecimal bytes; `{SP} {CR} {LF} {NUL}` stand for what would end a word. What comes is
//! `1:200` (an answer with its end), `1:rst5`, `fatal` (a farewell with a reason, or the end), `open` (a ping is
//! answered), `close`; `1:bad` stands for a reset, a 400 or `fatal`.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use crate::process::http::odd_requests::case::{Case, expand, is_right};

/// The preface, and settings that have the other side keep no table, so that a status can be read without one.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x06\x04\0\0\0\0\0\0\x01\0\0\0\0";

const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0odd ping";

/// How long is waited at last for what should not come.
const PATIENCE: Duration = Duration::from_secs(8);

/// A frame (RFC 9113 §4.1).
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A number in seven bits or more, before which nothing stands (RFC 7541 §5.1).
fn number(mut value: usize) -> Vec<u8> {
    if value < 127 {
        return vec![u8::try_from(value).unwrap()];
    }
    let mut bytes = vec![127];
    value -= 127;
    while value >= 128 {
        bytes.push(u8::try_from(value % 128).unwrap() | 128);
        value /= 128;
    }
    bytes.push(u8::try_from(value).unwrap());
    bytes
}

/// A field as a literal that no table keeps (RFC 7541 §6.2.2).
fn field(name: &[u8], value: &[u8]) -> Vec<u8> {
    [&[0][..], &number(name.len()), name, &number(value.len()), value].concat()
}

fn fields(words: &[&str]) -> Vec<u8> {
    let bytes = |text: &str| {
        let text =
            text.replace("{SP}", " ").replace("{CR}", "\\r").replace("{LF}", "\\n").replace("{NUL}", "\\0");
        expand(&text)
    };
    let one = |word: &&str| {
        let at = word.find('=').unwrap_or_else(|| panic!("{word}"));
        field(&bytes(&word[..at]), &bytes(&word[at + 1..]))
    };
    words.iter().flat_map(one).collect()
}

/// A frame as it stands in a line.
fn written(line: &str) -> Vec<u8> {
    let line = if line.starts_with("DATA") { line.to_owned() } else { repeated(line) };
    let words: Vec<&str> = line.split_whitespace().collect();
    if words[0] == "RAW" {
        let digits = words[1..].concat();
        let byte = |at: usize| u8::from_str_radix(&digits[at..at + 2], 16).unwrap();
        return (0..digits.len()).step_by(2).map(byte).collect();
    }
    let stream = words[1].parse().unwrap();
    let flags = words[2..].iter().take_while(|word| ["end", "more"].contains(word)).count();
    let (ends, more) = (words[2..].contains(&"end"), words[2..2 + flags].contains(&"more"));
    let (ends, rest) = (u8::from(ends && flags > 0), &words[2 + flags..]);
    let complete = if more { 0 } else { 4 };
    match words[0] {
        "HEADERS" => frame(1, ends | complete, stream, &fields(rest)),
        "CONTINUATION" => frame(9, complete, stream, &fields(rest)),
        "DATA" => frame(0, ends, stream, &expand(&rest.join(" "))),
        "RST" => frame(3, 0, stream, &rest[0].parse::<u32>().unwrap().to_be_bytes()),
        other => panic!("{other}"),
    }
}

/// Repetitions of whole fields.
fn repeated(line: &str) -> String {
    match line.split_once("{150*") {
        Some((before, rest)) => {
            let (inner, after) = rest.split_once('}').unwrap();
            format!("{before}{}{after}", inner.repeat(150))
        }
        None => line.to_owned(),
    }
}

/// What comes of a case of frames, if it is wrong.
pub(super) fn ask(case: &Case, address: SocketAddr) -> Option<String> {
    let frames: Vec<u8> = case.lines.iter().flat_map(|(line, _)| written(line)).collect();
    converse(case, &frames, &case.right, address)
}

/// What comes of a case of HTTP/1 when it is asked over HTTP/2, if it is wrong.
pub(super) fn ask_translated(case: &Case, address: SocketAddr, cookie: &str) -> Option<String> {
    let bytes = case.bytes(cookie);
    let end = bytes.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
    let (head, body) = (String::from_utf8(bytes[..end].to_vec()).unwrap(), &bytes[end + 4..]);
    let mut lines = head.split("\r\n");
    let mut request = lines.next().unwrap().split(' ');
    let (method, target) = (request.next().unwrap(), request.next().unwrap());
    let mut block = [(":method", method), (":scheme", "http"), (":path", target)]
        .map(|(name, value)| field(name.as_bytes(), value.as_bytes()))
        .concat();
    let mut rest = Vec::new();
    for line in lines {
        let (name, value) = line.split_once(':').unwrap();
        match name.to_lowercase().as_str() {
            "host" => block.extend(field(b":authority", value.trim().as_bytes())),
            name => rest.extend(field(name.as_bytes(), value.trim().as_bytes())),
        }
    }
    block.extend(rest);
    let (first, more) = block.split_at(block.len().min(16_000));
    let last = more.is_empty();
    let mut frames = frame(1, u8::from(body.is_empty()) | if last { 4 } else { 0 }, 1, first);
    if !last {
        frames.extend(frame(9, 4, 1, more));
    }
    let pieces: Vec<&[u8]> = body.chunks(16_000).collect();
    for (index, piece) in pieces.iter().enumerate() {
        frames.extend(frame(0, u8::from(index + 1 == pieces.len()), 1, piece));
    }
    // A stream ends by itself, and an early answer resets it without an error.
    let words = case.right.replace("close", "open");
    let status = |one: &str| format!("1:{}", one.split_whitespace().next().unwrap());
    let right: Vec<_> =
        words.split('|').map(|one| format!("{} open | {} 1:rst0 open", status(one), status(one))).collect();
    converse(case, &frames, &right.join(" | "), address)
}

fn converse(case: &Case, frames: &[u8], right: &str, address: SocketAddr) -> Option<String> {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    let ping = if case.ends { &[][..] } else { PING };
    let _ = stream.write_all(&[PREFACE, frames].concat());
    if case.ends {
        let _ = stream.shutdown(Shutdown::Write);
    }
    let awaited = right.split('|').flat_map(str::split_whitespace);
    let awaited = awaited
        .filter_map(|word| word.split_once(':')?.0.parse().ok())
        .collect::<std::collections::BTreeSet<u32>>();
    let mut seen = Seen::default();
    let mut has_pinged = false;
    let end = loop {
        // A ping is asked for once everything is answered that is to be, and its answer comes behind all else.
        if !has_pinged && awaited.iter().all(|number| seen.is_over(*number)) {
            has_pinged = true;
            let _ = stream.write_all(ping);
        }
        match seen.read(&mut stream) {
            Ok(true) => {}
            Ok(false) if seen.has_answered_ping => break "open",
            Ok(false) => break if seen.fatal { "fatal" } else { "close" },
            Err(error) if error.kind() == ErrorKind::WouldBlock => break "wait",
            Err(_) => break if seen.fatal { "fatal" } else { "reset" },
        }
        if seen.has_answered_ping {
            break if seen.fatal { "fatal" } else { "open" };
        }
    };
    let mut found = seen.found();
    let is_fatal = end == "fatal" || (end == "close" && found.is_empty());
    let is_bad = |number: u32| {
        is_fatal || seen.resets.contains_key(&number) || seen.statuses.get(&number) == Some(&400)
    };
    let bad = right.split('|').any(|one| match one.trim().strip_suffix(":bad").map(str::parse) {
        Some(Ok(number)) => is_bad(number),
        _ => one.trim() == "fatal" && is_fatal && found.is_empty(),
    });
    found.push(if is_fatal { "fatal".into() } else { end.to_owned() });
    // A stream's error may be said before its connection's end is known.
    let without_end = &found[..found.len() - 1];
    let is_fine = bad || is_right(right, &found) || is_right(right, without_end);
    (!is_fine).then(|| format!("[{}] {found:?} and not {right}", case.name))
}

#[derive(Debug, Default)]
struct Seen {
    unread: Vec<u8>,
    statuses: BTreeMap<u32, u16>,
    ended: Vec<u32>,
    resets: BTreeMap<u32, u32>,
    fatal: bool,
    has_answered_ping: bool,
}

impl Seen {
    fn is_over(&self, stream: u32) -> bool {
        self.ended.contains(&stream) || self.resets.contains_key(&stream)
    }

    /// Reads some; false at the end.
    fn read(&mut self, stream: &mut TcpStream) -> std::io::Result<bool> {
        let mut bytes = [0; 65_536];
        let count = stream.read(&mut bytes)?;
        self.unread.extend(&bytes[..count]);
        while self.unread.len() >= 9 {
            let length = usize::from(self.unread[0]) << 16
                | usize::from(self.unread[1]) << 8
                | usize::from(self.unread[2]);
            if self.unread.len() < 9 + length {
                break;
            }
            let whole: Vec<u8> = self.unread.drain(..9 + length).collect();
            self.take(&whole);
        }
        Ok(count > 0)
    }

    fn take(&mut self, frame: &[u8]) {
        let four = |at: usize| u32::from_be_bytes(frame[at..at + 4].try_into().unwrap());
        let (kind, flags, stream) = (frame[3], frame[4], four(5));
        match kind {
            1 => _ = self.statuses.entry(stream).or_insert_with(|| status(&frame[9..])),
            3 => _ = self.resets.insert(stream, four(9)),
            6 if flags == 1 && frame.ends_with(b"odd ping") => self.has_answered_ping = true,
            7 => self.fatal |= four(13) != 0,
            _ => {}
        }
        if kind <= 1 && flags & 1 != 0 {
            self.ended.push(stream);
        }
    }

    fn found(&self) -> Vec<String> {
        let streams: std::collections::BTreeSet<_> = self.statuses.keys().chain(self.resets.keys()).collect();
        let of = |stream: &u32| {
            let status = self.statuses.get(stream).map(|status| format!("{stream}:{status}"));
            let reset = self.resets.get(stream).map(|code| format!("{stream}:rst{code}"));
            status.into_iter().chain(reset)
        };
        streams.into_iter().flat_map(of).collect()
    }
}

/// The status that a block begins with: by its place in the static table, or three digits (RFC 7541 §A, §B).
fn status(mut block: &[u8]) -> u16 {
    while block[0] & 0xe0 == 0x20 {
        block = &block[1..];
    }
    if let Some(known) = [200, 204, 206, 304, 400, 404, 500].get(usize::from(block[0]).wrapping_sub(0x88)) {
        return *known;
    }
    let length = usize::from(block[1] & 0x7f);
    let text = &block[2..2 + length];
    if block[1] & 0x80 == 0 {
        return std::str::from_utf8(text).unwrap().parse().unwrap();
    }
    let bits: String = text.iter().map(|byte| format!("{byte:08b}")).collect();
    let (mut value, mut at) = (0, 0);
    for _ in 0..3 {
        let digit = |count: usize| u16::from_str_radix(&bits[at..at + count], 2).unwrap();
        // 0 to 2 have five bits, 3 to 9 six, from 011001 on.
        let (digit, count) = if digit(5) < 3 { (digit(5), 5) } else { (digit(6) - 0b01_1001 + 3, 6) };
        value = value * 10 + digit;
        at += count;
    }
    value
}
