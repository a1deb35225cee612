//! The configured policies: which of them a path falls under, and what they ask of Redis.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;

use crate::config::schema::Limit;
use crate::config::schema::Per;
use crate::limiter::headers;
use crate::limiter::headers::Headers;
use crate::limiter::quota::Quota;
use crate::redis::begin::LimitArg;
use crate::redis::begin::LimitKind;
use crate::redis::begin::LimitReply;
use crate::redis::keys;

/// Every configured policy; cheap to clone.
#[derive(Debug, Clone)]
pub struct Policies {
    all: Arc<[Policy]>,
    /// What most paths fall under: the policies without routes. Made once, so that choosing them allocates nothing.
    everywhere: Arc<[Chosen]>,
}

/// One policy, ready to use.
#[derive(Debug)]
pub(super) struct Policy {
    pub(super) name: String,
    pub(super) quota: Quota,
    per: Per,
    routes: Vec<String>,
    /// `{prefix}` and the version, which changes with the quota: a changed policy starts anew instead of
    /// misreading arrival times of another one.
    prefix: String,
    version: String,
}

/// A policy by index, with the route that matched.
#[derive(Debug, Clone, Copy)]
struct Chosen {
    policy: usize,
    route: Option<usize>,
}

/// The policies one request falls under; cheap to clone.
#[derive(Debug, Clone)]
pub struct Set {
    all: Arc<[Policy]>,
    chosen: Arc<[Chosen]>,
    first: First,
}

/// Whether a policy of the set names the path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum First {
    Named,
    Unnamed,
}

impl Policies {
    /// Prepares the configured policies; all their keys begin with `prefix`.
    pub fn new(limits: &BTreeMap<String, Limit>, prefix: &str) -> Self {
        let all: Arc<[Policy]> =
            limits.iter().map(|(name, limit)| Policy::new(name, limit, prefix)).collect();
        let everywhere = all
            .iter()
            .enumerate()
            .filter(|(_, policy)| policy.routes.is_empty())
            .map(|(policy, _)| Chosen { policy, route: None })
            .collect();
        Self { all, everywhere }
    }

    /// The policies for a path: those that name it, and those that name none. Allocates only if one names it.
    pub fn select(&self, path: &str) -> Set {
        let named = |policy: &Policy| policy.routes.iter().any(|route| under(path, route));
        if !self.all.iter().any(named) {
            let chosen = Arc::clone(&self.everywhere);
            return Set { all: Arc::clone(&self.all), chosen, first: First::Unnamed };
        }
        let choose = |(index, policy): (usize, &Policy)| {
            // The longest route that matches speaks for the path.
            let route = policy.routes.iter().enumerate().filter(|(_, route)| under(path, route));
            let route = route.max_by_key(|(_, route)| route.len()).map(|(index, _)| index);
            let applies = route.is_some() || policy.routes.is_empty();
            applies.then_some(Chosen { policy: index, route })
        };
        let chosen = self.all.iter().enumerate().filter_map(choose).collect();
        Set { all: Arc::clone(&self.all), chosen, first: First::Named }
    }
}

/// Whether a path lies under a route: the route itself, or below it at a `/`.
fn under(path: &str, route: &str) -> bool {
    path.strip_prefix(route)
        .is_some_and(|rest| rest.is_empty() || rest.starts_with('/') || route.ends_with('/'))
}

impl Policy {
    fn new(name: &str, limit: &Limit, prefix: &str) -> Self {
        let quota = Quota::new(limit.rate, limit.burst);
        let identity = format!("{} {} {:?}", quota.interval_us(), quota.tolerance_us(), limit.per);
        let digest = digest::digest(&digest::SHA256, identity.as_bytes());
        Self {
            name: name.to_owned(),
            quota,
            per: limit.per,
            routes: limit.routes.clone(),
            prefix: prefix.to_owned(),
            version: URL_SAFE_NO_PAD.encode(&digest.as_ref()[..6]),
        }
    }

