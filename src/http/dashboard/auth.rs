//! Authentication of operators: one token for all of them, and a signed cookie after the sign-in.
//!
//! Guarantees that neither the token nor anything it could be guessed from leaves the process, that tokens are compared
//! in constant time and attempts are limited, and that a form is accepted only from a page of the same operator session.
//! Every worker signs with a key derived from the token, so cookies are valid on all workers and over reloads; another
//! token ends every session.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::{HeaderMap, header};
use lru::LruCache;
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};

use crate::config::limits::Rate;
use crate::config::settings::{DashboardConfig, Secret};
use crate::http::csrf::{self, MacTag};
use crate::http::dashboard::flash::FlashMessage;
use crate::limiter::gcra::{self, Quota};
use crate::{config, sys};

/// How long an operator stays signed in.
pub(super) const OPERATOR_SESSION_LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);

/// The cookie of an operator session.
const OPERATOR_COOKIE: &str = "regatta_fleet";

/// The cookie of a flash message.
const FLASH_COOKIE: &str = "regatta_flash";

/// How long a flash message is valid.
const FLASH_LIFETIME: Duration = Duration::from_secs(60);

/// Wrong tokens of one address at once, and the time until one more.
const FAILURE_BURST: u64 = 5;
const FAILURE_INTERVAL: Duration = Duration::from_secs(5);

/// Addresses whose failures are tracked.
const TRACKED_ADDRESSES: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// Separates the signing key from other keys derived from the same token.
const KEY_PURPOSE: &[u8] = b"regatta dashboard v1";

/// Sign-in and operator sessions; one a worker.
pub(super) struct DashboardAuth {
    token_state: TokenState,
    failures: Mutex<LruCache<String, u64>>,
}

/// Whether there is a token.
enum TokenState {
    /// None is configured: no sign-in.
    NotConfigured,
    /// Its file cannot be used, for this reason: no sign-in.
    Unusable(String),
    /// Sign-in with the token.
    Configured(Box<AuthKeys>),
}

/// Keys derived from the token.
struct AuthKeys {
    /// Signs cookies and form tokens.
    signing: hmac::Key,
    /// The tag of the token, which is compared.
    token_tag: hmac::Tag,
    /// Makes such tags; random, so they are of no use elsewhere.
    comparison: hmac::Key,
}

/// A signed-in operator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct OperatorSession {
    /// What the cookie's signature covers: its expiry and a random part.
    id: String,
}

/// Why a sign-in fails.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum SignInError {
    /// There is no token.
    Disabled,
    /// Another token.
    WrongToken,
    /// Too many wrong tokens from this address; seconds until the next attempt.
    RateLimited(u64),
}

impl fmt::Debug for DashboardAuth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DashboardAuth").field("is_enabled", &self.is_enabled()).finish_non_exhaustive()
    }
}

impl DashboardAuth {
    pub(super) fn new(settings: &DashboardConfig) -> Self {
        let token = match (&settings.token, &settings.token_file) {
            (Some(token), _) => Ok(Some(token.clone())),
            (None, None) => Ok(None),
            (None, Some(file)) => {
                let read = sys::path::read_secret(file).map_err(|error| error.to_string());
                let text = read.and_then(|bytes| config::text::decode_utf8(bytes).map_err(str::to_owned));
                let token = text.and_then(|text| config::parse_dashboard_token(&text));
                token.map(Some).map_err(|reason| format!("{}: {reason}", file.display()))
            }
        };
        let token_state = match token {
            Ok(None) => TokenState::NotConfigured,
            Ok(Some(token)) => TokenState::from_token(&token),
            Err(reason) => {
                tracing::warn!(%reason, "dashboard actions are disabled: {reason}");
                TokenState::Unusable(reason)
            }
        };
        Self { token_state, failures: Mutex::new(LruCache::new(TRACKED_ADDRESSES)) }
    }

    /// Whether operators can sign in.
    pub(super) fn is_enabled(&self) -> bool {
        matches!(self.token_state, TokenState::Configured(_))
    }

