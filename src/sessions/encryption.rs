//! Encryption of a session's fields at rest: AES-256-GCM (NIST SP 800-38D), with keys that can be replaced.
//!
//! A stored value is `~<key 6><nonce 12><ciphertext and tag>`. Session and field are authenticated with it, so a value
//! that was copied to another field or session is worth nothing there. JSON never begins with `~`: what was stored
//! before encryption was switched on is recognized and still read, and encrypted when it is next written.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use ring::aead::{Aad, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};
use ring::{aead, hmac};

use crate::sessions::cookie::RandomSourceError;

/// First byte of whatever is encrypted.
const ENCRYPTED_PREFIX: u8 = b'~';
const KEY_NAME_LEN: usize = 6;
/// Bytes before the ciphertext.
const HEADER_LEN: usize = 1 + KEY_NAME_LEN + aead::NONCE_LEN;

/// Encryption keys: the first encrypts, all decrypt.
pub struct FieldCipher {
    keys: Vec<EncryptionKey>,
}

struct EncryptionKey {
    /// Selects the key, and reveals nothing of it.
    name: String,
    key: LessSafeKey,
}

impl std::fmt::Debug for FieldCipher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.keys.iter().map(|key| &key.name)).finish()
    }
}

/// A stored value, opened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DecryptedField {
    /// It is readable: it never was encrypted, or we have its key.
    Readable(Bytes),
    /// It is encrypted with a key that is not ours, or for another place.
    UnknownKey,
}

impl EncryptionKey {
    /// Derived, so that a secret of any length will do and the same secret never signs and encrypts.
    fn new(secret: &[u8]) -> Option<Self> {
        let secret = hmac::Key::new(hmac::HMAC_SHA256, secret);
        let name = URL_SAFE_NO_PAD.encode(&hmac::sign(&secret, b"encryption key's name").as_ref()[..9]);
        let bytes = hmac::sign(&secret, b"encryption key");
        let key = UnboundKey::new(&aead::AES_256_GCM, bytes.as_ref()).ok()?;
        Some(Self { name: name[..KEY_NAME_LEN].to_owned(), key: LessSafeKey::new(key) })
    }
}

impl FieldCipher {
    /// Keys made of these secrets, each of at least 32 bytes; `None` if there is none.
    pub fn new<'a>(secrets: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let keys: Vec<_> = secrets.into_iter().filter_map(EncryptionKey::new).collect();
        (!keys.is_empty()).then_some(Self { keys })
    }

    /// Encrypts the value of a field of the session with this digest.
    ///
    /// # Errors
    /// When the operating system has no random bytes: without them nothing may be encrypted.
    pub fn encrypt(&self, session: &str, field: &str, plain: &[u8]) -> Result<Bytes, RandomSourceError> {
        let key = self.keys.first().ok_or(RandomSourceError)?;
        let mut nonce = [0; aead::NONCE_LEN];
        SystemRandom::new().fill(&mut nonce).map_err(|_| RandomSourceError)?;
        let mut text = plain.to_vec();
        // Random nonces are good for 2^32 values a key (SP 800-38D §8.3): change keys before.
        let nonce_once = Nonce::assume_unique_for_key(nonce);
        key.key
            .seal_in_place_append_tag(nonce_once, Aad::from(associated_data(session, field)), &mut text)
            .map_err(|_| RandomSourceError)?;
        let mut sealed = Vec::with_capacity(HEADER_LEN + text.len());
        sealed.push(ENCRYPTED_PREFIX);
        sealed.extend_from_slice(key.name.as_bytes());
        sealed.extend_from_slice(&nonce);
        sealed.append(&mut text);
        Ok(sealed.into())
    }

    /// Reads a stored value.
    pub fn decrypt(&self, session: &str, field: &str, stored: &Bytes) -> DecryptedField {
        if !is_encrypted(stored) {
            return DecryptedField::Readable(stored.clone());
        }
        self.decrypt_with_key(session, field, stored)
            .map_or(DecryptedField::UnknownKey, DecryptedField::Readable)
    }

    fn decrypt_with_key(&self, session: &str, field: &str, stored: &[u8]) -> Option<Bytes> {
        let name = stored.get(1..=KEY_NAME_LEN)?;
        let nonce = Nonce::try_assume_unique_for_key(stored.get(1 + KEY_NAME_LEN..HEADER_LEN)?).ok()?;
        let key = self.keys.iter().find(|key| key.name.as_bytes() == name)?;
        let mut text = stored.get(HEADER_LEN..)?.to_vec();
        let length =
            key.key.open_in_place(nonce, Aad::from(associated_data(session, field)), &mut text).ok()?.len();
        text.truncate(length);
        Some(text.into())
    }
}

