//! The configured policies, ready to use: whose requests each of them counts, and which checks it makes for Redis.

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
use crate::limiter::commands::{LimitParameters, RateLimitCheck};
use crate::limiter::gcra::Quota;
use crate::limiter::keys;
use crate::limiter::route::{LimitRoute, RequestPath};

/// All enabled policies; cheap to clone.
#[derive(Debug, Clone)]
pub struct PolicyTable {
    all: Arc<[LimitPolicy]>,
    /// The policies without routes, which most requests fall under. Prepared once, so that selecting them allocates
    /// nothing.
    common: Arc<[AppliedPolicy]>,
    /// Whether one of them applies to every request, also to one that uses no state.
    everywhere: bool,
    /// Whether they are the same for all methods, and no policy needs a header.
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
    /// Index of the policy that bounds one client over all values of a header.
    companion: Option<usize>,
    /// `{prefix}` and the version, which changes with the quota: a changed policy starts anew instead of misreading
    /// arrival times of another quota.
    prefix: String,
    version: String,
}

/// Where a policy applies.
#[derive(Debug, Clone, PartialEq, Eq)]
enum PolicyScope {
    Everywhere,
    State,
    Routes(Vec<LimitRoute>, LimitTiming),
    /// Where the application, or the policy it accompanies, applies it.
    Attached,
}

/// What a policy counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PolicyMeasure {
    /// Requests over time.
    Rate {
        /// Rate and burst.
        quota: Quota,
        /// When workers prefetch quota.
        lease: PrefetchMode,
    },
    /// Concurrent requests.
    Concurrency {
        /// Most at the same time.
        max: u64,
        /// How long a permit lasts without a renewal.
        lease: Duration,
    },
}

/// Whose request it is.
#[derive(Debug, Clone, Copy, Default)]
pub struct LimitSubject<'a> {
    /// The client's address as text (IPv6: its network).
    pub client: &'a str,
    /// Digest of the session of a verified cookie. A cookie without a stored session does not count: a client can get
    /// any number of them.
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
        let chosen = common.clone().map(|(index, policy)| AppliedPolicy::new(index, policy.cost)).collect();
        let plain =
            |policy: &LimitPolicy| policy.methods.is_empty() && !matches!(policy.per, SubjectKind::Header(_));
        Self {
            common: chosen,
            everywhere: all.iter().any(|policy| policy.scope == PolicyScope::Everywhere),
            simple: common.map(|(_, policy)| policy).all(plain) && !all.iter().any(LimitPolicy::needs_header),
            all: all.into(),
        }
    }

    /// Selects the policies for a request; `header` returns a header's value. Allocates only if a policy names the
    /// path, a method or a header, or the path has to be normalized.
    pub fn select<'h>(
        &self,
        method: &str,
        path: &str,
        header: impl Fn(&str) -> Option<&'h [u8]>,
    ) -> AppliedLimits {
        let path = RequestPath::new(path);
        let routed = |policy: &LimitPolicy| policy.covers(&path) && policy.matches_method(method);
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
            if !(policy.covers(&path) || policy.is_common()) || !policy.matches_method(method) {
                continue;
            }
            is_named |= policy.is_decided_first();
            chosen.push(AppliedPolicy::new(index, policy.cost));
            let companion = policy.companion.filter(|_| tags.iter().any(|(tagged, _)| *tagged == index));
            chosen.extend(companion.map(|companion| AppliedPolicy::new(companion, policy.cost)));
        }
        AppliedLimits::new(Arc::clone(&self.all), chosen.into(), tags, is_named)
    }

    /// No policy, for what is no request.
    pub fn none(&self) -> AppliedLimits {
        AppliedLimits::new(Arc::clone(&self.all), Arc::default(), Vec::new(), false)
    }

    /// The policy with this name, and its index; `None`: there is none, or it is disabled.
    pub fn find(&self, name: &str) -> Option<(usize, &LimitPolicy)> {
        self.all.iter().enumerate().find(|(_, policy)| policy.name == name)
    }

    /// Whether the policy with this name rejects clients that are not logged in while Redis is nearly full.
    pub fn closes_when_full(&self, name: &str) -> bool {
        self.find(name).is_some_and(|(_, policy)| policy.closes_when_full())
    }

    /// Names of all enabled policies.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|policy| policy.name.as_str())
    }
}

