//! Says what would be started, and whether it could be, without starting it.

use crate::bootstrap::exit_code;
use crate::bootstrap::exit_code::{CommandFailure, print_line};
use crate::config::ConfigInputs;
use crate::config::limits::{
    Enforcement, LimitConfig, LimitKind, LimitScope, LimitTiming, OnRedisDown, PREFETCH_BURST_MIN,
    PrefetchMode, SubjectKind,
};
use crate::config::redis_url::RedisAddress;
use crate::config::settings::{Config, ListenAddress, RedisUrl, WorkerCount};
use crate::listener::systemd::ActivatedSockets;
use crate::redis::migrations::{MigrationState, SHIPPED};
use crate::supervisor::private_redis::server;
use crate::supervisor::private_redis::server::REDIS_PROGRAMS;
use crate::supervisor::run_dir;
use crate::sys::{path, process};
use crate::{bootstrap, config, listener, logging, redis};

/// What is wrong with a Redis that may take all memory there is.
const UNBOUNDED: &str = "Redis has no maxmemory, so that it may take all memory of its machine and be killed for it: set \
     maxmemory, below what there is, and maxmemory-policy noeviction";

/// Checks configuration, ports and Redis; the configuration itself was read before.
pub(super) fn check(config: &Config, inputs: &ConfigInputs) -> Result<u8, CommandFailure> {
    logging::check(&config.log).map_err(|error| CommandFailure::new(exit_code::USAGE, &error))?;
    config::check_readable(config).map_err(|error| CommandFailure::new(exit_code::UNAVAILABLE, &error))?;
    let run_dir = bootstrap::create_run_dir(config)?;
    if let Some((written, real)) = inputs.loaded_file() {
        print_line(format_args!("file      {}", path::display_path(written, real)));
    }
    let list =
        |all: &[ListenAddress]| all.iter().map(ListenAddress::to_string).collect::<Vec<_>>().join(", ");
    print_line(format_args!("listen    {}", list(&config.listen)));
    print_line(format_args!("admin     {}", list(&config.admin.listen)));
    print_line(format_args!("workers   {}", workers(config)));
    for (name, limit) in &config.limits {
        print_line(format_args!("limit     {name}: {}", limit_line(limit)));
    }
    let injected: Vec<_> = config::injected_variables(inputs).collect();
    if !injected.is_empty() {
        print_line(format_args!(
            "ignored   {}: Kubernetes or Docker describes a service by them",
            injected.join(", ")
        ));
    }
    match config.session.secrets.len() {
        0 => print_line(format_args!(
            "session   signed with a generated key kept in Redis; set session.secrets to choose your own"
        )),
        keys => print_line(format_args!("session   signed with the first of {keys} keys")),
    }
    match run_dir::running_pid(&run_dir) {
        Some(pid) => print_line(format_args!(
            "running   a fleet with pid {pid} uses {}; its ports are not tried",
            config.run_dir.display()
        )),
        None => check_ports(config)?,
    }
    match &config.redis.url {
        Some(url) => check_shared_redis(config, url)?,
        None => check_private_redis(config, inputs)?,
    }
    print_line("all is well");
    Ok(exit_code::OK)
}

fn workers(config: &Config) -> String {
    let slots = bootstrap::initial_slots(config);
    match config.workers.count {
        WorkerCount::Auto => format!("{slots} (the cores that affinity and the cgroup's quota allow)"),
        WorkerCount::Fixed(_) => format!("{slots} (workers.count)"),
    }
}

fn check_ports(config: &Config) -> Result<(), CommandFailure> {
    // No slot: each address is only probed.
    let probed = listener::open_listeners(bootstrap::listen_request(config), &ActivatedSockets::default(), 0);
    let (addresses, _) = probed.map_err(|error| bootstrap::address_failure(&error))?;
    addresses.close_shared();
    print_line("ports     free");
    Ok(())
}