/// Whether a stored value is encrypted.
pub fn is_encrypted(stored: &[u8]) -> bool {
    stored.first() == Some(&ENCRYPTED_PREFIX)
}

/// Where a value belongs; digests have one length, so no two places read the same.
fn associated_data(session: &str, field: &str) -> Vec<u8> {
    [session.as_bytes(), b" ", field.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sessions::test_keys::{NEW, OLD};

    fn cipher(secrets: &[&[u8]]) -> FieldCipher {
        FieldCipher::new(secrets.iter().copied()).unwrap()
    }

    #[test]
    fn a_value_is_read_in_its_own_place_only() {
        let cipher = cipher(&[NEW]);
        let sealed = cipher.encrypt("session", "cart", b"[1]").unwrap();
        assert!(is_encrypted(&sealed) && !sealed.windows(3).any(|part| part == b"[1]"));
        assert_eq!(cipher.decrypt("session", "cart", &sealed), DecryptedField::Readable("[1]".into()));
        assert_eq!(cipher.decrypt("session", "role", &sealed), DecryptedField::UnknownKey);
        assert_eq!(cipher.decrypt("another", "cart", &sealed), DecryptedField::UnknownKey);
        assert_ne!(cipher.encrypt("session", "cart", b"[1]").unwrap(), sealed, "no nonce twice");
    }

    #[test]
    fn keys_rotate_and_plain_values_are_still_read() {
        let sealed = cipher(&[OLD]).encrypt("s", "f", b"1").unwrap();
        assert_eq!(cipher(&[NEW, OLD]).decrypt("s", "f", &sealed), DecryptedField::Readable("1".into()));
        assert_eq!(cipher(&[NEW]).decrypt("s", "f", &sealed), DecryptedField::UnknownKey);
        assert_eq!(
            cipher(&[NEW]).decrypt("s", "f", &Bytes::from("{}")),
            DecryptedField::Readable("{}".into())
        );
        assert!(FieldCipher::new([]).is_none());
    }

    #[test]
    fn no_changed_bit_is_accepted() {
        let cipher = cipher(&[NEW]);
        let sealed = cipher.encrypt("s", "f", b"\"value\"").unwrap();
        for index in 0..sealed.len() {
            let mut forged = sealed.to_vec();
            forged[index] ^= 1;
            assert_ne!(
                cipher.decrypt("s", "f", &forged.into()),
                DecryptedField::Readable("\"value\"".into()),
                "{index}"
            );
        }
    }

    proptest! {
        #[test]
        fn whatever_was_sealed_is_opened_and_nothing_else_panics(plain: Vec<u8>, noise: Vec<u8>) {
            let cipher = cipher(&[NEW, OLD]);
            let sealed = cipher.encrypt("s", "f", &plain).unwrap();
            prop_assert_eq!(cipher.decrypt("s", "f", &sealed), DecryptedField::Readable(plain.into()));
            let marked = [&b"~"[..], &noise].concat();
            prop_assert_eq!(cipher.decrypt("s", "f", &marked.into()), DecryptedField::UnknownKey);
        }
    }
}
