//! Rate limit policies: their settings, and what a policy's settings must agree on.

use std::time::Duration;

use crate::config::Error;
use crate::config::layers::Layers;
use crate::config::parse;
use crate::config::parse::Reason;

/// Most requests at once that a policy can allow.
pub const BURST_MAX: u64 = 1_000_000;

/// Smallest burst of a policy whose quota workers may draw in advance.
pub const LEASE_BURST_MIN: u64 = 100;

/// Most requests that a concurrency policy can allow at the same time.
const CONCURRENT_MAX: u64 = 100_000;

/// How long a place is kept for a request whose worker was killed, if nobody says otherwise.
const CONCURRENT_LEASE: Duration = Duration::from_secs(10);

/// One rate limit policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limit {
    /// Whose requests are counted together.
    pub per: Per,
    /// What is counted, and how much of it is allowed.
    pub measure: Measure,
    /// What one request counts for, 1 to the burst; a layer or handler may say otherwise.
    pub cost: u64,
    /// Where the policy applies.
    pub scope: Scope,
    /// Methods it applies to, in capitals; empty: all.
    pub methods: Vec<String>,
    /// Whether it denies.
    pub effect: Effect,
    /// What becomes of its requests while Redis is away.
    pub on_redis_down: OnRedisDown,
}

/// What a policy counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Measure {
    /// Requests over time.
    Rate {
        /// Requests per period, sustained.
        rate: Rate,
        /// Requests that may come at once, 1 to 1,000,000.
        burst: u64,
        /// Whether workers draw quota in advance, so that most requests need no round trip.
        lease: bool,
    },
    /// Requests under way.
    Concurrency {
        /// Most at the same time, 1 to 100,000.
        most: u64,
        /// How long the place of a request is kept if its worker was killed, 1 s to 5 min.
        lease: Duration,
    },
}

/// Whose requests a policy counts together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Per {
    /// One client address (IPv6: one /64).
    Client,
    /// One session; requests without a valid cookie count by client.
    Session,
    /// One user who is logged in; all others count by session or client.
    User,
    /// One client address and one of the policy's routes.
    Route,
    /// One value of this header, its name in small letters; requests without it count by client.
    Header(String),
    /// Everybody together.
    Global,
}

/// Where a policy applies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Scope {
    /// Every request that uses state.
    #[default]
    Everywhere,
    /// Paths that begin with one of these.
    Routes(Vec<String>),
    /// Only where the application puts a layer.
    Layer,
}

/// Whether a policy denies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    /// It does.
    Enforced,
    /// It counts, and what it would have denied is counted and logged.
    Shadow,
    /// It is as if it were not there.
    Off,
}

/// What becomes of a policy's requests while Redis is away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnRedisDown {
    /// Every worker allows its share of the limit.
    Insured,
    /// They are allowed.
    Open,
    /// They are answered 503.
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
pub enum LimitHeaders {
    /// `RateLimit-Policy` and `RateLimit`, draft-ietf-httpapi-ratelimit-headers-11.
    Draft,
    /// `X-RateLimit-Limit`, `-Remaining` and `-Reset` of the tightest policy, the last in seconds from now.
    Legacy,
    /// Both.
    Both,
    /// None; a denied client still gets `Retry-After`.
    Off,
}

/// Reads the policy with this name.
pub(super) fn read(layers: &Layers, name: String) -> Result<(String, Limit), Error> {
    let path = |field: &str| format!("limits.{name}.{field}");
    layers.check_name("limits", &name, parse::policy_name)?;
    let measure = measure(layers, &name)?;
    let header = layers.optional(&path("header"), header_name)?;
    let per = match (layers.optional(&path("per"), per)?, header) {
        (None, Some(header)) => Per::Header(header),
        (Some(Per::Header(_)), Some(header)) => Per::Header(header),
        (Some(Per::Header(_)), None) => {
            let reason = format!("the policy {name} counts by a header and needs its name");
            return Err(Error::Missing { key: path("header"), reason });
        }
        (Some(_), Some(_)) => return Err(layers.contradiction(&path("header"), "per is not header".into())),
        (per, None) => per.unwrap_or(Per::Client),
    };
    let cost = layers.optional(&path("cost"), |text| parse::number(text, BURST_MAX))?.unwrap_or(1);
    let most = match measure {
        Measure::Rate { burst, .. } => burst,
        Measure::Concurrency { .. } => 1,
    };
    if cost > most {
        let reason = format!("no request would ever be allowed: at most {most} at once");
        return Err(layers.contradiction(&path("cost"), reason));
    }
    let flag = |field: &str, default| Ok::<_, Error>(layers.optional(&path(field), flag)?.unwrap_or(default));
    let effect = match (flag("enabled", true)?, flag("shadow", false)?) {
        (false, _) => Effect::Off,
        (true, true) => Effect::Shadow,
        (true, false) => Effect::Enforced,
    };
    let limit = Limit {
        per,
        measure,
        cost,
        scope: layers.list(&path("routes"), scope)?,
        methods: layers.list(&path("methods"), methods)?,
        effect,
        on_redis_down: layers
            .optional(&path("on_redis_down"), on_redis_down)?
            .unwrap_or(OnRedisDown::Insured),
    };
    Ok((name, limit))
}

