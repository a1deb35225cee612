//! The parts of a session cookie's value, before and after its signature was checked.
//!
//! Knows the three forms of a value and no key.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tower_sessions::session::Id;

use crate::sessions::user::UserTag;

/// Length of a genuine value without a user: `v1` and 6, 22 and 43 characters, each after a dot.
pub(super) const VALUE_LEN: usize = 76;
/// With a user: `v2` and 11 characters and a dot more.
pub(super) const USER_VALUE_LEN: usize = 88;
/// Provisional: `v3` and 8 characters and a dot more.
pub(super) const PROVISIONAL_VALUE_LEN: usize = 85;
/// Where the dots behind the key's name and behind the id are, and how long the signature is.
const KEY_END: usize = 9;
const ID_END: usize = 32;
const TAG_LEN: usize = 43;

/// The contents of a genuine cookie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VerifiedCookie {
    /// The session's id, issued by this fleet.
    pub id: Id,
    /// The user who logged in with it.
    pub user: Option<UserTag>,
    /// It was signed with an older key: sign it anew when a cookie is sent anyway.
    pub re_sign: bool,
    /// Set if the session may not be stored yet.
    pub provisional: Option<ProvisionalCookie>,
}

/// What a provisional cookie holds beside its session's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProvisionalCookie {
    /// When it was issued, ms since 1970 by Redis's clock.
    pub issued_ms: u64,
    /// Whether a view was counted with it. A session begins with that one, or the visitor's first number is 2.
    pub viewed: bool,
}

impl ProvisionalCookie {
    /// The highest of 48 bits: no view was counted. Cookies of releases that had no such bit count as with a view, which
    /// theirs always are. The others are the time, and last until the year 6429.
    const UNVIEWED: u64 = 1 << 47;

    /// Eight characters.
    pub fn encode(self) -> String {
        let unviewed = if self.viewed { 0 } else { Self::UNVIEWED };
        let bits = (self.issued_ms % Self::UNVIEWED) | unviewed;
        URL_SAFE_NO_PAD.encode(&bits.to_be_bytes()[2..])
    }

    /// Reads what [`ProvisionalCookie::encode`] wrote.
    pub fn decode(text: &str) -> Option<Self> {
        let mut bytes = [0; 8];
        let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes[2..]).ok()?;
        let bits = u64::from_be_bytes(bytes);
        let provisional = Self { issued_ms: bits % Self::UNVIEWED, viewed: bits < Self::UNVIEWED };
        (length == 6).then_some(provisional)
    }
}

/// The parts of a value whose signature was not checked yet.
pub(super) struct CookieParts<'a> {
    pub(super) key_name: &'a str,
    pub(super) id: &'a str,
    pub(super) user: Option<&'a str>,
    pub(super) provisional: Option<&'a str>,
    /// All but the signature,
    pub(super) signed: &'a str,
    /// and the signature.
    pub(super) tag: &'a str,
}

impl<'a> CookieParts<'a> {
    /// Each part has its place: none of ours has a dot within.
    pub(super) fn parse(value: &'a str) -> Option<Self> {
        let signed_len = value.len().checked_sub(1 + TAG_LEN)?;
        let has_dots =
            [2, KEY_END, ID_END, signed_len].iter().all(|at| value.as_bytes().get(*at) == Some(&b'.'));
        if !has_dots {
            return None;
        }
        let (key_name, id) = (value.get(3..KEY_END)?, value.get(KEY_END + 1..ID_END)?);
        let more = value.get(ID_END + 1..signed_len);
        let (user, provisional) = match (value.get(..2)?, value.len()) {
            ("v1", VALUE_LEN) => (None, None),
            ("v2", USER_VALUE_LEN) => (Some(more?), None),
            ("v3", PROVISIONAL_VALUE_LEN) => (None, Some(more?)),
            _ => return None,
        };
        let (signed, tag) = (value.get(..signed_len)?, value.get(signed_len + 1..)?);
        Some(Self { key_name, id, user, provisional, signed, tag })
    }
}

/// Whether a value has the form of a provisional cookie, genuine or not.
pub(super) fn is_provisional(value: &[u8]) -> bool {
    value.starts_with(b"v3.")
}

/// Compares in a time that does not depend on where the difference is.
pub(crate) fn constant_time_eq(one: &[u8], other: &[u8]) -> bool {
    one.len() == other.len() && one.iter().zip(other).fold(0, |different, (a, b)| different | (a ^ b)) == 0
}
