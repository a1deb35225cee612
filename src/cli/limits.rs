//! How someone stands under a rate limit, and beginning it anew, from a terminal.

use std::net::IpAddr;

use serde_json::json;

use crate::cli::args::Limits;
use crate::cli::exit;
use crate::cli::exit::Failure;
use crate::cli::exit::say;
use crate::config::limit::Per;
use crate::config::schema::Config;
use crate::config::schema::RedisUrl;
use crate::http::identity::Client;
use crate::http::identity::Transport;
use crate::limiter::Policies;
use crate::limiter::policy::Measured;
use crate::limiter::policy::Policy;
use crate::limiter::policy::tag;
use crate::redis;
use crate::redis::Error;
use crate::redis::Health;
use crate::redis::Redis;
use crate::redis::begin::LimitArg;
use crate::redis::begin::LimitKind;
use crate::redis::limit::Standing;
use crate::supervisor::redis_server;

/// Shows or resets one subject's limit.
pub(super) fn limits(config: &Config, action: &Limits) -> Result<u8, Failure> {
    let (Limits::Show { policy, subject, json } | Limits::Reset { policy, subject, json }) = action;
    let policies = Policies::new(&config.limits, &config.redis.prefix);
    let Some((_, found)) = policies.named(policy) else {
        let known = policies.names().collect::<Vec<_>>().join(", ");
        return Err(usage(format!("no policy is named {policy}, or it is switched off; there are: {known}")));
    };
    let subject = subject_of(found, subject.as_deref(), config.ipv6_prefix)?;
    let limit = arg(found, &subject);
    // A private Redis is where its fleet keeps it.
    let private = || RedisUrl::unix(&redis_server::socket(&config.data_dir));
    let url = config.redis.url.clone().unwrap_or_else(private);
    let (standing, was_used) = match action {
        Limits::Show { .. } => (on(config, &url, async |redis| redis.look_at_limit(&limit).await)?, true),
        Limits::Reset { .. } => on(config, &url, async |redis| {
            let was_used = redis.reset_limit(&limit.key).await?;
            Ok((redis.look_at_limit(&limit).await?, was_used))
        })?,
    };
    let reset = matches!(action, Limits::Reset { .. });
    match json {
        true => say(json!({
            "policy": policy, "subject": subject, "limit": most(found), "remaining": standing.remaining,
            "reset_ms": standing.reset_us.div_ceil(1000), "reset": reset && was_used,
        })),
        false => say(line(found, &subject, &standing, reset.then_some(was_used))),
    }
    Ok(exit::OK)
}

/// One piece of work with Redis.
fn on<T>(
    config: &Config,
    url: &RedisUrl,
    work: impl AsyncFnOnce(Redis) -> Result<T, Error>,
) -> Result<T, Failure> {
    let worked = redis::once(&config.redis, url, "regatta-limits", |redis| async move {
        redis.start();
        match redis.first_attempt().await {
            Health::Up => work(redis).await,
            Health::Down { reason } => Err(Error::Unavailable { reason }),
            Health::Connecting => Err(Error::Timeout),
        }
    });
    worked.flatten().map_err(|error| {
        let away = matches!(error, Error::Unavailable { .. } | Error::Timeout);
        Failure::new(if away { exit::UNAVAILABLE } else { exit::FAILED }, &error)
    })
}

/// What the policy knows this subject by.
fn subject_of(policy: &Policy, typed: Option<&str>, prefix: u8) -> Result<String, Failure> {
    let typed = match (policy.per(), typed) {
        (Per::Global, None | Some("*")) => return Ok("*".to_owned()),
        (Per::Global, Some(_)) => {
            let sentence = format!("{} counts everybody together and has no subject", policy.name());
            return Err(usage(sentence));
        }
        (_, None) => return Err(usage(format!("{} needs a subject: whose limit is meant", policy.name()))),
        (_, Some(typed)) => typed,
    };
    // A client without session, user or header is counted by its address.
    if let Some(client) = client(typed, prefix) {
        return Ok(client);
    }
    match policy.per() {
        Per::Client | Per::Global => Err(usage(format!("{typed} is not an IP address"))),
        Per::Session => Ok(typed.to_owned()),
        Per::User => Ok(format!("u-{typed}")),
        Per::Header(_) => Ok(tag(typed.as_bytes())),
        Per::Route => {
            let split = policy.routes().find_map(|route| Some((typed.strip_suffix(route)?, route)));
            let subject =
                split.and_then(|(address, route)| Some(format!("{}{route}", client(address, prefix)?)));
            subject
                .ok_or_else(|| usage(format!("{typed} is not an address with one of its routes behind it")))
        }
    }
}

