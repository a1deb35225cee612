//! A limit that the program makes: whose requests it counts together, and how it joins a request's other limits.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering::Relaxed;

use http::HeaderName;
use http::request::Parts;

use crate::config::limits::{OnRedisDown, SubjectKind};
use crate::http::error::RequestError;
use crate::http::request_state::RequestState;
use crate::http::services::state::{ConfiguredLimit, StateServices};
use crate::http::standalone::quota::LimitQuota;
use crate::limiter::policy::{LimitPolicy, header_digest};

/// Stands where a policy has a header's name; no header is called so.
const OWN_KEY: &str = "(key)";

/// Under a header that clients choose, one client may use so many times the limit under all values together.
const CLIENT_FACTOR: u64 = 10;

/// Whose requests are counted together.
///
/// ```
/// use axum::http::HeaderName;
/// use regatta::rate_limit::Key;
///
/// let tenant = Key::by(|parts| parts.uri.path().split('/').nth(1).map(str::to_owned));
/// let api_key = Key::header(HeaderName::from_static("x-api-key"));
/// let others = [Key::user(), Key::session(), Key::client_ip(), Key::global()];
/// # let _ = (tenant, api_key, others);
/// ```
#[derive(Clone)]
pub struct Key(KeyKind);

type KeyFn = dyn Fn(&Parts) -> Option<String> + Send + Sync;

#[derive(Clone)]
enum KeyKind {
    Client,
    User,
    Session,
    Global,
    Header(HeaderName),
    Own(Arc<KeyFn>),
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            KeyKind::Client => f.write_str("Key(client_ip)"),
            KeyKind::User => f.write_str("Key(user)"),
            KeyKind::Session => f.write_str("Key(session)"),
            KeyKind::Global => f.write_str("Key(global)"),
            KeyKind::Header(name) => write!(f, "Key(header {name})"),
            KeyKind::Own(_) => f.write_str("Key(by)"),
        }
    }
}

impl Key {
    /// One client address; of IPv6 one network of 56 bits, as one subscriber has.
    pub fn client_ip() -> Self {
        Self(KeyKind::Client)
    }

    /// One user who is logged in; requests of others count by session, and without one by client address. A session layer
    /// has to be outside of the limit.
    pub fn user() -> Self {
        Self(KeyKind::User)
    }

    /// One session; requests without one count by client address. A session layer has to be outside of the limit.
    pub fn session() -> Self {
        Self(KeyKind::Session)
    }

    /// All requests together. Around one route it counts that route, whatever the client: so each route that is to be counted
    /// by itself gets a layer with a name of its own.
    pub fn global() -> Self {
        Self(KeyKind::Global)
    }

    /// One value of this header; requests without it count by client address. A client may use ten times the limit under
    /// all values together, or it could invent values without end.
    pub fn header(name: HeaderName) -> Self {
        Self(KeyKind::Header(name))
    }

    /// What the program makes of a request; `None`: it counts by client address. Only a digest is stored.
    pub fn by<F>(key: F) -> Self
    where
        F: Fn(&Parts) -> Option<String> + Send + Sync + 'static,
    {
        Self(KeyKind::Own(Arc::new(key)))
    }

    fn subject(&self) -> SubjectKind {
        match &self.0 {
            KeyKind::Client => SubjectKind::Client,
            KeyKind::User => SubjectKind::User,
            KeyKind::Session => SubjectKind::Session,
            KeyKind::Global => SubjectKind::Global,
            KeyKind::Header(name) => SubjectKind::Header(name.as_str().to_owned()),
            KeyKind::Own(_) => SubjectKind::Header(OWN_KEY.to_owned()),
        }
    }

    /// How many times the limit one client may use under all values together, if the value is the client's choice: what a
    /// program makes of a request is its own.
    fn client_factor(&self) -> u64 {
        if matches!(self.0, KeyKind::Header(_)) { CLIENT_FACTOR } else { 0 }
    }

    /// What stands for the request, if it is neither its client nor its session.
    fn tag(&self, parts: &Parts) -> Option<String> {
        match &self.0 {
            KeyKind::Header(name) => parts.headers.get(name).map(|value| header_digest(value.as_bytes())),
            KeyKind::Own(key) => key(parts).map(|key| header_digest(key.as_bytes())),
            _ => None,
        }
    }

    /// Whether the request can be counted as it is to be.
    ///
    /// # Errors
    /// Which layer is missing: without it all requests would count together.
    fn check(&self, state: &RequestState, tag: Option<&str>) -> Result<(), RequestError> {
        if matches!(self.0, KeyKind::User | KeyKind::Session) && !state.services.has_sessions {
            return Err(RequestError::MissingSessionLayer);
        }
        let without_client = match self.0 {
            KeyKind::Global => true,
            KeyKind::Client => false,
            KeyKind::Header(_) | KeyKind::Own(_) => tag.is_some(),
            KeyKind::Session => state.visitor.confirmed_digest().is_some(),
            KeyKind::User => state.visitor.user().is_some() || state.visitor.confirmed_digest().is_some(),
        };
        match without_client || state.client_is_known {
            true => Ok(()),
            false => Err(RequestError::MissingClientAddress),
        }
    }
}

/// A limit that the program makes, ready to use.
#[derive(Debug)]
pub(crate) struct InCodeLimit {
    policy: Arc<LimitPolicy>,
    /// Bounds one client over all values of a header.
    companion: Option<Arc<LimitPolicy>>,
    key: Key,
    /// Whether the configuration switches it off; only known of one whose key the caller names.
    is_disabled: bool,
    /// Whether it was logged that it can never allow what its layer makes a request cost.
    is_cost_logged: AtomicBool,
}

