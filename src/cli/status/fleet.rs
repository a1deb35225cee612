//! `status --all`: every machine of the fleet, as their heartbeats in Redis tell it.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use crate::bootstrap::exit_code;
use crate::bootstrap::exit_code::{CommandFailure, print_line};
use crate::cli::units;
use crate::config::settings::{Config, RedisUrl};
use crate::redis;
use crate::redis::registry::{InstanceList, ListedInstance};
use crate::redis::{RedisError, registry};
use crate::status::document;
use crate::supervisor::private_redis::server;

/// What `--json` prints.
#[derive(Serialize)]
struct FleetDocument<'a> {
    version: u32,
    complete: bool,
    unreadable: usize,
    instances: &'a [ListedInstance],
}

/// Prints every machine that lives.
pub(in crate::cli) fn fleet_status(
    config: &Config,
    json: bool,
    timeout: Duration,
) -> Result<u8, CommandFailure> {
    let found =
        fetch_instances(config, "regatta-status", timeout).map_err(|error| to_failure(config, &error))?;
    if json {
        let (version, complete, unreadable) = (document::VERSION, found.complete, found.unreadable);
        let document = FleetDocument { version, complete, unreadable, instances: &found.instances };
        let text = serde_json::to_string(&document);
        print_line(text.map_err(|error| CommandFailure::new(exit_code::FAILED, &error))?);
    } else {
        print_line(render_fleet(&found).trim_end());
    }
    Ok(if found.instances.is_empty() { exit_code::UNAVAILABLE } else { exit_code::OK })
}

/// Asks the fleet's Redis, be it shared or this fleet's private one; changes nothing there.
///
/// # Errors
/// When it does not answer within `patience`, or says no.
pub(in crate::cli) fn fetch_instances(
    config: &Config,
    name: &str,
    timeout: Duration,
) -> Result<InstanceList, RedisError> {
    let url = redis_url(config)?;
    redis::run_once(&config.redis, &url, name, |redis| async move {
        registry::list_instances_one_shot(&redis, timeout).await
    })
    .flatten()
}

/// Where the fleet's Redis is.
fn redis_url(config: &Config) -> Result<RedisUrl, RedisError> {
    if let Some(url) = &config.redis.url {
        return Ok(url.clone());
    }
    let socket = server::socket_path(&config.data_dir).canonicalize().map_err(|_| RedisError::Unavailable {
        reason: format!(
            "none is configured (redis.url), and no private one runs in {} (data_dir)",
            config.data_dir.display()
        ),
    });
    Ok(RedisUrl::from_socket_path(&socket?))
}

/// Redis that cannot be reached is a missing service; that it says no is a failure.
pub(in crate::cli) fn to_failure(config: &Config, error: &RedisError) -> CommandFailure {
    let code = match error {
        RedisError::Unavailable { .. } | RedisError::ConnectionLost { .. } | RedisError::Timeout => {
            exit_code::UNAVAILABLE
        }
        _ => exit_code::FAILED,
    };
    let failure = CommandFailure::new(code, error);
    match &config.redis.url {
        Some(url) => CommandFailure { message: format!("{url} (redis.url): {}", failure.message), ..failure },
        None => failure,
    }
}

/// The machines as a person reads them.
fn render_fleet(found: &InstanceList) -> String {
    let mut page = String::new();
    let (ready, slots) = found.instances.iter().fold((0, 0), |(ready, wanted), seen| {
        (ready + seen.instance.ready_slots(), wanted + seen.instance.slots.len())
    });
    let count = found.instances.len();
    let noun = if count == 1 { "instance" } else { "instances" };
    let _ = writeln!(page, "{count} {noun} · {ready} of {slots} workers ready");
    if found.unreadable > 0 {
        let _ = writeln!(page, "  {} more cannot be read by this version", found.unreadable);
    }
    if !found.complete {
        let _ = writeln!(page, "  the list of instances is not complete yet: some may be missing");
    }
    for seen in &found.instances {
        let instance = &seen.instance;
        let _ = writeln!(
            page,
            "\n{} · {} of {} workers · {} · build {} · generation {} · pid {} · seen {:.1} s ago",
            units::sanitize(&instance.host),
            instance.ready_slots(),
            instance.slots.len(),
            units::sanitize(&instance.addresses.join(", ")),
            units::sanitize(&instance.build),
            instance.generation,
            instance.pid,
            Duration::from_millis(seen.age_ms).as_secs_f64(),
        );
        let _ = writeln!(page, "  SLOT      PID   GEN  STATE");
        for slot in &instance.slots {
            let state = units::sanitize(&slot.state).replace('_', " ");
            let _ = writeln!(page, "  {:>4} {:>8} {:>5}  {state}", slot.slot, slot.pid, slot.generation);
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::registry::{InstanceRecord, SlotRecord};

    #[test]
    fn every_instance_and_worker_has_its_line() {
        let slot_of = |slot, state: &str| SlotRecord {
            slot,
            pid: 100,
            generation: 2,
            state: state.into(),
            figures: None,
        };
        let instance = InstanceRecord {
            host: "web-1\x1b[2J".into(),
            pid: 42,
            generation: 2,
            addresses: vec!["10.0.0.5:3000".into()],
            slots: vec![slot_of(0, "ready"), slot_of(1, "backed_off")],
            ..InstanceRecord::default()
        };
        let seen = vec![
            ListedInstance { age_ms: 1500, instance: instance.clone() },
            ListedInstance { age_ms: 0, instance },
        ];
        let page = render_fleet(&InstanceList { instances: seen, unreadable: 1, complete: false });
        let lines: Vec<&str> = page.lines().collect();
        assert_eq!(lines[0], "2 instances · 2 of 4 workers ready");
        assert!(lines[1].contains("1 more") && lines[2].contains("may be missing"), "{page}");
        assert!(lines[4].starts_with("web-1 [2J · 1 of 2 workers · 10.0.0.5:3000 · build"), "{page}");
        assert!(lines[4].ends_with("pid 42 · seen 1.5 s ago"), "{page}");
        assert_eq!(lines[7].split_whitespace().collect::<Vec<_>>(), ["1", "100", "2", "backed", "off"]);
        assert_eq!(lines.len(), 13, "{page}");
    }
}
