//! The configured policies, ready to use: whom each of them counts, and what it asks of Redis.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;

use crate::config::limit::Effect;
use crate::config::limit::Lease;
use crate::config::limit::Limit;
use crate::config::limit::Measure;
use crate::config::limit::OnRedisDown;
use crate::config::limit::OnRedisFull;
use crate::config::limit::Per;
use crate::config::limit::Scope;
use crate::config::limit::When;
use crate::limiter::quota::Quota;
use crate::limiter::route::Path;
use crate::limiter::route::Route;
use crate::limiter::set::Chosen;
use crate::limiter::set::Set;
use crate::redis::begin::LimitArg;
use crate::redis::begin::LimitKind;
use crate::redis::keys;

/// Every policy that is switched on; cheap to clone.
#[derive(Debug, Clone)]
pub struct Policies {
    all: Arc<[Policy]>,
    /// What most requests fall under: the policies without routes. Made once, so that choosing them allocates nothing.
    common: Arc<[Chosen]>,
    /// Whether one of them holds for every request, be state used or not.
    everywhere: bool,
    /// Whether they are the same for all methods, and no header has to be read for these or for a layer.
    simple: bool,
}

/// One policy, ready to use.
#[derive(Debug)]
pub struct Policy {
    name: String,
    measure: Measured,
    per: Per,
    place: Place,
    methods: Vec<String>,
    cost: u64,
    effect: Effect,
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
enum Place {
    Everywhere,
    State,
    Routes(Vec<Route>, When),
    /// Where the application, or the policy that it goes with, puts it.
    Put,
}

/// What a policy counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measured {
    /// Requests over time.
    Rate {
        /// How much.
        quota: Quota,
        /// When workers draw quota in advance.
        lease: Lease,
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
    /// The client's address as text (IPv6: its network).
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
        let mut all: Vec<Policy> = on.clone().map(|(name, limit)| Policy::new(name, limit, prefix)).collect();
        for (index, (name, limit)) in on.enumerate() {
            if matches!(limit.per, Per::Header(_)) && limit.client_factor > 0 {
                all[index].companion = Some(all.len());
                all.push(Policy::companion(name, limit, prefix));
            }
        }
        let common = all.iter().enumerate().filter(|(_, policy)| policy.is_common());
        let chosen = common.clone().map(|(index, policy)| Chosen::new(index, None, policy.cost)).collect();
        let plain = |policy: &Policy| policy.methods.is_empty() && !matches!(policy.per, Per::Header(_));
        Self {
            common: chosen,
            everywhere: all.iter().any(|policy| policy.place == Place::Everywhere),
            simple: common.map(|(_, policy)| policy).all(plain) && !all.iter().any(Policy::needs_a_header),
            all: all.into(),
        }
    }