/// An address, or an IPv6 network, as limits count it.
fn client(typed: &str, prefix: u8) -> Option<String> {
    let address: IpAddr = typed.strip_suffix(&format!("/{prefix}")).unwrap_or(typed).parse().ok()?;
    let address = address.to_canonical();
    Some(Client { address, transport: Transport::Plain, proxied: false }.subject(prefix))
}

fn arg(policy: &Policy, subject: &str) -> LimitArg {
    let kind = match policy.measure() {
        Measured::Rate { quota, .. } => {
            LimitKind::Rate { interval_us: quota.interval_us(), tolerance_us: quota.tolerance_us() }
        }
        Measured::Concurrency { most, .. } => LimitKind::Concurrency { lease_us: 0, max: most },
    };
    LimitArg { key: policy.key(subject), kind, shadow: false, cost: 0 }
}

fn most(policy: &Policy) -> u64 {
    match policy.measure() {
        Measured::Rate { quota, .. } => quota.burst(),
        Measured::Concurrency { most, .. } => most,
    }
}

fn line(policy: &Policy, subject: &str, standing: &Standing, was_used: Option<bool>) -> String {
    let whose = match subject {
        "*" => policy.name().to_owned(),
        subject => format!("{} for {subject}", policy.name()),
    };
    let left = format!("{} of {} left", standing.remaining, most(policy));
    match (was_used, standing.reset_us) {
        (Some(true), _) => format!("{whose}: begun anew, {left}"),
        (Some(false), _) => format!("{whose}: was not in use, {left}"),
        (None, 0) => format!("{whose}: {left}, not in use"),
        (None, us) => format!("{whose}: {left}, as if never used in {} s", us.div_ceil(1_000_000)),
    }
}

fn usage(sentence: String) -> Failure {
    Failure { code: exit::USAGE, sentence }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::Content;
    use crate::config::Inputs;

    #[test]
    fn subjects_are_typed_as_people_know_them() {
        let text = "[limits.client]\nrate = \"1/s\"\n[limits.key]\nrate = \"1/s\"\nheader = \"x-api-key\"\n\
                    [limits.all]\nrate = \"1/s\"\nper = \"global\"\n[limits.user]\nrate = \"1/s\"\nper = \"user\"\n\
                    [limits.page]\nrate = \"1/s\"\nper = \"route\"\nroutes = \"/api, /api/slow\"";
        let content =
            Content::Text { path: PathBuf::from("regatta.toml"), text: text.to_owned(), real: None };
        let config = crate::config::load(&Inputs { content, ..Inputs::default() }).unwrap();
        let policies = Policies::new(&config.limits, "p");
        let subject = |policy: &str, typed| subject_of(policies.named(policy).unwrap().1, typed, 56).ok();
        assert_eq!(subject("client", Some("::ffff:10.0.0.1")).as_deref(), Some("10.0.0.1"));
        assert_eq!(subject("client", Some("2001:db8::1")).as_deref(), Some("2001:db8::/56"));
        assert_eq!(subject("client", Some("2001:db8::/56")).as_deref(), Some("2001:db8::/56"));
        assert_eq!(subject("client", Some("nobody")), None);
        assert_eq!(subject("client", None), None);
        assert_eq!(subject("key", Some("secret")), Some(tag(b"secret")));
        assert_eq!(subject("key", Some("10.0.0.1")).as_deref(), Some("10.0.0.1"));
        assert_eq!(subject("all", None).as_deref(), Some("*"));
        assert_eq!(subject("user", Some("7")).as_deref(), Some("u-7"));
        assert_eq!(subject("page", Some("10.0.0.1/api/slow")).as_deref(), Some("10.0.0.1/api/slow"));
        assert_eq!(subject("page", Some("10.0.0.1/other")), None);
    }
}
