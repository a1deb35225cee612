//! What a connection does, and until when it may; pure.
//!
//! A state and an event make the next state, in ticks and without a clock. A state that waits for the client has a
//! deadline, and no event that the client causes extends another deadline than that of what it is about: bytes of a header
//! do not make an idle connection less idle, and a ping does not excuse a client that takes nothing.

use std::time::Duration;

use crate::scoreboard::refusal_reason::ConnectionCloseReason;

/// Length of a tick; deadlines are met within one.
pub(in crate::worker) const TICK: Duration = Duration::from_millis(100);

/// A moment or a time in ticks; the first tick is 1.
pub(super) type Tick = u64;

/// Latest tick, and longest time in ticks: two hundred years, so that a tick fits into 36 bits.
pub(super) const TICK_MAX: Tick = (1 << 36) - 1;
/// Most requests that are counted, so that a number fits into 12 bits; HTTP/2 allows 256 at once. More stay this many.
pub(super) const COUNT_MAX: u16 = (1 << 12) - 1;

/// How long a connection may do what it does.
#[derive(Debug, Clone, Copy)]
pub(super) struct ConnectionTimeouts {
    header_ticks: Tick,
    idle_ticks: Tick,
}

impl ConnectionTimeouts {
    /// `header`: from a header's first byte, or the accept, to its end; `idle`: without a request under way.
    pub(super) fn new(header: Duration, idle: Duration) -> Self {
        let ticks = |time: Duration| {
            Tick::try_from(time.as_millis().div_ceil(TICK.as_millis())).unwrap_or(TICK_MAX).min(TICK_MAX / 2)
        };
        Self { header_ticks: ticks(header), idle_ticks: ticks(idle) }
    }

    /// Last tick for the end of a header that begins now.
    pub(super) fn header_deadline(&self, now: Tick) -> Tick {
        now.saturating_add(self.header_ticks)
    }

    /// Last tick in which a connection that falls idle now may still be idle.
    pub(super) fn idle_deadline(&self, now: Tick) -> Tick {
        now.saturating_add(self.idle_ticks)
    }
}

/// Requests of a connection; more than one only in HTTP/2.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct RequestCounts {
    /// Requests being answered.
    pub(super) active: u16,
    /// Requests whose bodies are still to come; one may outlast its answer.
    pub(super) receiving: u16,
}

impl RequestCounts {
    /// Whether there is none.
    pub(super) fn is_none(self) -> bool {
        self == Self::default()
    }
}

/// What a connection does. The deadline of a state is the last tick in which it may still be in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionState {
    /// It waits for a permit, or for its request's turn: the client has done its part, so that there is no deadline.
    AwaitingPermit,
    /// Nothing of its first header has come.
    AwaitingHeader { deadline: Tick },
    /// A part of a header has come.
    ReadingHeader { deadline: Tick },
    /// Requests are under way; the application's timeouts bound them.
    Processing { requests: RequestCounts },
    /// The client reads nothing of what is sent (TCP).
    SendStalled { requests: RequestCounts, deadline: Tick },
    /// The client gives no room for any response under way (HTTP/2).
    FlowBlocked { requests: RequestCounts, deadline: Tick },
    /// Nothing has come since the last request.
    Idle { deadline: Tick },
    /// It speaks another protocol, which bounds its own pauses.
    Upgraded { requests: RequestCounts },
    /// It speaks another protocol, and the client reads nothing of what is sent.
    UpgradedStalled { requests: RequestCounts, deadline: Tick },
    /// This side has ended; the timer of [`super::linger`] bounds how long the client's end is waited for.
    Lingering { requests: RequestCounts },
}

