//! What else the cookie's keys are good for: the text of a session's forms, and sealing what Redis keeps for one client.
//!
//! Guarantees that no two pages carry the same text, however often a session asks for it: where pages are compressed
//! together with something a stranger chooses, a constant one could be guessed letter by letter from the pages' lengths
//! (BREACH).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead;
use ring::aead::{Aad, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use tower_sessions::session::Id;

use crate::session::cookie::{CookieKeyring, RandomSourceError};
use crate::session::cookie_value::constant_time_eq;

type MacTag = [u8; 32];

impl CookieKeyring {
    /// A text that only this session's own pages can hold: forms carry it, so that other sites cannot send them.
    ///
    /// It is the session's signature under a random mask, beside the mask: another one at each call, and all are good.
    ///
    /// # Errors
    /// When the operating system has no random bytes.
    pub fn csrf_token(&self, id: Id) -> Result<String, RandomSourceError> {
        let id = id.to_string();
        let (name, tag) = self.mac_tags(&["form ", &id]).next().ok_or(RandomSourceError)?;
        let mut mask = MacTag::default();
        SystemRandom::new().fill(&mut mask).map_err(|_| RandomSourceError)?;
        let masked = URL_SAFE_NO_PAD.encode(xor(&tag, &mask));
        Ok(format!("{name}.{}.{masked}", URL_SAFE_NO_PAD.encode(mask)))
    }

    /// Whether this is a text of the session's; one without a mask, as older versions gave out, is as well.
    pub fn is_csrf_token(&self, id: Id, text: &str) -> bool {
        let mut parts = text.split('.');
        let (Some(name), Some(first), second, None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return false;
        };
        let given = match second {
            None => decode(first),
            Some(masked) => decode(first).zip(decode(masked)).map(|(mask, masked)| xor(&masked, &mask)),
        };
        let id = id.to_string();
        given.is_some_and(|given| {
            let genuine = |(of, tag): (&str, MacTag)| of == name && constant_time_eq(&tag, &given);
            self.mac_tags(&["form ", &id]).any(genuine)
        })
    }

    /// Encrypts what only requests of the same `context` can open, as text; AES-256-GCM under a key of its own.
    ///
    /// # Errors
    /// When the operating system has no random bytes.
    pub fn encrypt(&self, context: &str, plain: &[u8]) -> Result<String, RandomSourceError> {
        let (_, key) = self.mac_tags(&["seal ", context]).next().ok_or(RandomSourceError)?;
        let mut sealed = vec![0; aead::NONCE_LEN];
        SystemRandom::new().fill(&mut sealed).map_err(|_| RandomSourceError)?;
        let nonce = Nonce::try_assume_unique_for_key(&sealed).map_err(|_| RandomSourceError)?;
        let mut text = plain.to_vec();
        let key = UnboundKey::new(&aead::AES_256_GCM, &key).map_err(|_| RandomSourceError)?;
        LessSafeKey::new(key)
            .seal_in_place_append_tag(nonce, Aad::empty(), &mut text)
            .map_err(|_| RandomSourceError)?;
        sealed.append(&mut text);
        Ok(URL_SAFE_NO_PAD.encode(sealed))
    }

    /// Opens what [`Keyring::seal`] made with one of these keys.
    pub fn decrypt(&self, context: &str, sealed: &str) -> Option<Vec<u8>> {
        let sealed = URL_SAFE_NO_PAD.decode(sealed).ok()?;
        let (nonce, text) = sealed.split_at_checked(aead::NONCE_LEN)?;
        self.mac_tags(&["seal ", context]).find_map(|(_, key)| {
            let key = LessSafeKey::new(UnboundKey::new(&aead::AES_256_GCM, &key).ok()?);
            let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
            let mut text = text.to_vec();
            let length = key.open_in_place(nonce, Aad::empty(), &mut text).ok()?.len();
            text.truncate(length);
            Some(text)
        })
    }
}

fn xor(one: &MacTag, other: &MacTag) -> MacTag {
    std::array::from_fn(|at| one[at] ^ other[at])
}

fn decode(text: &str) -> Option<MacTag> {
    let mut bytes = MacTag::default();
    let length = URL_SAFE_NO_PAD.decode_slice(text, &mut bytes).ok()?;
    (length == bytes.len()).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::session::cookie::new_id;

    const OLD: &[u8] = b"an old secret of thirty-two bytes";
    const NEW: &[u8] = b"a new secret with thirty-two bytes";

    fn ring(secrets: &[&[u8]]) -> CookieKeyring {
        CookieKeyring::new(secrets.iter().copied()).unwrap()
    }

    #[test]
    fn a_forms_token_is_of_one_session_and_outlives_a_new_key() {
        let (id, other) = (new_id().unwrap(), new_id().unwrap());
        let token = ring(&[OLD]).csrf_token(id).unwrap();
        assert!(ring(&[NEW, OLD]).is_csrf_token(id, &token));
        assert!(!ring(&[NEW, OLD]).is_csrf_token(other, &token));
        assert!(!ring(&[NEW]).is_csrf_token(id, &token) && !ring(&[OLD]).is_csrf_token(id, ""));
        for cut in 0..token.len() {
            assert!(!ring(&[OLD]).is_csrf_token(id, &token[..cut]), "{cut}");
        }
        assert!(!ring(&[OLD]).is_csrf_token(id, &format!("{token}.")));
    }

    #[test]
    fn no_two_pages_carry_the_same_text_and_no_part_of_it_is_constant_but_the_keys_name() {
        let (ring, id) = (ring(&[NEW]), new_id().unwrap());
        let tokens: Vec<String> = (0..100).map(|_| ring.csrf_token(id).unwrap()).collect();
        let parts = |at: usize| tokens.iter().map(|token| token.split('.').nth(at).unwrap()).collect();
        let (masks, masked): (HashSet<&str>, HashSet<&str>) = (parts(1), parts(2));
        assert_eq!((masks.len(), masked.len()), (100, 100));
        assert!(tokens.iter().all(|token| ring.is_csrf_token(id, token)));
        // A mask of one page does not fit the other half of another.
        let mixed = format!("{}.{}", tokens[0].rsplit_once('.').unwrap().0, masked.iter().next().unwrap());
        assert!(!ring.is_csrf_token(id, &mixed) || tokens.contains(&mixed));
    }

    #[test]
    fn a_text_of_an_older_version_is_good() {
        let (ring, id) = (ring(&[NEW]), new_id().unwrap());
        let text = id.to_string();
        let (name, tag) = ring.mac_tags(&["form ", &text]).next().unwrap();
        let old = format!("{name}.{}", URL_SAFE_NO_PAD.encode(tag));
        assert!(ring.is_csrf_token(id, &old));
        assert!(!ring.is_csrf_token(new_id().unwrap(), &old));
    }

    #[test]
    fn what_is_sealed_opens_in_its_own_context_only() {
        let sealed = ring(&[OLD]).encrypt("record key", b"who").unwrap();
        assert_eq!(ring(&[NEW, OLD]).decrypt("record key", &sealed).as_deref(), Some(&b"who"[..]));
        assert_eq!(ring(&[NEW]).decrypt("record key", &sealed), None);
        assert_eq!(ring(&[OLD]).decrypt("record other", &sealed), None);
        assert_ne!(sealed, ring(&[OLD]).encrypt("record key", b"who").unwrap());
        for bad in ["", "AAAA", "not base64!", &sealed[1..]] {
            assert_eq!(ring(&[OLD]).decrypt("record key", bad), None, "{bad}");
        }
    }
}
