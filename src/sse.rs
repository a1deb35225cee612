//! Server-sent events as they go over the wire (WHATWG HTML §9.2): the one place that writes them.
//!
//! Guarantees that no value breaks out of its field, whatever line ends it has. It knows no stream, no HTTP and no worker.

use bytes::Bytes;

/// A comment, which is no event: it shows clients and proxies that the connection works.
pub const KEEP_ALIVE: Bytes = Bytes::from_static(b":\n\n");

/// One event, or a `retry` without one; fields that are not set are left out.
#[derive(Debug, Clone, Copy, Default)]
pub struct SseEvent<'a> {
    id: &'a str,
    name: &'a str,
    data: Option<&'a str>,
    retry_ms: Option<u64>,
}

impl<'a> SseEvent<'a> {
    /// Sets what the client sends as `Last-Event-ID` when it connects again; it ends before the first line end.
    #[must_use]
    pub fn id(self, id: &'a str) -> Self {
        Self { id: first_line(id), ..self }
    }

    /// Sets the event's name; it ends before the first line end. Without one it is a `message`.
    #[must_use]
    pub fn name(self, name: &'a str) -> Self {
        Self { name: first_line(name), ..self }
    }

    /// Sets the data: without it a client dispatches no event. A line end of any kind arrives as LF.
    #[must_use]
    pub fn data(self, data: &'a str) -> Self {
        Self { data: Some(data), ..self }
    }

    /// Sets how long a client waits before it connects again, milliseconds.
    #[must_use]
    pub fn retry_ms(self, retry_ms: u64) -> Self {
        Self { retry_ms: Some(retry_ms), ..self }
    }

    /// The bytes of the stream.
    pub fn to_bytes(self) -> Bytes {
        let mut wire =
            Vec::with_capacity(self.data.map_or(0, str::len) + self.name.len() + self.id.len() + 32);
        if !self.name.is_empty() {
            push_field(&mut wire, "event", self.name);
        }
        if !self.id.is_empty() {
            push_field(&mut wire, "id", self.id);
        }
        if let Some(data) = self.data {
            push_lines(&mut wire, data);
        }
        if let Some(retry_ms) = self.retry_ms {
            push_field(&mut wire, "retry", &retry_ms.to_string());
        }
        wire.push(b'\n');
        wire.into()
    }
}

/// One event as it goes over the wire; without a name it is a `message`.
///
/// Line breaks of every kind in `data` stay data; a name ends before the first.
pub fn event(name: &str, data: &str) -> Bytes {
    SseEvent::default().name(name).data(data).to_bytes()
}

fn first_line(text: &str) -> &str {
    text.split(['\r', '\n']).next().unwrap_or_default()
}

fn push_field(wire: &mut Vec<u8>, name: &str, value: &str) {
    for part in [name, ": ", value, "\n"] {
        wire.extend_from_slice(part.as_bytes());
    }
}

/// CR, LF and both end a line for the client (§9.2.6), so each line needs a field of its own.
fn push_lines(wire: &mut Vec<u8>, mut rest: &str) {
    loop {
        let end = rest.find(['\r', '\n']).unwrap_or(rest.len());
        push_field(wire, "data", &rest[..end]);
        rest = match &rest[end..] {
            "" => return,
            after => after.strip_prefix("\r\n").unwrap_or(&after[1..]),
        };
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn text(event: SseEvent<'_>) -> String {
        String::from_utf8(event.to_bytes().to_vec()).unwrap()
    }

    /// Reads a stream as browsers do: (last id, data) of each event.
    fn events(stream: &str) -> Vec<(String, String)> {
        let stream = stream.replace("\r\n", "\n").replace('\r', "\n");
        let (mut events, mut id, mut data) = (Vec::new(), String::new(), String::new());
        for line in stream.lines() {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "" if line.is_empty() && !data.is_empty() => {
                    data.pop();
                    events.push((id.clone(), std::mem::take(&mut data)));
                }
                "id" => id = value.to_owned(),
                "data" => {
                    data.push_str(value);
                    data.push('\n');
                }
                "" => {}
                other => panic!("a field {other}"),
            }
        }
        events
    }

    #[test]
    fn fields_that_are_not_set_are_left_out() {
        assert_eq!(event("", ""), "data: \n\n");
        assert_eq!(event("gap", "x"), "event: gap\ndata: x\n\n");
        assert_eq!(text(SseEvent::default().retry_ms(50)), "retry: 50\n\n");
        assert_eq!(
            text(SseEvent::default().id("7-1").name("start").data("7")),
            "event: start\nid: 7-1\ndata: 7\n\n"
        );
    }

    #[test]
    fn no_value_breaks_out_of_its_field() {
        assert_eq!(
            event("gap", "a\nb\rc\r\nd\n"),
            "event: gap\ndata: a\ndata: b\ndata: c\ndata: d\ndata: \n\n"
        );
        assert_eq!(event("x\nid: 7", "y"), "event: x\ndata: y\n\n");
        assert_eq!(event("", "\n\r\r\n"), "data: \ndata: \ndata: \ndata: \n\n");
        assert_eq!(text(SseEvent::default().id("7\r\ndata: z").data("y")), "id: 7\ndata: y\n\n");
    }

    proptest! {
        #[test]
        fn any_text_is_one_event(data in "[a: \r\n\u{feff}\u{2028}é]{0,30}|\\PC{0,30}|data: x|\rid: 1|:\n") {
            let data = format!("x{data}");
            let lines = data.replace("\r\n", "\n").replace('\r', "\n");
            let stream = text(SseEvent::default().id("7-1").data(&data));
            prop_assert_eq!(events(&stream), [("7-1".to_owned(), lines)]);
        }
    }
}
