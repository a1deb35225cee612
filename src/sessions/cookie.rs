//! The session cookie, signed over its name and value with HMAC-SHA256 (RFC 2104).
//!
//! `v1.<key>.<id>.<signature>` names a session, `v2.<key>.<id>.<user>.<signature>` one of a user who logged in: the tag
//! is known before the session is read, so that limits and the check whether the user was logged out need no second
//! round trip. `v3.<key>.<id>.<provisional>.<signature>` is a provisional
//! cookie: the id of a session that is stored when the cookie comes back, see [`ProvisionalCookie`].
//! The name is signed too, so a value cannot be moved to another cookie. Whatever is not genuine counts as no cookie
//! (RFC 6265 §5.4, and §4.1.2 for writing). Which of a request's cookies is ours: [`crate::sessions::cookie_search`].

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::{SecureRandom, SystemRandom};
use ring::{digest, hmac};
use tower_sessions::session::Id;

use crate::sessions::cookie_value::{
    CookieParts, ProvisionalCookie, USER_VALUE_LEN, VerifiedCookie, constant_time_eq,
};
use crate::sessions::user::UserTag;
use crate::sessions::verified_cookie_cache::{RecognizedCookie, VerifiedCookieCache};

/// Signing keys: the first signs, all are accepted, so that keys can be replaced without ending sessions.
pub struct CookieKeyring {
    keys: Vec<SigningKey>,
    /// What these keys have verified: with others it is void, so it lives and dies with them.
    verified_cookies: Mutex<VerifiedCookieCache>,
}

struct SigningKey {
    /// First 6 characters of the secret's hash: selects the key, and reveals nothing of it.
    name: String,
    key: hmac::Key,
}

impl std::fmt::Debug for CookieKeyring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| &key.name)).finish()
    }
}

/// Whether a value is ours.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CookieRecognition {
    /// We signed it.
    Genuine(RecognizedCookie),
    /// It looks like ours, and is not.
    Forged,
    /// It does not look like ours.
    Foreign,
}

/// An id from the operating system's generator, safe in forked processes.
///
/// # Errors
/// When the operating system has no random bytes.
pub fn new_id() -> Result<Id, RandomSourceError> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).map_err(|_| RandomSourceError)?;
    Ok(Id(i128::from_le_bytes(bytes)))
}

/// The operating system gave no random bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the operating system has no random bytes")]
pub struct RandomSourceError;

/// What a session cookie says beside its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CookieAttributes {
    /// Paths to which it is sent.
    pub path: String,
    /// Hosts to which it is sent; none: the one that set it.
    pub domain: Option<String>,
    /// Value of `SameSite`.
    pub same_site: &'static str,
}

impl Default for CookieAttributes {
    fn default() -> Self {
        Self { path: "/".to_owned(), domain: None, same_site: "Lax" }
    }
}

impl CookieAttributes {
    /// The cookie's name as sent: secure ones get the prefix that keeps other hosts from setting them, or where another
    /// path or domain rules that out, the one that keeps unencrypted connections from it (RFC 6265bis §4.1.3).
    pub fn cookie_name(&self, base: &str, secure: bool) -> String {
        match (secure, self.domain.is_none() && self.path == "/") {
            (false, _) => base.to_owned(),
            (true, true) => format!("__Host-{base}"),
            (true, false) => format!("__Secure-{base}"),
        }
    }

    /// A `Set-Cookie` value that gives the visitor a session.
    pub fn set_cookie(&self, name: &str, value: &str, secure: bool, max_age: Duration) -> String {
        let Self { path, domain, same_site } = self;
        let secure = if secure { "; Secure" } else { "" };
        let (domain, label) = domain.as_deref().map_or(("", ""), |domain| (domain, "; Domain="));
        let age = max_age.as_secs();
        format!(
            "{name}={value}; Path={path}{label}{domain}; Max-Age={age}; HttpOnly; SameSite={same_site}{secure}"
        )
    }

    /// A `Set-Cookie` value that takes it away; it has every attribute of the original, or browsers would ignore it.
    pub fn removal_cookie(&self, name: &str, secure: bool) -> String {
        self.set_cookie(name, "", secure, Duration::ZERO)
    }
}

