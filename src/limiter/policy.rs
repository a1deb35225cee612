//! The configured policies, ready to use: whom each of them counts, and what it asks of Redis.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;

use crate::config::limits::{
    Enforcement, LimitConfig, LimitKind, LimitScope, LimitTiming, OnRedisDown, OnRedisFull, PrefetchMode,
    SubjectKind,
};
use crate::limiter::applied_limits::{AppliedLimits, AppliedPolicy};
use crate::limiter::quota::Quota;
use crate::limiter::route::{LimitRoute, RequestPath};
use crate::redis::begin::{LimitParameters, RateLimitCheck};
use crate::redis::keys;

/// Every policy that is switched on; cheap to clone.
#[derive(Debug, Clone)]
pub struct PolicyTable {
    all: Arc<[LimitPolicy]>,
    /// What most requests fall under: the policies without routes. Made once, so that choosing them allocates nothing.
    common: Arc<[AppliedPolicy]>,
    /// Whether one of them holds for every request, be state used or not.
    everywhere: bool,
    /// Whether they are the same for all methods, and no header has to be read for these or for a layer.
    simple: bool,
}

/// One policy, ready to use.
#[derive(Debug)]
pub struct LimitPolicy {
    name: String,
    measure: PolicyMeasure,
    per: SubjectKind,
    scope: PolicyScope,
    methods: Vec<String>,
    cost: u64,
    effect: Enforcement,
    on_redis_down: OnRedisDown,
    on_redis_full: OnRedisFull,
    /// Number of the policy by which one client is bounded over all values of a header.
    companion: Option<usize>,
    /// `{prefix}` and the version, which changes with the quota: a changed policy starts anew instead of
    /// misreading arrival times of another one.
    prefix: String,
    version: String,
}

/// Where a policy applies.
#[derive(Debug, Clone, PartialEq, Eq)]
enum PolicyScope {
    Everywhere,
    State,
    Routes(Vec<LimitRoute>, LimitTiming),
    /// Where the application, or the policy that it goes with, puts it.
    Attached,
}

/// What a policy counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyMeasure {
    /// Requests over time.
    Rate {
        /// How much.
        quota: Quota,
        /// When workers draw quota in advance.
        lease: PrefetchMode,
    },
    /// Requests under way.
    Concurrency {
        /// Most at the same time.
        max: u64,
        /// How long a place is kept that nobody renews.
        lease: Duration,
    },
}

/// Whom a request belongs to.
#[derive(Debug, Clone, Copy, Default)]
pub struct LimitSubject<'a> {
    /// The client's address as text (IPv6: its network).
    pub client: &'a str,
    /// Digest of the session whose cookie was genuine and no ticket: those can be had in any number.
    pub session: Option<&'a str>,
    /// Tag of the user who is logged in.
    pub user: Option<&'a str>,
}

impl PolicyTable {
    /// Prepares the configured policies; all their keys begin with `prefix`.
    pub fn new(limits: &BTreeMap<String, LimitConfig>, prefix: &str) -> Self {
        let on = limits.iter().filter(|(_, limit)| limit.enforcement != Enforcement::Disabled);
        let mut all: Vec<LimitPolicy> =
            on.clone().map(|(name, limit)| LimitPolicy::new(name, limit, prefix)).collect();
        for (index, (name, limit)) in on.enumerate() {
            if matches!(limit.subject, SubjectKind::Header(_)) && limit.client_factor > 0 {
                all[index].companion = Some(all.len());
                all.push(LimitPolicy::companion(name, limit, prefix));
            }
        }
        let common = all.iter().enumerate().filter(|(_, policy)| policy.is_common());
        let chosen =
            common.clone().map(|(index, policy)| AppliedPolicy::new(index, None, policy.cost)).collect();
        let plain =
            |policy: &LimitPolicy| policy.methods.is_empty() && !matches!(policy.per, SubjectKind::Header(_));
        Self {
            common: chosen,
            everywhere: all.iter().any(|policy| policy.scope == PolicyScope::Everywhere),
            simple: common.map(|(_, policy)| policy).all(plain) && !all.iter().any(LimitPolicy::needs_header),
            all: all.into(),
        }
    }

