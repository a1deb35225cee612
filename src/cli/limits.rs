//! `limits`: what is left under a rate limit, and resetting it, from a terminal.

use std::net::IpAddr;

use serde_json::json;

use crate::bootstrap::exit_code;
use crate::bootstrap::exit_code::{CommandFailure, print_line};
use crate::cli::args::LimitsCommand;
use crate::config::limits::SubjectKind;
use crate::config::settings::{Config, RedisUrl};
use crate::http::real_ip::{ClientInfo, ClientTransport};
use crate::limiter::PolicyTable;
use crate::limiter::policy::{LimitPolicy, PolicyMeasure, header_digest};
use crate::redis;
use crate::redis::begin::{LimitParameters, RateLimitCheck};
use crate::redis::limiter_commands::LimitStatus;
use crate::redis::{RedisClient, RedisError, RedisStatus};
use crate::supervisor::private_redis::server;

/// Shows or resets one subject's limit.
pub(super) fn limits(config: &Config, action: &LimitsCommand) -> Result<u8, CommandFailure> {
    let (LimitsCommand::Show { policy, subject, json } | LimitsCommand::Reset { policy, subject, json }) =
        action;
    let policies = PolicyTable::new(&config.limits, &config.redis.prefix);
    let Some((_, found)) = policies.find(policy) else {
        let known = policies.names().collect::<Vec<_>>().join(", ");
        return Err(usage(format!("no policy is named {policy}, or it is switched off; there are: {known}")));
    };
    let subject = parse_subject(found, subject.as_deref(), config.ipv6_prefix)?;
    let limit = limit_argument(found, &subject);
    // A private Redis is where its fleet keeps it.
    let private = || RedisUrl::from_socket_path(&server::socket_path(&config.data_dir));
    let url = config.redis.url.clone().unwrap_or_else(private);
    let (status, was_used) = match action {
        LimitsCommand::Show { .. } => {
            (with_redis(config, &url, async |redis| redis.limit_status(&limit).await)?, true)
        }
        LimitsCommand::Reset { .. } => with_redis(config, &url, async |redis| {
            let was_used = redis.reset_limit(&limit.key).await?;
            Ok((redis.limit_status(&limit).await?, was_used))
        })?,
    };
    let reset = matches!(action, LimitsCommand::Reset { .. });
    match json {
        true => print_line(json!({
            "policy": policy, "subject": subject, "limit": most(found), "remaining": status.remaining,
            "reset_seconds": reset_seconds(status.reset_us), "reset": reset && was_used,
        })),
        false => print_line(line(found, &subject, &status, reset.then_some(was_used))),
    }
    Ok(exit_code::OK)
}

/// To a millisecond, rounded up: the limit is then as it was before its first use.
#[allow(clippy::cast_precision_loss, reason = "a limit is used up for years at most")]
fn reset_seconds(reset_us: u64) -> f64 {
    reset_us.div_ceil(1000) as f64 / 1e3
}

/// One piece of work with Redis.
fn with_redis<T>(
    config: &Config,
    url: &RedisUrl,
    work: impl AsyncFnOnce(RedisClient) -> Result<T, RedisError>,
) -> Result<T, CommandFailure> {
    let worked = redis::run_once(&config.redis, url, "regatta-limits", |redis| async move {
        redis.start();
        match redis.wait_for_first_attempt().await {
            RedisStatus::Up => work(redis).await,
            RedisStatus::Down { reason } => Err(RedisError::Unavailable { reason }),
            RedisStatus::Connecting => Err(RedisError::Timeout),
        }
    });
    worked.flatten().map_err(|error| {
        let away = matches!(error, RedisError::Unavailable { .. } | RedisError::Timeout);
        CommandFailure::new(if away { exit_code::UNAVAILABLE } else { exit_code::FAILED }, &error)
    })
}