/// What happens to a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ConnectionEvent {
    /// It has its permit: its first header is waited for.
    PermitAcquired,
    /// A request that has come waits unread for its turn.
    QueueEntered,
    /// That request's turn has come, or it does not wait any more; `first`: the connection has had no request yet.
    QueueLeft { first: bool },
    /// Bytes came that belong to no request under way.
    HeaderBytesRead,
    /// A request's header is complete.
    RequestStarted,
    /// A response has been taken over for sending, or given up.
    ResponseTaken,
    /// A request's body is to come.
    BodyStarted,
    /// A request's body has come, or nothing of it is read any more.
    BodyFinished,
    /// The client does not read; it may go on so until `deadline`.
    SendStalled { deadline: Tick },
    /// The client has read what was stalled.
    SendResumed,
    /// Every response is held up by the client; it may go on so until `deadline`.
    BodiesBlocked { deadline: Tick },
    /// At least one response is not.
    BodiesUnblocked,
    /// Bytes of a body went to a client of HTTP/2, which moves the deadline by which it has to take more.
    BodySent { deadline: Tick },
    /// It leaves HTTP.
    Upgraded,
    /// This side has ended.
    LingerStarted,
}

fn increment(count: u16) -> u16 {
    (count + 1).min(COUNT_MAX)
}

/// How many there were beyond [`COUNT_MAX`] is not known: counted down from there, the number would be 0 while requests
/// are under way, and the connection would be closed as idle. It ends with its client instead.
fn decrement(count: u16) -> u16 {
    if count == COUNT_MAX { COUNT_MAX } else { count.saturating_sub(1) }
}

impl ConnectionState {
    /// The state after an event at tick `now`.
    pub(super) fn on(self, event: ConnectionEvent, now: Tick, timeouts: &ConnectionTimeouts) -> Self {
        use ConnectionEvent as Event;
        let header_deadline = timeouts.header_deadline(now);
        let idle_deadline = timeouts.idle_deadline(now);
        match event {
            Event::RequestStarted | Event::ResponseTaken | Event::BodyStarted | Event::BodyFinished => {
                self.count(event, idle_deadline)
            }
            Event::PermitAcquired if self.waits_for_request() => {
                Self::AwaitingHeader { deadline: header_deadline }
            }
            Event::QueueEntered if self.waits_for_request() => Self::AwaitingPermit,
            Event::QueueLeft { first } if self == Self::AwaitingPermit => match first {
                true => Self::AwaitingHeader { deadline: header_deadline },
                false => Self::Idle { deadline: idle_deadline },
            },
            Event::HeaderBytesRead => match self {
                // The time for a connection's first header runs from its permit.
                Self::AwaitingHeader { deadline } | Self::ReadingHeader { deadline } => {
                    Self::ReadingHeader { deadline }
                }
                _ if self.waits_for_request() => Self::ReadingHeader { deadline: header_deadline },
                _ => self,
            },
            Event::SendStalled { deadline } => self.stalled(deadline),
            Event::SendResumed => match self {
                Self::SendStalled { requests, .. } if requests.is_none() => {
                    Self::Idle { deadline: idle_deadline }
                }
                Self::SendStalled { requests, .. } => Self::Processing { requests },
                Self::UpgradedStalled { requests, .. } => Self::Upgraded { requests },
                _ => self,
            },
            Event::BodiesBlocked { deadline } => match self {
                Self::Processing { requests } | Self::FlowBlocked { requests, .. } if requests.active > 0 => {
                    Self::FlowBlocked { requests, deadline }
                }
                _ => self,
            },
            Event::BodiesUnblocked => match self {
                Self::FlowBlocked { requests, .. } => Self::Processing { requests },
                _ => self,
            },
            Event::BodySent { deadline } => match self {
                Self::FlowBlocked { requests, .. } => Self::FlowBlocked { requests, deadline },
                Self::Idle { .. } => Self::Idle { deadline },
                _ => self,
            },
            Event::Upgraded => match self {
                Self::SendStalled { requests, deadline } => Self::UpgradedStalled { requests, deadline },
                Self::UpgradedStalled { .. } | Self::Lingering { .. } => self,
                _ => Self::Upgraded { requests: self.requests() },
            },
            Event::LingerStarted => Self::Lingering { requests: self.requests() },
            Event::PermitAcquired | Event::QueueEntered | Event::QueueLeft { .. } => self,
        }
    }

