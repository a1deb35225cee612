//! A connection's state as one word, which two threads may change without a lock.
//!
//! Every request asks the state several times and changes it three times. These questions and events are answered from
//! the word, without decoding it; that they agree with [`ConnectionState`] is tested over all states and events.

use crate::worker::connection::state::{
    COUNT_MAX, ConnectionEvent, ConnectionState, ConnectionTimeouts, RequestCounts, TICK_MAX, Tick,
};

const TAG_BITS: u32 = 4;
/// Bits of a number of requests; HTTP/2 allows 256 at once.
const COUNT_BITS: u32 = COUNT_MAX.trailing_ones();
const COUNTS_SHIFT: u32 = TAG_BITS;
const DEADLINE_SHIFT: u32 = COUNTS_SHIFT + 2 * COUNT_BITS;
const COUNTS: u64 = (1 << DEADLINE_SHIFT) - (1 << COUNTS_SHIFT);

const AWAITING_PERMIT: u64 = 0;
const AWAITING_HEADER: u64 = 1;
const READING_HEADER: u64 = 2;
const PROCESSING: u64 = 3;
const SEND_STALLED: u64 = 4;
const FLOW_BLOCKED: u64 = 5;
const IDLE: u64 = 6;
const UPGRADED: u64 = 7;
const UPGRADED_STALLED: u64 = 8;
const LINGERING: u64 = 9;

/// Tags of states in which no request is under way and the next bytes are those of one.
const WAITS_FOR_REQUEST: u64 = 1 << AWAITING_PERMIT | 1 << AWAITING_HEADER | 1 << READING_HEADER | 1 << IDLE;
/// Tags of states that have left HTTP.
const LEFT_HTTP: u64 = 1 << UPGRADED | 1 << UPGRADED_STALLED;

/// One request is under way, and nothing of its body is to come.
const ONE_REQUEST: PackedState = PackedState(PROCESSING | 1 << COUNTS_SHIFT);

/// A [`ConnectionState`] in one word: tag, active, receiving, deadline.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PackedState(u64);

impl PackedState {
    /// The state whose word this is.
    pub(super) fn from_word(word: u64) -> Self {
        Self(word)
    }

    /// The word of this state.
    pub(super) fn word(self) -> u64 {
        self.0
    }

    /// The state, packed.
    pub(super) fn pack(state: ConnectionState) -> Self {
        use ConnectionState as State;
        let none = RequestCounts::default();
        let (tag, RequestCounts { active, receiving }, deadline) = match state {
            State::AwaitingPermit => (AWAITING_PERMIT, none, 0),
            State::AwaitingHeader { deadline } => (AWAITING_HEADER, none, deadline),
            State::ReadingHeader { deadline } => (READING_HEADER, none, deadline),
            State::Processing { requests } => (PROCESSING, requests, 0),
            State::SendStalled { requests, deadline } => (SEND_STALLED, requests, deadline),
            State::FlowBlocked { requests, deadline } => (FLOW_BLOCKED, requests, deadline),
            State::Idle { deadline } => (IDLE, none, deadline),
            State::Upgraded { requests } => (UPGRADED, requests, 0),
            State::UpgradedStalled { requests, deadline } => (UPGRADED_STALLED, requests, deadline),
            State::Lingering { requests } => (LINGERING, requests, 0),
        };
        let counts = u64::from(active) | u64::from(receiving) << COUNT_BITS;
        Self::with_deadline(tag | counts << COUNTS_SHIFT, deadline)
    }

    /// The state that was packed.
    pub(super) fn unpack(self) -> ConnectionState {
        use ConnectionState as State;
        let requests = self.requests();
        let deadline = self.0 >> DEADLINE_SHIFT;
        match self.tag() {
            AWAITING_PERMIT => State::AwaitingPermit,
            AWAITING_HEADER => State::AwaitingHeader { deadline },
            READING_HEADER => State::ReadingHeader { deadline },
            PROCESSING => State::Processing { requests },
            SEND_STALLED => State::SendStalled { requests, deadline },
            FLOW_BLOCKED => State::FlowBlocked { requests, deadline },
            IDLE => State::Idle { deadline },
            UPGRADED => State::Upgraded { requests },
            UPGRADED_STALLED => State::UpgradedStalled { requests, deadline },
            _ => State::Lingering { requests },
        }
    }