/// What the policy knows this subject by.
fn parse_subject(policy: &LimitPolicy, typed: Option<&str>, prefix: u8) -> Result<String, CommandFailure> {
    let typed = match (policy.per(), typed) {
        (SubjectKind::Global, None | Some("*")) => return Ok("*".to_owned()),
        (SubjectKind::Global, Some(_)) => {
            let message = format!("{} counts all clients together and has no subject", policy.name());
            return Err(usage(message));
        }
        (_, None) => return Err(usage(format!("{} needs a subject: whose limit is meant", policy.name()))),
        (_, Some(typed)) => typed,
    };
    // A client without session, user or header is counted by its address.
    if let Some(client) = client(typed, prefix) {
        return Ok(client);
    }
    match policy.per() {
        SubjectKind::Client | SubjectKind::Global => Err(usage(format!("{typed} is not an IP address"))),
        SubjectKind::Session => Ok(typed.to_owned()),
        SubjectKind::User => Ok(format!("u-{typed}")),
        SubjectKind::Header(_) => Ok(header_digest(typed.as_bytes())),
    }
}

/// An address, or an IPv6 network, as limits count it.
fn client(typed: &str, prefix: u8) -> Option<String> {
    let address: IpAddr = typed.strip_suffix(&format!("/{prefix}")).unwrap_or(typed).parse().ok()?;
    let address = address.to_canonical();
    Some(ClientInfo { address, transport: ClientTransport::Plain, proxied: false }.limit_subject(prefix))
}

fn limit_argument(policy: &LimitPolicy, subject: &str) -> RateLimitCheck {
    let kind = match policy.measure() {
        PolicyMeasure::Rate { quota, .. } => {
            LimitParameters::Rate { interval_us: quota.interval_us(), tolerance_us: quota.tolerance_us() }
        }
        PolicyMeasure::Concurrency { max: most, .. } => {
            LimitParameters::Concurrency { lease_us: 0, max: most }
        }
    };
    RateLimitCheck { key: policy.key(subject), parameters: kind, shadow: false, cost: 0 }
}

fn most(policy: &LimitPolicy) -> u64 {
    match policy.measure() {
        PolicyMeasure::Rate { quota, .. } => quota.burst(),
        PolicyMeasure::Concurrency { max: most, .. } => most,
    }
}

fn line(policy: &LimitPolicy, subject: &str, status: &LimitStatus, was_used: Option<bool>) -> String {
    let label = match subject {
        "*" => policy.name().to_owned(),
        subject => format!("{} for {subject}", policy.name()),
    };
    let left = format!("{} of {} left", status.remaining, most(policy));
    match (was_used, status.reset_us) {
        (Some(true), _) => format!("{label}: reset, {left}"),
        (Some(false), _) => format!("{label}: was not in use, {left}"),
        (None, 0) => format!("{label}: {left}, not in use"),
        (None, us) => format!("{label}: {left}, fully replenished in {} s", us.div_ceil(1_000_000)),
    }
}

fn usage(message: String) -> CommandFailure {
    CommandFailure { code: exit_code::USAGE, message }
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::config::{ConfigFile, ConfigInputs};

    #[test]
    fn subjects_are_typed_as_people_know_them() {
        let text = "[limits.client]\nrate = \"1/s\"\n[limits.key]\nrate = \"1/s\"\nheader = \"x-api-key\"\n\
                    [limits.all]\nrate = \"1/s\"\nper = \"global\"\n[limits.user]\nrate = \"1/s\"\nper = \"user\"";
        let content =
            ConfigFile::Contents { path: PathBuf::from("regatta.toml"), text: text.to_owned(), real: None };
        let config = crate::config::load(&ConfigInputs { content, ..ConfigInputs::default() }).unwrap();
        let policies = PolicyTable::new(&config.limits, "p");
        let subject = |policy: &str, typed| parse_subject(policies.find(policy).unwrap().1, typed, 56).ok();
        assert_eq!(subject("client", Some("::ffff:10.0.0.1")).as_deref(), Some("10.0.0.1"));
        assert_eq!(subject("client", Some("2001:db8::1")).as_deref(), Some("2001:db8::/56"));
        assert_eq!(subject("client", Some("2001:db8::/56")).as_deref(), Some("2001:db8::/56"));
        assert_eq!(subject("client", Some("nobody")), None);
        assert_eq!(subject("client", None), None);
        assert_eq!(subject("key", Some("secret")), Some(header_digest(b"secret")));
        assert_eq!(subject("key", Some("10.0.0.1")).as_deref(), Some("10.0.0.1"));
        assert_eq!(subject("all", None).as_deref(), Some("*"));
        assert_eq!(subject("user", Some("7")).as_deref(), Some("u-7"));
    }
}
