//! Rate limit policies: their settings, and what a policy's settings must agree on.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::time::Duration;

use crate::config::error::ConfigError;
use crate::config::setting::GivenSettings;
use crate::config::value::basic;
use crate::config::value::basic::InvalidValue;

/// Most requests at once that a policy can allow.
pub const BURST_MAX: u64 = 1_000_000;

/// Smallest burst of a policy whose quota workers may draw in advance.
pub const PREFETCH_BURST_MIN: u64 = 100;

/// Most requests that a concurrency policy can allow at the same time.
const CONCURRENCY_MAX: u64 = 100_000;

/// How long a place is kept for a request whose worker was killed, if nothing else is said.
const CONCURRENCY_LEASE: Duration = Duration::from_secs(10);

/// How many times a policy that counts by a header one client may use, if nothing else is said.
const CLIENT_FACTOR: u64 = 10;

/// Most of it.
const CLIENT_FACTOR_MAX: u64 = 1000;

/// One rate limit policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LimitConfig {
    /// Whose requests are counted together.
    pub subject: SubjectKind,
    /// What is counted, and how much of it is allowed.
    pub kind: LimitKind,
    /// What one request counts for, 1 to the burst; a layer or handler may say otherwise.
    pub cost: u64,
    /// Where the policy applies.
    pub scope: LimitScope,
    /// Methods it applies to, in capitals; empty: all.
    pub methods: Vec<String>,
    /// Whether it denies.
    pub enforcement: Enforcement,
    /// What becomes of its requests while Redis is away.
    pub on_redis_down: OnRedisDown,
    /// What becomes of strangers' requests while Redis's memory is nearly full.
    pub on_redis_full: OnRedisFull,
    /// With [`SubjectKind::Header`]: so many times the limit one client may use under all values together; 0: any number.
    pub client_factor: u64,
}

/// What a policy counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitKind {
    /// Requests over time.
    Rate {
        /// Requests per period, sustained.
        rate: Rate,
        /// Requests that may come at once, 1 to 1,000,000.
        burst: u64,
        /// When workers draw quota in advance.
        prefetch: PrefetchMode,
    },
    /// Requests under way.
    Concurrency {
        /// Most at the same time, 1 to 100,000.
        max: u64,
        /// How long the place of a request is kept if its worker was killed, 1 s to 5 min.
        lease: Duration,
    },
}

/// When workers draw a policy's quota in advance, so that most requests need no question about it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum PrefetchMode {
    /// Where the burst is at least [`PREFETCH_BURST_MIN`]: for subjects that come often and have more than half of it left.
    /// And, where quota comes back quickly, while more comes than it allows.
    #[default]
    Auto,
    /// Always, at most a twentieth of the burst in each worker.
    Always,
    /// Always, and so many requests at most in each worker.
    AtMost(u64),
    /// Never.
    Never,
}

/// Whose requests a policy counts together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SubjectKind {
    /// One client address (IPv6: one network, see `limits.ipv6_prefix`).
    Client,
    /// One session; requests without a valid cookie count by client.
    Session,
    /// One user who is logged in; all others count by session or client.
    User,
    /// One value of this header, its name in small letters; requests without it count by client.
    Header(String),
    /// All clients together.
    Global,
}

/// Where a policy applies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LimitScope {
    /// Every request.
    #[default]
    Everywhere,
    /// Every request that uses state, when it first does.
    State,
    /// Paths that lie under one of these.
    Routes {
        /// Prefixes that end at a `/`.
        paths: Vec<String>,
        /// When it is decided.
        when: LimitTiming,
    },
    /// Only where the application puts a layer.
    Layer,
}

/// When a policy with routes is decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitTiming {
    /// Before the handler.
    BeforeHandler,
    /// With the request's first use of state, in the same call to Redis.
    WithState,
}

/// Whether a policy denies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Enforcement {
    /// It does.
    Enforced,
    /// It counts, and what it would have denied is counted and logged.
    Shadow,
    /// It is as if it were not there.
    Disabled,
}

