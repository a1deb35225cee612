//! Who may press the buttons: one token for all operators, a signed cookie for whoever has shown it.
//!
//! Guarantees that neither the token nor anything it could be guessed from leaves the process, that tokens are compared
//! in constant time and tried only so often, and that a form is accepted only from a page that this cookie was given.
//! Every worker signs with a key made of the token, so that any of them knows the cookie of another, over reloads too;
//! another token ends every cookie.

use std::fmt;
use std::num::NonZeroUsize;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::HeaderMap;
use http::header;
use lru::LruCache;
use ring::hmac;
use ring::rand::SecureRandom;
use ring::rand::SystemRandom;

use crate::config;
use crate::config::limit::Rate;
use crate::config::schema::Dashboard as Settings;
use crate::config::schema::Secret;
use crate::http::dashboard::said::Said;
use crate::limiter::gcra;
use crate::limiter::quota::Quota;
use crate::sys;

/// How long an operator stays signed in.
pub(super) const LIFETIME: Duration = Duration::from_secs(12 * 60 * 60);

/// The cookie that says so.
const COOKIE: &str = "regatta_fleet";

/// The cookie that carries a verdict to the page that follows.
const SAID: &str = "regatta_said";

/// How long a verdict waits for its page.
const SAID_LIFETIME: Duration = Duration::from_secs(60);

/// Wrong tokens an address may try at once, and how often one more.
const FAILURES: u64 = 5;
const FAILURE_EVERY: Duration = Duration::from_secs(5);

/// Addresses whose failures are remembered.
const REMEMBERED: NonZeroUsize = NonZeroUsize::new(1024).unwrap();

/// What the keys of different purposes are made of.
const PURPOSE: &[u8] = b"regatta dashboard v1";

/// The operators' gate; one a worker.
pub(super) struct Gate {
    lock: Lock,
    failures: Mutex<LruCache<String, u64>>,
}

/// Whether there is a token.
enum Lock {
    /// None is configured: nobody gets in.
    None,
    /// Its file cannot be used, for this reason: nobody gets in.
    Broken(String),
    /// Whoever has the token gets in.
    Keyed(Box<Keys>),
}

/// What is made of the token.
struct Keys {
    /// Signs what this gate gives away.
    signing: hmac::Key,
    /// Stands for the token in comparisons.
    token: hmac::Tag,
    /// Makes such stand-ins; random, so that they mean nothing elsewhere.
    comparing: hmac::Key,
}

/// Somebody who has shown the token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Operator {
    /// What the cookie's signature covers: its end and a random part.
    id: String,
}

/// Why somebody does not get in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Denied {
    /// There is no token to show.
    Closed,
    /// It is another one.
    Wrong,
    /// Too many wrong ones came from this address; the next may be shown after this many seconds.
    Often(u64),
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Gate").field("open", &self.is_open()).finish_non_exhaustive()
    }
}

impl Gate {
    pub(super) fn new(settings: &Settings) -> Self {
        let token = match (&settings.token, &settings.token_file) {
            (Some(token), _) => Ok(Some(token.clone())),
            (None, None) => Ok(None),
            (None, Some(file)) => {
                let read = sys::path::read_secret(file).map_err(|error| error.to_string());
                let text = read.and_then(|bytes| config::text::of_bytes(bytes).map_err(str::to_owned));
                let token = text.and_then(|text| config::operators_token(&text));
                token.map(Some).map_err(|reason| format!("{}: {reason}", file.display()))
            }
        };
        let lock = match token {
            Ok(None) => Lock::None,
            Ok(Some(token)) => Lock::of(&token),
            Err(reason) => {
                tracing::warn!(%reason, "the dashboard has no buttons, for want of a token: {reason}");
                Lock::Broken(reason)
            }
        };
        Self { lock, failures: Mutex::new(LruCache::new(REMEMBERED)) }
    }

    /// Whether anybody can get in.
    pub(super) fn is_open(&self) -> bool {
        matches!(self.lock, Lock::Keyed(_))
    }

    /// What an operator has to change so that somebody can get in; none where somebody can.
    pub(super) fn advice(&self) -> Option<String> {
        match &self.lock {
            Lock::Keyed(_) => None,
            Lock::None => Some("set dashboard.token or dashboard.token_file, and reload".to_owned()),
            Lock::Broken(reason) => Some(format!("mend dashboard.token_file and reload: {reason}")),
        }
    }