fn measure(layers: &Layers, name: &str) -> Result<Measure, Error> {
    let path = |field: &str| format!("limits.{name}.{field}");
    let rate = layers.optional(&path("rate"), rate)?;
    let burst = layers.optional(&path("burst"), |text| parse::number(text, BURST_MAX))?;
    let concurrent = layers.optional(&path("concurrent"), |text| parse::number(text, CONCURRENT_MAX))?;
    let kept = layers.optional(&path("concurrent_lease"), concurrent_lease)?;
    let lease = layers.optional(&path("lease"), flag)?.unwrap_or(false);
    match (rate, concurrent) {
        (None, None) => Err(Error::Missing {
            key: path("rate"),
            reason: format!("the policy {name} needs a rate such as 100/s, or concurrent"),
        }),
        (Some(_), Some(_)) => {
            let reason = "there is a rate too; they are two policies".to_owned();
            Err(layers.contradiction(&path("concurrent"), reason))
        }
        (None, Some(_)) if burst.is_some() || lease => {
            let wrong = if lease { "lease" } else { "burst" };
            Err(layers.contradiction(&path(wrong), "it goes with a rate, not with concurrent".into()))
        }
        (None, Some(most)) => Ok(Measure::Concurrency { most, lease: kept.unwrap_or(CONCURRENT_LEASE) }),
        (Some(_), None) if kept.is_some() => {
            Err(layers.contradiction(&path("concurrent_lease"), "it goes with concurrent".into()))
        }
        (Some(rate), None) => {
            let burst = burst.unwrap_or_else(|| (2 * rate.count / rate.period.as_secs()).max(1));
            if lease && burst < LEASE_BURST_MIN {
                let reason = format!("the burst is {burst}, and below {LEASE_BURST_MIN} it is not worth it");
                return Err(layers.contradiction(&path("lease"), reason));
            }
            Ok(Measure::Rate { rate, burst, lease })
        }
    }
}

/// A rate, or `off` for none.
pub(super) fn rate_or_off(text: &str) -> Result<Option<Rate>, Reason> {
    if text == "off" { Ok(None) } else { rate(text).map(Some) }
}

fn rate(text: &str) -> Result<Rate, Reason> {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let (count, period) = text.split_once('/').ok_or_else(|| "the time is missing".to_owned())?;
    let count = parse::number(count.trim(), 1_000_000)?;
    let period = match period.trim() {
        "s" => Duration::from_secs(1),
        "min" | "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        "d" => DAY,
        other => parse::positive_duration(other)?,
    };
    if period < Duration::from_secs(1) || period > 31 * DAY || period.subsec_nanos() != 0 {
        return Err("the time must be whole seconds, from 1s to 31d".into());
    }
    Ok(Rate { count, period })
}

fn concurrent_lease(text: &str) -> Result<Duration, Reason> {
    let lease = parse::duration(text)?;
    match (Duration::from_secs(1)..=Duration::from_secs(300)).contains(&lease) {
        true => Ok(lease),
        false => Err("it is out of range".into()),
    }
}

fn per(text: &str) -> Result<Per, Reason> {
    Ok(match text.to_ascii_lowercase().as_str() {
        "client" => Per::Client,
        "session" => Per::Session,
        "user" => Per::User,
        "route" => Per::Route,
        "header" => Per::Header(String::new()),
        "global" => Per::Global,
        _ => return Err("that is not allowed".into()),
    })
}

fn header_name(text: &str) -> Result<String, Reason> {
    let name = http::HeaderName::try_from(text).map_err(|_| "that is no header's name".to_owned())?;
    Ok(name.as_str().to_owned())
}

fn scope(items: &[String]) -> Result<Scope, Reason> {
    match items {
        [] => Ok(Scope::Everywhere),
        [only] if only == "layer" => Ok(Scope::Layer),
        routes => match routes.iter().find(|route| !route.starts_with('/')) {
            Some(bad) => Err(format!("{bad} does not begin with /")),
            None => Ok(Scope::Routes(routes.to_vec())),
        },
    }
}

