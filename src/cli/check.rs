//! Says what would be started, and whether it could be, without starting it.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::cli::exit;
use crate::cli::exit::Failure;
use crate::cli::exit::say;
use crate::cli::serve;
use crate::config;
use crate::config::Inputs;
use crate::config::limit::Effect;
use crate::config::limit::LEASE_BURST_MIN;
use crate::config::limit::Lease;
use crate::config::limit::Limit;
use crate::config::limit::Measure;
use crate::config::limit::Scope;
use crate::config::limit::When;
use crate::config::place::Place;
use crate::config::schema::Config;
use crate::config::schema::Count;
use crate::config::schema::RedisUrl;
use crate::listener;
use crate::redis;
use crate::redis::migrations::SHIPPED;
use crate::redis::migrations::Step;
use crate::supervisor::redis_server;
use crate::supervisor::redis_server::PROGRAMS;
use crate::supervisor::run_dir;
use crate::sys::path;
use crate::sys::proc;
use crate::telemetry;

/// What is wrong with a Redis that may take all memory there is.
const UNBOUNDED: &str = "Redis has no maxmemory, so that it may take all memory of its machine and be killed for it: set \
     maxmemory, below what there is, and maxmemory-policy noeviction";

/// Checks configuration, ports and Redis; the configuration itself was read before.
pub(super) fn check(config: &Config, inputs: &Inputs) -> Result<u8, Failure> {
    telemetry::check(&config.log).map_err(|error| Failure::new(exit::USAGE, &error))?;
    config::path::readable(config).map_err(|error| Failure::new(exit::UNAVAILABLE, &error))?;
    let run_dir = serve::run_folder(config)?;
    if let Some((written, real)) = inputs.read_from() {
        say(format_args!("file      {}", path::shown(written, real)));
    }
    let list = |all: &[SocketAddr]| all.iter().map(SocketAddr::to_string).collect::<Vec<_>>().join(", ");
    say(format_args!("listen    {}", list(&config.listen)));
    say(format_args!("admin     {}", list(&config.admin.listen)));
    say(format_args!("workers   {}", workers(config)));
    for (name, limit) in &config.limits {
        say(format_args!("limit     {name}: {}", line(limit)));
    }
    let injected: Vec<_> = config::injected(&inputs.environment).collect();
    if !injected.is_empty() {
        say(format_args!(
            "ignored   {}: Kubernetes or Docker describes a service by them",
            injected.join(", ")
        ));
    }
    match config.session.secrets.len() {
        0 => say(format_args!(
            "session   signed with a generated key kept in Redis; set session.secrets to choose your own"
        )),
        keys => say(format_args!("session   signed with the first of {keys} keys")),
    }
    match run_dir::running(&run_dir) {
        Some(pid) => say(format_args!(
            "running   a fleet with pid {pid} uses {}; its ports are not tried",
            config.run_dir.display()
        )),
        None => ports(config)?,
    }
    match &config.redis.url {
        Some(url) => shared(config, url)?,
        None => private(config, inputs)?,
    }
    say("all is well");
    Ok(exit::OK)
}

fn workers(config: &Config) -> String {
    let slots = serve::slots(config);
    match config.workers.count {
        Count::Auto => format!("{slots} (the cores that affinity and the cgroup's quota allow)"),
        Count::Fixed(_) => format!("{slots} (workers.count)"),
    }
}

fn ports(config: &Config) -> Result<(), Failure> {
    // No slot: each address is only probed.
    let probed = listener::open(&config.listen, &config.admin.listen, Arc::default(), 0);
    probed.map_err(|error| serve::address_failure(&error))?;
    say("ports     free");
    Ok(())
}

fn shared(config: &Config, url: &RedisUrl) -> Result<(), Failure> {
    let asked = redis::once(&config.redis, url, "regatta-check", |redis| async move {
        let rights = redis.missing_rights().await?;
        let steps = SHIPPED.plan(&redis).await;
        let pending =
            |steps: Vec<Step>| steps.iter().filter(|step| step.keys.is_none() && !step.is_applied()).count();
        // A user may be forbidden to ask: what is not told is not warned of.
        Ok((rights, steps.map(pending), redis.inspect_once().await.ok()))
    });
    let missing = |error: &dyn std::error::Error| {
        let failure = Failure::new(exit::UNAVAILABLE, error);
        Failure {
            sentence: format!("Redis at {url} (redis.url) cannot be used: {}", failure.sentence),
            ..failure
        }
    };
    let (rights, pending, told) = asked.flatten().map_err(|error| missing(&error))?;
    if !rights.is_empty() {
        say(format_args!(
            "rights    Redis allows this user too little; what it needs besides: ACL SETUSER {} {}",
            user(url),
            rights.join(" ")
        ));
    }
    let pending = pending.map_err(|error| missing(&error))?;
    say(format_args!("redis     {url} answers; {pending} migrations pending, applied at the start"));
    let (findings, memory) = told.unwrap_or_default();
    for finding in findings.iter() {
        say(format_args!("warning   {}", finding.advice()));
    }
    if memory.is_some_and(|memory| memory.most.is_none()) {
        say(format_args!("warning   {UNBOUNDED}"));
    }
    Ok(())
}

/// The name of the ACL user in an address.
fn user(url: &RedisUrl) -> String {
    let user = Place::read(url.expose()).ok().and_then(|place| place.login.user);
    user.unwrap_or_else(|| "default".to_owned())
}

fn private(config: &Config, inputs: &Inputs) -> Result<(), Failure> {
    let program = proc::find_program(PROGRAMS, &serve::search_path(inputs));
    let program = program.ok_or(redis_server::Error::NotInstalled);
    let program = program.map_err(|error| Failure::new(exit::UNAVAILABLE, &error))?;
    say(format_args!(
        "redis     a private one: {} with its data in {}",
        program.display(),
        config.data_dir.display()
    ));
    Ok(())
}

/// One policy in a few words.
fn line(limit: &Limit) -> String {
    let measure = match limit.measure {
        Measure::Rate { rate, burst, lease } => {
            let drawn = match lease {
                Lease::Auto if burst >= LEASE_BURST_MIN => ", leased to workers while it is busy",
                Lease::Auto | Lease::Never => "",
                Lease::Always => ", leased to workers",
                Lease::AtMost(most) => &format!(", leased to workers, {most} to each at most"),
            };
            format!("{} per {:?} per {:?}, burst {burst}{drawn}", rate.count, rate.period, limit.per)
        }
        Measure::Concurrency { most, .. } => format!("{most} at the same time per {:?}", limit.per),
    };
    let scope = match &limit.scope {
        Scope::Everywhere => "all routes".to_owned(),
        Scope::State => "where state is used".to_owned(),
        Scope::Routes { paths, when: When::First } => paths.join(", "),
        Scope::Routes { paths, when: When::WithState } => format!("{} where state is used", paths.join(", ")),
        Scope::Layer => "where the application puts it".to_owned(),
    };
    let methods = match limit.methods.as_slice() {
        [] => String::new(),
        methods => format!(", {}", methods.join(" ")),
    };
    let effect = match limit.effect {
        Effect::Enforced => "",
        Effect::Shadow => ", in shadow",
        Effect::Off => ", switched off",
    };
    format!("{measure}, {scope}{methods}{effect}; without Redis {:?}", limit.on_redis_down)
}