fn check_shared_redis(config: &Config, url: &RedisUrl) -> Result<(), CommandFailure> {
    let inspected = redis::run_once(&config.redis, url, "regatta-check", |redis| async move {
        let rights = redis.missing_rights().await?;
        let steps = SHIPPED.plan(&redis).await;
        let pending = |steps: Vec<MigrationState>| {
            steps.iter().filter(|step| step.keys.is_none() && !step.is_applied()).count()
        };
        // A user may be forbidden to ask: what is not told is not warned of.
        Ok((rights, steps.map(pending), redis.inspect_once().await.ok()))
    });
    let missing = |error: &dyn std::error::Error| {
        let failure = CommandFailure::new(exit_code::UNAVAILABLE, error);
        CommandFailure {
            message: format!("Redis at {url} (redis.url) cannot be used: {}", failure.message),
            ..failure
        }
    };
    let (rights, pending, inspection) = inspected.flatten().map_err(|error| missing(&error))?;
    if !rights.is_empty() {
        print_line(format_args!(
            "rights    Redis allows this user too little; what it needs besides: ACL SETUSER {} {}",
            redis_user(url),
            rights.join(" ")
        ));
    }
    let pending = pending.map_err(|error| missing(&error))?;
    print_line(format_args!("redis     {url} answers; {pending} migrations pending, applied at the start"));
    let (findings, memory) = inspection.unwrap_or_default();
    for finding in findings.iter() {
        print_line(format_args!("warning   {}", finding.advice()));
    }
    if memory.is_some_and(|memory| memory.max.is_none()) {
        print_line(format_args!("warning   {UNBOUNDED}"));
    }
    Ok(())
}

/// The name of the ACL user in an address.
fn redis_user(url: &RedisUrl) -> String {
    let user = RedisAddress::parse(url.expose()).ok().and_then(|place| place.login.user);
    user.unwrap_or_else(|| "default".to_owned())
}

fn check_private_redis(config: &Config, inputs: &ConfigInputs) -> Result<(), CommandFailure> {
    let program = process::find_program(REDIS_PROGRAMS, &bootstrap::search_path(inputs));
    let program = program.ok_or(server::PrivateRedisError::NotInstalled);
    let program = program.map_err(|error| CommandFailure::new(exit_code::UNAVAILABLE, &error))?;
    print_line(format_args!(
        "redis     a private one: {} with its data in {}",
        program.display(),
        config.data_dir.display()
    ));
    Ok(())
}

/// One policy in a few words.
fn limit_line(limit: &LimitConfig) -> String {
    let subject = match &limit.subject {
        SubjectKind::Client => "client".to_owned(),
        SubjectKind::Session => "session".to_owned(),
        SubjectKind::User => "user".to_owned(),
        SubjectKind::Header(name) => format!("value of the header {name}"),
        SubjectKind::Global => "fleet".to_owned(),
    };
    let measure = match limit.kind {
        LimitKind::Rate { rate, burst, prefetch: lease } => {
            let drawn = match lease {
                PrefetchMode::Auto if burst >= PREFETCH_BURST_MIN => {
                    ", prefetched by workers while it is busy"
                }
                PrefetchMode::Auto | PrefetchMode::Never => "",
                PrefetchMode::Always => ", prefetched by workers",
                PrefetchMode::AtMost(most) => &format!(", prefetched by workers, {most} by each at most"),
            };
            let (count, period) = (rate.count, humantime::format_duration(rate.period));
            format!("{count} per {period} and {subject}, burst {burst}{drawn}")
        }
        LimitKind::Concurrency { max: most, .. } => {
            format!("{most} at the same time per {subject}")
        }
    };
    let scope = match &limit.scope {
        LimitScope::Everywhere => "all routes".to_owned(),
        LimitScope::State => "where state is used".to_owned(),
        LimitScope::Routes { paths, when: LimitTiming::BeforeHandler } => paths.join(", "),
        LimitScope::Routes { paths, when: LimitTiming::WithState } => {
            format!("{} where state is used", paths.join(", "))
        }
        LimitScope::Layer => "where the application puts it".to_owned(),
    };
    let methods = match limit.methods.as_slice() {
        [] => String::new(),
        methods => format!(", {}", methods.join(" ")),
    };
    let effect = match limit.enforcement {
        Enforcement::Enforced => "",
        Enforcement::Shadow => ", in shadow",
        Enforcement::Disabled => ", switched off",
    };
    let without_redis = match limit.on_redis_down {
        OnRedisDown::Local => "local",
        OnRedisDown::Open => "open",
        OnRedisDown::Closed => "closed",
    };
    format!("{measure}, {scope}{methods}{effect}; without Redis {without_redis}")
}
