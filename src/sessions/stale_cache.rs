//! Copies of the sessions a worker has read lately, for the time in which Redis is away.
//!
//! Guarantees that a copy is at most as old as configured at the moment Redis last replied, that no session outlives
//! its own end in it, and that it stays within its bytes. The caller passes the time in.

use std::time::Duration;

use bytes::Bytes;
use lru::LruCache;

use crate::sessions::SessionLifetimes;
use crate::sessions::query::{SessionAttributes, SessionLookup};

/// Bytes of all copies.
const BYTES_MAX: usize = 8 * 1024 * 1024;
/// What a copy takes beside its fields, and a field beside its name and value.
const COPY_BYTES: usize = 192;
const FIELD_BYTES: usize = 64;
/// How long copies are shown after the last reply of Redis: a session that was ended elsewhere must end here, too.
const OUTAGE_MAX: Duration = Duration::from_secs(10 * 60);

/// A session as it was.
#[derive(Debug)]
struct CachedSession {
    reply: SessionLookup,
    /// When it was read, since any fixed moment,
    read_at: Duration,
    /// and in ms since 1970: by how much time has passed since then, and not by the clock, which may have stepped.
    read_unix_ms: u64,
    bytes: usize,
}

/// What time it is, in all the ways that matter here.
#[derive(Debug, Clone, Copy)]
pub struct CacheClock {
    /// Since any fixed moment.
    pub now: Duration,
    /// Time of Redis's last reply, on the same clock.
    pub last_contact: Duration,
}

/// Copies of sessions, the latest used last to go.
#[derive(Debug)]
pub struct StaleSessionCache {
    /// By hashed id.
    copies: LruCache<Box<str>, CachedSession>,
    bytes: usize,
    age_max: Duration,
}

impl StaleSessionCache {
    /// No copies. `age_max` is how old a copy may be at the moment of Redis's last reply; 0: none is stored.
    pub fn new(age_max: Duration) -> Self {
        Self { copies: LruCache::unbounded(), bytes: 0, age_max }
    }

    /// Keeps what was read of a session at `now`, on a clock that never steps, which is `unix_ms` since 1970; one that
    /// does not live any more is forgotten.
    pub fn insert(&mut self, digest: &str, reply: &SessionLookup, now: Duration, unix_ms: u64) {
        if let (SessionLookup::Found { attributes: None, fields, .. }, Some(copy)) =
            (reply, self.copies.get_mut(digest))
            && fields.is_empty()
            && copy.bytes == COPY_BYTES
        {
            // The session of a visitor who only looks: its copy stays where it is, and nothing is allocated.
            (copy.reply, copy.read_at, copy.read_unix_ms) = (reply.clone(), now, unix_ms);
            return;
        }
        self.remove(digest);
        let SessionLookup::Found { created_ms, views, attributes: own, fields } = reply else { return };
        if self.age_max.is_zero() {
            return;
        }
        // The values are slices of what was read from the socket, and each would keep all of it.
        let copy = |(name, value): &(String, Bytes)| (name.clone(), Bytes::copy_from_slice(value));
        let fields: Vec<_> = fields.iter().map(copy).collect();
        let size = |(name, value): &(String, Bytes)| FIELD_BYTES + name.len() + value.len();
        let own = own.as_ref().map(|own| {
            let details = own.details.as_deref().map(Bytes::copy_from_slice);
            Box::new(SessionAttributes { details, ..(**own).clone() })
        });
        let text = |own: &SessionAttributes| {
            own.details.as_ref().map_or(0, Bytes::len) + own.user.as_ref().map_or(0, String::len)
        };
        let bytes = COPY_BYTES
            + fields.iter().map(size).sum::<usize>()
            + own.as_deref().map_or(0, |own| size_of::<SessionAttributes>() + text(own));
        let reply = SessionLookup::Found { created_ms: *created_ms, views: *views, attributes: own, fields };
        self.bytes += bytes;
        self.copies.push(digest.into(), CachedSession { reply, read_at: now, read_unix_ms: unix_ms, bytes });
        while self.bytes > BYTES_MAX
            && let Some((_, oldest)) = self.copies.pop_lru()
        {
            self.bytes -= oldest.bytes;
        }
    }