    /// What to change so that operators can sign in; `None` if they can.
    pub(super) fn advice(&self) -> Option<String> {
        match &self.token_state {
            TokenState::Configured(_) => None,
            TokenState::NotConfigured => {
                Some("set dashboard.token or dashboard.token_file, and reload".to_owned())
            }
            TokenState::Unusable(reason) => {
                Some(format!("correct dashboard.token_file and reload: {reason}"))
            }
        }
    }

    /// Signs in with the token; `subject` is the client as limits know it, `now` any monotonic clock.
    ///
    /// # Errors
    /// [`SignInError`].
    pub(super) fn sign_in(
        &self,
        presented: &str,
        subject: &str,
        now: Duration,
        unix: Duration,
    ) -> Result<OperatorSession, SignInError> {
        let TokenState::Configured(keys) = &self.token_state else { return Err(SignInError::Disabled) };
        let quota = Quota::new(Rate { count: 1, period: FAILURE_INTERVAL }, FAILURE_BURST);
        let now_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let charged = gcra::decide(failures.get(subject).copied(), now_us, &quota, 1);
        if !charged.reply.allowed {
            let wait_us = charged.reply.retry_after_us.unwrap_or(0);
            return Err(SignInError::RateLimited(wait_us.div_ceil(1_000_000).max(1)));
        }
        // Both are hashed first, so the time of the comparison depends on the length of the guess alone.
        if hmac::verify(&keys.comparison, presented.trim().as_bytes(), keys.token_tag.as_ref()).is_err() {
            failures.put(subject.to_owned(), charged.tat_us.unwrap_or(now_us));
            return Err(SignInError::WrongToken);
        }
        let expires_at = (unix + OPERATOR_SESSION_LIFETIME).as_secs();
        Ok(OperatorSession { id: format!("{expires_at}.{}", random_id().ok_or(SignInError::Disabled)?) })
    }

    /// The operator session of these headers' cookie.
    pub(super) fn authenticate(&self, headers: &HeaderMap, unix: Duration) -> Option<OperatorSession> {
        let (id, tag) = find_cookie(headers, OPERATOR_COOKIE)?.rsplit_once('.')?;
        let expires_at: u64 = id.split('.').next()?.parse().ok()?;
        (self.is_signed(&["cookie", id], tag) && unix.as_secs() < expires_at)
            .then(|| OperatorSession { id: id.to_owned() })
    }

    /// `Set-Cookie` after a sign-in.
    pub(super) fn session_cookie(&self, operator: &OperatorSession, secure: bool) -> String {
        let tag = self.sign(&["cookie", &operator.id]);
        set_cookie(OPERATOR_COOKIE, &format!("{}.{tag}", operator.id), OPERATOR_SESSION_LIFETIME, secure)
    }

    /// `Set-Cookie` after a sign-out.
    pub(super) fn removal_cookie(secure: bool) -> String {
        set_cookie(OPERATOR_COOKIE, "", Duration::ZERO, secure)
    }

    /// What this operator's forms carry, and no other operator's; another text at each call. Empty without random bytes:
    /// the form is then rejected.
    pub(super) fn csrf_token(&self, operator: &OperatorSession) -> String {
        let TokenState::Configured(keys) = &self.token_state else { return String::new() };
        let signature = hmac::sign(&keys.signing, join_parts(&["form", &operator.id]).as_bytes());
        let tag = MacTag::try_from(signature.as_ref()).ok();
        tag.and_then(|tag| csrf::mask(&tag)).unwrap_or_default()
    }

    /// Whether a form carries one.
    pub(super) fn verify_csrf_token(&self, operator: &OperatorSession, token: &str) -> bool {
        let TokenState::Configured(keys) = &self.token_state else { return false };
        let signed = join_parts(&["form", &operator.id]);
        csrf::unmask(token).is_some_and(|tag| hmac::verify(&keys.signing, signed.as_bytes(), &tag).is_ok())
    }