    /// The policies for a request; `header` gives a header's value. Allocates only if a policy names the path, a
    /// method or a header, or the path has a plainer spelling.
    pub fn select<'h>(
        &self,
        method: &str,
        path: &str,
        header: impl Fn(&str) -> Option<&'h [u8]>,
    ) -> AppliedLimits {
        let path = RequestPath::new(path);
        let routed = |policy: &LimitPolicy| policy.route(&path).is_some() && policy.matches_method(method);
        if self.simple && !self.all.iter().any(routed) {
            return AppliedLimits::new(
                Arc::clone(&self.all),
                Arc::clone(&self.common),
                Vec::new(),
                self.everywhere,
            );
        }
        let tag = |(index, policy): (usize, &LimitPolicy)| match &policy.per {
            SubjectKind::Header(name) => header(name).map(|value| (index, header_digest(value))),
            _ => None,
        };
        let tags: Vec<(usize, String)> = self.all.iter().enumerate().filter_map(tag).collect();
        let (mut chosen, mut is_named) = (Vec::new(), false);
        for (index, policy) in self.all.iter().enumerate() {
            let route = policy.route(&path);
            if !(route.is_some() || policy.is_common()) || !policy.matches_method(method) {
                continue;
            }
            is_named |= policy.is_decided_first();
            chosen.push(AppliedPolicy::new(index, route, policy.cost));
            let companion = policy.companion.filter(|_| tags.iter().any(|(tagged, _)| *tagged == index));
            chosen.extend(companion.map(|companion| AppliedPolicy::new(companion, None, policy.cost)));
        }
        AppliedLimits::new(Arc::clone(&self.all), chosen.into(), tags, is_named)
    }

    /// The policy with this name, and its number; `None`: there is none, or it is switched off.
    pub fn find(&self, name: &str) -> Option<(usize, &LimitPolicy)> {
        self.all.iter().enumerate().find(|(_, policy)| policy.name == name)
    }

    /// Whether the policy with this name refuses strangers while Redis is nearly full.
    pub fn closes_when_full(&self, name: &str) -> bool {
        self.find(name).is_some_and(|(_, policy)| policy.closes_when_full())
    }

    /// Names of all policies that are switched on.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|policy| policy.name.as_str())
    }
}

/// How a header's value is known: neither logs nor Redis need to see somebody's key. The digest holds no `.` and no
/// `:`, so it is never taken for an address.
pub fn header_digest(value: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, value);
    format!("h-{}", URL_SAFE_NO_PAD.encode(&digest.as_ref()[..16]))
}

impl LimitPolicy {
    fn new(name: &str, limit: &LimitConfig, prefix: &str) -> Self {
        let measure = match limit.kind {
            LimitKind::Rate { rate, burst, prefetch: lease } => {
                PolicyMeasure::Rate { quota: Quota::new(rate, burst), lease }
            }
            LimitKind::Concurrency { max: most, lease } => PolicyMeasure::Concurrency { max: most, lease },
        };
        let identity = match measure {
            PolicyMeasure::Rate { quota, .. } => {
                format!("{} {} {:?}", quota.interval_us(), quota.tolerance_us(), limit.subject)
            }
            // Places are places, however many there are.
            PolicyMeasure::Concurrency { .. } => format!("concurrent {:?}", limit.subject),
        };
        let digest = digest::digest(&digest::SHA256, identity.as_bytes());
        let place = match &limit.scope {
            LimitScope::Everywhere => PolicyScope::Everywhere,
            LimitScope::State => PolicyScope::State,
            LimitScope::Routes { paths, when } => {
                PolicyScope::Routes(paths.iter().map(|path| LimitRoute::new(path)).collect(), *when)
            }
            LimitScope::Layer => PolicyScope::Attached,
        };
        Self {
            name: name.to_owned(),
            measure,
            per: limit.subject.clone(),
            scope: place,
            methods: limit.methods.clone(),
            cost: limit.cost,
            effect: limit.enforcement,
            on_redis_down: limit.on_redis_down,
            on_redis_full: limit.on_redis_full,
            companion: None,
            prefix: prefix.to_owned(),
            version: URL_SAFE_NO_PAD.encode(&digest.as_ref()[..6]),
        }
    }

    /// The policy that goes with one that counts by a header: a client that invents values gets a bucket for each, and
    /// all of them together are so many times the limit. Its name is none that an operator can choose.
    fn companion(name: &str, limit: &LimitConfig, prefix: &str) -> Self {
        let of = Self::new(
            &format!("{name}/client"),
            &LimitConfig { subject: SubjectKind::Client, ..limit.clone() },
            prefix,
        );
        let factor = limit.client_factor;
        let measure = match of.measure {
            PolicyMeasure::Rate { quota, lease } => {
                PolicyMeasure::Rate { quota: quota.scaled(factor), lease }
            }
            PolicyMeasure::Concurrency { max: most, lease } => {
                PolicyMeasure::Concurrency { max: most.saturating_mul(factor), lease }
            }
        };
        let version = format!("{}{factor}", of.version);
        Self { measure, scope: PolicyScope::Attached, methods: Vec::new(), version, ..of }
    }

    /// Whether it holds whatever the path is.
    fn is_common(&self) -> bool {
        matches!(self.scope, PolicyScope::Everywhere | PolicyScope::State)
    }