    /// A request, or its body, has begun or ended.
    fn count(self, event: ConnectionEvent, idle_deadline: Tick) -> Self {
        use ConnectionEvent as Event;
        let mut requests = self.requests();
        match event {
            Event::RequestStarted => requests.active = increment(requests.active),
            Event::ResponseTaken => requests.active = decrement(requests.active),
            Event::BodyStarted => requests.receiving = increment(requests.receiving),
            _ => requests.receiving = decrement(requests.receiving),
        }
        match self {
            Self::SendStalled { deadline, .. } => Self::SendStalled { requests, deadline },
            Self::UpgradedStalled { deadline, .. } => Self::UpgradedStalled { requests, deadline },
            Self::Upgraded { .. } => Self::Upgraded { requests },
            Self::Lingering { .. } => Self::Lingering { requests },
            Self::FlowBlocked { deadline, .. }
                if matches!(event, Event::BodyStarted | Event::BodyFinished) =>
            {
                Self::FlowBlocked { requests, deadline }
            }
            Self::Processing { .. } | Self::FlowBlocked { .. } if requests.is_none() => {
                Self::Idle { deadline: idle_deadline }
            }
            _ if requests.is_none() => self,
            _ => Self::Processing { requests },
        }
    }

    /// The client does not read. Where a header is waited for, its deadline is the nearer one, and stays.
    fn stalled(self, deadline: Tick) -> Self {
        match self {
            Self::Processing { requests }
            | Self::FlowBlocked { requests, .. }
            | Self::SendStalled { requests, .. } => Self::SendStalled { requests, deadline },
            Self::Idle { .. } => Self::SendStalled { requests: RequestCounts::default(), deadline },
            Self::Upgraded { requests } | Self::UpgradedStalled { requests, .. } => {
                Self::UpgradedStalled { requests, deadline }
            }
            Self::AwaitingPermit
            | Self::AwaitingHeader { .. }
            | Self::ReadingHeader { .. }
            | Self::Lingering { .. } => self,
        }
    }

    /// Requests under way.
    pub(super) fn requests(self) -> RequestCounts {
        match self {
            Self::Processing { requests }
            | Self::SendStalled { requests, .. }
            | Self::FlowBlocked { requests, .. }
            | Self::Upgraded { requests }
            | Self::UpgradedStalled { requests, .. }
            | Self::Lingering { requests } => requests,
            Self::AwaitingPermit
            | Self::AwaitingHeader { .. }
            | Self::ReadingHeader { .. }
            | Self::Idle { .. } => RequestCounts::default(),
        }
    }

    /// Last tick in which it may still do this; none: nothing that the client owes is waited for.
    pub(super) fn deadline(self) -> Option<Tick> {
        match self {
            Self::AwaitingHeader { deadline }
            | Self::ReadingHeader { deadline }
            | Self::SendStalled { deadline, .. }
            | Self::FlowBlocked { deadline, .. }
            | Self::Idle { deadline }
            | Self::UpgradedStalled { deadline, .. } => Some(deadline),
            Self::AwaitingPermit
            | Self::Processing { .. }
            | Self::Upgraded { .. }
            | Self::Lingering { .. } => None,
        }
    }

    /// Why a connection whose deadline has passed is closed.
    pub(super) fn expiry_reason(self, now: Tick) -> Option<ConnectionCloseReason> {
        let reason = match self {
            Self::AwaitingHeader { .. } | Self::ReadingHeader { .. } => ConnectionCloseReason::SlowHeader,
            Self::Idle { .. } => ConnectionCloseReason::Idle,
            _ => ConnectionCloseReason::SlowReader,
        };
        self.deadline().filter(|deadline| now > *deadline).map(|_| reason)
    }

    /// Whether the next bytes may be those of a request that begins.
    pub(super) fn waits_for_request(self) -> bool {
        match self {
            Self::AwaitingPermit
            | Self::AwaitingHeader { .. }
            | Self::ReadingHeader { .. }
            | Self::Idle { .. } => true,
            Self::SendStalled { requests, .. } => requests.is_none(),
            _ => false,
        }
    }

