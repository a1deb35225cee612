//! Encryption with the cookie's keys, of what Redis stores for one client.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::aead;
use ring::aead::{Aad, LessSafeKey, Nonce, UnboundKey};
use ring::rand::{SecureRandom, SystemRandom};

use crate::sessions::cookie::{CookieKeyring, RandomSourceError};

impl CookieKeyring {
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

    /// Decrypts what [`CookieKeyring::encrypt`] made with one of these keys.
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

#[cfg(test)]
mod tests {
    use crate::sessions::test_keys::{NEW, OLD, ring};

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