    /// Drops the copy of a session: it was changed, deleted or replaced, or may have been.
    pub fn remove(&mut self, digest: &str) {
        if let Some(copy) = self.copies.pop(digest) {
            self.bytes -= copy.bytes;
        }
    }

    /// Drops the copies of all of a user's sessions.
    pub fn remove_user(&mut self, tag: &str) {
        let is_theirs = |copy: &CachedSession| copy.reply.user() == Some(tag);
        let digests: Vec<_> = self
            .copies
            .iter()
            .filter(|(_, copy)| is_theirs(copy))
            .map(|(digest, _)| digest.clone())
            .collect();
        digests.iter().for_each(|digest| self.remove(digest));
    }

    /// The session as last known, if that is still worth showing.
    pub fn get(
        &mut self,
        digest: &str,
        lifetimes: &SessionLifetimes,
        at: CacheClock,
    ) -> Option<SessionLookup> {
        let copy = self.copies.get(digest)?;
        let SessionLookup::Found { created_ms, attributes: own, .. } = &copy.reply else { return None };
        let idle = own.as_ref().and_then(|own| own.idle_ms).map_or(lifetimes.idle, Duration::from_millis);
        let ends_ms = own.as_ref().and_then(|own| own.end_ms);
        let ends_ms = ends_ms.unwrap_or(created_ms.saturating_add(lifetimes.absolute_ms()));
        let fresh = copy.read_at + self.age_max >= at.last_contact;
        let since_ms = u64::try_from(at.now.saturating_sub(copy.read_at).as_millis()).unwrap_or(u64::MAX);
        let lives = at.now < copy.read_at + idle && copy.read_unix_ms.saturating_add(since_ms) < ends_ms;
        (fresh && lives && at.now <= at.last_contact + OUTAGE_MAX).then(|| copy.reply.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::query::SessionAttributes;

    const MINUTE: Duration = Duration::from_secs(60);
    const LIFETIMES: SessionLifetimes =
        SessionLifetimes { idle: Duration::from_secs(1800), absolute: Duration::from_secs(3600) };

    fn live(views: u64, value: &[u8]) -> SessionLookup {
        let fields = vec![("cart".to_owned(), Bytes::copy_from_slice(value))];
        SessionLookup::Found { created_ms: 0, views, attributes: None, fields }
    }

    /// With a clock that began in 1970.
    fn insert(known: &mut StaleSessionCache, digest: &str, reply: &SessionLookup, now: Duration) {
        known.insert(digest, reply, now, u64::try_from(now.as_millis()).unwrap());
    }

    fn at(now_s: u64, contact_s: u64) -> CacheClock {
        let (now, last_contact) = (Duration::from_secs(now_s), Duration::from_secs(contact_s));
        CacheClock { now, last_contact }
    }

    #[test]
    fn a_copy_without_data_is_brought_up_to_date_in_its_place() {
        let bare =
            |views| SessionLookup::Found { created_ms: 0, views, attributes: None, fields: Vec::new() };
        let mut known = StaleSessionCache::new(MINUTE);
        insert(&mut known, "1", &bare(1), Duration::from_secs(1));
        insert(&mut known, "1", &bare(2), Duration::from_secs(200));
        assert_eq!((known.bytes, known.copies.len()), (COPY_BYTES, 1));
        assert_eq!(known.get("1", &LIFETIMES, at(300, 260)), Some(bare(2)), "as old as its last reading");
        insert(&mut known, "1", &live(3, b"[1]"), Duration::from_secs(201));
        assert!(
            known.bytes > COPY_BYTES && known.get("1", &LIFETIMES, at(300, 260)) == Some(live(3, b"[1]"))
        );
        insert(&mut known, "1", &bare(4), Duration::from_secs(202));
        assert_eq!((known.bytes, known.get("1", &LIFETIMES, at(300, 260))), (COPY_BYTES, Some(bare(4))));
        insert(&mut known, "1", &SessionLookup::Gone, Duration::from_secs(203));
        assert_eq!((known.bytes, known.copies.len()), (0, 0));
    }

    #[test]
    fn a_copy_is_shown_if_it_was_young_at_the_last_contact_with_redis() {
        let mut known = StaleSessionCache::new(MINUTE);
        insert(&mut known, "1", &live(3, b"[1]"), Duration::from_secs(100));
        assert_eq!(known.get("1", &LIFETIMES, at(400, 160)), Some(live(3, b"[1]")));
        assert_eq!(known.get("1", &LIFETIMES, at(400, 161)), None, "too old by then");
        assert_eq!(known.get("1", &LIFETIMES, at(761, 160)), None, "Redis is away for too long");
        assert_eq!(known.get("2", &LIFETIMES, at(400, 160)), None);
    }

    #[test]
    fn no_session_outlives_its_end_in_a_copy() {
        let mut known = StaleSessionCache::new(MINUTE);
        let own = |idle_ms, end_ms| {
            let own = Some(Box::new(SessionAttributes { idle_ms, end_ms, ..SessionAttributes::default() }));
            SessionLookup::Found { created_ms: 0, views: 1, attributes: own, fields: Vec::new() }
        };
        let read_at = Duration::from_secs(3500);
        insert(&mut known, "1", &live(1, b""), read_at);
        insert(&mut known, "2", &own(Some(50_000), Some(9_000_000)), read_at);
        insert(&mut known, "3", &own(None, Some(9_000_000)), read_at);
        assert!(known.get("1", &LIFETIMES, at(3599, 3500)).is_some());
        assert!(known.get("1", &LIFETIMES, at(3600, 3500)).is_none());
        assert!(known.get("2", &LIFETIMES, at(3549, 3500)).is_some());
        assert!(known.get("2", &LIFETIMES, at(3550, 3500)).is_none());
        assert!(known.get("3", &LIFETIMES, at(3900, 3500)).is_some());
    }

    #[test]
    fn what_was_destroyed_or_changed_is_removed_at_once() {
        let mut known = StaleSessionCache::new(MINUTE);
        for gone in
            [SessionLookup::Gone, SessionLookup::Revoked, SessionLookup::Rotated, SessionLookup::Corrupt]
        {
            insert(&mut known, "1", &live(1, b""), MINUTE);
            insert(&mut known, "1", &gone, MINUTE);
            assert_eq!(known.get("1", &LIFETIMES, at(60, 60)), None, "{gone:?}");
        }
        insert(&mut known, "1", &live(1, b""), MINUTE);
        known.remove("1");
        assert_eq!((known.get("1", &LIFETIMES, at(60, 60)), known.bytes), (None, 0));
        let mut none = StaleSessionCache::new(Duration::ZERO);
        insert(&mut none, "1", &live(1, b""), MINUTE);
        assert_eq!((none.copies.len(), none.bytes), (0, 0));
    }

    #[test]
    fn logging_out_everywhere_removes_all_of_a_users_copies() {
        let mut known = StaleSessionCache::new(MINUTE);
        for (digest, user) in [("1", Some("ann")), ("2", Some("eve")), ("3", Some("ann")), ("4", None)] {
            let own = user.map(|user| {
                Box::new(SessionAttributes { user: Some(user.to_owned()), ..SessionAttributes::default() })
            });
            let reply = SessionLookup::Found { created_ms: 0, views: 1, attributes: own, fields: Vec::new() };
            insert(&mut known, digest, &reply, MINUTE);
        }
        known.remove_user("ann");
        let left = ["1", "2", "3", "4"].map(|digest| known.get(digest, &LIFETIMES, at(60, 60)).is_some());
        assert_eq!(
            (left, known.bytes),
            ([false, true, false, true], 2 * COPY_BYTES + size_of::<SessionAttributes>() + "eve".len())
        );
    }

    #[test]
    fn copies_stay_within_their_bytes_and_those_not_used_go_first() {
        let mut known = StaleSessionCache::new(MINUTE);
        let large = vec![b'x'; 16 * 1024];
        for id in 0..1000 {
            insert(&mut known, &id.to_string(), &live(1, &large), MINUTE);
            let _ = known.get("0", &LIFETIMES, at(60, 60));
            assert!(known.bytes <= BYTES_MAX);
        }
        assert!(known.get("0", &LIFETIMES, at(60, 60)).is_some());
        assert!(known.get("1", &LIFETIMES, at(60, 60)).is_none());
        assert!(known.get("999", &LIFETIMES, at(60, 60)).is_some());
        let counted: usize = known.copies.iter().map(|(_, copy)| copy.bytes).sum();
        assert_eq!(known.bytes, counted);
    }
}
