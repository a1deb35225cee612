//! The configured policies, ready to use: whom each of them counts, and what it asks of Redis.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;

use crate::config::limit::Effect;
use crate::config::limit::Limit;
use crate::config::limit::Measure;
use crate::config::limit::OnRedisDown;
use crate::config::limit::Per;
use crate::config::limit::Scope;
use crate::limiter::quota::Quota;
use crate::limiter::set::Chosen;
use crate::limiter::set::Set;
use crate::redis::begin::LimitArg;
use crate::redis::begin::LimitKind;
use crate::redis::keys;

/// Every policy that is switched on; cheap to clone.
#[derive(Debug, Clone)]
pub struct Policies {
    all: Arc<[Policy]>,
    /// What most requests fall under: the policies for everything. Made once, so that choosing them allocates nothing.
    everywhere: Arc<[Chosen]>,
    /// Whether whom a policy counts or where it applies depends on more than the path.
    simple: bool,
}

/// One policy, ready to use.
#[derive(Debug)]
pub struct Policy {
    name: String,
    measure: Measured,
    per: Per,
    scope: Scope,
    methods: Vec<String>,
    cost: u64,
    effect: Effect,
    on_redis_down: OnRedisDown,
    /// `{prefix}` and the version, which changes with the quota: a changed policy starts anew instead of
    /// misreading arrival times of another one.
    prefix: String,
    version: String,
}

/// What a policy counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measured {
    /// Requests over time; `lease`: workers draw quota in advance.
    Rate {
        /// How much.
        quota: Quota,
        /// Whether workers draw quota in advance.
        lease: bool,
    },
    /// Requests under way.
    Concurrency {
        /// Most at the same time.
        most: u64,
        /// How long a place is kept that nobody renews.
        lease: Duration,
    },
}

/// Whom a request belongs to.
#[derive(Debug, Clone, Copy, Default)]
pub struct Subject<'a> {
    /// The client's address as text (IPv6: its /64).
    pub client: &'a str,
    /// Digest of the session whose cookie was genuine and no ticket: those can be had in any number.
    pub session: Option<&'a str>,
    /// Tag of the user who is logged in.
    pub user: Option<&'a str>,
}

impl Policies {
    /// Prepares the configured policies; all their keys begin with `prefix`.
    pub fn new(limits: &BTreeMap<String, Limit>, prefix: &str) -> Self {
        let on = limits.iter().filter(|(_, limit)| limit.effect != Effect::Off);
        let all: Arc<[Policy]> = on.map(|(name, limit)| Policy::new(name, limit, prefix)).collect();
        let everywhere = all.iter().enumerate().filter(|(_, policy)| policy.scope == Scope::Everywhere);
        let everywhere = everywhere.map(|(index, policy)| Chosen::new(index, None, policy.cost)).collect();
        let plain = |policy: &Policy| policy.methods.is_empty() && !matches!(policy.per, Per::Header(_));
        let simple = all.iter().all(plain);
        Self { all, everywhere, simple }
    }

    /// The policies for a request; `header` gives a header's value. Allocates only if a policy names the path, a
    /// method or a header.
    pub fn select<'h>(&self, method: &str, path: &str, header: impl Fn(&str) -> Option<&'h [u8]>) -> Set {
        let named = |policy: &Policy| policy.route(path).is_some() && policy.takes(method);
        let is_named = self.all.iter().any(named);
        if self.simple && !is_named {
            return Set::new(Arc::clone(&self.all), Arc::clone(&self.everywhere), Vec::new(), false);
        }
        let choose = |(index, policy): (usize, &Policy)| {
            let route = policy.route(path);
            let applies = route.is_some() || policy.scope == Scope::Everywhere;
            (applies && policy.takes(method)).then(|| Chosen::new(index, route, policy.cost))
        };
        let chosen: Arc<[Chosen]> = self.all.iter().enumerate().filter_map(choose).collect();
        let tag = |(index, policy): (usize, &Policy)| match &policy.per {
            Per::Header(name) => header(name).map(|value| (index, tag(value))),
            _ => None,
        };
        let tags = self.all.iter().enumerate().filter_map(tag).collect();
        Set::new(Arc::clone(&self.all), chosen, tags, is_named)
    }

    /// The policy with this name, and its number; `None`: there is none, or it is switched off.
    pub fn named(&self, name: &str) -> Option<(usize, &Policy)> {
        self.all.iter().enumerate().find(|(_, policy)| policy.name == name)
    }

    /// Names of all policies that are switched on.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.all.iter().map(|policy| policy.name.as_str())
    }
}

/// How a header's value is known: neither logs nor Redis need to see somebody's key. The digest holds no `.` and no
/// `:`, so it is never taken for an address.
pub fn tag(value: &[u8]) -> String {
    let digest = digest::digest(&digest::SHA256, value);
    format!("h-{}", URL_SAFE_NO_PAD.encode(&digest.as_ref()[..16]))
}