/// What stands for a header's value, which may be a secret, in logs and in Redis. The digest holds no `.` and no `:`,
/// so it never equals an address.
pub fn header_digest(value: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, value);
    format!("h-{}", URL_SAFE_NO_PAD.encode(&digest.as_ref()[..16]))
}

/// What changes with the quota and the subject.
fn version(measure: PolicyMeasure, subject: &SubjectKind) -> String {
    let identity = match measure {
        PolicyMeasure::Rate { quota, .. } => {
            format!("{} {} {subject:?}", quota.interval_us(), quota.tolerance_us())
        }
        // Another number of permits keeps the key: the leases under it stay valid.
        PolicyMeasure::Concurrency { .. } => format!("concurrent {subject:?}"),
    };
    let digest = digest::digest(&digest::SHA256, identity.as_bytes());
    URL_SAFE_NO_PAD.encode(&digest.as_ref()[..6])
}

impl LimitPolicy {
    fn new(name: &str, limit: &LimitConfig, prefix: &str) -> Self {
        let measure = match limit.kind {
            LimitKind::Rate { rate, burst, prefetch: lease } => {
                PolicyMeasure::Rate { quota: Quota::new(rate, burst), lease }
            }
            LimitKind::Concurrency { max, lease } => PolicyMeasure::Concurrency { max, lease },
        };
        let scope = match &limit.scope {
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
            scope,
            methods: limit.methods.clone(),
            cost: limit.cost,
            effect: limit.enforcement,
            on_redis_down: limit.on_redis_down,
            on_redis_full: limit.on_redis_full,
            companion: None,
            prefix: prefix.to_owned(),
            version: version(measure, &limit.subject),
        }
    }

    /// The same with another subject, where the program applies it.
    pub fn counting_by(&self, subject: SubjectKind) -> Self {
        Self {
            name: self.name.clone(),
            version: version(self.measure, &subject),
            per: subject,
            scope: PolicyScope::Attached,
            methods: Vec::new(),
            companion: None,
            prefix: self.prefix.clone(),
            ..*self
        }
    }

    /// A policy that is in no configuration, and where it counts by a header the one that accompanies it.
    pub fn in_code(name: &str, limit: &LimitConfig, prefix: &str) -> (Arc<Self>, Option<Arc<Self>>) {
        let accompanied = matches!(limit.subject, SubjectKind::Header(_)) && limit.client_factor > 0;
        let companion = accompanied.then(|| Arc::new(Self::companion(name, limit, prefix)));
        (Arc::new(Self::new(name, limit, prefix)), companion)
    }

    /// The policy that accompanies one per header: a client that invents values gets a bucket for each, so all of
    /// them together are bounded by a multiple of the limit. Its name is none that an operator can choose.
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

    /// Whether it applies to every path.
    fn is_common(&self) -> bool {
        matches!(self.scope, PolicyScope::Everywhere | PolicyScope::State)
    }

    /// Whether the application may apply it to a request, whose header then has to be known.
    fn needs_header(&self) -> bool {
        self.scope == PolicyScope::Attached && matches!(self.per, SubjectKind::Header(_))
    }

    /// Whether it is decided before the handler, and not with the first use of state.
    fn is_decided_first(&self) -> bool {
        matches!(self.scope, PolicyScope::Everywhere | PolicyScope::Routes(_, LimitTiming::BeforeHandler))
    }

    /// Index of the policy that accompanies it for requests with its header.
    pub(super) fn companion_index(&self) -> Option<usize> {
        self.companion
    }

    /// Whether clients that are not logged in are rejected while Redis is nearly full.
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

    /// What one request costs unless the application sets another cost.
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// The subject whose requests it counts together.
    pub fn per(&self) -> &SubjectKind {
        &self.per
    }

    /// Whether it is in shadow mode: it counts and denies nothing.
    pub fn is_shadow(&self) -> bool {
        self.effect == Enforcement::Shadow
    }

    /// What happens to its requests while Redis is unavailable.
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

    /// The key of one subject's limit.
    pub fn key(&self, subject: &str) -> String {
        keys::limit(&self.prefix, &self.name, &self.version, subject)
    }