impl CookieKeyring {
    /// A keyring of these secrets, each of at least 32 bytes; `None` if there is none.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let key = |secret: &[u8]| {
            let digest = digest::digest(&digest::SHA256, secret);
            let name = URL_SAFE_NO_PAD.encode(&digest.as_ref()[..9])[..6].to_owned();
            SigningKey { name, key: hmac::Key::new(hmac::HMAC_SHA256, secret) }
        };
        let keys: Vec<_> = secrets.into_iter().map(key).collect();
        (!keys.is_empty()).then(|| Self { keys, verified_cookies: Mutex::default() })
    }

    /// The value of the cookie `name` for this session, and its user if one is logged in.
    pub fn sign(&self, name: &str, id: Id, user: Option<UserTag>) -> String {
        match user {
            Some(user) => self.encode_value(name, "v2", id, Some(&user.to_string())),
            None => self.encode_value(name, "v1", id, None),
        }
    }

    /// The value of the cookie `name` that is provisional: the session with this id is not stored yet.
    pub fn sign_provisional(&self, name: &str, id: Id, provisional: ProvisionalCookie) -> String {
        self.encode_value(name, "v3", id, Some(&provisional.encode()))
    }

    fn encode_value(&self, name: &str, version: &str, id: Id, more: Option<&str>) -> String {
        let mut value = String::with_capacity(USER_VALUE_LEN);
        let Some(key) = self.keys.first() else { return value };
        value.push_str(version);
        value.push('.');
        value.push_str(&key.name);
        value.push('.');
        URL_SAFE_NO_PAD.encode_string(id.0.to_le_bytes(), &mut value);
        if let Some(more) = more {
            value.push('.');
            value.push_str(more);
        }
        let tag = signature(&key.key, &[name, "=", &value]);
        value.push('.');
        URL_SAFE_NO_PAD.encode_string(tag.as_ref(), &mut value);
        value
    }

    /// Whether a value has the form of ours and names a key of ours, so that its signature is worth checking.
    fn names_known_key(&self, value: &str) -> bool {
        CookieParts::parse(value).is_some_and(|parts| self.keys.iter().any(|key| key.name == parts.key_name))
    }

    /// As [`CookieKeyring::verify`], of what a client sent: at once if it was verified before.
    pub(super) fn recognize(&self, name: &str, value: &[u8]) -> CookieRecognition {
        let cache = || self.verified_cookies.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = cache().get(name, value) {
            return CookieRecognition::Genuine(known);
        }
        let text = std::str::from_utf8(value).ok().filter(|value| self.names_known_key(value));
        let Some(text) = text else { return CookieRecognition::Foreign };
        match self.verify(name, text).map(RecognizedCookie::new) {
            Some(known) => {
                cache().insert(name, value, known);
                CookieRecognition::Genuine(known)
            }
            None => CookieRecognition::Forged,
        }
    }

    /// The visitor that a value of the cookie `name` stands for, if we signed it.
    pub fn verify(&self, name: &str, value: &str) -> Option<VerifiedCookie> {
        let parts = CookieParts::parse(value)?;
        let index = self.find_key(parts.key_name, parts.tag, &[name, "=", parts.signed])?;
        let user = parts.user.map(str::parse).transpose().ok()?;
        let provisional = match parts.provisional {
            None => None,
            Some(text) => Some(ProvisionalCookie::decode(text)?),
        };
        Some(VerifiedCookie { id: parts.id.parse().ok()?, user, re_sign: index > 0, provisional })
    }

    /// The parts signed with each key, the one that signs first, and the keys' names. No cookie's name has a space in it,
    /// so parts that begin with a word and a space are never what a cookie signs.
    pub(crate) fn mac_tags(&self, parts: &[&str]) -> impl Iterator<Item = (&str, [u8; 32])> {
        self.keys.iter().map(move |key| {
            let mut tag = [0; 32];
            tag.copy_from_slice(signature(&key.key, parts).as_ref());
            (key.name.as_str(), tag)
        })
    }

    /// The key of this name, if the signature over the parts is its.
    fn find_key(&self, key_name: &str, tag: &str, parts: &[&str]) -> Option<usize> {
        let mut bytes = [0; 32];
        let length = URL_SAFE_NO_PAD.decode_slice(tag, &mut bytes).ok()?;
        let genuine = |key: &SigningKey| {
            length == bytes.len() && constant_time_eq(signature(&key.key, parts).as_ref(), &bytes)
        };
        self.keys.iter().position(|key| key.name == key_name && genuine(key))
    }
}

