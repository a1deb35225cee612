//! Reading a policy from its settings.

use std::time::Duration;

use crate::config::limits::{
    BURST_MAX, Enforcement, LimitConfig, LimitKind, LimitScope, LimitTiming, OnRedisDown, OnRedisFull,
    PREFETCH_BURST_MIN, PrefetchMode, Rate, RateLimitHeaderStyle, SubjectKind,
};
use crate::config::sources::SettingSources;
use crate::config::value::InvalidValue;
use crate::config::{ConfigError, value};

/// Most requests that a concurrency policy can allow at the same time.
const CONCURRENCY_MAX: u64 = 100_000;

/// How long a place is kept for a request whose worker was killed, if nothing else is said.
pub(super) const CONCURRENCY_LEASE: Duration = Duration::from_secs(10);

/// How many times a policy that counts by a header one client may use, if nothing else is said.
pub(super) const CLIENT_FACTOR: u64 = 10;

/// Most of it.
const CLIENT_FACTOR_MAX: u64 = 1000;

/// Reads the policy with this name.
pub(in crate::config) fn read_limit(
    layers: &SettingSources,
    name: String,
) -> Result<(String, LimitConfig), ConfigError> {
    let path = |field: &str| format!("limits.{name}.{field}");
    layers.check_name("limits", &name, value::policy_name)?;
    let kind = limit_kind(layers, &name)?;
    let header = layers.optional(&path("header"), header_name)?;
    let subject = match (layers.optional(&path("per"), subject_kind)?, header) {
        (None, Some(header)) => SubjectKind::Header(header),
        (Some(SubjectKind::Header(_)), Some(header)) => SubjectKind::Header(header),
        (Some(SubjectKind::Header(_)), None) => {
            let reason = format!("the policy {name} counts by a header and needs its name");
            return Err(ConfigError::Missing { key: path("header"), reason });
        }
        (Some(_), Some(_)) => return Err(layers.contradiction(&path("header"), "per is not header".into())),
        (per, None) => per.unwrap_or(SubjectKind::Client),
    };
    let cost = layers.optional(&path("cost"), |text| value::number(text, BURST_MAX))?.unwrap_or(1);
    let most = match kind {
        LimitKind::Rate { burst, .. } => burst,
        LimitKind::Concurrency { .. } => 1,
    };
    if cost > most {
        let reason = format!("no request would ever be allowed: at most {most} at once");
        return Err(layers.contradiction(&path("cost"), reason));
    }
    let flag =
        |field: &str, default| Ok::<_, ConfigError>(layers.optional(&path(field), flag)?.unwrap_or(default));
    let enforcement = match (flag("enabled", true)?, flag("shadow", false)?) {
        (false, _) => Enforcement::Disabled,
        (true, true) => Enforcement::Shadow,
        (true, false) => Enforcement::Enforced,
    };
    let limit = LimitConfig {
        subject,
        kind,
        cost,
        scope: layers.list(&path("routes"), scope)?,
        methods: layers.list(&path("methods"), methods)?,
        enforcement,
        on_redis_down: layers.optional(&path("on_redis_down"), on_redis_down)?.unwrap_or(OnRedisDown::Local),
        on_redis_full: layers.optional(&path("on_redis_full"), on_redis_full)?.unwrap_or(OnRedisFull::Open),
        client_factor: layers.optional(&path("client_factor"), client_factor)?.unwrap_or(CLIENT_FACTOR),
    };
    Ok((name, limit))
}