    /// Whether the path lies under one of its routes.
    fn covers(&self, path: &RequestPath<'_>) -> bool {
        matches!(&self.scope, PolicyScope::Routes(routes, _) if routes.iter().any(|route| route.covers(path)))
    }

    /// Whether it applies to a method. The handlers of GET answer HEAD, and those for any method answer one in small
    /// letters, so both count.
    fn matches_method(&self, method: &str) -> bool {
        let is = |one: &String| {
            one.eq_ignore_ascii_case(method) || (one == "GET" && method.eq_ignore_ascii_case("HEAD"))
        };
        self.methods.is_empty() || self.methods.iter().any(is)
    }

    /// The key of a subject without a request, whose header and path are not known.
    pub(super) fn subject_key(&self, subject: &LimitSubject<'_>) -> String {
        self.check_for(AppliedPolicy::new(0, 0), subject, None).key
    }

    /// Its check for Redis; `tag` stands for its header.
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

/// The policies that apply to one request; cheap to clone.
#[derive(Debug, Clone)]
pub struct AppliedLimits {
    all: Arc<[LimitPolicy]>,
    /// Policies that are in no table: their indexes follow those of `all`.
    in_code: Vec<Arc<LimitPolicy>>,
    applied: Arc<[AppliedPolicy]>,
    /// What stands for the request's headers, by policy index.
    tags: Vec<(usize, String)>,
    names_path: bool,
}

/// A policy by index, with the route that matched and the request's cost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AppliedPolicy {
    pub(super) policy: usize,
    pub(super) cost: u64,
}

impl AppliedPolicy {
    pub(super) fn new(policy: usize, cost: u64) -> Self {
        Self { policy, cost }
    }
}

impl AppliedLimits {
    pub(super) fn new(
        all: Arc<[LimitPolicy]>,
        chosen: Arc<[AppliedPolicy]>,
        tags: Vec<(usize, String)>,
        names_path: bool,
    ) -> Self {
        Self { all, in_code: Vec::new(), applied: chosen, tags, names_path }
    }

    /// Whether no policy applies.
    pub fn is_empty(&self) -> bool {
        self.applied.is_empty()
    }

    /// The number of limits to decide; one policy may have two, when a layer charges more than was decided already.
    pub fn len(&self) -> usize {
        self.applied.len()
    }

    /// Whether a policy names the path: it is decided before the handler, even if that uses no state.
    pub fn names_path(&self) -> bool {
        self.names_path
    }

    /// Whether a client that is not logged in is rejected while Redis is nearly full; the first `decided` limits are
    /// decided already.
    pub fn closes_when_full(&self, decided: usize) -> bool {
        self.applied.iter().skip(decided).any(|chosen| self.at(chosen.policy).closes_when_full())
    }

    /// The policy of a limit.
    ///
    /// # Panics
    ///
    /// If the index is too large.
    pub fn policy(&self, limit: usize) -> &LimitPolicy {
        self.at(self.applied[limit].policy)
    }

    /// A policy by its index.
    fn at(&self, policy: usize) -> &LimitPolicy {
        self.all.get(policy).unwrap_or_else(|| &self.in_code[policy - self.all.len()])
    }

    /// Applies a policy that is in no table, with what stands for the request if it counts by something of its own; the
    /// first `decided` limits are charged already.
    pub fn add_in_code(
        &mut self,
        policy: &Arc<LimitPolicy>,
        tag: Option<&str>,
        cost: Option<u64>,
        decided: usize,
    ) {
        let known = self.in_code.iter().position(|known| Arc::ptr_eq(known, policy));
        let index = self.all.len() + known.unwrap_or(self.in_code.len());
        if known.is_none() {
            self.in_code.push(Arc::clone(policy));
            self.tags.extend(tag.map(|tag| (index, tag.to_owned())));
        }
        let cost = cost.unwrap_or(policy.cost());
        match cost == 0 && known.is_none() {
            // It charges nothing, and the client is told what is left all the same.
            true => {
                self.applied = self.applied.iter().copied().chain([AppliedPolicy::new(index, 0)]).collect()
            }
            false => self.set_cost(index, cost, decided),
        }
    }

