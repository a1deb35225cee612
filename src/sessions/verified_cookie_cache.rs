//! Cookies that a worker has verified lately: when one comes again it costs a comparison and no signature.
//!
//! It belongs to one keyring and is dropped with it, so a cookie of a removed key is never found here. An entry means
//! that a value was signed by us, and what it names; whether its session lives, was revoked or has another id now is
//! decided by Redis at every request. Only verified values are stored, so clients without genuine cookies cannot fill
//! it; clients with many can evict others', which are then verified once more. Bounded: 16,384
//! values, some 4 MiB, and nothing before the first.
//!
//! A value is found by the end of its signature, 48 bits that only its owner and we know, and then compared in constant
//! time: the duration of a lookup reveals nothing of others' cookies.

use crate::sessions::cookie_value::{USER_VALUE_LEN, VerifiedCookie, constant_time_eq};
use crate::sessions::digest::SessionDigest;

/// Number of sets; a value's set follows from its signature.
const SETS: usize = 4096;
/// Entries of a set. A value that is used moves forward by one, a new one replaces the last: of more values than there
/// are entries, used in turn, most are still found.
const WAYS: usize = 4;
/// Longest value that is stored; none of ours is longer.
const VALUE_MAX: usize = USER_VALUE_LEN;
/// Characters of the signature by which a value is found. The last one stands for two bits only and is left out.
const FINGERPRINT_LEN: usize = 8;

/// A genuine cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RecognizedCookie {
    /// The value's contents.
    pub cookie: VerifiedCookie,
    /// The hash of its id.
    pub digest: SessionDigest,
}

impl RecognizedCookie {
    pub(super) fn new(visitor: VerifiedCookie) -> Self {
        Self { cookie: visitor, digest: SessionDigest::from_id(visitor.id) }
    }
}

/// Verified values, of all cookie names of the keyring. It has no `Debug`: they are as good as passwords.
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
    fn matches(&self, name: usize, fingerprint: u64, value: &[u8]) -> bool {
        self.fingerprint == fingerprint
            && self.name == name
            && constant_time_eq(&self.value[..self.length], value)
    }
}

impl VerifiedCookieCache {
    /// The cookie with this value, if it was verified under this name.
    pub(super) fn get(&mut self, name: &str, value: &[u8]) -> Option<RecognizedCookie> {
        let name = self.names.iter().position(|known| **known == *name)?;
        let fingerprint = fingerprint(value)?;
        let set = self.entries.get_mut(set_range(fingerprint))?;
        let is = |place: &Option<Box<CachedCookie>>| {
            place.as_ref().is_some_and(|it| it.matches(name, fingerprint, value))
        };
        let at = set.iter().position(is)?;
        let known = set[at].as_ref().map(|entry| entry.cookie);
        set.swap(at, at.saturating_sub(1));
        known
    }

    /// Stores a value that was verified under this name, in place of the last of its set.
    ///
    /// A provisional cookie is not stored: when it comes back its visitor gets a session's cookie instead.
    pub(super) fn insert(&mut self, name: &str, value: &[u8], known: RecognizedCookie) {
        let (Some(fingerprint), true) = (fingerprint(value), known.cookie.provisional.is_none()) else {
            return;
        };
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
        let Some(set) = self.entries.get_mut(set_range(fingerprint)) else { return };
        let at = set.iter().position(Option::is_none).unwrap_or(WAYS - 1);
        set[at] = Some(Box::new(CachedCookie {
            fingerprint,
            name,
            length: value.len(),
            value: text,
            cookie: known,
        }));
    }
}

/// The part of a value by which it is found.
fn fingerprint(value: &[u8]) -> Option<u64> {
    let (_, but_last) = value.split_last()?;
    but_last.last_chunk::<FINGERPRINT_LEN>().map(|fingerprint| u64::from_le_bytes(*fingerprint))
}

/// Entries where a value with this fingerprint may be. Characters have six bits each, which a multiplication spreads.
fn set_range(fingerprint: u64) -> std::ops::Range<usize> {
    let spread = fingerprint.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> (64 - SETS.trailing_zeros());
    let first = usize::try_from(spread).unwrap_or(0) * WAYS;
    first..first + WAYS
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sessions::cookie::{CookieKeyring, new_id};
    use crate::sessions::cookie_value::ProvisionalCookie;
    use crate::sessions::user::UserTag;

    fn ring() -> CookieKeyring {
        CookieKeyring::new([&b"a secret of thirty-two bytes, new"[..]]).unwrap()
    }

    fn insert_verified(
        cache: &mut VerifiedCookieCache,
        ring: &CookieKeyring,
        value: &str,
    ) -> RecognizedCookie {
        let known = RecognizedCookie::new(ring.verify("sid", value).unwrap());
        cache.insert("sid", value.as_bytes(), known);
        known
    }

    #[test]
    fn only_the_very_bytes_that_were_verified_are_found_and_only_under_their_name() {
        let (mut cache, ring) = (VerifiedCookieCache::default(), ring());
        let value = ring.sign("sid", new_id().unwrap(), Some(UserTag::from_name(b"key", "ann")));
        assert_eq!(cache.get("sid", value.as_bytes()), None);
        let known = insert_verified(&mut cache, &ring, &value);
        assert_eq!(cache.get("sid", value.as_bytes()), Some(known));
        assert_eq!(cache.get("__Host-sid", value.as_bytes()), None);
        for at in 0..value.len() {
            let mut forged = value.clone().into_bytes();
            forged[at] ^= 1;
            assert_eq!(cache.get("sid", &forged), None, "{at}");
        }
        assert_eq!(cache.get("sid", &value.as_bytes()[1..]), None);
        assert_eq!((cache.get("sid", b""), cache.get("sid", b"a")), (None, None));
        assert_eq!(cache.get("sid", value.as_bytes()), Some(known));
    }

    #[test]
    fn two_cookies_of_one_id_are_two_entries() {
        let (mut cache, ring, id) = (VerifiedCookieCache::default(), ring(), new_id().unwrap());
        let (plain, user) =
            (ring.sign("sid", id, None), ring.sign("sid", id, Some(UserTag::from_name(b"k", "ann"))));
        let (one, other) =
            (insert_verified(&mut cache, &ring, &plain), insert_verified(&mut cache, &ring, &user));
        assert!(one.digest == other.digest && one.cookie != other.cookie);
        assert_eq!(cache.get("sid", plain.as_bytes()), Some(one));
        assert_eq!(cache.get("sid", user.as_bytes()), Some(other));
    }

    #[test]
    fn neither_a_provisional_cookie_nor_what_is_too_long_is_cached() {
        let (mut cache, ring, id) = (VerifiedCookieCache::default(), ring(), new_id().unwrap());
        let provisional = ring.sign_provisional("sid", id, ProvisionalCookie { issued_ms: 7, viewed: true });
        insert_verified(&mut cache, &ring, &provisional);
        let known = RecognizedCookie::new(ring.verify("sid", &ring.sign("sid", id, None)).unwrap());
        cache.insert("sid", &[b'x'; VALUE_MAX + 1], known);
        assert!(cache.entries.is_empty(), "and nothing is allocated");
    }

    #[test]
    fn it_is_bounded_and_what_is_used_stays() {
        let (mut cache, ring) = (VerifiedCookieCache::default(), ring());
        let value = ring.sign("sid", new_id().unwrap(), None);
        let known = insert_verified(&mut cache, &ring, &value);
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
            cache.insert("sid", &other, known);
            assert_eq!(cache.get("sid", value.as_bytes()), Some(known), "{number}");
        }
        assert_eq!(cache.entries.len(), SETS * WAYS);
    }
}