fn limit_kind(layers: &SettingSources, name: &str) -> Result<LimitKind, ConfigError> {
    let path = |field: &str| format!("limits.{name}.{field}");
    let rate = layers.optional(&path("rate"), rate)?;
    let burst = layers.optional(&path("burst"), |text| value::number(text, BURST_MAX))?;
    let concurrent = layers.optional(&path("concurrency"), |text| value::number(text, CONCURRENCY_MAX))?;
    let concurrency = layers.optional(&path("concurrency_lease"), concurrency_lease)?;
    let prefetch = layers.optional(&path("prefetch"), prefetch_mode)?.unwrap_or_default();
    let always = matches!(prefetch, PrefetchMode::Always | PrefetchMode::AtMost(_));
    match (rate, concurrent) {
        (None, None) => Err(ConfigError::Missing {
            key: path("rate"),
            reason: format!("the policy {name} needs a rate such as 100/s, or a concurrency"),
        }),
        (Some(_), Some(_)) => {
            let reason = "there is a rate too; they are two policies".to_owned();
            Err(layers.contradiction(&path("concurrency"), reason))
        }
        (None, Some(_)) if burst.is_some() || always => {
            let wrong = if always { "prefetch" } else { "burst" };
            Err(layers.contradiction(&path(wrong), "it goes with a rate, not with concurrency".into()))
        }
        (None, Some(max)) => {
            Ok(LimitKind::Concurrency { max, lease: concurrency.unwrap_or(CONCURRENCY_LEASE) })
        }
        (Some(_), None) if concurrency.is_some() => {
            Err(layers.contradiction(&path("concurrency_lease"), "it goes with concurrency".into()))
        }
        (Some(rate), None) => {
            let burst = burst.unwrap_or_else(|| (2 * rate.count / rate.period.as_secs()).max(1));
            if always && burst < PREFETCH_BURST_MIN {
                let reason =
                    format!("the burst is {burst}, and below {PREFETCH_BURST_MIN} it is not worth it");
                return Err(layers.contradiction(&path("prefetch"), reason));
            }
            if let PrefetchMode::AtMost(most) = prefetch
                && most > burst / 2
            {
                let reason = format!("one worker would hold more than half of the burst, which is {burst}");
                return Err(layers.contradiction(&path("prefetch"), reason));
            }
            Ok(LimitKind::Rate { rate, burst, prefetch })
        }
    }
}

/// A rate, or `off` for none.
pub(in crate::config) fn rate_or_off(text: &str) -> Result<Option<Rate>, InvalidValue> {
    if text == "off" { Ok(None) } else { rate(text).map(Some) }
}

pub(super) fn rate(text: &str) -> Result<Rate, InvalidValue> {
    const DAY: Duration = Duration::from_secs(24 * 60 * 60);
    let (count, period) = text.split_once('/').ok_or_else(|| "the time is missing".to_owned())?;
    let count = value::number(count.trim(), 1_000_000)?;
    let period = match period.trim() {
        "s" => Duration::from_secs(1),
        "min" | "m" => Duration::from_secs(60),
        "h" => Duration::from_secs(3600),
        "d" => DAY,
        other => value::positive_duration(other)?,
    };
    if period < Duration::from_secs(1) || period > 31 * DAY || period.subsec_nanos() != 0 {
        return Err("the time must be whole seconds, from 1s to 31d".into());
    }
    Ok(Rate { count, period })
}

fn concurrency_lease(text: &str) -> Result<Duration, InvalidValue> {
    let lease = value::duration(text)?;
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
    value::choice(text, &[("true", true), ("on", true), ("false", false), ("off", false)])
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
        _ => value::choice(text, &choices),
    }
}

fn client_factor(text: &str) -> Result<u64, InvalidValue> {
    match text {
        "0" => Ok(0),
        text => value::number(text, CLIENT_FACTOR_MAX),
    }
}

fn on_redis_full(text: &str) -> Result<OnRedisFull, InvalidValue> {
    value::choice(text, &[("open", OnRedisFull::Open), ("closed", OnRedisFull::Closed)])
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
    value::choice(text, &choices)
}

pub(in crate::config) fn rate_limit_headers(text: &str) -> Result<RateLimitHeaderStyle, InvalidValue> {
    let choices = [
        ("draft", RateLimitHeaderStyle::Draft),
        ("legacy", RateLimitHeaderStyle::Legacy),
        ("both", RateLimitHeaderStyle::Both),
        ("off", RateLimitHeaderStyle::Off),
    ];
    value::choice(text, &choices)
}
