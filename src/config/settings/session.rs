//! The visitor's cookie, and how long a session lives.

use std::time::Duration;

use crate::config::limits;
use crate::config::limits::Rate;
use crate::config::setting::settings;
use crate::config::settings::reference_phrases::DURATION;
use crate::config::value::choice::{CookieSecurity, SessionCreation};
use crate::config::value::secret::Secret;
use crate::config::value::{basic, bounds, choice, secret};

settings! {
    /// The visitor's cookie and how long a session lives.
    #[derive(Debug, Clone)]
    struct SessionConfig {
        /// Name of the session cookie.
        ///
        /// `__Host-` is put before it when it is secure.
        cookie: String = required(
            "session.cookie", |text| basic::word(text, 32, "-_");
            "sid", "1 to 32 letters, digits, - or _", Reload
        );
        /// Cookie signing keys; the first signs.
        ///
        /// The first signs, all are accepted; none: one is generated and kept in Redis.
        secrets: Vec<Secret> = list(
            "session.secrets", secret::secrets; "", "keys of at least 32 bytes, separated by commas", Reload,
            secret = true
        );
        /// What a visitor's session is made by.
        ///
        /// `return`: a first visit gets a signed ticket and stores nothing, and its session is made when that comes
        /// back; `write`: no cookie and no session before there are data, so that each visit until then is a first one
        /// ([Sessions](#sessions)).
        create: SessionCreation = required(
            "session.create", choice::session_creation; "return", "return or write", Reload
        );
        /// New sessions that one client may have made; what exceeds it is short-lived, and writes are refused.
        ///
        /// New sessions that one client (an address, IPv6: one network, `limits.ipv6_prefix`) may have made; beyond
        /// that sessions are short-lived, and their data are answered 429.
        create_rate: Option<Rate> = required(
            "session.create_rate", limits::rate_or_off; "60/min", "off, or a number / a time", Reload
        );
        /// New sessions that one client may have made at once.
        ///
        /// As many of them at once.
        create_burst: u64 = required(
            "session.create_burst", |text| basic::number(text, 100_000); "120", "1 to 100000", Reload
        );
        /// An unused session is gone after this.
        idle: Duration = required("session.idle", basic::positive_duration; "24h", DURATION, Reload);
        /// Any session is gone after this.
        absolute: Duration = required("session.absolute", basic::positive_duration; "30d", DURATION, Reload);
        /// Whether the cookie is sent over TLS only.
        ///
        /// Auto: as a trusted proxy's `X-Forwarded-Proto` says.
        secure: CookieSecurity = required(
            "session.secure", choice::cookie_security; "auto", "auto, always or never", Reload
        );
        /// Oldest copy of a session shown while Redis is away; 0s: none.
        ///
        /// While Redis is away, GETs are shown a session's data as last read, if that was no longer ago than this when
        /// Redis was last heard, and never a count; `0s`: 503.
        stale_if_error: Duration = required(
            "session.stale_if_error", basic::duration; "60s", DURATION, Reload,
            formerly = &["session.stale"]
        );
        /// Sessions one user may have; the oldest ends at a login beyond that.
        ///
        /// Sessions one user may have: a login beyond that ends the one that would end first, and sessions that are
        /// gone do not count; 0: as many as an index holds, 1,000.
        max_per_user: u64 = required(
            "session.max_per_user", bounds::sessions_per_user;
            "0", "0 for any number, or a number up to 1000", Reload
        );
        /// Fields whose changes are never lost: of two concurrent ones the second is refused.
        ///
        /// Fields whose changes are never lost: of two concurrent requests that change the same one, the second is
        /// answered 409 and changes nothing; of other fields the last one wins ([Sessions](#sessions)).
        strict_fields: Vec<String> = list(
            "session.strict_fields", |items| Ok(items.to_vec());
            "", "names of session fields, separated by commas", Reload,
            formerly = &["session.strict"]
        );
        /// Encrypt session fields at rest; the first key encrypts, all decrypt.
        ///
        /// Session fields are encrypted at rest (AES-256-GCM): the first key encrypts, all decrypt; none: they are
        /// stored as they are.
        encryption_keys: Vec<Secret> = list(
            "session.encryption_keys", secret::secrets;
            "", "keys of at least 32 bytes, separated by commas", Reload,
            secret = true
        );
    }
}
