//! Copies of the sessions a worker has read lately, for the time in which Redis is away.
//!
//! Guarantees that a copy is as old at most as was asked for by the time Redis was last heard, that no session outlives
//! its own end in it, and that it stays within its bytes. It is told what time it is.

use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;

use crate::redis::begin::Own;
use crate::redis::begin::SessionReply;
use crate::session::Lifetimes;

/// Bytes of all copies.
const BYTES_MAX: usize = 8 * 1024 * 1024;
/// What a copy takes beside its fields, and a field beside its name and value.
const COPY_BYTES: usize = 192;
const FIELD_BYTES: usize = 64;
/// How long copies are shown after Redis was last heard: a session that was ended elsewhere must end here, too.
const AWAY_MAX: Duration = Duration::from_secs(10 * 60);

/// A session as it was.
#[derive(Debug)]
struct Copy {
    reply: SessionReply,
    /// When it was read, since any fixed moment,
    read_at: Duration,
    /// and in ms since 1970: by how much time has passed since then, and not by the clock, which may have stepped.
    read_unix_ms: u64,
    bytes: usize,
}

/// What time it is, in all the ways that matter here.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// Since any fixed moment.
    pub now: Duration,
    /// When Redis was last heard, on the same clock.
    pub heard_at: Duration,
}

/// Copies of sessions, the latest used last to go.
#[derive(Debug)]
pub struct LastKnown {
    /// By hashed id.
    copies: LruCache<Box<str>, Copy>,
    bytes: usize,
    age_max: Duration,
}

impl LastKnown {
    /// No copies. `age_max` is how old a copy may be by the time Redis was last heard; 0: none is kept.
    pub fn new(age_max: Duration) -> Self {
        Self { copies: LruCache::unbounded(), bytes: 0, age_max }
    }

    /// Keeps what was read of a session at `now`, on a clock that never steps, which is `unix_ms` since 1970; one that
    /// does not live any more is forgotten.
    pub fn note(&mut self, digest: &str, reply: &SessionReply, now: Duration, unix_ms: u64) {
        if let (SessionReply::Live { own: None, fields, .. }, Some(copy)) =
            (reply, self.copies.get_mut(digest))
            && fields.is_empty()
            && copy.bytes == COPY_BYTES
        {
            // The session of a visitor who only looks: its copy stays where it is, and nothing is allocated.
            (copy.reply, copy.read_at, copy.read_unix_ms) = (reply.clone(), now, unix_ms);
            return;
        }
        self.forget(digest);
        let SessionReply::Live { created_ms, views, own, fields } = reply else { return };
        if self.age_max.is_zero() {
            return;
        }
        // The values are slices of what was read from the socket, and each would keep all of it.
        let copy = |(name, value): &(String, Bytes)| (name.clone(), Bytes::copy_from_slice(value));
        let fields: Vec<_> = fields.iter().map(copy).collect();
        let size = |(name, value): &(String, Bytes)| FIELD_BYTES + name.len() + value.len();
        let own = own.as_ref().map(|own| {
            let details = own.details.as_deref().map(Bytes::copy_from_slice);
            Box::new(Own { details, ..(**own).clone() })
        });
        let text =
            |own: &Own| own.details.as_ref().map_or(0, Bytes::len) + own.user.as_ref().map_or(0, String::len);
        let bytes = COPY_BYTES
            + fields.iter().map(size).sum::<usize>()
            + own.as_deref().map_or(0, |own| size_of::<Own>() + text(own));
        let reply = SessionReply::Live { created_ms: *created_ms, views: *views, own, fields };
        self.bytes += bytes;
        self.copies.push(digest.into(), Copy { reply, read_at: now, read_unix_ms: unix_ms, bytes });
        while self.bytes > BYTES_MAX
            && let Some((_, oldest)) = self.copies.pop_lru()
        {
            self.bytes -= oldest.bytes;
        }
    }

    /// Drops the copy of a session: it was changed, deleted or replaced, or may have been.
    pub fn forget(&mut self, digest: &str) {
        if let Some(copy) = self.copies.pop(digest) {
            self.bytes -= copy.bytes;
        }
    }

