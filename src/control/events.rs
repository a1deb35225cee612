//! What happened in a fleet: the last events, numbered without a gap.

use std::borrow::Cow;
use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::control::event_kind::EventKind;
use crate::status::units;

/// Events that are kept.
pub const EVENTS_CAPACITY: usize = 1024;

/// One thing that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct FleetEvent {
    /// Its number, from 1, given by the log; 0 before.
    pub sequence: u64,
    /// When, Unix time in milliseconds; RFC 3339 in JSON.
    #[serde(rename = "timestamp", with = "units::rfc3339_ms")]
    pub timestamp_ms: u64,
    /// What, for programs: `worker_ready`, `reload_completed` and such.
    pub kind: Cow<'static, str>,
    /// In which slot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub slot: Option<usize>,
    /// To which process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Of which generation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub generation: Option<u64>,
    /// Why, as the scoreboard names reasons.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What, for people.
    pub message: String,
}

impl FleetEvent {
    /// An event of the fleet as a whole, until a slot or process is added.
    pub fn new(kind: impl Into<Cow<'static, str>>, at_ms: u64, text: impl Into<String>) -> Self {
        Self {
            sequence: 0,
            timestamp_ms: at_ms,
            kind: kind.into(),
            slot: None,
            pid: None,
            generation: None,
            reason: None,
            message: text.into(),
        }
    }

    /// In this slot.
    #[must_use]
    pub fn slot(self, slot: usize) -> Self {
        Self { slot: Some(slot), ..self }
    }

    /// To this process.
    #[must_use]
    pub fn pid(self, pid: u32) -> Self {
        Self { pid: Some(pid), ..self }
    }

    /// Of this generation.
    #[must_use]
    pub fn generation(self, generation: u64) -> Self {
        Self { generation: Some(generation), ..self }
    }

    /// For this reason.
    #[must_use]
    pub fn reason(self, reason: impl Into<String>) -> Self {
        Self { reason: Some(reason.into()), ..self }
    }
}

/// The last [`EVENTS_CAPACITY`] events. It can be written down and read again, so that it survives an upgrade.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct EventLog {
    /// Number of the last event ever; 0 when there was none.
    last: u64,
    #[serde(rename = "kept", with = "saved_events")]
    events: VecDeque<FleetEvent>,
}

/// The log in a handoff has the form that the release before reads.
mod saved_events {
    use std::borrow::Cow;
    use std::collections::VecDeque;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::FleetEvent;

    #[derive(Serialize, Deserialize)]
    struct SavedEvent<'a> {
        seq: u64,
        at_ms: u64,
        kind: Cow<'a, str>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        slot: Option<usize>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        generation: Option<u64>,
        #[serde(default, skip_serializing_if = "Option::is_none")]
        reason: Option<Cow<'a, str>>,
        text: Cow<'a, str>,
    }

    pub(super) fn serialize<S: Serializer>(
        events: &VecDeque<FleetEvent>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(events.iter().map(|event| SavedEvent {
            seq: event.sequence,
            at_ms: event.timestamp_ms,
            kind: Cow::Borrowed(event.kind.as_ref()),
            slot: event.slot,
            pid: event.pid,
            generation: event.generation,
            reason: event.reason.as_deref().map(Cow::Borrowed),
            text: Cow::Borrowed(event.message.as_str()),
        }))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<VecDeque<FleetEvent>, D::Error> {
        let saved = VecDeque::<SavedEvent<'static>>::deserialize(deserializer)?;
        let event = |saved: SavedEvent<'static>| FleetEvent {
            sequence: saved.seq,
            timestamp_ms: saved.at_ms,
            kind: saved.kind,
            slot: saved.slot,
            pid: saved.pid,
            generation: saved.generation,
            reason: saved.reason.map(Cow::into_owned),
            message: saved.text.into_owned(),
        };
        Ok(saved.into_iter().map(event).collect())
    }
}

impl EventLog {
    /// Numbers the event and keeps it.
    pub fn push(&mut self, event: FleetEvent) {
        self.last += 1;
        while self.events.len() >= EVENTS_CAPACITY {
            self.events.pop_front();
        }
        self.events.push_back(FleetEvent { sequence: self.last, ..event });
    }

    /// Number of the last event ever; 0 when there was none.
    pub fn last(&self) -> u64 {
        self.last
    }

