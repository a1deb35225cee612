//! HTTP/2 frames as far as they show what a connection costs; pure (RFC 9113 §4.1, §6).
//!
//! hyper answers SETTINGS and PING frames for ever, and some millions of them keep a worker busy with a connection that
//! requests nothing. So frames that request nothing come out of a budget, which fills up with time and with answers.

/// The first bytes of an HTTP/2 connection.
pub(in crate::worker) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Bytes of a frame's head.
const HEAD_LEN: usize = 9;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const END_STREAM: u8 = 1;

/// Most control frames that may come at once.
const MAX_BURST: u32 = 1000;

/// Control frames that may come in a tick.
const PER_TICK: u64 = 10;

/// Control frames that may come for each frame of an answer: updates of windows, and a cancellation.
const PER_ANSWER_FRAME: u32 = 3;

/// Follows the frames of one direction, however they are cut into pieces.
#[derive(Debug)]
pub(in crate::worker) struct FrameParser(FramePosition);

#[derive(Debug)]
enum FramePosition {
    /// In the preface, of which so many bytes have come.
    Preface(usize),
    /// It is not HTTP/2.
    NotHttp2,
    /// In a frame's head, of which so many bytes have come.
    Head([u8; HEAD_LEN], usize),
    /// In a frame's payload, of which so many bytes are to come.
    Payload { left: usize, data: bool },
}

/// What was in some bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::worker) struct FrameCounts {
    /// Frames that request and carry nothing.
    pub(in crate::worker) control: u32,
    /// Frames that do.
    pub(in crate::worker) useful: u32,
    /// Bytes of bodies.
    pub(in crate::worker) data: usize,
}

impl FrameParser {
    /// What comes from a client, which may turn out to speak HTTP/1.
    pub(in crate::worker) fn incoming() -> Self {
        Self(FramePosition::Preface(0))
    }

    /// What goes to a client that speaks HTTP/2.
    pub(in crate::worker) fn outgoing() -> Self {
        Self(FramePosition::Head([0; HEAD_LEN], 0))
    }

    /// Whether it is HTTP/2.
    pub(in crate::worker) fn is_http2(&self) -> bool {
        matches!(self.0, FramePosition::Head(..) | FramePosition::Payload { .. })
    }

    /// What is in these bytes, which follow on the ones before.
    pub(in crate::worker) fn scan(&mut self, mut bytes: &[u8]) -> FrameCounts {
        let mut counts = FrameCounts::default();
        while !bytes.is_empty() {
            let taken = match &mut self.0 {
                FramePosition::NotHttp2 => return counts,
                FramePosition::Preface(have) => {
                    let taken = bytes.len().min(PREFACE.len() - *have);
                    if bytes[..taken] != PREFACE[*have..*have + taken] {
                        self.0 = FramePosition::NotHttp2;
                        return counts;
                    }
                    *have += taken;
                    if *have == PREFACE.len() {
                        self.0 = FramePosition::Head([0; HEAD_LEN], 0);
                    }
                    taken
                }
                FramePosition::Head(head, have) => {
                    let taken = bytes.len().min(HEAD_LEN - *have);
                    head[*have..*have + taken].copy_from_slice(&bytes[..taken]);
                    *have += taken;
                    if *have == HEAD_LEN {
                        self.0 = parse_head(*head, &mut counts);
                    }
                    taken
                }
                FramePosition::Payload { left, data } => {
                    let taken = bytes.len().min(*left);
                    *left -= taken;
                    counts.data += if *data { taken } else { 0 };
                    if *left == 0 {
                        self.0 = FramePosition::Head([0; HEAD_LEN], 0);
                    }
                    taken
                }
            };
            bytes = &bytes[taken..];
        }
        counts
    }
}

/// A frame's head is complete.
fn parse_head(head: [u8; HEAD_LEN], counts: &mut FrameCounts) -> FramePosition {
    let [a, b, c, kind, flags, ..] = head;
    let left = usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c);
    let useful = kind == HEADERS || (kind == DATA && (left > 0 || flags & END_STREAM != 0));
    *if useful { &mut counts.useful } else { &mut counts.control } += 1;
    if left == 0 {
        FramePosition::Head([0; HEAD_LEN], 0)
    } else {
        FramePosition::Payload { left, data: kind == DATA }
    }
}