    /// The state after an event at tick `now`, as [`ConnectionState::on`] says.
    pub(super) fn on(self, event: ConnectionEvent, now: Tick, timeouts: &ConnectionTimeouts) -> Self {
        Self::pack(self.unpack().on(event, now, timeouts))
    }

    /// The same for the three events of a plain request; none: it is another event, or another state.
    #[inline]
    pub(super) fn on_plain_request(
        self,
        event: ConnectionEvent,
        now: Tick,
        timeouts: &ConnectionTimeouts,
    ) -> Option<Self> {
        match event {
            ConnectionEvent::HeaderBytesRead if self.is_idle() => {
                Some(Self::with_deadline(READING_HEADER, timeouts.header_deadline(now)))
            }
            ConnectionEvent::RequestStarted if self.is_one_of(WAITS_FOR_REQUEST) => Some(ONE_REQUEST),
            ConnectionEvent::ResponseTaken if self == ONE_REQUEST => {
                Some(Self::with_deadline(IDLE, timeouts.idle_deadline(now)))
            }
            _ => None,
        }
    }

    /// Requests under way.
    pub(super) fn requests(self) -> RequestCounts {
        let count = |shift: u32| (self.0 >> shift) as u16 & COUNT_MAX;
        RequestCounts { active: count(COUNTS_SHIFT), receiving: count(COUNTS_SHIFT + COUNT_BITS) }
    }

    /// Whether the next bytes may be those of a request that begins.
    pub(super) fn waits_for_request(self) -> bool {
        self.is_one_of(WAITS_FOR_REQUEST) || self.tag() == SEND_STALLED && self.0 & COUNTS == 0
    }

    /// Whether it has left HTTP.
    pub(super) fn is_upgraded(self) -> bool {
        self.is_one_of(LEFT_HTTP)
    }

    /// Whether a part of a header has come.
    pub(super) fn is_reading_header(self) -> bool {
        self.tag() == READING_HEADER
    }

    /// Whether nothing has come since the last request.
    pub(super) fn is_idle(self) -> bool {
        self.tag() == IDLE
    }

    fn tag(self) -> u64 {
        self.0 & ((1 << TAG_BITS) - 1)
    }

    fn is_one_of(self, tags: u64) -> bool {
        tags >> self.tag() & 1 == 1
    }

    /// A later deadline than the latest tick is that one.
    fn with_deadline(tag_and_counts: u64, deadline: Tick) -> Self {
        Self(tag_and_counts | deadline.min(TICK_MAX) << DEADLINE_SHIFT)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::worker::connection::state::testing::{events, states};

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn the_word_answers_as_the_state_does(
            active in 0..=COUNT_MAX,
            receiving in 0..=COUNT_MAX,
            deadline in 0..=TICK_MAX,
            now in 1..=TICK_MAX,
            header in 0_u64..1 << 40,
            idle in 0_u64..1 << 40,
        ) {
            let timeouts = ConnectionTimeouts::new(Duration::from_millis(header), Duration::from_millis(idle));
            for counts in [
                RequestCounts { active, receiving },
                RequestCounts { active: 1, receiving: 0 },
                RequestCounts { active: 0, receiving: 0 },
                RequestCounts { active: 0, receiving: 1 },
            ] {
                for state in states(counts, deadline) {
                    let packed = PackedState::pack(state);
                    prop_assert_eq!(PackedState::from_word(packed.word()).unpack(), state);
                    prop_assert_eq!(packed.requests(), state.requests());
                    prop_assert_eq!(packed.waits_for_request(), state.waits_for_request());
                    prop_assert_eq!(
                        packed.is_upgraded(),
                        matches!(
                            state,
                            ConnectionState::Upgraded { .. } | ConnectionState::UpgradedStalled { .. }
                        )
                    );
                    prop_assert_eq!(
                        packed.is_reading_header(),
                        matches!(state, ConnectionState::ReadingHeader { .. })
                    );
                    prop_assert_eq!(packed.is_idle(), matches!(state, ConnectionState::Idle { .. }));
                    for event in events(deadline) {
                        let expected = PackedState::pack(state.on(event, now, &timeouts));
                        prop_assert_eq!(packed.on(event, now, &timeouts), expected, "{:?} {:?}", state, event);
                        let plain = packed.on_plain_request(event, now, &timeouts);
                        prop_assert_eq!(plain.unwrap_or(expected), expected, "{:?} {:?}", state, event);
                    }
                }
            }
        }
    }
}
