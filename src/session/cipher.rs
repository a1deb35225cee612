//! Encryption of a session's fields at rest: AES-256-GCM (NIST SP 800-38D), with keys that can be replaced.
//!
//! A stored value is `~<key 6><nonce 12><ciphertext and tag>`. Session and field are authenticated with it, so a value
//! that was copied to another field or session is worth nothing there. JSON never begins with `~`: what was stored
//! before encryption was switched on is told apart and still read, and encrypted when it is next written.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use ring::aead;
use ring::aead::Aad;
use ring::aead::LessSafeKey;
use ring::aead::Nonce;
use ring::aead::UnboundKey;
use ring::hmac;
use ring::rand::SecureRandom;
use ring::rand::SystemRandom;

use crate::session::cookie::NoRandomness;

/// First byte of whatever is encrypted.
const MARK: u8 = b'~';
const NAME_LEN: usize = 6;
/// Bytes before the ciphertext.
const HEAD_LEN: usize = 1 + NAME_LEN + aead::NONCE_LEN;

/// Encryption keys: the first encrypts, all decrypt.
pub struct Cipher {
    keys: Vec<Key>,
}

struct Key {
    /// Finds the right key at once, tells nothing about it.
    name: String,
    key: LessSafeKey,
}

impl std::fmt::Debug for Cipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| &key.name)).finish()
    }
}

/// A stored value, opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Opened {
    /// It is readable: it never was encrypted, or we have its key.
    Clear(Bytes),
    /// It is encrypted with a key that is not ours, or for another place.
    Locked,
}

impl Key {
    /// Derived, so that a secret of any length will do and the same secret never signs and encrypts.
    fn new(secret: &[u8]) -> Option<Self> {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let name = URL_SAFE_NO_PAD.encode(&hmac::sign(&secret, b"encryption key's name").as_ref()[..9]);
        let bytes = hmac::sign(&secret, b"encryption key");
        let key = UnboundKey::new(&aead::AES_256_GCM, bytes.as_ref()).ok()?;
        Some(Self { name: name[..NAME_LEN].to_owned(), key: LessSafeKey::new(key) })
    }
}

impl Cipher {
    /// Keys made of these secrets, each of at least 32 bytes; `None` if there is none.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let keys: Vec<_> = secrets.into_iter().filter_map(Key::new).collect();
        (!keys.is_empty()).then_some(Self { keys })
    }

    /// Encrypts the value of a field of the session with this digest.
    ///
    /// # Errors
    /// When the operating system has no random bytes: without them nothing may be encrypted.
    pub fn seal(&self, session: &str, field: &str, plain: &[u8]) -> Result<Bytes, NoRandomness> {
        let key = self.keys.first().ok_or(NoRandomness)?;
        let mut nonce = [0; aead::NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| NoRandomness)?;
        let mut text = plain.to_vec();
        // Random nonces are good for 2^32 values a key (SP 800-38D §8.3): change keys before.
        let nonce_once = Nonce::assume_unique_for_key(nonce);
        key.key
            .seal_in_place_append_tag(nonce_once, Aad::from(place(session, field)), &mut text)
            .map_err(|_| NoRandomness)?;
        let mut sealed = Vec::with_capacity(HEAD_LEN + text.len());
        sealed.push(MARK);
        sealed.extend_from_slice(key.name.as_bytes());
        sealed.extend_from_slice(&nonce);
        sealed.append(&mut text);
        Ok(sealed.into())
    }

    /// Reads a stored value.
    pub fn open(&self, session: &str, field: &str, stored: &Bytes) -> Opened {
        if !is_sealed(stored) {
            return Opened::Clear(stored.clone());
        }
        self.unseal(session, field, stored).map_or(Opened::Locked, Opened::Clear)
    }

    fn unseal(&self, session: &str, field: &str, stored: &[u8]) -> Option<Bytes> {
        let name = stored.get(1..=NAME_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(stored.get(1 + NAME_LEN..HEAD_LEN)?).ok()?;
        let key = self.keys.iter().find(|key| key.name.as_bytes() == name)?;
        let mut text = stored.get(HEAD_LEN..)?.to_vec();
        let length = key.key.open_in_place(nonce, Aad::from(place(session, field)), &mut text).ok()?.len();
        text.truncate(length);
        Some(text.into())
    }
}

/// Whether a stored value is encrypted.
pub fn is_sealed(stored: &[u8]) -> bool {
    stored.first() == Some(&MARK)
}

/// Where a value belongs; digests have one length, so no two places read the same.
fn place(session: &str, field: &str) -> Vec<u8> {
    [session.as_bytes(), b" ", field.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const OLD: &[u8] = b"an old secret of thirty-two bytes";
    const NEW: &[u8] = b"a new secret with thirty-two bytes";

    fn cipher(secrets: &[&[u8]]) -> Cipher {
        Cipher::new(secrets.iter().copied()).unwrap()
    }

    #[test]
    fn a_value_is_read_in_its_own_place_only() {
        let cipher = cipher(&[NEW]);
        let sealed = cipher.seal("session", "cart", b"[1]").unwrap();
        assert!(is_sealed(&sealed) && !sealed.windows(3).any(|part| part == b"[1]"));
        assert_eq!(cipher.open("session", "cart", &sealed), Opened::Clear("[1]".into()));
        assert_eq!(cipher.open("session", "role", &sealed), Opened::Locked);
        assert_eq!(cipher.open("another", "cart", &sealed), Opened::Locked);
        assert_ne!(cipher.seal("session", "cart", b"[1]").unwrap(), sealed, "no nonce twice");
    }

    #[test]
    fn keys_rotate_and_plain_values_are_still_read() {
        let sealed = cipher(&[OLD]).seal("s", "f", b"1").unwrap();
        assert_eq!(cipher(&[NEW, OLD]).open("s", "f", &sealed), Opened::Clear("1".into()));
        assert_eq!(cipher(&[NEW]).open("s", "f", &sealed), Opened::Locked);
        assert_eq!(cipher(&[NEW]).open("s", "f", &Bytes::from("{}")), Opened::Clear("{}".into()));
        assert!(Cipher::new([]).is_none());
    }

    #[test]
    fn no_changed_bit_is_accepted() {
        let cipher = cipher(&[NEW]);
        let sealed = cipher.seal("s", "f", b"\"value\"").unwrap();
        for index in 0..sealed.len() {
            let mut forged = sealed.to_vec();
            forged[index] ^= 1;
            assert_ne!(cipher.open("s", "f", &forged.into()), Opened::Clear("\"value\"".into()), "{index}");
        }
    }

    proptest! {
        #[test]
        fn whatever_was_sealed_is_opened_and_nothing_else_panics(plain: Vec<u8>, noise: Vec<u8>) {
            let cipher = cipher(&[NEW, OLD]);
            let sealed = cipher.seal("s", "f", &plain).unwrap();
            prop_assert_eq!(cipher.open("s", "f", &sealed), Opened::Clear(plain.into()));
            let marked = [&b"~"[..], &noise].concat();
            prop_assert_eq!(cipher.open("s", "f", &marked.into()), Opened::Locked);
        }
    }
}
