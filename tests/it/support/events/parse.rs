//! Bytes to answers and events, in whatever pieces they come.

use std::fmt;
use std::str::FromStr;

/// A message's id.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Id {
    ms: u64,
    seq: u64,
}

impl FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parts = text.split_once('-').and_then(|(ms, seq)| Some((ms.parse().ok()?, seq.parse().ok()?)));
        parts.map(|(ms, seq)| Self { ms, seq }).ok_or_else(|| format!("{text:?} is no id"))
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.ms, self.seq)
    }
}

/// Where in an answer the next byte stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    Head,
    /// So many bytes of a body of known length are missing.
    Body(usize),
    /// In the line that says how long the next chunk is.
    Size,
    /// So many bytes of a chunk are missing.
    Chunk(usize),
    /// In the line's end after a chunk.
    After,
    /// In the trailer.
    Trailer,
    /// Until the connection ends.
    Close,
    /// It is over.
    Done,
}

/// One HTTP/1.1 answer that comes in pieces.
#[derive(Debug)]
pub(crate) struct Answer {
    at: At,
    line: Vec<u8>,
    /// The head's lines, the first of them with the status; empty until all are there.
    pub(crate) head: Vec<String>,
}

impl Answer {
    pub(crate) fn new() -> Self {
        Self { at: At::Head, line: Vec::new(), head: Vec::new() }
    }

    /// The status, once the head is there.
    pub(crate) fn status(&self) -> Option<u16> {
        if self.at == At::Head {
            return None;
        }
        self.head.first()?.split(' ').nth(1)?.parse().ok()
    }

    /// A header's value.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        let fields = self.head.iter().skip(1).filter_map(|line| line.split_once(':'));
        let mut named = fields.filter(|(field, _)| field.eq_ignore_ascii_case(name));
        named.next().map(|(_, value)| value.trim())
    }

    /// Whether its last byte has come.
    pub(crate) fn is_done(&self) -> bool {
        self.at == At::Done
    }

    /// Whether it has no end but the connection's.
    pub(crate) fn ends_with_connection(&self) -> bool {
        self.at == At::Close
    }

    /// Takes more bytes; those of the body are given to `body`. Fails on what is no HTTP.
    pub(crate) fn take(&mut self, mut bytes: &[u8], mut body: impl FnMut(&[u8])) -> Result<(), String> {
        while let [first, after @ ..] = bytes {
            match self.at {
                At::Body(left) | At::Chunk(left) => {
                    let (now, later) = bytes.split_at(left.min(bytes.len()));
                    body(now);
                    bytes = later;
                    self.at = match (self.at, left - now.len()) {
                        (At::Body(_), 0) => At::Done,
                        (At::Body(_), left) => At::Body(left),
                        (_, 0) => At::After,
                        (_, left) => At::Chunk(left),
                    };
                }
                At::Close => {
                    body(bytes);
                    bytes = &[];
                }
                At::Done => return Err(format!("{} B after the end", bytes.len())),
                At::Head | At::Size | At::After | At::Trailer => {
                    bytes = after;
                    self.line.push(*first);
                    if *first == b'\n' {
                        let line = std::mem::take(&mut self.line);
                        let line = line.strip_suffix(b"\r\n").ok_or("a line without its end")?;
                        self.end_of_line(&String::from_utf8_lossy(line))?;
                    }
                }
            }
        }
        Ok(())
    }

    fn end_of_line(&mut self, line: &str) -> Result<(), String> {
        self.at = match self.at {
            At::Head if line.is_empty() => self.body()?,
            At::Head => {
                self.head.push(line.to_owned());
                At::Head
            }
            At::Size => {
                let size = line.split(';').next().unwrap_or_default().trim();
                let size = usize::from_str_radix(size, 16).map_err(|_| format!("{line:?} is no size"))?;
                if size == 0 { At::Trailer } else { At::Chunk(size) }
            }
            At::After if line.is_empty() => At::Size,
            At::Trailer if line.is_empty() => At::Done,
            At::Trailer => At::Trailer,
            at => return Err(format!("{line:?} in {at:?}")),
        };
        Ok(())
    }

    fn body(&mut self) -> Result<At, String> {
        let chunked = self.header("Transfer-Encoding").is_some_and(|coding| coding == "chunked");
        let length = self.header("Content-Length").map(str::parse::<usize>);
        let status = self.head.first().and_then(|line| line.split(' ').nth(1)).unwrap_or_default();
        match (chunked, length) {
            _ if matches!(status, "204" | "304") => Ok(At::Done),
            (true, None) => Ok(At::Size),
            (false, Some(Ok(0))) => Ok(At::Done),
            (false, Some(Ok(length))) => Ok(At::Body(length)),
            (false, None) => Ok(At::Close),
            _ => Err(format!("a body of two lengths: {:?}", self.head)),
        }
    }
}

/// One event, as the standard dispatches it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Event {
    /// `message` where the stream names none.
    pub(crate) name: String,
    pub(crate) data: String,
}

/// What a line, or the end of an event, amounts to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum StreamItem {
    Event(Event),
    /// A line that begins with a colon.
    Comment,
    /// Milliseconds.
    Retry(u64),
}

/// An event stream that comes in pieces (WHATWG HTML §9.2.6).
#[derive(Debug, Default)]
pub(crate) struct Stream {
    line: Vec<u8>,
    /// The last byte was a carriage return, and a line feed after it belongs to it.
    returned: bool,
    name: String,
    data: String,
    any: bool,
    /// The id that counts from the next dispatch on.
    next: String,
    /// What `Last-Event-ID` is.
    pub(crate) last: String,
}

impl Stream {
    /// One that goes on after this id.
    pub(crate) fn after(last: &str) -> Self {
        Self { next: last.to_owned(), last: last.to_owned(), ..Self::default() }
    }

    /// Takes more bytes; `hear` gets what they complete, with the last id at that moment.
    pub(crate) fn take(&mut self, bytes: &[u8], mut on_item: impl FnMut(&str, StreamItem)) {
        for byte in bytes {
            let second_half = std::mem::take(&mut self.returned) && *byte == b'\n';
            match byte {
                _ if second_half => {}
                b'\r' | b'\n' => {
                    self.returned = *byte == b'\r';
                    let line = std::mem::take(&mut self.line);
                    if let Some(item) = self.end_of_line(&String::from_utf8_lossy(&line)) {
                        on_item(&self.last, item);
                    }
                }
                _ => self.line.push(*byte),
            }
        }
    }

    fn end_of_line(&mut self, line: &str) -> Option<StreamItem> {
        if line.is_empty() {
            self.last.clone_from(&self.next);
            let (name, data) = (std::mem::take(&mut self.name), std::mem::take(&mut self.data));
            let name = if name.is_empty() { "message".to_owned() } else { name };
            return std::mem::take(&mut self.any).then_some(StreamItem::Event(Event { name, data }));
        }
        let (field, value) = line.split_once(':').unwrap_or((line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "" => return Some(StreamItem::Comment),
            "event" => value.clone_into(&mut self.name),
            "data" if self.any => self.data += &format!("\n{value}"),
            "data" => {
                value.clone_into(&mut self.data);
                self.any = true;
            }
            "id" if !value.contains('\0') => value.clone_into(&mut self.next),
            "retry" => return value.parse().ok().map(StreamItem::Retry),
            _ => {}
        }
        None
    }
}
