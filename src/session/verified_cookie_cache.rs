//! Cookies that a worker has verified lately: a visitor who comes again costs a comparison and no signature.
//!
//! It belongs to one keyring and goes with it, so a cookie of a key that was taken out is never found here. It says
//! only that a value was signed by us and what it names; whether its session lives, was revoked or has another id now
//! is for Redis to decide, at every request as before. Only what was verified is kept, so a stranger cannot fill it;
//! clients with many genuine cookies can have others' leave, which then are verified once more. Bounded: 16,384
//! values, some 4 MiB, and nothing before the first.
//!
//! A value is found by the end of its signature, 48 bits that only its owner and we know, and then compared in constant
//! time: how long a look takes tells a stranger nothing of others' cookies.

use crate::session::cookie_value::{USER_VALUE_LEN, VerifiedCookie, constant_time_eq};
use crate::session::digest::SessionDigest;

/// Groups of places; which one a value may lie in follows from its signature.
const SETS: usize = 4096;
/// Places of a group. A value that is used moves forward by one, a new one takes the last: of more values than there are
/// places, in turn, most are still found.
const WAYS: usize = 4;
/// Longest value that is kept; none of ours is longer.
const VALUE_MAX: usize = USER_VALUE_LEN;
/// Characters of the signature by which a value is found. The last one stands for two bits only and is left out.
const FINGERPRINT_LEN: usize = 8;

/// A genuine cookie's visitor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecognizedCookie {
    /// What the value says.
    pub cookie: VerifiedCookie,
    /// The hash of its id.
    pub digest: SessionDigest,
}

impl RecognizedCookie {
    pub(super) fn new(visitor: VerifiedCookie) -> Self {
        Self { cookie: visitor, digest: SessionDigest::from_id(visitor.id) }
    }
}

/// Verified values, of all names that the keyring is asked about. It has no `Debug`: they are as good as passwords.
#[derive(Default)]
pub(super) struct VerifiedCookieCache {
    /// A value is genuine under one name only.
    names: Vec<Box<str>>,
    /// Made with the first value.
    entries: Vec<Option<Box<CachedCookie>>>,
}

#[derive(Clone)]
struct CachedCookie {
    fingerprint: u64,
    name: usize,
    length: usize,
    value: [u8; VALUE_MAX],
    cookie: RecognizedCookie,
}

impl CachedCookie {
    fn matches(&self, name: usize, mark: u64, value: &[u8]) -> bool {
        self.fingerprint == mark && self.name == name && constant_time_eq(&self.value[..self.length], value)
    }
}

impl VerifiedCookieCache {
    /// The visitor of a value that was verified under this name.
    pub(super) fn get(&mut self, name: &str, value: &[u8]) -> Option<RecognizedCookie> {
        let name = self.names.iter().position(|known| **known == *name)?;
        let mark = fingerprint(value)?;
        let set = self.entries.get_mut(set_range(mark))?;
        let is = |place: &Option<Box<CachedCookie>>| {
            place.as_ref().is_some_and(|it| it.matches(name, mark, value))
        };
        let at = set.iter().position(is)?;
        let known = set[at].as_ref().map(|entry| entry.cookie);
        set.swap(at, at.saturating_sub(1));
        known
    }

    /// Keeps a value that was verified under this name, in place of the last of its group.
    ///
    /// A ticket is not kept: when it comes back its visitor gets a session's cookie instead.
    pub(super) fn insert(&mut self, name: &str, value: &[u8], known: RecognizedCookie) {
        let (Some(mark), true) = (fingerprint(value), known.cookie.provisional.is_none()) else { return };
        let mut text = [0; VALUE_MAX];
        let Some(place) = text.get_mut(..value.len()) else { return };
        place.copy_from_slice(value);
        if self.entries.is_empty() {
            self.entries = vec![None; SETS * WAYS];
        }
        let name = self.names.iter().position(|known| **known == *name).unwrap_or_else(|| {
            self.names.push(name.into());
            self.names.len() - 1
        });
        let Some(set) = self.entries.get_mut(set_range(mark)) else { return };
        let at = set.iter().position(Option::is_none).unwrap_or(WAYS - 1);
        set[at] = Some(Box::new(CachedCookie {
            fingerprint: mark,
            name,
            length: value.len(),
            value: text,
            cookie: known,
        }));
    }
}