    fn arg(&self, route: Option<usize>, client: &str, session: Option<&str>) -> LimitArg {
        let key = |subject: &str| keys::limit(&self.prefix, &self.name, &self.version, subject);
        let key = match (self.per, session) {
            (Per::Client, _) | (Per::Session, None) => key(client),
            (Per::Session, Some(session)) => key(session),
            (Per::Route, _) => {
                key(&format!("{client}{}", route.map_or("", |index| self.routes[index].as_str())))
            }
            (Per::Global, _) => key("*"),
        };
        let (interval_us, tolerance_us) = (self.quota.interval_us(), self.quota.tolerance_us());
        LimitArg { key, kind: LimitKind::Rate { interval_us, tolerance_us }, shadow: false, cost: 1 }
    }
}

impl Set {
    /// Whether no policy applies.
    pub fn is_empty(&self) -> bool {
        self.chosen.is_empty()
    }

    /// Whether a policy names the path, so that it is decided before the handler even if that uses no state.
    pub fn names_path(&self) -> bool {
        self.first == First::Named
    }

    /// What this request asks of each policy, in the set's order.
    ///
    /// `client` is the client's address as text (IPv6: its /64), `session` the digest of a session whose cookie was
    /// genuine. Digests hold neither `.` nor `:`, so a session is never taken for an address.
    pub fn args(&self, client: &str, session: Option<&str>) -> Vec<LimitArg> {
        self.chosen.iter().map(|chosen| self.all[chosen.policy].arg(chosen.route, client, session)).collect()
    }

    /// What the client is told about the decisions, which are in the set's order.
    pub fn headers(&self, replies: &[LimitReply]) -> Headers {
        headers::compose(self.policies().zip(replies.iter().copied()))
    }

    fn policies(&self) -> impl Iterator<Item = (&str, Quota)> {
        self.chosen.iter().map(|chosen| {
            let policy = &self.all[chosen.policy];
            (policy.name.as_str(), policy.quota)
        })
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::schema::Rate;

    fn limit(per: Per, routes: &[&str]) -> Limit {
        let rate = Rate { count: 10, period: Duration::from_secs(1) };
        Limit { per, rate, burst: 20, routes: routes.iter().map(ToString::to_string).collect() }
    }

    fn policies() -> Policies {
        let limits = [
            ("all", limit(Per::Client, &[])),
            ("api", limit(Per::Route, &["/api", "/api/slow"])),
            ("login", limit(Per::Session, &["/login"])),
            ("total", limit(Per::Global, &["/"])),
        ];
        Policies::new(&limits.map(|(name, limit)| (name.to_owned(), limit)).into(), "p")
    }

    fn keys(path: &str, session: Option<&str>) -> Vec<String> {
        let set = policies().select(path);
        set.args("10.0.0.1", session).into_iter().map(|arg| arg.key).collect()
    }

    fn subjects(path: &str, session: Option<&str>) -> Vec<String> {
        let subject = |key: String| {
            let parts: Vec<&str> = key.splitn(5, ':').collect();
            format!("{} {}", parts[2], parts[4])
        };
        keys(path, session).into_iter().map(subject).collect()
    }

    #[test]
    fn a_path_falls_under_its_routes_and_under_policies_without_routes() {
        assert_eq!(subjects("/api/slow/1", None), ["all 10.0.0.1", "api 10.0.0.1/api/slow", "total *"]);
        assert_eq!(subjects("/apix", None), ["all 10.0.0.1", "total *"]);
        assert_eq!(subjects("/login", Some("digest")), ["all 10.0.0.1", "login digest", "total *"]);
        assert_eq!(subjects("/login", None), ["all 10.0.0.1", "login 10.0.0.1", "total *"]);
    }

    #[test]
    fn a_changed_quota_has_other_keys() {
        let key = |burst| {
            let limit = Limit { burst, ..limit(Per::Client, &[]) };
            Policies::new(&[("a".to_owned(), limit)].into(), "p").select("/").args("c", None)[0].key.clone()
        };
        assert_eq!(key(5), key(5));
        assert_ne!(key(5), key(6));
    }

    #[test]
    fn only_a_policy_with_a_matching_route_names_a_path() {
        let limits =
            [("all".to_owned(), limit(Per::Client, &[])), ("api".to_owned(), limit(Per::Client, &["/api"]))];
        let policies = Policies::new(&limits.into(), "p");
        assert!(policies.select("/api").names_path() && !policies.select("/").names_path());
        assert!(!policies.select("/").is_empty());
        assert!(Policies::new(&BTreeMap::new(), "p").select("/").is_empty());
    }
}