    /// Lets in whoever shows the token; `subject` is who asks, as limits know him, and `now` any clock.
    ///
    /// # Errors
    /// Why not.
    pub(super) fn admit(
        &self,
        shown: &str,
        subject: &str,
        now: Duration,
        unix: Duration,
    ) -> Result<Operator, Denied> {
        let Lock::Keyed(keys) = &self.lock else { return Err(Denied::Closed) };
        let quota = Quota::new(Rate { count: 1, period: FAILURE_EVERY }, FAILURES);
        let now_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        let charged = gcra::decide(failures.get(subject).copied(), now_us, &quota, 1);
        if !charged.reply.allowed {
            let wait_us = charged.reply.retry_after_us.unwrap_or(0);
            return Err(Denied::Often(wait_us.div_ceil(1_000_000).max(1)));
        }
        // Of two texts of one length the time to compare them says nothing; of two lengths, nothing but the guess's own.
        if hmac::verify(&keys.comparing, shown.trim().as_bytes(), keys.token.as_ref()).is_err() {
            failures.put(subject.to_owned(), charged.tat_us.unwrap_or(now_us));
            return Err(Denied::Wrong);
        }
        let until = (unix + LIFETIME).as_secs();
        Ok(Operator { id: format!("{until}.{}", random().ok_or(Denied::Closed)?) })
    }

    /// Who sent these headers, as far as the cookie says.
    pub(super) fn operator(&self, headers: &HeaderMap, unix: Duration) -> Option<Operator> {
        let (id, tag) = cookie(headers, COOKIE)?.rsplit_once('.')?;
        let until: u64 = id.split('.').next()?.parse().ok()?;
        (self.is_signed(&["cookie", id], tag) && unix.as_secs() < until)
            .then(|| Operator { id: id.to_owned() })
    }

    /// The `Set-Cookie` of somebody who was let in.
    pub(super) fn give(&self, operator: &Operator, secure: bool) -> String {
        let tag = self.sign(&["cookie", &operator.id]);
        set_cookie(COOKIE, &format!("{}.{tag}", operator.id), LIFETIME, secure)
    }

    /// The `Set-Cookie` of somebody who leaves.
    pub(super) fn take(secure: bool) -> String {
        set_cookie(COOKIE, "", Duration::ZERO, secure)
    }

    /// What this operator's forms carry, and no other operator's: another text at each call, because a constant one could be
    /// guessed from the lengths of compressed pages (BREACH).
    pub(super) fn form_token(&self, operator: &Operator) -> String {
        let mut salt = [0; 16];
        // Without random bytes there is no text, and the form is refused.
        if SystemRandom::new().fill(&mut salt).is_err() {
            return String::new();
        }
        let salt = URL_SAFE_NO_PAD.encode(salt);
        format!("{salt}.{}", self.sign(&["form", &operator.id, &salt]))
    }

    /// Whether a form carries one; those of older versions have no salt.
    pub(super) fn is_form_token(&self, operator: &Operator, token: &str) -> bool {
        match token.split_once('.') {
            Some((salt, tag)) => self.is_signed(&["form", &operator.id, salt], tag),
            None => self.is_signed(&["form", &operator.id], token),
        }
    }

    /// The `Set-Cookie` that tells this operator something on the page that follows.
    pub(super) fn tell(&self, operator: &Operator, said: &Said, secure: bool) -> String {
        let text = URL_SAFE_NO_PAD.encode(said.encode());
        let tag = self.sign(&["said", &operator.id, &text]);
        set_cookie(SAID, &format!("{text}.{tag}"), SAID_LIFETIME, secure)
    }

    /// What this operator was told, and the `Set-Cookie` by which it is not told again.
    pub(super) fn told(
        &self,
        operator: &Operator,
        headers: &HeaderMap,
        secure: bool,
    ) -> Option<(Said, String)> {
        let (text, tag) = cookie(headers, SAID)?.rsplit_once('.')?;
        if !self.is_signed(&["said", &operator.id, text], tag) {
            return None;
        }
        let said = Said::decode(&URL_SAFE_NO_PAD.decode(text).ok()?)?;
        Some((said, set_cookie(SAID, "", Duration::ZERO, secure)))
    }

    fn sign(&self, parts: &[&str]) -> String {
        match &self.lock {
            Lock::Keyed(keys) => {
                URL_SAFE_NO_PAD.encode(hmac::sign(&keys.signing, joined(parts).as_bytes()).as_ref())
            }
            Lock::None | Lock::Broken(_) => String::new(),
        }
    }

    fn is_signed(&self, parts: &[&str], tag: &str) -> bool {
        let Lock::Keyed(keys) = &self.lock else { return false };
        let tag = URL_SAFE_NO_PAD.decode(tag).unwrap_or_default();
        hmac::verify(&keys.signing, joined(parts).as_bytes(), &tag).is_ok()
    }
}

impl Lock {
    fn of(token: &Secret) -> Self {
        let made = hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, token.expose()), PURPOSE);
        let Ok(comparing) = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()) else {
            return Self::Broken("the operating system has no random bytes".to_owned());
        };
        Self::Keyed(Box::new(Keys {
            signing: hmac::Key::new(hmac::HMAC_SHA256, made.as_ref()),
            token: hmac::sign(&comparing, token.expose()),
            comparing,
        }))
    }
}

/// No part has this letter in it, so no two lists are one text.
fn joined(parts: &[&str]) -> String {
    parts.join("\n")
}