    /// Applies a policy by its index, or raises the request's cost there; the first `decided` limits are charged
    /// already.
    pub fn add_policy(&mut self, policy: usize, cost: Option<u64>, decided: usize) {
        let Some(own) = self.all.get(policy) else { return };
        let (cost, companion) = (cost.unwrap_or(own.cost()), own.companion_index());
        self.set_cost(policy, cost, decided);
        if let Some(companion) = companion.filter(|_| self.tags.iter().any(|(tagged, _)| *tagged == policy)) {
            self.set_cost(companion, cost, decided);
        }
    }

    fn set_cost(&mut self, policy: usize, cost: u64, decided: usize) {
        let measure = self.at(policy).measure();
        let mut chosen = self.applied.to_vec();
        let open = chosen.iter().skip(decided).position(|chosen| chosen.policy == policy);
        match open {
            Some(position) => chosen[decided + position].cost = cost,
            None => {
                let paid = chosen.iter().filter(|chosen| chosen.policy == policy);
                let missing = match measure {
                    PolicyMeasure::Rate { .. } => cost.saturating_sub(paid.map(|chosen| chosen.cost).sum()),
                    PolicyMeasure::Concurrency { .. } => cost.saturating_sub(paid.count() as u64),
                };
                if missing == 0 {
                    return;
                }
                chosen.push(AppliedPolicy::new(policy, missing));
            }
        }
        self.applied = chosen.into();
    }

    /// Charges so much more under every rate policy; the first `decided` limits are charged already.
    pub fn charge(&mut self, cost: u64, decided: usize) {
        let mut chosen = self.applied.to_vec();
        for index in 0..decided.min(chosen.len()) {
            let more = AppliedPolicy { cost, ..chosen[index] };
            let is_rate = matches!(self.at(more.policy).measure(), PolicyMeasure::Rate { .. });
            if is_rate && !chosen[..index].iter().any(|before| before.policy == more.policy) {
                chosen.push(more);
            }
        }
        self.applied = chosen.into();
    }

    /// The checks for Redis, from this limit on.
    pub fn checks(&self, from: usize, subject: &LimitSubject<'_>) -> Vec<RateLimitCheck> {
        let arg = |chosen: &AppliedPolicy| {
            let tag = self.tags.iter().find(|(policy, _)| *policy == chosen.policy);
            self.at(chosen.policy).check_for(*chosen, subject, tag.map(|(_, tag)| tag.as_str()))
        };
        self.applied.iter().skip(from).map(arg).collect()
    }