fn signature(key: &hmac::Key, parts: &[&str]) -> hmac::Tag {
    let mut context = hmac::Context::with_key(key);
    for part in parts {
        context.update(part.as_bytes());
    }
    context.sign()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sessions::cookie_value::{PROVISIONAL_VALUE_LEN, VALUE_LEN};
    use crate::sessions::test_keys::{NEW, OLD, ring};

    #[test]
    fn a_signed_value_is_read_back_and_has_the_documented_form() {
        let ring = ring(&[NEW]);
        let id = new_id().unwrap();
        let value = ring.sign("sid", id, None);
        let lengths: Vec<usize> = value.split('.').map(str::len).collect();
        assert_eq!((value.len(), lengths), (VALUE_LEN, vec![2, 6, 22, 43]));
        assert_eq!(
            ring.verify("sid", &value),
            Some(VerifiedCookie { id, user: None, re_sign: false, provisional: None })
        );
    }

    #[test]
    fn a_users_value_names_him_and_nobody_else() {
        let ring = ring(&[NEW]);
        let (id, user) = (new_id().unwrap(), UserTag::from_name(b"key", "ann"));
        let value = ring.sign("sid", id, Some(user));
        let lengths: Vec<usize> = value.split('.').map(str::len).collect();
        assert_eq!((value.len(), lengths), (USER_VALUE_LEN, vec![2, 6, 22, 11, 43]));
        assert_eq!(
            ring.verify("sid", &value),
            Some(VerifiedCookie { id, user: Some(user), re_sign: false, provisional: None })
        );
        let other = value.replace(&user.to_string(), &UserTag::from_name(b"key", "bob").to_string());
        assert_eq!(ring.verify("sid", &other), None);
        let parts: Vec<&str> = value.split('.').collect();
        assert_eq!(ring.verify("sid", &format!("v1.{}.{}.{}", parts[1], parts[2], parts[4])), None);
    }

    #[test]
    fn keys_rotate_without_losing_a_session() {
        let id = new_id().unwrap();
        let value = ring(&[OLD]).sign("sid", id, None);
        assert_eq!(
            ring(&[NEW, OLD]).verify("sid", &value),
            Some(VerifiedCookie { id, user: None, re_sign: true, provisional: None })
        );
        assert_eq!(ring(&[NEW]).verify("sid", &value), None);
        assert!(CookieKeyring::new([]).is_none());
    }

    #[test]
    fn a_value_of_another_cookie_or_with_one_bit_changed_is_refused() {
        let ring = ring(&[NEW]);
        let value = ring.sign("sid", new_id().unwrap(), None);
        assert_eq!(ring.verify("__Host-sid", &value), None);
        for index in 0..value.len() {
            let mut forged = value.clone().into_bytes();
            forged[index] = if forged[index] == b'A' { b'B' } else { b'A' };
            assert_eq!(ring.verify("sid", std::str::from_utf8(&forged).unwrap()), None, "{index}");
        }
    }

    #[test]
    fn a_provisional_cookie_states_when_it_was_issued_and_whether_with_a_view_and_nothing_of_it_can_be_changed()
     {
        let ring = ring(&[NEW]);
        let id = new_id().unwrap();
        let provisional = |viewed| ProvisionalCookie { issued_ms: 1_763_694_494_000, viewed };
        let value = ring.sign_provisional("sid", id, provisional(false));
        let is = |viewed| {
            Some(VerifiedCookie { id, user: None, re_sign: false, provisional: Some(provisional(viewed)) })
        };
        assert_eq!(ring.verify("sid", &value), is(false));
        let value = ring.sign_provisional("sid", id, provisional(true));
        assert_eq!(ring.verify("sid", &value), is(true));
        let lengths: Vec<usize> = value.split('.').map(str::len).collect();
        assert_eq!((value.len(), lengths), (PROVISIONAL_VALUE_LEN, vec![2, 6, 22, 8, 43]));
        for index in 0..value.len() {
            let mut forged = value.clone().into_bytes();
            forged[index] = if forged[index] == b'A' { b'B' } else { b'A' };
            assert_eq!(ring.verify("sid", std::str::from_utf8(&forged).unwrap()), None, "{index}");
        }
        // A provisional cookie is never taken for a session's, nor the other way round.
        let parts: Vec<&str> = value.split('.').collect();
        assert_eq!(ring.verify("sid", &format!("v1.{}.{}.{}", parts[1], parts[2], parts[4])), None);
    }

    #[test]
    fn cookies_have_every_attribute_and_are_removed_with_the_same() {
        let usual = CookieAttributes::default();
        let name = usual.cookie_name("sid", true);
        let set = usual.set_cookie(&name, "v", true, Duration::from_secs(60));
        assert_eq!(set, "__Host-sid=v; Path=/; Max-Age=60; HttpOnly; SameSite=Lax; Secure");
        assert_eq!(
            usual.removal_cookie(&name, true),
            "__Host-sid=; Path=/; Max-Age=0; HttpOnly; SameSite=Lax; Secure"
        );
        assert!(!usual.set_cookie("sid", "v", false, Duration::from_secs(60)).contains("Secure"));
        let domain = Some("example.org".to_owned());
        let other = CookieAttributes { path: "/shop".to_owned(), domain, same_site: "Strict" };
        assert_eq!(other.cookie_name("sid", true), "__Secure-sid");
        assert_eq!(
            other.removal_cookie("sid", false),
            "sid=; Path=/shop; Domain=example.org; Max-Age=0; HttpOnly; SameSite=Strict"
        );
    }

    proptest! {
        #[test]
        fn nothing_a_client_sends_is_accepted_or_panics(value in ".{0,100}") {
            prop_assert_eq!(ring(&[NEW, OLD]).verify("sid", &value), None);
        }
    }
}