    /// `Set-Cookie` of a message on the page that follows.
    pub(super) fn flash_cookie(
        &self,
        operator: &OperatorSession,
        flash: &FlashMessage,
        secure: bool,
    ) -> String {
        let text = URL_SAFE_NO_PAD.encode(flash.encode());
        let tag = self.sign(&["flash", &operator.id, &text]);
        set_cookie(FLASH_COOKIE, &format!("{text}.{tag}"), FLASH_LIFETIME, secure)
    }

    /// The message, and the `Set-Cookie` that removes it.
    pub(super) fn take_flash(
        &self,
        operator: &OperatorSession,
        headers: &HeaderMap,
        secure: bool,
    ) -> Option<(FlashMessage, String)> {
        let (text, tag) = find_cookie(headers, FLASH_COOKIE)?.rsplit_once('.')?;
        if !self.is_signed(&["flash", &operator.id, text], tag) {
            return None;
        }
        let flash = FlashMessage::decode(&URL_SAFE_NO_PAD.decode(text).ok()?)?;
        Some((flash, set_cookie(FLASH_COOKIE, "", Duration::ZERO, secure)))
    }

    fn sign(&self, parts: &[&str]) -> String {
        match &self.token_state {
            TokenState::Configured(keys) => {
                URL_SAFE_NO_PAD.encode(hmac::sign(&keys.signing, join_parts(parts).as_bytes()).as_ref())
            }
            TokenState::NotConfigured | TokenState::Unusable(_) => String::new(),
        }
    }

    fn is_signed(&self, parts: &[&str], tag: &str) -> bool {
        let TokenState::Configured(keys) = &self.token_state else { return false };
        let tag = URL_SAFE_NO_PAD.decode(tag).unwrap_or_default();
        hmac::verify(&keys.signing, join_parts(parts).as_bytes(), &tag).is_ok()
    }
}

impl TokenState {
    fn from_token(token: &Secret) -> Self {
        let signing_key = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, token.expose()), KEY_PURPOSE);
        let Ok(comparing) = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()) else {
            return Self::Unusable("the operating system has no random bytes".to_owned());
        };
        Self::Configured(Box::new(AuthKeys {
            signing: hmac::Key::new(hmac::HMAC_SHA256, signing_key.as_ref()),
            token_tag: hmac::sign(&comparing, token.expose()),
            comparison: comparing,
        }))
    }
}

/// No part contains a line feed, so no two lists are one text.
fn join_parts(parts: &[&str]) -> String {
    parts.join("\n")
}

fn random_id() -> Option<String> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(URL_SAFE_NO_PAD.encode(bytes))
}

fn find_cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let values = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let pairs = values.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.into_iter().find(|(known, _)| *known == name).map(|(_, value)| value)
}