    /// Since when it has been idle; one that has sent nothing yet counts as idle after `silent_ticks`.
    pub(super) fn idle_since(
        self,
        now: Tick,
        silent_ticks: Tick,
        timeouts: &ConnectionTimeouts,
    ) -> Option<Tick> {
        match self {
            Self::Idle { deadline } => Some(deadline.saturating_sub(timeouts.idle_ticks)),
            Self::AwaitingHeader { deadline } => Some(deadline.saturating_sub(timeouts.header_ticks))
                .filter(|since| now.saturating_sub(*since) >= silent_ticks),
            _ => None,
        }
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::{ConnectionEvent, ConnectionState, RequestCounts, Tick};

    /// Every state, with these numbers in it.
    pub(in crate::worker::connection) fn states(
        requests: RequestCounts,
        deadline: Tick,
    ) -> Vec<ConnectionState> {
        use ConnectionState as State;
        vec![
            State::AwaitingPermit,
            State::AwaitingHeader { deadline },
            State::ReadingHeader { deadline },
            State::Processing { requests },
            State::SendStalled { requests, deadline },
            State::FlowBlocked { requests, deadline },
            State::Idle { deadline },
            State::Upgraded { requests },
            State::UpgradedStalled { requests, deadline },
            State::Lingering { requests },
        ]
    }

    /// Every event, with this deadline in it.
    pub(in crate::worker::connection) fn events(deadline: Tick) -> Vec<ConnectionEvent> {
        use ConnectionEvent as Event;
        vec![
            Event::PermitAcquired,
            Event::QueueEntered,
            Event::QueueLeft { first: true },
            Event::QueueLeft { first: false },
            Event::HeaderBytesRead,
            Event::RequestStarted,
            Event::ResponseTaken,
            Event::BodyStarted,
            Event::BodyFinished,
            Event::SendStalled { deadline },
            Event::SendResumed,
            Event::BodiesBlocked { deadline },
            Event::BodiesUnblocked,
            Event::BodySent { deadline },
            Event::Upgraded,
            Event::LingerStarted,
        ]
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::testing::{events, states};
    use super::*;
    use crate::worker::connection::packed_state::PackedState;

    const HEADER: Tick = 30;
    const IDLE: Tick = 750;

    fn timeouts() -> ConnectionTimeouts {
        ConnectionTimeouts::new(TICK * 30, TICK * 750)
    }

    fn pair() -> impl Strategy<Value = (ConnectionState, ConnectionEvent, Tick)> {
        let counts =
            (1_u16..300, 0_u16..300).prop_map(|(active, receiving)| RequestCounts { active, receiving });
        (counts, 1..TICK_MAX / 4, 1..TICK_MAX / 4).prop_flat_map(|(requests, now, deadline)| {
            (
                prop::sample::select(states(requests, deadline)),
                prop::sample::select(events(deadline)),
                Just(now),
            )
        })
    }

    /// What a state must be whatever led to it.
    fn check(state: ConnectionState) {
        use ConnectionState as State;
        assert_eq!(PackedState::pack(state).unpack(), state);
        let bounded_elsewhere = matches!(
            state,
            State::AwaitingPermit
                | State::Processing { .. }
                | State::Upgraded { .. }
                | State::Lingering { .. }
        );
        assert_eq!(state.deadline().is_none(), bounded_elsewhere, "{state:?}");
        if let State::FlowBlocked { requests, .. } = state {
            assert!(requests.active > 0, "{state:?} blocks nothing");
        }
        if let State::Processing { requests } = state {
            assert!(!requests.is_none(), "{state:?} would have no deadline and no request");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn every_event_in_every_state_keeps_the_requests_and_has_a_deadline((before, event, now) in pair()) {
            use ConnectionEvent as Event;
            let after = before.on(event, now, &timeouts());
            check(after);
            let (mut expected, counts) = (before.requests(), after.requests());
            match event {
                Event::RequestStarted => expected.active += 1,
                Event::ResponseTaken => expected.active = expected.active.saturating_sub(1),
                Event::BodyStarted => expected.receiving += 1,
                Event::BodyFinished => expected.receiving = expected.receiving.saturating_sub(1),
                _ => {}
            }
            prop_assert_eq!(counts, expected, "{:?} {:?}", before, event);
            let upgraded = |state| PackedState::pack(state).is_upgraded();
            prop_assert!(!upgraded(before) || upgraded(after) || event == Event::LingerStarted);
            if let Some(deadline) = after.deadline().filter(|deadline| Some(*deadline) != before.deadline()) {
                let given = matches!(
                    event,
                    Event::SendStalled { .. } | Event::BodiesBlocked { .. } | Event::BodySent { .. }
                );
                prop_assert!(given || deadline == now + HEADER || deadline == now + IDLE, "{:?} {:?}", before, event);
            }
        }

        #[test]
        fn whatever_happens_the_state_stays_whole(events in prop::collection::vec(prop::sample::select(events(500)), 0..60)) {
            let mut state = ConnectionState::AwaitingPermit;
            for (now, event) in (1..).zip(events) {
                state = state.on(event, now, &timeouts());
                check(state);
            }
        }
    }

    #[test]
    fn no_bytes_extend_the_deadline_of_a_header() {
        let mut state = ConnectionState::AwaitingPermit.on(ConnectionEvent::PermitAcquired, 5, &timeouts());
        for (now, event) in (6..30).zip(
            [ConnectionEvent::HeaderBytesRead, ConnectionEvent::SendStalled { deadline: 9999 }]
                .iter()
                .cycle(),
        ) {
            state = state.on(*event, now, &timeouts());
        }
        assert_eq!(state, ConnectionState::ReadingHeader { deadline: 5 + HEADER });
        assert_eq!(state.expiry_reason(5 + HEADER), None);
        assert_eq!(state.expiry_reason(6 + HEADER), Some(ConnectionCloseReason::SlowHeader));
    }

    #[test]
    fn a_connection_with_more_requests_than_are_counted_is_never_idle() {
        use ConnectionEvent as Event;
        for (begin, end) in
            [(Event::RequestStarted, Event::ResponseTaken), (Event::BodyStarted, Event::BodyFinished)]
        {
            let counted = |times: u16| {
                let state = ConnectionState::Idle { deadline: 1 };
                let full = (0..times).fold(state, |state, _| state.on(begin, 1, &timeouts()));
                assert_eq!(PackedState::pack(full).unpack(), full);
                (0..times).fold(full, |state, _| state.on(end, 2, &timeouts()))
            };
            let below = counted(COUNT_MAX - 1);
            assert_eq!(below, ConnectionState::Idle { deadline: 2 + IDLE });
            for times in [COUNT_MAX, COUNT_MAX + 1, COUNT_MAX + 100] {
                let state = counted(times);
                assert!(!state.requests().is_none() && state.deadline().is_none(), "{times}: {state:?}");
            }
        }
    }

    #[test]
    fn a_timeout_without_end_is_later_than_every_tick() {
        let timeouts = ConnectionTimeouts::new(Duration::MAX, Duration::MAX);
        let state = ConnectionState::AwaitingPermit.on(ConnectionEvent::PermitAcquired, 1, &timeouts);
        assert_eq!(PackedState::pack(state).unpack(), state);
        assert_eq!(state.expiry_reason(TICK_MAX / 2), None);
        assert_eq!(state.idle_since(20, 10, &timeouts), Some(1));
    }

    #[test]
    fn requests_and_answers_come_back_to_idle() {
        use ConnectionEvent as Event;
        let run = |events: &[Event]| {
            (10..).zip(events).fold(ConnectionState::Idle { deadline: 10 }, |state, (now, event)| {
                state.on(*event, now, &timeouts())
            })
        };
        let idle = |since| ConnectionState::Idle { deadline: since + IDLE };
        assert_eq!(run(&[Event::HeaderBytesRead, Event::RequestStarted, Event::ResponseTaken]), idle(12));
        let early = [Event::RequestStarted, Event::BodyStarted, Event::ResponseTaken];
        assert_eq!(run(&early).deadline(), None, "the rest of a body is to come");
        assert_eq!(run(&[&early[..], &[Event::BodyFinished]].concat()), idle(13));
        let stalled = [Event::RequestStarted, Event::SendStalled { deadline: 99 }, Event::ResponseTaken];
        assert_eq!(run(&stalled).expiry_reason(100), Some(ConnectionCloseReason::SlowReader));
        assert_eq!(run(&[&stalled[..], &[Event::SendResumed]].concat()), idle(13));
        assert_eq!(run(&[Event::QueueEntered]).deadline(), None, "a request that waits is not idle");
    }
}