    /// Whether the application may put a request under it that has to be known by its header then.
    fn needs_header(&self) -> bool {
        self.scope == PolicyScope::Attached && matches!(self.per, SubjectKind::Header(_))
    }

    /// Whether it is decided before the handler, and not with the first use of state.
    fn is_decided_first(&self) -> bool {
        matches!(self.scope, PolicyScope::Everywhere | PolicyScope::Routes(_, LimitTiming::BeforeHandler))
    }

    /// The number of the policy that goes with it for requests that have its header.
    pub(super) fn companion_index(&self) -> Option<usize> {
        self.companion
    }

    /// Whether strangers are refused while Redis is nearly full.
    pub(super) fn closes_when_full(&self) -> bool {
        self.on_redis_full == OnRedisFull::Closed && self.effect == Enforcement::Enforced
    }

    /// Its name: letters, digits, `-` and `_`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it counts.
    pub fn measure(&self) -> PolicyMeasure {
        self.measure
    }

    /// What one request counts for, unless somebody says otherwise.
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// Whose requests it counts together.
    pub fn per(&self) -> &SubjectKind {
        &self.per
    }

    /// Its routes; none unless it has some.
    pub fn routes(&self) -> impl Iterator<Item = &str> {
        let routes = match &self.scope {
            PolicyScope::Routes(routes, _) => routes.as_slice(),
            PolicyScope::Everywhere | PolicyScope::State | PolicyScope::Attached => &[],
        };
        routes.iter().map(LimitRoute::text)
    }

    /// Whether it only counts and denies nobody.
    pub fn is_shadow(&self) -> bool {
        self.effect == Enforcement::Shadow
    }

    /// What becomes of its requests while Redis is away.
    pub fn on_redis_down(&self) -> OnRedisDown {
        self.on_redis_down
    }

    /// Whether a request of this cost can ever be allowed.
    pub fn allows_cost(&self, cost: u64) -> bool {
        match self.measure {
            PolicyMeasure::Rate { quota, .. } => cost <= quota.burst(),
            PolicyMeasure::Concurrency { .. } => cost <= 1,
        }
    }

    /// Key of one subject's limit.
    pub fn key(&self, subject: &str) -> String {
        keys::limit(&self.prefix, &self.name, &self.version, subject)
    }

    /// The longest of its routes that the path lies under: that one speaks for it.
    fn route(&self, path: &RequestPath<'_>) -> Option<usize> {
        let PolicyScope::Routes(routes, _) = &self.scope else { return None };
        let routes = routes.iter().enumerate().filter(|(_, route)| route.covers(path));
        routes.max_by_key(|(_, route)| route.text().len()).map(|(index, _)| index)
    }

    /// Whether it holds for a method. HEAD is answered by the handlers of GET, and a method in small letters by those
    /// that take any.
    fn matches_method(&self, method: &str) -> bool {
        let is = |one: &String| {
            one.eq_ignore_ascii_case(method) || (one == "GET" && method.eq_ignore_ascii_case("HEAD"))
        };
        self.methods.is_empty() || self.methods.iter().any(is)
    }

    /// The key of a subject without a request, whose header and path are therefore not known.
    pub(super) fn subject_key(&self, subject: &LimitSubject<'_>) -> String {
        self.check_for(AppliedPolicy::new(0, None, 0), subject, None).key
    }

    /// What it asks of Redis; `tag` is what stands for its header.
    pub(super) fn check_for(
        &self,
        chosen: AppliedPolicy,
        subject: &LimitSubject<'_>,
        tag: Option<&str>,
    ) -> RateLimitCheck {
        let LimitSubject { client, session, user } = *subject;
        let key = match self.per {
            SubjectKind::Client => self.key(client),
            SubjectKind::Session => self.key(session.unwrap_or(client)),
            SubjectKind::User => match user {
                Some(user) => self.key(&format!("u-{user}")),
                None => self.key(session.unwrap_or(client)),
            },
            SubjectKind::Route => {
                let route = chosen.route.and_then(|index| self.routes().nth(index));
                self.key(&format!("{client}{}", route.unwrap_or_default()))
            }
            SubjectKind::Header(_) => self.key(tag.unwrap_or(client)),
            SubjectKind::Global => self.key("*"),
        };
        let kind = match self.measure {
            PolicyMeasure::Rate { quota, .. } => {
                LimitParameters::Rate { interval_us: quota.interval_us(), tolerance_us: quota.tolerance_us() }
            }
            PolicyMeasure::Concurrency { max: most, lease } => {
                LimitParameters::Concurrency { lease_us: micros(lease), max: most }
            }
        };
        RateLimitCheck { key, parameters: kind, shadow: self.is_shadow(), cost: chosen.cost }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