    /// The enforced policies, each with the index of its last limit: of two limits of one policy the last decision
    /// counts.
    pub(super) fn enforced(&self) -> impl Iterator<Item = (usize, &LimitPolicy)> + Clone {
        let is_last = |index: usize| {
            let policy = self.applied[index].policy;
            !self.applied[index + 1..].iter().any(|later| later.policy == policy)
        };
        let last = (0..self.applied.len()).filter(move |index| is_last(*index));
        last.map(|index| (index, self.policy(index))).filter(|(_, policy)| !policy.is_shadow())
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::limits::Rate;

    fn limit(per: SubjectKind, routes: &[&str]) -> LimitConfig {
        let rate = Rate { count: 10, period: Duration::from_secs(1) };
        let routes: Vec<_> = routes.iter().map(ToString::to_string).collect();
        LimitConfig {
            subject: per,
            kind: LimitKind::Rate { rate, burst: 20, prefetch: PrefetchMode::Auto },
            cost: 1,
            scope: match routes.is_empty() {
                true => LimitScope::State,
                false => LimitScope::Routes { paths: routes, when: LimitTiming::BeforeHandler },
            },
            methods: Vec::new(),
            enforcement: Enforcement::Enforced,
            on_redis_down: OnRedisDown::Local,
            on_redis_full: OnRedisFull::Open,
            client_factor: 10,
        }
    }

    fn prepared<const N: usize>(limits: [(&str, LimitConfig); N]) -> PolicyTable {
        PolicyTable::new(&limits.map(|(name, limit)| (name.to_owned(), limit)).into(), "p")
    }

    fn policies() -> PolicyTable {
        prepared([
            ("all", limit(SubjectKind::Client, &[])),
            ("api", limit(SubjectKind::Client, &["/api", "/api/slow"])),
            ("login", limit(SubjectKind::Session, &["/login"])),
            ("total", limit(SubjectKind::Global, &["/"])),
        ])
    }

    /// Policy and subject of each limit of a request.
    fn subjects(set: &AppliedLimits, session: Option<&str>, user: Option<&str>) -> Vec<String> {
        let subject = LimitSubject { client: "10.0.0.1", session, user };
        let policy_and_subject = |arg: RateLimitCheck| {
            let parts: Vec<&str> = arg.key.splitn(5, ':').collect();
            format!("{} {}", parts[2], parts[4])
        };
        set.checks(0, &subject).into_iter().map(policy_and_subject).collect()
    }

    #[test]
    fn a_path_falls_under_its_routes_and_under_policies_without_routes() {
        let of = |path: &str, session| subjects(&policies().select("GET", path, |_| None), session, None);
        assert_eq!(of("/api/slow/1", None), ["all 10.0.0.1", "api 10.0.0.1", "total *"]);
        assert_eq!(of("/apix", None), ["all 10.0.0.1", "total *"]);
        assert_eq!(of("/login", Some("digest")), ["all 10.0.0.1", "login digest", "total *"]);
        assert_eq!(of("/login", None), ["all 10.0.0.1", "login 10.0.0.1", "total *"]);
    }

    #[test]
    fn users_and_headers_are_counted_where_there_are_some() {
        let policies = prepared([
            ("key", limit(SubjectKind::Header("x-api-key".into()), &[])),
            ("user", limit(SubjectKind::User, &[])),
        ]);
        let with_key = policies.select("GET", "/", |name| (name == "x-api-key").then_some(b"secret"));
        let tag = header_digest(b"secret");
        assert!(!tag.contains("secret") && !tag.contains(['.', ':']));
        let expected = [format!("key {tag}"), "key/client 10.0.0.1".into(), "user u-7".into()];
        assert_eq!(subjects(&with_key, Some("s"), Some("7")), expected);
        let without = policies.select("GET", "/", |_| None);
        assert_eq!(subjects(&without, Some("s"), None), ["key 10.0.0.1", "user s"]);
        assert_eq!(subjects(&without, None, None), ["key 10.0.0.1", "user 10.0.0.1"]);
    }

    #[test]
    fn methods_and_enforcement_select_policies() {
        let post = LimitConfig { methods: vec!["POST".into()], ..limit(SubjectKind::Client, &["/login"]) };
        let off = LimitConfig { enforcement: Enforcement::Disabled, ..limit(SubjectKind::Client, &[]) };
        let layer = LimitConfig { scope: LimitScope::Layer, ..limit(SubjectKind::Client, &[]) };
        let shadow = LimitConfig { enforcement: Enforcement::Shadow, ..limit(SubjectKind::Client, &[]) };
        let policies = prepared([("layer", layer), ("off", off), ("post", post), ("shadow", shadow)]);
        let get = policies.select("GET", "/login", |_| None);
        assert!(!get.names_path());
        assert_eq!(subjects(&get, None, None), ["shadow 10.0.0.1"]);
        assert!(get.checks(0, &LimitSubject::default())[0].shadow);
        let post = policies.select("POST", "/login", |_| None);
        assert!(post.names_path());
        assert_eq!(subjects(&post, None, None), ["post 10.0.0.1", "shadow 10.0.0.1"]);
        assert!(policies.find("off").is_none() && policies.find("layer").is_some());
        assert_eq!(policies.names().collect::<Vec<_>>(), ["layer", "post", "shadow"]);
    }

    #[test]
    fn a_client_that_invents_header_values_falls_under_a_bound_of_its_own() {
        let policies = prepared([("key", limit(SubjectKind::Header("x-api-key".into()), &["/api"]))]);
        let kinds = |value: Option<&'static [u8]>| {
            let set = policies.select("GET", "/api", |_| value);
            set.checks(0, &LimitSubject { client: "c", ..LimitSubject::default() })
                .into_iter()
                .map(|arg| (arg.key, arg.parameters))
        };
        let (one, other) =
            (kinds(Some(b"one")).collect::<Vec<_>>(), kinds(Some(b"other")).collect::<Vec<_>>());
        assert_ne!(one[0], other[0]);
        assert_eq!(one[1], other[1]);
        assert_eq!(one[1].1, LimitParameters::Rate { interval_us: 10_000, tolerance_us: 2_000_000 });
        assert_eq!(kinds(None).count(), 1, "without the header there is one bucket already");
        let trusting = LimitConfig { client_factor: 0, ..limit(SubjectKind::Header("x".into()), &[]) };
        assert_eq!(prepared([("key", trusting)]).select("GET", "/", |_| Some(b"v")).len(), 1);
        let layer = LimitConfig { scope: LimitScope::Layer, ..limit(SubjectKind::Header("x".into()), &[]) };
        let layered = prepared([("a", limit(SubjectKind::Client, &[])), ("key", layer)]);
        let mut set = layered.select("GET", "/", |_| Some(b"v"));
        set.add_policy(1, Some(3), 0);
        assert_eq!(subjects(&set, None, None).len(), 3);
        assert!(set.checks(0, &LimitSubject::default())[1..].iter().all(|arg| arg.cost == 3));
    }