fn random() -> Option<String> {
    let mut bytes = [0; 16];
    SystemRandom::new().fill(&mut bytes).ok()?;
    Some(URL_SAFE_NO_PAD.encode(bytes))
}

fn cookie<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
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

    fn gate(token: &str) -> Gate {
        let token = Some(config::operators_token(token).unwrap());
        Gate::new(&Settings { public: false, token, token_file: None })
    }

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    fn sent(set_cookie: &str) -> HeaderMap {
        headers(&[("cookie", "other=1"), ("cookie", set_cookie.split(';').next().unwrap())])
    }

    #[test]
    fn whoever_shows_the_token_is_known_by_every_worker_until_the_evening() {
        let first = gate(TOKEN);
        let gate_of = gate;
        let gate = first;
        let operator = gate.admit(TOKEN, "a", NOW, NOW).unwrap();
        let cookie = gate.give(&operator, true);
        assert!(cookie.contains("HttpOnly; SameSite=Strict; Secure") && cookie.contains("Path=/fleet"));
        assert!(!cookie.contains(TOKEN) && !gate.give(&operator, false).contains("Secure"));
        let other = gate_of(TOKEN);
        assert_eq!(other.operator(&sent(&cookie), NOW), Some(operator.clone()));
        assert_eq!(other.operator(&sent(&cookie), NOW + LIFETIME), None);
        assert_eq!(gate_of("another token, too").operator(&sent(&cookie), NOW), None);
        let forged = cookie.replacen(&operator.id, &format!("9{}", operator.id), 1);
        assert_eq!(other.operator(&sent(&forged), NOW), None);
        assert_eq!(other.operator(&sent(&Gate::take(false)), NOW), None);
        assert_eq!(other.operator(&sent(&format!("{COOKIE}=.")), NOW), None);
    }

    #[test]
    fn a_form_is_of_one_sign_in_and_so_is_a_verdict() {
        let gate = gate(TOKEN);
        let [one, two] = [(); 2].map(|()| gate.admit(TOKEN, "a", NOW, NOW).unwrap());
        let token = gate.form_token(&one);
        assert!(gate.is_form_token(&one, &token) && !gate.is_form_token(&two, &token));
        assert_ne!(token, gate.form_token(&one), "no page has another's text");
        assert!(gate.is_form_token(&one, &gate.sign(&["form", &one.id])), "of an older version");
        assert!(!gate.is_form_token(&one, "") && !gate.is_form_token(&one, &format!("{token}x")));
        let said = Said { ok: true, text: "2 workers <serve>".into() };
        let cookie = sent(&gate.tell(&one, &said, false));
        assert_eq!(gate.told(&one, &cookie, false).unwrap().0, said);
        assert!(gate.told(&two, &cookie, false).is_none());
    }

    #[test]
    fn wrong_tokens_are_tried_only_so_often_from_one_address() {
        let gate = gate(TOKEN);
        for shown in ["", "x", "a token for operator", "a token for operatorS", "a token for operators!"] {
            assert_eq!(gate.admit(shown, "a", NOW, NOW), Err(Denied::Wrong), "{shown}");
        }
        assert_eq!(gate.admit(TOKEN, "a", NOW, NOW), Err(Denied::Often(5)));
        assert!(gate.admit(TOKEN, "b", NOW, NOW).is_ok());
        let later = NOW + FAILURE_EVERY;
        assert!(gate.admit(TOKEN, "a", later, NOW).is_ok() && gate.admit(TOKEN, "a", later, NOW).is_ok());
        assert_eq!(gate.admit("x", "a", later, NOW), Err(Denied::Wrong));
        assert!(matches!(gate.admit(TOKEN, "a", later, NOW), Err(Denied::Often(_))));
    }

    #[test]
    fn without_a_token_nobody_gets_in_and_the_page_says_why() {
        let mut settings = Settings { public: false, token: None, token_file: None };
        let gate = Gate::new(&settings);
        assert_eq!(gate.admit("", "a", NOW, NOW), Err(Denied::Closed));
        assert!(gate.advice().unwrap().contains("dashboard.token"));
        let nobody = Operator { id: "9999999999.x".into() };
        assert!(!gate.is_form_token(&nobody, &gate.form_token(&nobody)));
        assert_eq!(gate.operator(&sent(&gate.give(&nobody, false)), NOW), None);
        settings.token_file = Some(PathBuf::from("/nowhere/token"));
        assert!(Gate::new(&settings).advice().unwrap().contains("/nowhere/token"));
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("token");
        fs::write(&file, format!("{TOKEN}\n")).unwrap();
        settings.token_file = Some(file.clone());
        assert!(Gate::new(&settings).admit(TOKEN, "a", NOW, NOW).is_ok());
        fs::write(&file, "short").unwrap();
        assert!(!Gate::new(&settings).is_open());
    }
}