    /// The first `most` events later than number `seq`, of all that are kept without one.
    ///
    /// Where some are not kept any more, or `seq` is from before the numbers began anew, the first is an event that
    /// says so.
    pub fn read_after(&self, seq: Option<u64>, most: usize) -> Vec<FleetEvent> {
        let known = seq.unwrap_or_default();
        // The common case.
        if known == self.last {
            return Vec::new();
        }
        let now_ms = self.events.back().map_or(0, |event| event.timestamp_ms);
        let first = self.events.front().map_or(self.last + 1, |event| event.sequence);
        let mut events = Vec::new();
        if known > self.last {
            let text = format!("event {known} was another fleet's: this one's last is {}", self.last);
            events.push(FleetEvent {
                sequence: first.saturating_sub(1),
                ..FleetEvent::new(EventKind::EventsReset, now_ms, text)
            });
        }
        let known = if known > self.last { 0 } else { known };
        if seq.is_some() && known + 1 < first {
            let text = format!("{} events before {first} are not kept any more", first - known - 1);
            events.push(FleetEvent {
                sequence: first - 1,
                ..FleetEvent::new(EventKind::EventsMissed, now_ms, text)
            });
        }
        let already_read = usize::try_from(known.saturating_sub(first - 1)).unwrap_or(usize::MAX);
        events.extend(self.events.iter().skip(already_read).take(most).cloned());
        events
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(count: u64) -> EventLog {
        let mut log = EventLog::default();
        for at_ms in 1..=count {
            log.push(FleetEvent::new("tick", at_ms, "it ticked"));
            assert_eq!(log.last(), at_ms);
        }
        log
    }

    fn seqs(events: &[FleetEvent]) -> Vec<u64> {
        events.iter().map(|event| event.sequence).collect()
    }

    #[test]
    fn numbers_go_on_and_only_the_last_are_kept() {
        let log = filled(EVENTS_CAPACITY as u64 + 10);
        assert_eq!(log.last(), 1034);
        let all = log.read_after(None, usize::MAX);
        assert_eq!(
            (all.len(), all[0].sequence, all[EVENTS_CAPACITY - 1].sequence),
            (EVENTS_CAPACITY, 11, 1034)
        );
        assert_eq!(seqs(&log.read_after(Some(1032), usize::MAX)), [1033, 1034]);
        assert_eq!(seqs(&log.read_after(Some(900), 3)), [901, 902, 903]);
        assert!(log.read_after(Some(1034), usize::MAX).is_empty());
    }

    #[test]
    fn a_reader_learns_what_it_missed() {
        let log = filled(EVENTS_CAPACITY as u64 + 10);
        assert!(
            log.read_after(Some(10), usize::MAX).iter().all(|event| event.kind == "tick"),
            "nothing was missed"
        );
        let events = log.read_after(Some(4), usize::MAX);
        assert_eq!(
            (events.len(), events[0].sequence, events[0].timestamp_ms),
            (EVENTS_CAPACITY + 1, 10, 1034)
        );
        assert_eq!(events[0].kind, EventKind::EventsMissed.name());
        assert_eq!(events[0].message, "6 events before 11 are not kept any more");
    }

    #[test]
    fn a_number_of_another_fleet_is_noticed() {
        let events = filled(3).read_after(Some(500), usize::MAX);
        assert_eq!((events[0].kind.as_ref(), events.len()), (EventKind::EventsReset.name(), 4));
        assert_eq!(seqs(&events), [0, 1, 2, 3]);
        assert_eq!(EventLog::default().read_after(Some(1), usize::MAX).len(), 1);
        assert!(EventLog::default().read_after(None, usize::MAX).is_empty());
    }

    #[test]
    fn it_survives_being_written_down() {
        let log = filled(EVENTS_CAPACITY as u64 + 1);
        let text = serde_json::to_string(&log).unwrap();
        let mut read: EventLog = serde_json::from_str(&text).unwrap();
        assert_eq!(read, log);
        assert!(
            text.contains(r#"{"seq":2,"at_ms":2,"kind":"tick","text":"it ticked"}"#),
            "as other releases read it"
        );
        read.push(FleetEvent::new("next", 0, ""));
        assert_eq!(read.last(), log.last() + 1);
    }
}