/// What a value is found by.
fn fingerprint(value: &[u8]) -> Option<u64> {
    let (_, but_last) = value.split_last()?;
    but_last.last_chunk::<FINGERPRINT_LEN>().map(|mark| u64::from_le_bytes(*mark))
}

/// Where a value with this mark may lie. Characters have six bits each, which a multiplication spreads.
fn set_range(mark: u64) -> std::ops::Range<usize> {
    let spread = mark.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - SETS.trailing_zeros());
    let first = usize::try_from(spread).unwrap_or(0) * WAYS;
    first..first + WAYS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::cookie::{CookieKeyring, new_id};
    use crate::session::cookie_value::ProvisionalCookie;
    use crate::session::user::UserTag;

    fn ring() -> CookieKeyring {
        CookieKeyring::new([&b"a secret of thirty-two bytes, new"[..]]).unwrap()
    }

    fn insert_verified(
        memo: &mut VerifiedCookieCache,
        ring: &CookieKeyring,
        value: &str,
    ) -> RecognizedCookie {
        let known = RecognizedCookie::new(ring.verify("sid", value).unwrap());
        memo.insert("sid", value.as_bytes(), known);
        known
    }

    #[test]
    fn only_the_very_bytes_that_were_verified_are_found_and_only_under_their_name() {
        let (mut memo, ring) = (VerifiedCookieCache::default(), ring());
        let value = ring.sign("sid", new_id().unwrap(), Some(UserTag::from_name(b"key", "ann")));
        assert_eq!(memo.get("sid", value.as_bytes()), None);
        let known = insert_verified(&mut memo, &ring, &value);
        assert_eq!(memo.get("sid", value.as_bytes()), Some(known));
        assert_eq!(memo.get("__Host-sid", value.as_bytes()), None);
        for at in 0..value.len() {
            let mut forged = value.clone().into_bytes();
            forged[at] ^= 1;
            assert_eq!(memo.get("sid", &forged), None, "{at}");
        }
        assert_eq!(memo.get("sid", &value.as_bytes()[1..]), None);
        assert_eq!((memo.get("sid", b""), memo.get("sid", b"a")), (None, None));
        assert_eq!(memo.get("sid", value.as_bytes()), Some(known));
    }

    #[test]
    fn two_cookies_of_one_id_are_two_entries() {
        let (mut memo, ring, id) = (VerifiedCookieCache::default(), ring(), new_id().unwrap());
        let (plain, user) =
            (ring.sign("sid", id, None), ring.sign("sid", id, Some(UserTag::from_name(b"k", "ann"))));
        let (one, other) =
            (insert_verified(&mut memo, &ring, &plain), insert_verified(&mut memo, &ring, &user));
        assert!(one.digest == other.digest && one.cookie != other.cookie);
        assert_eq!(memo.get("sid", plain.as_bytes()), Some(one));
        assert_eq!(memo.get("sid", user.as_bytes()), Some(other));
    }

    #[test]
    fn neither_a_provisional_cookie_nor_what_is_too_long_is_cached() {
        let (mut memo, ring, id) = (VerifiedCookieCache::default(), ring(), new_id().unwrap());
        let provisional = ring.sign_provisional("sid", id, ProvisionalCookie { issued_ms: 7, viewed: true });
        insert_verified(&mut memo, &ring, &provisional);
        let known = RecognizedCookie::new(ring.verify("sid", &ring.sign("sid", id, None)).unwrap());
        memo.insert("sid", &[b'x'; VALUE_MAX + 1], known);
        assert!(memo.entries.is_empty(), "and nothing is allocated");
    }

    #[test]
    fn it_is_bounded_and_what_is_used_stays() {
        let (mut memo, ring) = (VerifiedCookieCache::default(), ring());
        let value = ring.sign("sid", new_id().unwrap(), None);
        let known = insert_verified(&mut memo, &ring, &value);
        for number in 0..4 * SETS * WAYS {
            let other = format!("{number:0>20}{:x<9}", "");
            // Of the group of the one that is used, too.
            let mut other = other.into_bytes();
            if number % 2 == 0 {
                let end = value.len();
                other[20..].copy_from_slice(&value.as_bytes()[end - 9..]);
            } else {
                other[20..28].copy_from_slice(format!("{number:08}").as_bytes());
            }
            memo.insert("sid", &other, known);
            assert_eq!(memo.get("sid", value.as_bytes()), Some(known), "{number}");
        }
        assert_eq!(memo.entries.len(), SETS * WAYS);
    }
}