/// What becomes of a policy's requests while Redis is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRedisDown {
    /// Every worker allows its share of the limit.
    Local,
    /// They are allowed.
    Open,
    /// They are answered 503.
    Closed,
}

/// What becomes of a policy's requests while Redis's memory is nearly full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRedisFull {
    /// They are carried out.
    Open,
    /// Those of clients without a session are answered 503.
    Closed,
}

/// A number of requests per period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Requests, 1 to 1,000,000.
    pub count: u64,
    /// In this time, 1 s to 31 days.
    pub period: Duration,
}

/// In which headers a client is told about its limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RateLimitHeaderStyle {
    /// `RateLimit-Policy` and `RateLimit`, draft-ietf-httpapi-ratelimit-headers-11.
    Draft,
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset` of the tightest policy, the last in seconds from now.
    Legacy,
    /// Both.
    Both,
    /// None; a denied client still gets `Retry-After`.
    Off,
}

/// The name of a policy; nothing, over an application's default, means none.
pub(super) fn read_policy_name(given: &GivenSettings, path: &str) -> Result<Option<String>, ConfigError> {
    let parse = |text: &str| if text.is_empty() { Ok(None) } else { basic::policy_name(text).map(Some) };
    Ok(given.optional(path, parse)?.flatten())
}

/// Reads every policy.
pub(super) fn read_limits(given: &GivenSettings) -> Result<BTreeMap<String, LimitConfig>, ConfigError> {
    given.names("limits").into_iter().map(|name| read_limit(given, name)).collect()
}

/// Reads the policy with this name.
fn read_limit(given: &GivenSettings, name: String) -> Result<(String, LimitConfig), ConfigError> {
    let path = |field: &str| format!("limits.{name}.{field}");
    given.check_name("limits", &name, basic::policy_name)?;
    let kind = limit_kind(given, &name)?;
    let header = given.optional(&path("header"), header_name)?;
    let subject = match (given.optional(&path("per"), subject_kind)?, header) {
        (None, Some(header)) => SubjectKind::Header(header),
        (Some(SubjectKind::Header(_)), Some(header)) => SubjectKind::Header(header),
        (Some(SubjectKind::Header(_)), None) => {
            let reason = format!("the policy {name} counts by a header and needs its name");
            return Err(ConfigError::Missing { key: path("header"), reason });
        }
        (Some(_), Some(_)) => return Err(given.contradiction(&path("header"), "per is not header".into())),
        (per, None) => per.unwrap_or(SubjectKind::Client),
    };
    let cost = given.optional(&path("cost"), |text| basic::number(text, BURST_MAX))?.unwrap_or(1);
    let most = match kind {
        LimitKind::Rate { burst, .. } => burst,
        LimitKind::Concurrency { .. } => 1,
    };
    if cost > most {
        let reason = format!("no request would ever be allowed: at most {most} at once");
        return Err(given.contradiction(&path("cost"), reason));
    }
    let flag =
        |field: &str, default| Ok::<_, ConfigError>(given.optional(&path(field), flag)?.unwrap_or(default));
    let enforcement = match (flag("enabled", true)?, flag("shadow", false)?) {
        (false, _) => Enforcement::Disabled,
        (true, true) => Enforcement::Shadow,
        (true, false) => Enforcement::Enforced,
    };
    let limit = LimitConfig {
        subject,
        kind,
        cost,
        scope: given.list(&path("routes"), scope)?,
        methods: given.list(&path("methods"), methods)?,
        enforcement,
        on_redis_down: given.optional(&path("on_redis_down"), on_redis_down)?.unwrap_or(OnRedisDown::Local),
        on_redis_full: given.optional(&path("on_redis_full"), on_redis_full)?.unwrap_or(OnRedisFull::Open),
        client_factor: given.optional(&path("client_factor"), client_factor)?.unwrap_or(CLIENT_FACTOR),
    };
    Ok((name, limit))
}

fn limit_kind(given: &GivenSettings, name: &str) -> Result<LimitKind, ConfigError> {
    let path = |field: &str| format!("limits.{name}.{field}");
    let rate = given.optional(&path("rate"), rate)?;
    let burst = given.optional(&path("burst"), |text| basic::number(text, BURST_MAX))?;
    let concurrent = given.optional(&path("concurrency"), |text| basic::number(text, CONCURRENCY_MAX))?;
    let concurrency = given.optional(&path("concurrency_lease"), concurrency_lease)?;
    let prefetch = given.optional(&path("prefetch"), prefetch_mode)?.unwrap_or_default();
    let always = matches!(prefetch, PrefetchMode::Always | PrefetchMode::AtMost(_));
    match (rate, concurrent) {
        (None, None) => Err(ConfigError::Missing {
            key: path("rate"),
            reason: format!("the policy {name} needs a rate such as 100/s, or a concurrency"),
        }),
        (Some(_), Some(_)) => {
            let reason = "there is a rate too; they are two policies".to_owned();
            Err(given.contradiction(&path("concurrency"), reason))
        }
        (None, Some(_)) if burst.is_some() || always => {
            let wrong = if always { "prefetch" } else { "burst" };
            Err(given.contradiction(&path(wrong), "it goes with a rate, not with concurrency".into()))
        }
        (None, Some(max)) => {
            Ok(LimitKind::Concurrency { max, lease: concurrency.unwrap_or(CONCURRENCY_LEASE) })
        }
        (Some(_), None) if concurrency.is_some() => {
            Err(given.contradiction(&path("concurrency_lease"), "it goes with concurrency".into()))
        }
        (Some(rate), None) => {
            let burst = burst.unwrap_or_else(|| (2 * rate.count / rate.period.as_secs()).max(1));
            if always && burst < PREFETCH_BURST_MIN {
                let reason =
                    format!("the burst is {burst}, and below {PREFETCH_BURST_MIN} it is not worth it");
                return Err(given.contradiction(&path("prefetch"), reason));
            }
            if let PrefetchMode::AtMost(most) = prefetch
                && most > burst / 2
            {
                let reason = format!("one worker would hold more than half of the burst, which is {burst}");
                return Err(given.contradiction(&path("prefetch"), reason));
            }
            Ok(LimitKind::Rate { rate, burst, prefetch })
        }
    }
}

/// A rate, or `off` for none.
pub(in crate::config) fn rate_or_off(text: &str) -> Result<Option<Rate>, InvalidValue> {
    if text == "off" { Ok(None) } else { rate(text).map(Some) }
}

fn rate(text: &str) -> Result<Rate, InvalidValue> {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let (count, period) = text.split_once('/').ok_or_else(|| "the time is missing".to_owned())?;
    let count = basic::number(count.trim(), 1_000_000)?;
    let period = match period.trim() {
        "s" => Duration::from_secs(1),
        "min" | "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        "d" => DAY,
        other => basic::positive_duration(other)?,
    };
    if period < Duration::from_secs(1) || period > 31 * DAY || period.subsec_nanos() != 0 {
        return Err("the time must be whole seconds, from 1s to 31d".into());
    }
    Ok(Rate { count, period })
}

fn concurrency_lease(text: &str) -> Result<Duration, InvalidValue> {
    let lease = basic::duration(text)?;
    match (Duration::from_secs(1)..=Duration::from_secs(300)).contains(&lease) {
        true => Ok(lease),
        false => Err("it is out of range".into()),
    }
}

fn subject_kind(text: &str) -> Result<SubjectKind, InvalidValue> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "client" => SubjectKind::Client,
        "session" => SubjectKind::Session,
        "user" => SubjectKind::User,
        "route" => {
            let instead = "write a policy of its own for each route, or per = \"global\" with routes";
            return Err(format!("counting by route is gone: {instead}"));
        }
        "header" => SubjectKind::Header(String::new()),
        "global" => SubjectKind::Global,
        _ => return Err("that is not allowed".into()),
    })
}

fn header_name(text: &str) -> Result<String, InvalidValue> {
    let name = http::HeaderName::try_from(text).map_err(|_| "that is no header's name".to_owned())?;
    Ok(name.as_str().to_owned())
}

fn scope(items: &[String]) -> Result<LimitScope, InvalidValue> {
    match items {
        [] => Ok(LimitScope::Everywhere),
        [only] if only == "layer" => Ok(LimitScope::Layer),
        items => {
            let (words, paths): (Vec<_>, Vec<_>) = items.iter().cloned().partition(|item| item == "state");
            match paths.iter().find(|route| !route.starts_with('/')) {
                Some(bad) => Err(format!("{bad} does not begin with /")),
                None if paths.is_empty() => Ok(LimitScope::State),
                None => {
                    let when =
                        if words.is_empty() { LimitTiming::BeforeHandler } else { LimitTiming::WithState };
                    Ok(LimitScope::Routes { paths, when })
                }
            }
        }
    }
}

fn methods(items: &[String]) -> Result<Vec<String>, InvalidValue> {
    // Extension methods have other letters of a token too (RFC 9110 §9.1), such as `M-SEARCH`.
    let method = |item: &String| match http::Method::from_bytes(item.as_bytes()) {
        Ok(_) => Ok(item.to_ascii_uppercase()),
        Err(_) => Err(format!("{item} is no method")),
    };
    items.iter().map(method).collect()
}

fn flag(text: &str) -> Result<bool, InvalidValue> {
    basic::choice(text, &[("true", true), ("on", true), ("false", false), ("off", false)])
}

fn prefetch_mode(text: &str) -> Result<PrefetchMode, InvalidValue> {
    let choices = [
        ("auto", PrefetchMode::Auto),
        ("true", PrefetchMode::Always),
        ("on", PrefetchMode::Always),
        ("false", PrefetchMode::Never),
        ("off", PrefetchMode::Never),
        ("0", PrefetchMode::Never),
    ];
    match text.parse::<u64>() {
        Ok(1) => Err("a worker holds 2 requests at least, or it draws nothing".into()),
        Ok(most @ 2..) => Ok(PrefetchMode::AtMost(most)),
        _ => basic::choice(text, &choices),
    }
}

fn client_factor(text: &str) -> Result<u64, InvalidValue> {
    match text {
        "0" => Ok(0),
        text => basic::number(text, CLIENT_FACTOR_MAX),
    }
}

fn on_redis_full(text: &str) -> Result<OnRedisFull, InvalidValue> {
    basic::choice(text, &[("open", OnRedisFull::Open), ("closed", OnRedisFull::Closed)])
}

/// Length of the network that counts as one IPv6 client.
pub(in crate::config) fn ipv6_prefix(text: &str) -> Result<u8, InvalidValue> {
    match text.parse() {
        Ok(length @ 32..=64) => Ok(length),
        _ => Err("that is not a length from 32 to 64".into()),
    }
}

fn on_redis_down(text: &str) -> Result<OnRedisDown, InvalidValue> {
    // `insured` is the value's earlier name.
    let choices = [
        ("local", OnRedisDown::Local),
        ("insured", OnRedisDown::Local),
        ("open", OnRedisDown::Open),
        ("closed", OnRedisDown::Closed),
    ];
    basic::choice(text, &choices)
}

pub(in crate::config) fn rate_limit_headers(text: &str) -> Result<RateLimitHeaderStyle, InvalidValue> {
    let choices = [
        ("draft", RateLimitHeaderStyle::Draft),
        ("legacy", RateLimitHeaderStyle::Legacy),
        ("both", RateLimitHeaderStyle::Both),
        ("off", RateLimitHeaderStyle::Off),
    ];
    basic::choice(text, &choices)
}
