//! `status --all`: every machine of the fleet, as their heartbeats in Redis tell it.

use std::fmt::Write;
use std::time::Duration;

use serde::Serialize;

use crate::cli::exit;
use crate::cli::exit::Failure;
use crate::cli::exit::say;
use crate::cli::units;
use crate::config::schema::Config;
use crate::config::schema::RedisUrl;
use crate::redis;
use crate::redis::Error;
use crate::redis::fleet;
use crate::redis::fleet::Machines;
use crate::redis::fleet::Seen;
use crate::supervisor::redis_server;

/// What `--json` prints.
#[derive(Serialize)]
struct Document<'a> {
    version: u32,
    complete: bool,
    unreadable: usize,
    machines: &'a [Seen],
}

/// Prints every machine that lives.
pub(super) fn machines(config: &Config, json: bool, patience: Duration) -> Result<u8, Failure> {
    let found = ask(config, "regatta-status", patience).map_err(|error| failure(config, &error))?;
    if json {
        let (version, complete, unreadable) = (fleet::VERSION, found.complete, found.strange);
        let document = Document { version, complete, unreadable, machines: &found.seen };
        let text = serde_json::to_string(&document);
        say(text.map_err(|error| Failure::new(exit::FAILED, &error))?);
    } else {
        say(render(&found).trim_end());
    }
    Ok(if found.seen.is_empty() { exit::UNAVAILABLE } else { exit::OK })
}

/// Asks the fleet's Redis, be it shared or this fleet's private one; changes nothing there.
///
/// # Errors
/// When it does not answer within `patience`, or says no.
pub(super) fn ask(config: &Config, name: &str, patience: Duration) -> Result<Machines, Error> {
    let url = url(config)?;
    redis::once(&config.redis, &url, name, |redis| async move { fleet::machines(&redis, patience).await })
        .flatten()
}

/// Where the fleet's Redis is.
fn url(config: &Config) -> Result<RedisUrl, Error> {
    if let Some(url) = &config.redis.url {
        return Ok(url.clone());
    }
    let socket = redis_server::socket(&config.data_dir).canonicalize().map_err(|_| Error::Unavailable {
        reason: format!(
            "none is configured (redis.url), and no private one runs in {} (data_dir)",
            config.data_dir.display()
        ),
    });
    Ok(RedisUrl::unix(&socket?))
}

/// Redis that cannot be reached is a missing service; that it says no is a failure.
pub(super) fn failure(config: &Config, error: &Error) -> Failure {
    let code = match error {
        Error::Unavailable { .. } | Error::Lost { .. } | Error::Timeout => exit::UNAVAILABLE,
        _ => exit::FAILED,
    };
    let failure = Failure::new(code, error);
    match &config.redis.url {
        Some(url) => Failure { sentence: format!("{url} (redis.url): {}", failure.sentence), ..failure },
        None => failure,
    }
}

/// The machines as a person reads them.
fn render(found: &Machines) -> String {
    let mut page = String::new();
    let (ready, wanted) = found.seen.iter().fold((0, 0), |(ready, wanted), seen| {
        (ready + seen.machine.ready(), wanted + seen.machine.slots.len())
    });
    let count = found.seen.len();
    let machines = if count == 1 { "machine" } else { "machines" };
    let _ = writeln!(page, "{count} {machines} · {ready} of {wanted} workers ready");
    if found.strange > 0 {
        let _ = writeln!(page, "  {} more cannot be read by this version", found.strange);
    }
    if !found.complete {
        let _ = writeln!(page, "  Redis has heard of this fleet for a moment only: some may be missing");
    }
    for seen in &found.seen {
        let machine = &seen.machine;
        let _ = writeln!(
            page,
            "\n{} · {} of {} workers · {} · build {} · generation {} · pid {} · seen {:.1} s ago",
            units::plain(&machine.host),
            machine.ready(),
            machine.slots.len(),
            units::plain(&machine.addresses.join(", ")),
            units::plain(&machine.build),
            machine.generation,
            machine.pid,
            Duration::from_millis(seen.age_ms).as_secs_f64(),
        );
        let _ = writeln!(page, "  SLOT      PID   GEN  STATE");
        for seat in &machine.slots {
            let state = units::plain(&seat.state).replace('_', " ");
            let _ = writeln!(page, "  {:>4} {:>8} {:>5}  {state}", seat.slot, seat.pid, seat.generation);
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::redis::fleet::Machine;
    use crate::redis::fleet::Seat;

    #[test]
    fn every_machine_and_worker_has_its_line() {
        let seat =
            |slot, state: &str| Seat { slot, pid: 100, generation: 2, state: state.into(), figures: None };
        let machine = Machine {
            host: "web-1\x1b[2J".into(),
            pid: 42,
            generation: 2,
            addresses: vec!["10.0.0.5:3000".into()],
            slots: vec![seat(0, "ready"), seat(1, "backed_off")],
            ..Machine::default()
        };
        let seen = vec![Seen { age_ms: 1500, machine: machine.clone() }, Seen { age_ms: 0, machine }];
        let page = render(&Machines { seen, strange: 1, complete: false });
        let lines: Vec<&str> = page.lines().collect();
        assert_eq!(lines[0], "2 machines · 2 of 4 workers ready");
        assert!(lines[1].contains("1 more") && lines[2].contains("may be missing"), "{page}");
        assert!(lines[4].starts_with("web-1 [2J · 1 of 2 workers · 10.0.0.5:3000 · build"), "{page}");
        assert!(lines[4].ends_with("pid 42 · seen 1.5 s ago"), "{page}");
        assert_eq!(lines[7].split_whitespace().collect::<Vec<_>>(), ["1", "100", "2", "backed", "off"]);
        assert_eq!(lines.len(), 13, "{page}");
    }
}