impl InCodeLimit {
    /// `prefix` is the first part of every key in Redis.
    pub(crate) fn new(
        name: &str,
        quota: LimitQuota,
        key: Key,
        on_redis_down: OnRedisDown,
        prefix: &str,
    ) -> Self {
        let limit = quota.to_limit(key.subject(), key.client_factor(), on_redis_down);
        let (policy, companion) = LimitPolicy::in_code(&policy_name(name), &limit, prefix);
        Self { policy, companion, key, is_disabled: false, is_cost_logged: AtomicBool::new(false) }
    }

    /// The same for a key that the caller names. A policy of the configuration with this name says how much and what
    /// happens without Redis; the key stays the caller's.
    pub(crate) fn keyed(name: &str, quota: LimitQuota, services: &StateServices) -> Self {
        let key = Key::by(|_| None);
        let subject = key.subject();
        let own = Self::new(name, quota, key, OnRedisDown::Local, &services.prefix);
        match services.configured_limit(own.policy.name()) {
            ConfiguredLimit::Absent => own,
            ConfiguredLimit::Disabled => Self { is_disabled: true, ..own },
            ConfiguredLimit::Policy(_, policy) => {
                Self { policy: Arc::new(policy.counting_by(subject)), ..own }
            }
        }
    }

    /// Applies it to a request; it is decided with what else is undecided. A policy of the configuration with its name
    /// stands for it, whole.
    ///
    /// # Errors
    /// `MissingSessionLayer`, `MissingClientAddress`, and why the request is refused already.
    pub(crate) async fn apply(
        &self,
        state: &RequestState,
        parts: &Parts,
        cost: Option<u64>,
    ) -> Result<(), RequestError> {
        match state.services.configured_limit(self.policy.name()) {
            ConfiguredLimit::Disabled => return Ok(()),
            ConfiguredLimit::Policy(number, _) => return state.add_policy(number, cost).await,
            ConfiguredLimit::Absent => {}
        }
        let tag = self.key.tag(parts);
        self.key.check(state, tag.as_deref())?;
        self.log_impossible_cost(cost);
        // Clients that cannot be told from each other are not bounded together.
        let companion = self.companion.as_ref().filter(|_| tag.is_some() && state.client_is_known);
        state.add_policy_in_code([Some(&self.policy), companion], tag.as_deref(), cost).await
    }

    /// Applies it to what has this key.
    ///
    /// # Errors
    /// Why the request is refused already.
    pub(crate) async fn apply_to(
        &self,
        state: &RequestState,
        key: &str,
        cost: u64,
    ) -> Result<(), RequestError> {
        if self.is_disabled {
            return Ok(());
        }
        self.log_impossible_cost(Some(cost));
        let tag = header_digest(key.as_bytes());
        state.add_policy_in_code([Some(&self.policy), None], Some(&tag), Some(cost)).await
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        self.policy.name()
    }

    /// Whether a request of this cost can ever be allowed.
    pub(crate) fn allows_cost(&self, cost: u64) -> bool {
        self.policy.allows_cost(cost)
    }

    /// The key in Redis of what has this key.
    pub(crate) fn redis_key(&self, key: &str) -> String {
        self.policy.key(&header_digest(key.as_bytes()))
    }

    fn log_impossible_cost(&self, cost: Option<u64>) {
        let cost = cost.unwrap_or(self.policy.cost());
        if !self.policy.allows_cost(cost) && !self.is_cost_logged.swap(true, Relaxed) {
            let name = self.policy.name();
            tracing::error!(
                policy = name,
                cost,
                "the limit {name} can never allow a request that counts for {cost}: every such request is answered 429"
            );
        }
    }
}

/// A name as it may stand in a header and a key: other characters become hyphens.
fn policy_name(name: &str) -> String {
    let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '_' { c } else { '-' };
    let name: String = name.chars().take(64).map(allowed).collect();
    if name.is_empty() { "limit".to_owned() } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_stand_in_a_header_whatever_it_is() {
        assert_eq!(policy_name("site"), "site");
        assert_eq!(policy_name("a b\"c;d\n"), "a-b-c-d-");
        assert_eq!(policy_name(""), "limit");
        assert_eq!(policy_name(&"x".repeat(99)).len(), 64);
    }

    #[test]
    fn only_what_clients_choose_is_bounded_for_one_client() {
        let is_bounded = |key: Key| {
            let quota = LimitQuota::per_second(1);
            InCodeLimit::new("site", quota, key, OnRedisDown::Open, "test").companion.is_some()
        };
        let header = Key::header(HeaderName::from_static("x-api-key"));
        assert_eq!((header.client_factor(), is_bounded(header)), (CLIENT_FACTOR, true));
        for key in [Key::by(|_| None), Key::client_ip(), Key::user(), Key::session(), Key::global()] {
            assert_eq!((key.client_factor(), is_bounded(key.clone())), (0, false), "{key:?}");
        }
    }

    #[test]
    fn what_clients_send_and_programs_choose_is_a_digest() {
        let (mut parts, ()) = http::Request::new(()).into_parts();
        parts.headers.insert("x-api-key", "hunter2".parse().unwrap());
        let header = Key::header(HeaderName::from_static("x-api-key")).tag(&parts).unwrap();
        assert!(header.starts_with("h-") && !header.contains("hunter2"));
        assert_eq!(Key::by(|_| Some("hunter2".to_owned())).tag(&parts).unwrap(), header);
        assert_eq!(Key::header(HeaderName::from_static("x-other")).tag(&parts), None);
        assert_eq!(Key::client_ip().tag(&parts), None);
    }
}
