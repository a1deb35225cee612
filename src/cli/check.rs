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
use crate::config::limit::Limit;
use crate::config::limit::Measure;
use crate::config::limit::Scope;
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
use crate::sys::proc;
use crate::telemetry;

/// Checks configuration, ports and Redis; the configuration itself was read before.
pub(super) fn check(config: &Config, inputs: &Inputs) -> Result<u8, Failure> {
    telemetry::check(&config.log).map_err(|error| Failure::new(exit::USAGE, &error))?;
    serve::run_folder(config)?;
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
    match serve::running(&config.run_dir) {
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
        Ok((rights, steps.map(pending)))
    });
    let missing = |error: &dyn std::error::Error| {
        let failure = Failure::new(exit::UNAVAILABLE, error);
        Failure {
            sentence: format!("Redis at {url} (redis.url) cannot be used: {}", failure.sentence),
            ..failure
        }
    };
    let (rights, pending) = asked.flatten().map_err(|error| missing(&error))?;
    if !rights.is_empty() {
        say(format_args!(
            "rights    Redis allows this user too little; what it needs besides: ACL SETUSER {} {}",
            user(url),
            rights.join(" ")
        ));
    }
    let pending = pending.map_err(|error| missing(&error))?;
    say(format_args!("redis     {url} answers; {pending} migrations pending, applied at the start"));
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
            let drawn = if lease { ", drawn in advance" } else { "" };
            format!("{} per {:?} per {:?}, burst {burst}{drawn}", rate.count, rate.period, limit.per)
        }
        Measure::Concurrency { most, .. } => format!("{most} at the same time per {:?}", limit.per),
    };
    let scope = match &limit.scope {
        Scope::Everywhere => "all routes".to_owned(),
        Scope::Routes(routes) => routes.join(", "),
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