    #[test]
    fn a_policy_of_get_applies_to_head_and_to_every_spelling_of_its_path() {
        let get = LimitConfig { methods: vec!["GET".into()], ..limit(SubjectKind::Client, &["/login"]) };
        let policies = prepared([("get", get)]);
        let key = |method: &str, path: &str| {
            let set = policies.select(method, path, |_| None);
            set.checks(0, &LimitSubject { client: "c", ..LimitSubject::default() })
                .into_iter()
                .map(|arg| arg.key)
                .next()
        };
        let plain = key("GET", "/login");
        assert!(plain.is_some());
        for path in ["/login", "/%6cogin", "//login", "/./login", "/x/../login", "/login/", "/login;a=b"] {
            assert!(["GET", "HEAD", "get"].iter().all(|method| key(method, path) == plain), "{path}");
            assert!(key("POST", path).is_none() && key("HEADS", path).is_none());
        }
        let head = LimitConfig { methods: vec!["HEAD".into()], ..limit(SubjectKind::Client, &["/"]) };
        assert!(prepared([("head", head)]).select("GET", "/", |_| None).is_empty());
    }

    #[test]
    fn a_policy_without_routes_holds_everywhere_or_where_state_is_used() {
        let everywhere = LimitConfig { scope: LimitScope::Everywhere, ..limit(SubjectKind::Client, &[]) };
        assert!(prepared([("all", everywhere.clone())]).select("GET", "/x", |_| None).names_path());
        let post = LimitConfig { methods: vec!["POST".into()], ..everywhere };
        let policies = prepared([("post", post), ("state", limit(SubjectKind::Client, &[]))]);
        assert!(policies.select("POST", "/x", |_| None).names_path());
        let get = policies.select("GET", "/x", |_| None);
        assert!(!get.names_path() && get.len() == 1);
        let scope = LimitScope::Routes { paths: vec!["/x".into()], when: LimitTiming::WithState };
        let lazily = prepared([("lazily", LimitConfig { scope, ..limit(SubjectKind::Client, &[]) })]).select(
            "GET",
            "/x/y",
            |_| None,
        );
        assert!(!lazily.names_path() && lazily.len() == 1);
    }

    #[test]
    fn a_changed_quota_has_other_keys_and_an_unchanged_one_has_those_of_every_release() {
        let key = |burst| {
            let rate = Rate { count: 10, period: Duration::from_secs(1) };
            let limit = LimitConfig {
                kind: LimitKind::Rate { rate, burst, prefetch: PrefetchMode::Auto },
                ..limit(SubjectKind::Client, &[])
            };
            prepared([("a", limit)]).find("a").unwrap().1.key("c")
        };
        assert_eq!(key(5), key(5));
        assert_ne!(key(5), key(6));
        // The key must not depend on the release: workers of two releases count together during an upgrade.
        assert_eq!(key(20), "p:l:a:N3CYCzbN:c");
    }

    #[test]
    fn only_a_policy_with_a_matching_route_names_a_path() {
        let policies = prepared([
            ("all", limit(SubjectKind::Client, &[])),
            ("api", limit(SubjectKind::Client, &["/api"])),
        ]);
        assert!(policies.select("GET", "/api", |_| None).names_path());
        assert!(!policies.select("GET", "/", |_| None).names_path());
        assert!(!policies.select("GET", "/", |_| None).is_empty());
        assert!(PolicyTable::new(&BTreeMap::new(), "p").select("GET", "/", |_| None).is_empty());
    }
}