fn methods(items: &[String]) -> Result<Vec<String>, Reason> {
    let method = |item: &String| match item.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        true => Ok(item.to_ascii_uppercase()),
        false => Err(format!("{item} is no method")),
    };
    items.iter().map(method).collect()
}

fn flag(text: &str) -> Result<bool, Reason> {
    parse::choice(text, &[("true", true), ("on", true), ("false", false), ("off", false)])
}

fn on_redis_down(text: &str) -> Result<OnRedisDown, Reason> {
    let choices =
        [("insured", OnRedisDown::Insured), ("open", OnRedisDown::Open), ("closed", OnRedisDown::Closed)];
    parse::choice(text, &choices)
}

pub(super) fn limit_headers(text: &str) -> Result<LimitHeaders, Reason> {
    let choices = [
        ("draft", LimitHeaders::Draft),
        ("legacy", LimitHeaders::Legacy),
        ("both", LimitHeaders::Both),
        ("off", LimitHeaders::Off),
    ];
    parse::choice(text, &choices)
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::Content;
    use crate::config::Inputs;
    use crate::config::load;

    fn policy(text: &str) -> Result<Limit, String> {
        let text = format!("[limits.x]\n{text}");
        let content = Content::Text { path: PathBuf::from("regatta.toml"), text };
        let inputs = Inputs { content, ..Inputs::default() };
        load(&inputs).map(|config| config.limits["x"].clone()).map_err(|error| error.to_string())
    }

    #[test]
    fn rates_name_a_count_and_whole_seconds() {
        assert_eq!(rate("100/s").unwrap(), Rate { count: 100, period: Duration::from_secs(1) });
        assert_eq!(rate("5 / 10s").unwrap(), Rate { count: 5, period: Duration::from_secs(10) });
        for bad in ["100", "0/s", "/s", "1/0s", "1/500ms", "x/s", "1/s/s", "1/32d"] {
            assert!(rate(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_policy_says_whom_it_counts_where_and_what_when_redis_is_away() {
        let plain = policy("rate = \"10/s\"").unwrap();
        assert_eq!((&plain.per, plain.cost, &plain.scope), (&Per::Client, 1, &Scope::Everywhere));
        assert_eq!((plain.effect, plain.on_redis_down), (Effect::Enforced, OnRedisDown::Insured));
        let full = policy(
            "per = \"header\"\nheader = \"X-API-Key\"\nrate = \"600/min\"\nburst = 200\ncost = 5\nlease = true\n\
             routes = [\"/api\"]\nmethods = \"post, put\"\nshadow = true\non_redis_down = \"closed\"",
        );
        let full = full.unwrap();
        assert_eq!(full.per, Per::Header("x-api-key".into()));
        assert_eq!((full.cost, full.effect, full.on_redis_down), (5, Effect::Shadow, OnRedisDown::Closed));
        assert!(matches!(full.measure, Measure::Rate { burst: 200, lease: true, .. }));
        assert_eq!((full.scope, full.methods.len()), (Scope::Routes(vec!["/api".into()]), 2));
        let places = policy("concurrent = 10\nroutes = \"layer\"\nenabled = false").unwrap();
        assert_eq!(places.measure, Measure::Concurrency { most: 10, lease: CONCURRENT_LEASE });
        assert_eq!((places.scope, places.effect), (Scope::Layer, Effect::Off));
    }

    #[test]
    fn what_does_not_go_together_is_named() {
        let wrong = [
            ("burst = 5", "limits.x.rate is missing"),
            ("rate = \"1/s\"\nconcurrent = 5", "two policies"),
            ("concurrent = 5\nburst = 5", "limits.x.burst"),
            ("concurrent = 5\nlease = true", "limits.x.lease"),
            ("rate = \"1/s\"\nconcurrent_lease = \"5s\"", "limits.x.concurrent_lease"),
            ("rate = \"1/s\"\nlease = true", "below 100"),
            ("rate = \"1/s\"\nburst = 3\ncost = 4", "ever be allowed"),
            ("rate = \"1/s\"\nper = \"header\"", "limits.x.header is missing"),
            ("rate = \"1/s\"\nper = \"global\"\nheader = \"x\"", "limits.x.header"),
            ("rate = \"1/s\"\nroutes = \"login\"", "does not begin with /"),
            ("rate = \"1/s\"\nshadow = \"perhaps\"", "limits.x.shadow"),
            ("concurrent = 5\nconcurrent_lease = \"1h\"", "limits.x.concurrent_lease"),
        ];
        for (text, part) in wrong {
            let message = policy(text).unwrap_err();
            assert!(message.contains(part), "{text}: {message}");
        }
    }
}