/// Whether a path lies under a route: the route itself, or below it at a `/`.
fn under(path: &str, route: &str) -> bool {
    path.strip_prefix(route)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || route.ends_with('/'))
}

impl Policy {
    fn new(name: &str, limit: &Limit, prefix: &str) -> Self {
        let measure = match limit.measure {
            Measure::Rate { rate, burst, lease } => Measured::Rate { quota: Quota::new(rate, burst), lease },
            Measure::Concurrency { most, lease } => Measured::Concurrency { most, lease },
        };
        let identity = match measure {
            Measured::Rate { quota, .. } => {
                format!("{} {} {:?}", quota.interval_us(), quota.tolerance_us(), limit.per)
            }
            // Places are places, however many there are.
            Measured::Concurrency { .. } => format!("concurrent {:?}", limit.per),
        };
        let digest = digest::digest(&digest::SHA256, identity.as_bytes());
        Self {
            name: name.to_owned(),
            measure,
            per: limit.per.clone(),
            scope: limit.scope.clone(),
            methods: limit.methods.clone(),
            cost: limit.cost,
            effect: limit.effect,
            on_redis_down: limit.on_redis_down,
            prefix: prefix.to_owned(),
            version: URL_SAFE_NO_PAD.encode(&digest.as_ref()[..6]),
        }
    }

    /// Its name: letters, digits, `-` and `_`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What it counts.
    pub fn measure(&self) -> Measured {
        self.measure
    }

    /// What one request counts for, unless somebody says otherwise.
    pub fn cost(&self) -> u64 {
        self.cost
    }

    /// Whose requests it counts together.
    pub fn per(&self) -> &Per {
        &self.per
    }

    /// Its routes; none unless it has some.
    pub fn routes(&self) -> &[String] {
        match &self.scope {
            Scope::Routes(routes) => routes,
            Scope::Everywhere | Scope::Layer => &[],
        }
    }

    /// Whether it only counts and denies nobody.
    pub fn is_shadow(&self) -> bool {
        self.effect == Effect::Shadow
    }

    /// What becomes of its requests while Redis is away.
    pub fn on_redis_down(&self) -> OnRedisDown {
        self.on_redis_down
    }

    /// Whether a request of this cost can ever be allowed.
    pub fn allows_cost(&self, cost: u64) -> bool {
        match self.measure {
            Measured::Rate { quota, .. } => cost <= quota.burst(),
            Measured::Concurrency { .. } => cost <= 1,
        }
    }

    /// Key of one subject's limit.
    pub fn key(&self, subject: &str) -> String {
        keys::limit(&self.prefix, &self.name, &self.version, subject)
    }

    /// The longest of its routes that the path lies under: that one speaks for it.
    fn route(&self, path: &str) -> Option<usize> {
        let routes = self.routes().iter().enumerate().filter(|(_, route)| under(path, route));
        routes.max_by_key(|(_, route)| route.len()).map(|(index, _)| index)
    }