    /// The policies for a request; `header` gives a header's value. Allocates only if a policy names the path, a
    /// method or a header, or the path has a plainer spelling.
    pub fn select<'h>(&self, method: &str, path: &str, header: impl Fn(&str) -> Option<&'h [u8]>) -> Set {
        let path = Path::new(path);
        let routed = |policy: &Policy| policy.route(&path).is_some() && policy.takes(method);
        if self.simple && !self.all.iter().any(routed) {
            return Set::new(Arc::clone(&self.all), Arc::clone(&self.common), Vec::new(), self.everywhere);
        }
        let tag = |(index, policy): (usize, &Policy)| match &policy.per {
            Per::Header(name) => header(name).map(|value| (index, tag(value))),
            _ => None,
        };
        let tags: Vec<(usize, String)> = self.all.iter().enumerate().filter_map(tag).collect();
        let (mut chosen, mut is_named) = (Vec::new(), false);
        for (index, policy) in self.all.iter().enumerate() {
            let route = policy.route(&path);
            if !(route.is_some() || policy.is_common()) || !policy.takes(method) {
                continue;
            }
            is_named |= policy.is_decided_first();
            chosen.push(Chosen::new(index, route, policy.cost));
            let companion = policy.companion.filter(|_| tags.iter().any(|(tagged, _)| *tagged == index));
            chosen.extend(companion.map(|companion| Chosen::new(companion, None, policy.cost)));
        }
        Set::new(Arc::clone(&self.all), chosen.into(), tags, is_named)
    }

    /// The policy with this name, and its number; `None`: there is none, or it is switched off.
    pub fn named(&self, name: &str) -> Option<(usize, &Policy)> {
        self.all.iter().enumerate().find(|(_, policy)| policy.name == name)
    }

    /// Whether the policy with this name refuses strangers while Redis is nearly full.
    pub fn closes_when_full(&self, name: &str) -> bool {
        self.named(name).is_some_and(|(_, policy)| policy.closes_when_full())
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
        let place = match &limit.scope {
            Scope::Everywhere => Place::Everywhere,
            Scope::State => Place::State,
            Scope::Routes { paths, when } => {
                Place::Routes(paths.iter().map(|path| Route::new(path)).collect(), *when)
            }
            Scope::Layer => Place::Put,
        };
        Self {
            name: name.to_owned(),
            measure,
            per: limit.per.clone(),
            place,
            methods: limit.methods.clone(),
            cost: limit.cost,
            effect: limit.effect,
            on_redis_down: limit.on_redis_down,
            on_redis_full: limit.on_redis_full,
            companion: None,
            prefix: prefix.to_owned(),
            version: URL_SAFE_NO_PAD.encode(&digest.as_ref()[..6]),
        }
    }

    /// The policy that goes with one that counts by a header: a client that invents values gets a bucket for each, and
    /// all of them together are so many times the limit. Its name is none that an operator can choose.
    fn companion(name: &str, limit: &Limit, prefix: &str) -> Self {
        let of = Self::new(&format!("{name}/client"), &Limit { per: Per::Client, ..limit.clone() }, prefix);
        let factor = limit.client_factor;
        let measure = match of.measure {
            Measured::Rate { quota, lease } => Measured::Rate { quota: quota.times(factor), lease },
            Measured::Concurrency { most, lease } => {
                Measured::Concurrency { most: most.saturating_mul(factor), lease }
            }
        };
        let version = format!("{}{factor}", of.version);
        Self { measure, place: Place::Put, methods: Vec::new(), version, ..of }
    }

    /// Whether it holds whatever the path is.
    fn is_common(&self) -> bool {
        matches!(self.place, Place::Everywhere | Place::State)
    }

    /// Whether the application may put a request under it that has to be known by its header then.
    fn needs_a_header(&self) -> bool {
        self.place == Place::Put && matches!(self.per, Per::Header(_))
    }

    /// Whether it is decided before the handler, and not with the first use of state.
    fn is_decided_first(&self) -> bool {
        matches!(self.place, Place::Everywhere | Place::Routes(_, When::First))
    }

    /// The number of the policy that goes with it for requests that have its header.
    pub(super) fn its_companion(&self) -> Option<usize> {
        self.companion
    }

    /// Whether strangers are refused while Redis is nearly full.
    pub(super) fn closes_when_full(&self) -> bool {
        self.on_redis_full == OnRedisFull::Closed && self.effect == Effect::Enforced
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
    pub fn routes(&self) -> impl Iterator<Item = &str> {
        let routes = match &self.place {
            Place::Routes(routes, _) => routes.as_slice(),
            Place::Everywhere | Place::State | Place::Put => &[],
        };
        routes.iter().map(Route::text)
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
    fn route(&self, path: &Path<'_>) -> Option<usize> {
        let Place::Routes(routes, _) = &self.place else { return None };
        let routes = routes.iter().enumerate().filter(|(_, route)| route.covers(path));
        routes.max_by_key(|(_, route)| route.text().len()).map(|(index, _)| index)
    }

    /// Whether it holds for a method. HEAD is answered by the handlers of GET, and a method in small letters by those
    /// that take any.
    fn takes(&self, method: &str) -> bool {
        let is = |one: &String| {
            one.eq_ignore_ascii_case(method) || (one == "GET" && method.eq_ignore_ascii_case("HEAD"))
        };
        self.methods.is_empty() || self.methods.iter().any(is)
    }

    /// The key of a subject without a request, whose header and path are therefore not known.
    pub(super) fn key_of(&self, subject: &Subject<'_>) -> String {
        self.arg(Chosen::new(0, None, 0), subject, None).key
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
                let route = chosen.route.and_then(|index| self.routes().nth(index));
                self.key(&format!("{client}{}", route.unwrap_or_default()))
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
mod tests;
