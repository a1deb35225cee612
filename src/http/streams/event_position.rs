//! Where in an event a stream of server-sent events stands (WHATWG HTML §9.2.5): what is inserted elsewhere than between two
//! events would become part of one.

/// Where the next byte of a stream goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct EventPosition {
    place: Place,
    /// The last byte was CR: an LF that follows is part of the same line end.
    after_cr: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// Before the first line of an event.
    Between,
    /// Before a later line of an event.
    LineStart,
    /// Within a line.
    Line,
}

impl EventPosition {
    /// The beginning of a stream.
    pub(crate) fn start() -> Self {
        Self { place: Place::Between, after_cr: false }
    }

    /// Whether the next byte begins an event.
    pub(crate) fn is_between(self) -> bool {
        self.place == Place::Between
    }

    /// Passes over bytes of the stream.
    pub(crate) fn advance(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.step(*byte));
    }

    /// Passes over bytes up to the end of the event that is under way; how many, if it ends in them.
    pub(crate) fn finish_event(&mut self, bytes: &[u8]) -> Option<usize> {
        for (index, byte) in bytes.iter().enumerate() {
            self.step(*byte);
            if self.is_between() {
                return Some(index + 1);
            }
        }
        None
    }

    fn step(&mut self, byte: u8) {
        let second_half = byte == b'\n' && self.after_cr;
        self.after_cr = byte == b'\r';
        if second_half {
            return;
        }
        self.place = match (byte, self.place) {
            (b'\r' | b'\n', Place::Line) => Place::LineStart,
            (b'\r' | b'\n', Place::Between | Place::LineStart) => Place::Between,
            _ => Place::Line,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(stream: &str) -> EventPosition {
        let mut position = EventPosition::start();
        position.advance(stream.as_bytes());
        position
    }

    #[test]
    fn an_event_ends_with_an_empty_line_of_any_kind() {
        for between in
            ["", "data: x\n\n", "data: x\r\r", "data: x\r\n\r\n", "data: x\n\r", ":\n\n", "\n\n\n", "\r\n"]
        {
            assert!(after(between).is_between(), "{between:?}");
        }
        for within in
            ["d", "data: x\n", "data: x\r", "data: x\r\n", "data: x\n\nid: 1", "data: x\n\n\nid: 1\r\n"]
        {
            assert!(!after(within).is_between(), "{within:?}");
        }
    }

    #[test]
    fn an_event_is_cut_at_its_end_however_it_is_split() {
        let stream = "data: a\r\n\r\ndata: b\n\ndata: c";
        for split in 0..stream.len() {
            let mut position = after(&stream[..split]);
            if position.is_between() {
                continue;
            }
            let rest = &stream.as_bytes()[split..];
            match position.finish_event(rest) {
                Some(end) => assert!(after(&stream[..split + end]).is_between(), "{split}"),
                None => assert!(split > stream.rfind("\n\n").unwrap() + 1, "{split}"),
            }
        }
    }
}