    fn takes(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|one| one == method)
    }

    /// What it asks of Redis; `tag` is what stands for its header.
    pub(super) fn arg(&self, chosen: Chosen, subject: &Subject<'_>, tag: Option<&str>) -> LimitArg {
        let Subject { client, session, user } = *subject;
        let key = match self.per {
            Per::Client => self.key(client),
            Per::Session => self.key(session.unwrap_or(client)),
            Per::User => match user {
                Some(user) => self.key(&format!("u-{user}")),
                None => self.key(session.unwrap_or(client)),
            },
            Per::Route => {
                let route = chosen.route.and_then(|index| self.routes().get(index));
                self.key(&format!("{client}{}", route.map_or("", String::as_str)))
            }
            Per::Header(_) => self.key(tag.unwrap_or(client)),
            Per::Global => self.key("*"),
        };
        let kind = match self.measure {
            Measured::Rate { quota, .. } => {
                LimitKind::Rate { interval_us: quota.interval_us(), tolerance_us: quota.tolerance_us() }
            }
            Measured::Concurrency { most, lease } => {
                LimitKind::Concurrency { lease_us: micros(lease), max: most }
            }
        };
        LimitArg { key, kind, shadow: self.is_shadow(), cost: chosen.cost }
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::limit::Rate;

    fn limit(per: Per, routes: &[&str]) -> Limit {
        let rate = Rate { count: 10, period: Duration::from_secs(1) };
        let routes: Vec<_> = routes.iter().map(ToString::to_string).collect();
        Limit {
            per,
            measure: Measure::Rate { rate, burst: 20, lease: false },
            cost: 1,
            scope: if routes.is_empty() { Scope::Everywhere } else { Scope::Routes(routes) },
            methods: Vec::new(),
            effect: Effect::Enforced,
            on_redis_down: OnRedisDown::Insured,
        }
    }

    fn prepared<const N: usize>(limits: [(&str, Limit); N]) -> Policies {
        Policies::new(&limits.map(|(name, limit)| (name.to_owned(), limit)).into(), "p")
    }

    fn policies() -> Policies {
        prepared([
            ("all", limit(Per::Client, &[])),
            ("api", limit(Per::Route, &["/api", "/api/slow"])),
            ("login", limit(Per::Session, &["/login"])),
            ("total", limit(Per::Global, &["/"])),
        ])
    }

    /// Policy and subject of each limit of a request.
    fn subjects(set: &Set, session: Option<&str>, user: Option<&str>) -> Vec<String> {
        let subject = Subject { client: "10.0.0.1", session, user };
        let told = |arg: LimitArg| {
            let parts: Vec<&str> = arg.key.splitn(5, ':').collect();
            format!("{} {}", parts[2], parts[4])
        };
        set.args(0, &subject).into_iter().map(told).collect()
    }

    #[test]
    fn a_path_falls_under_its_routes_and_under_policies_without_routes() {
        let of = |path: &str, session| subjects(&policies().select("GET", path, |_| None), session, None);
        assert_eq!(of("/api/slow/1", None), ["all 10.0.0.1", "api 10.0.0.1/api/slow", "total *"]);
        assert_eq!(of("/apix", None), ["all 10.0.0.1", "total *"]);
        assert_eq!(of("/login", Some("digest")), ["all 10.0.0.1", "login digest", "total *"]);
        assert_eq!(of("/login", None), ["all 10.0.0.1", "login 10.0.0.1", "total *"]);
    }

    #[test]
    fn users_and_headers_are_counted_where_there_are_some() {
        let policies =
            prepared([("key", limit(Per::Header("x-api-key".into()), &[])), ("user", limit(Per::User, &[]))]);
        let with_key = policies.select("GET", "/", |name| (name == "x-api-key").then_some(b"secret"));
        let tag = tag(b"secret");
        assert!(!tag.contains("secret") && !tag.contains(['.', ':']));
        assert_eq!(subjects(&with_key, Some("s"), Some("7")), [format!("key {tag}"), "user u-7".into()]);
        let without = policies.select("GET", "/", |_| None);
        assert_eq!(subjects(&without, Some("s"), None), ["key 10.0.0.1", "user s"]);
        assert_eq!(subjects(&without, None, None), ["key 10.0.0.1", "user 10.0.0.1"]);
    }

    #[test]
    fn methods_and_switches_are_heeded() {
        let post = Limit { methods: vec!["POST".into()], ..limit(Per::Client, &["/login"]) };
        let off = Limit { effect: Effect::Off, ..limit(Per::Client, &[]) };
        let layer = Limit { scope: Scope::Layer, ..limit(Per::Client, &[]) };
        let shadow = Limit { effect: Effect::Shadow, ..limit(Per::Client, &[]) };
        let policies = prepared([("layer", layer), ("off", off), ("post", post), ("shadow", shadow)]);
        let get = policies.select("GET", "/login", |_| None);
        assert!(!get.names_path());
        assert_eq!(subjects(&get, None, None), ["shadow 10.0.0.1"]);
        assert!(get.args(0, &Subject::default())[0].shadow);
        let post = policies.select("POST", "/login", |_| None);
        assert!(post.names_path());
        assert_eq!(subjects(&post, None, None), ["post 10.0.0.1", "shadow 10.0.0.1"]);
        assert!(policies.named("off").is_none() && policies.named("layer").is_some());
        assert_eq!(policies.names().collect::<Vec<_>>(), ["layer", "post", "shadow"]);
    }

    #[test]
    fn a_changed_quota_has_other_keys_and_an_unchanged_one_has_those_of_every_release() {
        let key = |burst| {
            let rate = Rate { count: 10, period: Duration::from_secs(1) };
            let limit =
                Limit { measure: Measure::Rate { rate, burst, lease: false }, ..limit(Per::Client, &[]) };
            prepared([("a", limit)]).named("a").unwrap().1.key("c")
        };
        assert_eq!(key(5), key(5));
        assert_ne!(key(5), key(6));
        // Workers of two releases count together while one replaces the other.
        assert_eq!(key(20), "p:l:a:N3CYCzbN:c");
    }

    #[test]
    fn only_a_policy_with_a_matching_route_names_a_path() {
        let policies = prepared([("all", limit(Per::Client, &[])), ("api", limit(Per::Client, &["/api"]))]);
        assert!(policies.select("GET", "/api", |_| None).names_path());
        assert!(!policies.select("GET", "/", |_| None).names_path());
        assert!(!policies.select("GET", "/", |_| None).is_empty());
        assert!(Policies::new(&BTreeMap::new(), "p").select("GET", "/", |_| None).is_empty());
    }
}