fn set_cookie(name: &str, value: &str, age: Duration, secure: bool) -> String {
    let age = age.as_secs();
    let secure = if secure { "; Secure" } else { "" };
    format!("{name}={value}; Path=/fleet; Max-Age={age}; HttpOnly; SameSite=Strict{secure}")
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::PathBuf;

    use super::*;

    const TOKEN: &str = "a token for operators";
    const NOW: Duration = Duration::from_secs(1_000_000);

    fn auth(token: &str) -> DashboardAuth {
        let token = Some(config::parse_dashboard_token(token).unwrap());
        DashboardAuth::new(&DashboardConfig { public: false, token, token_file: None })
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn cookie_headers(set_cookie: &str) -> HeaderMap {
        headers(&[("cookie", "other=1"), ("cookie", set_cookie.split(';').next().unwrap())])
    }

    #[test]
    fn an_operator_session_is_valid_on_every_worker_until_it_expires() {
        let first = auth(TOKEN);
        let auth_of = auth;
        let auth = first;
        let operator = auth.sign_in(TOKEN, "a", NOW, NOW).unwrap();
        let cookie = auth.session_cookie(&operator, true);
        assert!(cookie.contains("HttpOnly; SameSite=Strict; Secure") && cookie.contains("Path=/fleet"));
        assert!(!cookie.contains(TOKEN) && !auth.session_cookie(&operator, false).contains("Secure"));
        let other = auth_of(TOKEN);
        assert_eq!(other.authenticate(&cookie_headers(&cookie), NOW), Some(operator.clone()));
        assert_eq!(other.authenticate(&cookie_headers(&cookie), NOW + OPERATOR_SESSION_LIFETIME), None);
        assert_eq!(auth_of("another token, too").authenticate(&cookie_headers(&cookie), NOW), None);
        let forged = cookie.replacen(&operator.id, &format!("9{}", operator.id), 1);
        assert_eq!(other.authenticate(&cookie_headers(&forged), NOW), None);
        assert_eq!(other.authenticate(&cookie_headers(&DashboardAuth::removal_cookie(false)), NOW), None);
        assert_eq!(other.authenticate(&cookie_headers(&format!("{OPERATOR_COOKIE}=.")), NOW), None);
    }

    #[test]
    fn a_form_and_a_flash_message_belong_to_one_operator_session() {
        let auth = auth(TOKEN);
        let [one, two] = [(); 2].map(|()| auth.sign_in(TOKEN, "a", NOW, NOW).unwrap());
        let token = auth.csrf_token(&one);
        assert!(auth.verify_csrf_token(&one, &token) && !auth.verify_csrf_token(&two, &token));
        assert_ne!(token, auth.csrf_token(&one), "every page has another token");
        assert!(!auth.verify_csrf_token(&one, "") && !auth.verify_csrf_token(&one, &format!("{token}x")));
        let flash = FlashMessage { ok: true, text: "2 workers <serve>".into() };
        let cookie = cookie_headers(&auth.flash_cookie(&one, &flash, false));
        assert_eq!(auth.take_flash(&one, &cookie, false).unwrap().0, flash);
        assert!(auth.take_flash(&two, &cookie, false).is_none());
    }

    #[test]
    fn wrong_tokens_are_tried_only_so_often_from_one_address() {
        let auth = auth(TOKEN);
        for presented in ["", "x", "a token for operator", "a token for operatorS", "a token for operators!"]
        {
            assert_eq!(auth.sign_in(presented, "a", NOW, NOW), Err(SignInError::WrongToken), "{presented}");
        }
        assert_eq!(auth.sign_in(TOKEN, "a", NOW, NOW), Err(SignInError::RateLimited(5)));
        assert!(auth.sign_in(TOKEN, "b", NOW, NOW).is_ok());
        let later = NOW + FAILURE_INTERVAL;
        assert!(auth.sign_in(TOKEN, "a", later, NOW).is_ok() && auth.sign_in(TOKEN, "a", later, NOW).is_ok());
        assert_eq!(auth.sign_in("x", "a", later, NOW), Err(SignInError::WrongToken));
        assert!(matches!(auth.sign_in(TOKEN, "a", later, NOW), Err(SignInError::RateLimited(_))));
    }

    #[test]
    fn without_a_token_sign_in_is_disabled_and_the_page_shows_the_reason() {
        let mut settings = DashboardConfig { public: false, token: None, token_file: None };
        let auth = DashboardAuth::new(&settings);
        assert_eq!(auth.sign_in("", "a", NOW, NOW), Err(SignInError::Disabled));
        assert!(auth.advice().unwrap().contains("dashboard.token"));
        let session = OperatorSession { id: "9999999999.x".into() };
        assert!(!auth.verify_csrf_token(&session, &auth.csrf_token(&session)));
        assert_eq!(auth.authenticate(&cookie_headers(&auth.session_cookie(&session, false)), NOW), None);
        settings.token_file = Some(PathBuf::from("/nowhere/token"));
        assert!(DashboardAuth::new(&settings).advice().unwrap().contains("/nowhere/token"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        fs::write(&file, format!("{TOKEN}\n")).unwrap();
        settings.token_file = Some(file.clone());
        assert!(DashboardAuth::new(&settings).sign_in(TOKEN, "a", NOW, NOW).is_ok());
        fs::write(&file, "short").unwrap();
        assert!(!DashboardAuth::new(&settings).is_enabled());
    }
}
