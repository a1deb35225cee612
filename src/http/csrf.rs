//! Tokens in hidden fields of forms: another site's page does not have them, so it cannot send the form.
//!
//! A token is a signature under a random mask, beside the mask. So no two pages carry the same text: where pages are
//! compressed together with something an attacker chooses, a constant token could be guessed letter by letter from the
//! lengths of pages (BREACH).

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tower_sessions::session::Id;

use crate::sessions::cookie::CookieKeyring;
use crate::sessions::cookie_value::constant_time_eq;
use crate::sys::random;

/// A signature by HMAC-SHA256.
pub(super) type MacTag = [u8; 32];

/// A token of this session's forms; another one at each call, and all are accepted. `None`: the operating system has no
/// random bytes.
pub fn session_token(keyring: &CookieKeyring, id: Id) -> Option<String> {
    let id = id.to_string();
    let (key_name, tag) = keyring.mac_tags(&["form ", &id]).next()?;
    Some(format!("{key_name}.{}", mask(&tag)?))
}

/// Whether this is a token of the session's forms.
pub fn is_session_token(keyring: &CookieKeyring, id: Id, token: &str) -> bool {
    let Some((key_name, masked)) = token.split_once('.') else { return false };
    let id = id.to_string();
    unmask(masked).is_some_and(|given| {
        let is_genuine = |(of, tag): (&str, MacTag)| of == key_name && constant_time_eq(&tag, &given);
        keyring.mac_tags(&["form ", &id]).any(is_genuine)
    })
}

/// A signature as text, different at each call; `None`: the operating system has no random bytes.
pub(super) fn mask(tag: &MacTag) -> Option<String> {
    let mut mask = MacTag::default();
    random::fill(&mut mask).ok()?;
    Some(format!("{}.{}", URL_SAFE_NO_PAD.encode(mask), URL_SAFE_NO_PAD.encode(xor(tag, &mask))))
}

/// The signature in such a text, or in one without a mask.
pub(super) fn unmask(text: &str) -> Option<MacTag> {
    match text.split_once('.') {
        Some((mask, masked)) => Some(xor(&decode(masked)?, &decode(mask)?)),
        None => decode(text),
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
    use crate::sessions::cookie::new_id;
    use crate::sessions::test_keys::{NEW, OLD, ring};

    #[test]
    fn a_token_is_of_one_session_and_outlives_a_new_key() {
        let (id, other) = (new_id().unwrap(), new_id().unwrap());
        let token = session_token(&ring(&[OLD]), id).unwrap();
        assert!(is_session_token(&ring(&[NEW, OLD]), id, &token));
        assert!(!is_session_token(&ring(&[NEW, OLD]), other, &token));
        assert!(!is_session_token(&ring(&[NEW]), id, &token) && !is_session_token(&ring(&[OLD]), id, ""));
        for cut in 0..token.len() {
            assert!(!is_session_token(&ring(&[OLD]), id, &token[..cut]), "{cut}");
        }
        assert!(!is_session_token(&ring(&[OLD]), id, &format!("{token}.")));
    }

    #[test]
    fn no_two_tokens_share_a_part_but_the_keys_name() {
        let (ring, id) = (ring(&[NEW]), new_id().unwrap());
        let tokens: Vec<String> = (0..100).map(|_| session_token(&ring, id).unwrap()).collect();
        let parts = |at: usize| tokens.iter().map(|token| token.split('.').nth(at).unwrap()).collect();
        let (masks, masked): (HashSet<&str>, HashSet<&str>) = (parts(1), parts(2));
        assert_eq!((masks.len(), masked.len()), (100, 100));
        assert!(tokens.iter().all(|token| is_session_token(&ring, id, token)));
        // A mask of one page does not fit the other half of another.
        let mixed = format!("{}.{}", tokens[0].rsplit_once('.').unwrap().0, masked.iter().next().unwrap());
        assert!(!is_session_token(&ring, id, &mixed) || tokens.contains(&mixed));
    }

    #[test]
    fn a_token_without_a_mask_is_accepted() {
        let (ring, id) = (ring(&[NEW]), new_id().unwrap());
        let text = id.to_string();
        let (name, tag) = ring.mac_tags(&["form ", &text]).next().unwrap();
        let old = format!("{name}.{}", URL_SAFE_NO_PAD.encode(tag));
        assert!(is_session_token(&ring, id, &old));
        assert!(!is_session_token(&ring, new_id().unwrap(), &old));
    }
}