    /// Drops the copies of all of a user's sessions.
    pub fn forget_user(&mut self, tag: &str) {
        let his = |copy: &Copy| copy.reply.user() == Some(tag);
        let digests: Vec<_> =
            self.copies.iter().filter(|(_, copy)| his(copy)).map(|(digest, _)| digest.clone()).collect();
        digests.iter().for_each(|digest| self.forget(digest));
    }

    /// The session as last known, if that is still worth showing.
    pub fn recall(&mut self, digest: &str, lifetimes: &Lifetimes, at: Moment) -> Option<SessionReply> {
        let copy = self.copies.get(digest)?;
        let SessionReply::Live { created_ms, own, .. } = &copy.reply else { return None };
        let idle = own.as_ref().and_then(|own| own.idle_ms).map_or(lifetimes.idle, Duration::from_millis);
        let ends_ms = own.as_ref().and_then(|own| own.end_ms);
        let ends_ms = ends_ms.unwrap_or(created_ms.saturating_add(lifetimes.absolute_ms()));
        let fresh = copy.read_at + self.age_max >= at.heard_at;
        let since_ms = u64::try_from(at.now.saturating_sub(copy.read_at).as_millis()).unwrap_or(u64::MAX);
        let lives = at.now < copy.read_at + idle && copy.read_unix_ms.saturating_add(since_ms) < ends_ms;
        (fresh && lives && at.now <= at.heard_at + AWAY_MAX).then(|| copy.reply.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::begin::Own;

    const MINUTE: Duration = Duration::from_secs(60);
    const LIFETIMES: Lifetimes =
        Lifetimes { idle: Duration::from_secs(1800), absolute: Duration::from_secs(3600) };

    fn live(views: u64, value: &[u8]) -> SessionReply {
        let fields = vec![("cart".to_owned(), Bytes::copy_from_slice(value))];
        SessionReply::Live { created_ms: 0, views, own: None, fields }
    }

    /// On a machine that began in 1970.
    fn note(known: &mut LastKnown, digest: &str, reply: &SessionReply, now: Duration) {
        known.note(digest, reply, now, u64::try_from(now.as_millis()).unwrap());
    }

    fn at(now_s: u64, heard_s: u64) -> Moment {
        let (now, heard_at) = (Duration::from_secs(now_s), Duration::from_secs(heard_s));
        Moment { now, heard_at }
    }

    #[test]
    fn a_copy_without_data_is_brought_up_to_date_in_its_place() {
        let bare = |views| SessionReply::Live { created_ms: 0, views, own: None, fields: Vec::new() };
        let mut known = LastKnown::new(MINUTE);
        note(&mut known, "1", &bare(1), Duration::from_secs(1));
        note(&mut known, "1", &bare(2), Duration::from_secs(200));
        assert_eq!((known.bytes, known.copies.len()), (COPY_BYTES, 1));
        assert_eq!(known.recall("1", &LIFETIMES, at(300, 260)), Some(bare(2)), "as old as its last reading");
        note(&mut known, "1", &live(3, b"[1]"), Duration::from_secs(201));
        assert!(
            known.bytes > COPY_BYTES && known.recall("1", &LIFETIMES, at(300, 260)) == Some(live(3, b"[1]"))
        );
        note(&mut known, "1", &bare(4), Duration::from_secs(202));
        assert_eq!((known.bytes, known.recall("1", &LIFETIMES, at(300, 260))), (COPY_BYTES, Some(bare(4))));
        note(&mut known, "1", &SessionReply::Gone, Duration::from_secs(203));
        assert_eq!((known.bytes, known.copies.len()), (0, 0));
    }

    #[test]
    fn a_copy_is_shown_if_it_was_young_when_redis_was_last_heard() {
        let mut known = LastKnown::new(MINUTE);
        note(&mut known, "1", &live(3, b"[1]"), Duration::from_secs(100));
        assert_eq!(known.recall("1", &LIFETIMES, at(400, 160)), Some(live(3, b"[1]")));
        assert_eq!(known.recall("1", &LIFETIMES, at(400, 161)), None, "too old by then");
        assert_eq!(known.recall("1", &LIFETIMES, at(761, 160)), None, "Redis is away for too long");
        assert_eq!(known.recall("2", &LIFETIMES, at(400, 160)), None);
    }

    #[test]
    fn no_session_outlives_its_end_in_a_copy() {
        let mut known = LastKnown::new(MINUTE);
        let own = |idle_ms, end_ms| {
            let own = Some(Box::new(Own { idle_ms, end_ms, ..Own::default() }));
            SessionReply::Live { created_ms: 0, views: 1, own, fields: Vec::new() }
        };
        let read_at = Duration::from_secs(3500);
        note(&mut known, "1", &live(1, b""), read_at);
        note(&mut known, "2", &own(Some(50_000), Some(9_000_000)), read_at);
        note(&mut known, "3", &own(None, Some(9_000_000)), read_at);
        assert!(known.recall("1", &LIFETIMES, at(3599, 3500)).is_some());
        assert!(known.recall("1", &LIFETIMES, at(3600, 3500)).is_none());
        assert!(known.recall("2", &LIFETIMES, at(3549, 3500)).is_some());
        assert!(known.recall("2", &LIFETIMES, at(3550, 3500)).is_none());
        assert!(known.recall("3", &LIFETIMES, at(3900, 3500)).is_some());
    }

    #[test]
    fn what_ended_or_changed_is_forgotten_at_once() {
        let mut known = LastKnown::new(MINUTE);
        for gone in [SessionReply::Gone, SessionReply::Revoked, SessionReply::Rotated, SessionReply::Damaged]
        {
            note(&mut known, "1", &live(1, b""), MINUTE);
            note(&mut known, "1", &gone, MINUTE);
            assert_eq!(known.recall("1", &LIFETIMES, at(60, 60)), None, "{gone:?}");
        }
        note(&mut known, "1", &live(1, b""), MINUTE);
        known.forget("1");
        assert_eq!((known.recall("1", &LIFETIMES, at(60, 60)), known.bytes), (None, 0));
        let mut none = LastKnown::new(Duration::ZERO);
        note(&mut none, "1", &live(1, b""), MINUTE);
        assert_eq!((none.copies.len(), none.bytes), (0, 0));
    }

    #[test]
    fn whoever_logs_out_everywhere_is_forgotten_everywhere() {
        let mut known = LastKnown::new(MINUTE);
        for (digest, user) in [("1", Some("ann")), ("2", Some("eve")), ("3", Some("ann")), ("4", None)] {
            let own = user.map(|user| Box::new(Own { user: Some(user.to_owned()), ..Own::default() }));
            let reply = SessionReply::Live { created_ms: 0, views: 1, own, fields: Vec::new() };
            note(&mut known, digest, &reply, MINUTE);
        }
        known.forget_user("ann");
        let left = ["1", "2", "3", "4"].map(|digest| known.recall(digest, &LIFETIMES, at(60, 60)).is_some());
        assert_eq!(
            (left, known.bytes),
            ([false, true, false, true], 2 * COPY_BYTES + size_of::<Own>() + "eve".len())
        );
    }

    #[test]
    fn copies_stay_within_their_bytes_and_those_not_used_go_first() {
        let mut known = LastKnown::new(MINUTE);
        let large = vec![b'x'; 16 * 1024];
        for id in 0..1000 {
            note(&mut known, &id.to_string(), &live(1, &large), MINUTE);
            let _ = known.recall("0", &LIFETIMES, at(60, 60));
            assert!(known.bytes <= BYTES_MAX);
        }
        assert!(known.recall("0", &LIFETIMES, at(60, 60)).is_some());
        assert!(known.recall("1", &LIFETIMES, at(60, 60)).is_none());
        assert!(known.recall("999", &LIFETIMES, at(60, 60)).is_some());
        let counted: usize = known.copies.iter().map(|(_, copy)| copy.bytes).sum();
        assert_eq!(known.bytes, counted);
    }
}