/// How many frames that request nothing a client may still send.
#[derive(Debug)]
pub(in crate::worker) struct ControlFrameBudget {
    left: u32,
    tick: u64,
}

impl ControlFrameBudget {
    pub(in crate::worker) fn new(tick: u64) -> Self {
        Self { left: MAX_BURST, tick }
    }

    /// Takes so many; false when there are not enough.
    pub(in crate::worker) fn consume(&mut self, tick: u64, frames: u32) -> bool {
        let more = tick.saturating_sub(self.tick).saturating_mul(PER_TICK);
        self.tick = tick;
        self.refill(u32::try_from(more).unwrap_or(u32::MAX));
        let enough = frames <= self.left;
        self.left = self.left.saturating_sub(frames);
        enough
    }

    /// So many frames of answers were sent.
    pub(in crate::worker) fn add_answers(&mut self, frames: u32) {
        self.refill(frames.saturating_mul(PER_ANSWER_FRAME));
    }

    fn refill(&mut self, more: u32) {
        self.left = self.left.saturating_add(more).min(MAX_BURST);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn frame(kind: u8, flags: u8, payload: usize) -> Vec<u8> {
        let length = u32::try_from(payload).unwrap().to_be_bytes();
        let mut bytes = vec![length[1], length[2], length[3], kind, flags, 0, 0, 0, 1];
        bytes.resize(HEAD_LEN + payload, 0);
        bytes
    }

    /// A preface, SETTINGS, a PING, HEADERS, two DATA frames with a body of 300 bytes, one without, and an update of a window.
    fn conversation() -> Vec<u8> {
        let frames = [(4, 0, 6), (6, 0, 8), (1, 4, 40), (0, 0, 100), (0, 1, 200), (0, 0, 0), (8, 0, 4)];
        let mut bytes = PREFACE.to_vec();
        frames.iter().for_each(|(kind, flags, payload)| bytes.extend(frame(*kind, *flags, *payload)));
        bytes
    }

    proptest! {
        #[test]
        fn frames_are_counted_however_they_are_cut(cuts in prop::collection::vec(0_usize..500, 0..20)) {
            let bytes = conversation();
            let mut cuts: Vec<_> = cuts.into_iter().filter(|cut| *cut <= bytes.len()).collect();
            cuts.sort_unstable();
            cuts.push(bytes.len());
            let (mut frames, mut all, mut from) = (FrameParser::incoming(), FrameCounts::default(), 0);
            for cut in cuts {
                let counts = frames.scan(&bytes[from..cut]);
                all.control += counts.control;
                all.useful += counts.useful;
                all.data += counts.data;
                from = cut;
            }
            prop_assert_eq!(all, FrameCounts { control: 4, useful: 3, data: 300 });
            prop_assert!(frames.is_http2());
        }

        #[test]
        fn whatever_comes_is_followed(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            FrameParser::incoming().scan(&bytes);
            FrameParser::outgoing().scan(&bytes);
        }
    }

    #[test]
    fn another_protocol_costs_nothing() {
        let mut frames = FrameParser::incoming();
        assert_eq!(frames.scan(b"PRINT / HTTP/1.1\r\n"), FrameCounts::default());
        assert_eq!(frames.scan(&conversation()), FrameCounts::default());
        assert!(!frames.is_http2());
    }

    #[test]
    fn a_flood_is_stopped_soon_and_a_ping_a_second_never_is() {
        let mut flood = ControlFrameBudget::new(0);
        assert!((0..1_000_000).any(|_| !flood.consume(5, 1)));
        let mut pings = ControlFrameBudget::new(0);
        assert!((0..100_000).all(|second| pings.consume(second * 10, 1)));
        let mut download = ControlFrameBudget::new(0);
        assert!((0..100_000).all(|_| {
            download.add_answers(1);
            download.consume(0, 2)
        }));
    }
}
