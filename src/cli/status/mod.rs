//! `status`: the fleet as a table for people, or as JSON for programs.

pub(in crate::cli) mod fleet;
pub(in crate::cli) mod table;

use std::fmt::Write;
use std::time::Duration;

use crate::bootstrap::exit_code;
use crate::bootstrap::exit_code::{CommandFailure, print_line};
use crate::cli::status::table::{COLUMNS, GAP, Severity, TableRow};
use crate::cli::{fetch, units};
use crate::config;
use crate::config::ConfigInputs;
use crate::status::document::{FinishedRollout, InstanceState, InstanceStatus, RolloutOutcome, SlotStatus};
use crate::sys::terminal;

/// Prints how the running fleet is.
pub(super) fn status(inputs: &ConfigInputs, json: bool, timeout: Duration) -> Result<u8, CommandFailure> {
    let run_dir = config::run_dir(inputs).map_err(|error| CommandFailure::new(exit_code::USAGE, &error))?;
    let document = fetch::fetch_status(&run_dir, timeout)?;
    if json {
        print_line(document);
        return Ok(exit_code::OK);
    }
    let columns = terminal::columns();
    let options = RenderOptions {
        columns: columns.map(usize::from),
        colours: columns.is_some() && inputs.allows_colours(),
    };
    let page = render_instance(&fetch::parse_status(document)?, options);
    print_line(page.trim_end());
    Ok(exit_code::OK)
}

/// What it is printed on.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RenderOptions {
    /// Columns of the terminal; none: as many as wanted.
    pub(super) columns: Option<usize>,
    /// Whether colours are welcome.
    pub(super) colours: bool,
}

impl RenderOptions {
    fn paint(self, text: &str, severity: Severity) -> String {
        let code = match severity {
            _ if !self.colours => return text.to_owned(),
            Severity::Good => "32",
            Severity::Transitional => "33",
            Severity::Bad => "31",
            Severity::Muted => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// The fleet as a person reads it.
pub(super) fn render_instance(status: &InstanceStatus, options: RenderOptions) -> String {
    let mut page = String::new();
    let severity = fleet_severity(status);
    let (name, rest) = headline(status);
    let _ = writeln!(page, "{} {rest}", options.paint(&format!("● {name}"), severity));
    for line in summary_lines(status) {
        let _ = writeln!(page, "  {line}");
    }
    if let Some((severity, line)) = rollout_line(status) {
        let _ = writeln!(page, "  {}", options.paint(&line, severity));
    }
    page.push('\n');
    let slots: Vec<&SlotStatus> = status.slots.iter().filter(|slot| !status.is_retired(slot)).collect();
    let lines: Vec<TableRow> = slots.into_iter().flat_map(table::rows).collect();
    table(&mut page, &lines, options);
    page
}

fn table(page: &mut String, lines: &[TableRow], options: RenderOptions) {
    let widths = table::widths(lines, options.columns);
    let joined = |texts: Vec<String>| texts.join(&" ".repeat(GAP)).trim_end().to_owned();
    let title = widths.iter().map(|(index, width)| table::pad(COLUMNS[*index].title, *index, *width));
    let _ = writeln!(page, "{}", options.paint(&joined(title.collect()), Severity::Muted));
    for line in lines {
        let cell = |(index, width): (&usize, &usize)| {
            let text = table::pad(&line.cells[*index], *index, *width);
            if COLUMNS[*index].title == "STATE" { options.paint(&text, line.severity) } else { text }
        };
        let _ = writeln!(page, "{}", joined(widths.iter().map(cell).collect()));
    }
}

/// How the fleet is as a whole.
pub(super) fn fleet_severity(status: &InstanceStatus) -> Severity {
    match status.state {
        InstanceState::Serving if status.workers.ready < status.workers.target => Severity::Bad,
        InstanceState::Serving => Severity::Good,
        InstanceState::Unknown
        | InstanceState::Starting
        | InstanceState::RollingOut
        | InstanceState::Stopping => Severity::Transitional,
    }
}

/// Its state, and what else stands in the first line.
pub(super) fn headline(status: &InstanceStatus) -> (String, String) {
    let workers = &status.workers;
    let rest = format!(
        "{} of {} workers · build {} · generation {} · pid {} · up {}",
        workers.ready,
        workers.target,
        units::sanitize(&status.build),
        status.generation,
        status.supervisor_pid,
        units::age(status.uptime_s)
    );
    (status.state.name().to_owned(), rest)
}

/// The fleet's figures, a sentence each.
pub(super) fn summary_lines(status: &InstanceStatus) -> Vec<String> {
    let (totals, rates) = (&status.totals, &status.rates);
    let answers = totals.responses;
    let mut lines = vec![
        format!(
            "{} req/s · p50 {} · p99 {} · busy {} · {} connections · {} in flight · {}",
            rates.requests_per_s.map_or(units::NONE.into(), units::rate),
            rates.latency_p50_us.map_or(units::NONE.into(), units::micros),
            rates.latency_p99_us.map_or(units::NONE.into(), units::micros),
            rates.busy_percent.map_or(units::NONE.into(), units::percent),
            units::abbreviated(totals.connections),
            units::abbreviated(totals.in_flight),
            units::bytes(totals.memory_bytes),
        ),
        format!(
            "{} requests ({} 2xx, {} 3xx, {} 4xx, {} 5xx) · {} views · {} rate-limited · {} unavailable · {} refused · {} aborted",
            units::count(totals.requests),
            units::abbreviated(answers.success),
            units::abbreviated(answers.redirection),
            units::abbreviated(answers.client_error),
            units::abbreviated(answers.server_error),
            units::count(totals.views),
            units::abbreviated(totals.rate_limited),
            units::abbreviated(totals.unavailable),
            units::abbreviated(totals.refused),
            units::abbreviated(totals.aborted_connections),
        ),
        redis(status),
    ];
    lines.extend(scaling(status));
    lines.extend(log(status));
    lines
}

/// Log lines that were dropped, so that the operator can never read them.
fn log(status: &InstanceStatus) -> Option<String> {
    let dropped = status.totals.log_lines_dropped;
    (dropped > 0).then(|| format!("{} log lines dropped: nothing took them", units::count(dropped)))
}

fn redis(status: &InstanceStatus) -> String {
    let label =
        status.redis.private_pid.map_or("redis".to_owned(), |pid| format!("private redis, pid {pid}"));
    let workers = status.slots.iter().filter(|slot| slot.worker.is_some()).count();
    let reached = if status.redis.ever_connected { "" } else { ", never reached yet" };
    let held = match status.redis.breakers_open {
        0 => String::new(),
        count => format!(", {count} hold calls back"),
    };
    format!("{label}: {} of {workers} workers connected{held}{reached}", status.redis.up)
}

fn scaling(status: &InstanceStatus) -> Option<String> {
    let workers = &status.workers;
    let bounds = workers.min.zip(workers.max).filter(|(min, max)| min != max);
    let range = bounds.map(|(min, max)| format!("autoscaling {min} to {max}"));
    let decision =
        workers.autoscale.as_ref().map(|last| format!("{}: {}", last.target, units::sanitize(&last.reason)));
    match (range, decision) {
        (Some(range), Some(decision)) => Some(format!("{range} · {decision}")),
        (Some(range), None) => Some(range),
        (None, _) => {
            let configured = workers.configured.filter(|count| *count != workers.target && *count > 0)?;
            Some(format!("scaled to {} by hand; {configured} are configured", workers.target))
        }
    }
}

/// The change under way, or how the last one ended.
pub(super) fn rollout_line(status: &InstanceStatus) -> Option<(Severity, String)> {
    if let Some(rollout) = &status.rollout {
        let (kind, generation) = (rollout.kind.name(), rollout.generation);
        let line = format!("{kind} to generation {generation}: {} of {} slots", rollout.done, rollout.total);
        return Some((Severity::Transitional, line));
    }
    let last = status.last_rollout.as_ref()?;
    let now_ms = status.started_ms + status.uptime_s * 1000;
    Some(finished_rollout(last, now_ms.saturating_sub(last.finished_ms) / 1000))
}

fn finished_rollout(last: &FinishedRollout, age_s: u64) -> (Severity, String) {
    let (severity, how) = match last.outcome {
        RolloutOutcome::Done => (Severity::Muted, "done"),
        RolloutOutcome::RolledBack => (Severity::Bad, "rolled back"),
        RolloutOutcome::Cancelled => (Severity::Transitional, "cancelled"),
    };
    let why =
        last.reason.as_deref().map(|reason| format!(": {}", units::sanitize(reason))).unwrap_or_default();
    let (kind, generation) = (last.kind.name(), last.generation);
    (severity, format!("last {kind}, to generation {generation}: {how} {} ago{why}", units::age(age_s)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::test_fixtures;

    #[test]
    fn a_person_finds_everything_on_one_page() {
        let page = render_instance(&test_fixtures::instance_status(), RenderOptions::default());
        let lines: Vec<&str> = page.lines().collect();
        assert_eq!(lines[0], "● serving 2 of 3 workers · build 1.2.0 · generation 4 · pid 4000 · up 2h0m");
        assert_eq!(
            lines[1],
            "  150 req/s · p50 320µs · p99 1.8ms · busy 42% · 76 connections · 3 in flight · 36.0M"
        );
        assert!(lines[2].contains("1,234,567 requests") && lines[2].contains("12.3k 4xx"), "{page}");
        assert_eq!(lines[3], "  private redis, pid 4001: 2 of 2 workers connected");
        assert_eq!(
            lines[4],
            "  last reload, to generation 5: rolled back 1m0s ago: slot 0: worker 4100 did not get READY"
        );
        assert_eq!(lines[5], "");
        assert!(lines[6].starts_with("SLOT"), "{page}");
        let first: Vec<&str> = lines[7].split_whitespace().collect();
        assert_eq!(first[..6], ["0", "4010", "ready", "4", "1h0m", "1,000,000"]);
        let leaving: Vec<&str> = lines[8].split_whitespace().collect();
        assert_eq!(leaving, ["4002", "draining", "3", "2h0m", "3%", "1", "12", "10.0M", "1.1.0"]);
        assert!(lines[9].contains("ready, closed"), "{page}");
        assert!(lines[10].contains("backed off") && lines[10].contains("boot"), "{page}");
        assert_eq!(lines.len(), 11, "a slot that is retired is not shown\n{page}");
    }

    #[test]
    fn no_line_of_the_table_is_wider_than_the_terminal_and_the_essentials_stay() {
        for columns in [44, 60, 80, 120, 200] {
            let page = render_instance(
                &test_fixtures::instance_status(),
                RenderOptions { columns: Some(columns), colours: false },
            );
            let table: Vec<&str> = page.lines().skip(6).collect();
            assert!(table.iter().all(|line| units::width(line) <= columns), "{columns}\n{page}");
            assert!(table[0].contains("PID") && table[0].contains("STATE"), "{columns}\n{page}");
        }
    }

    #[test]
    fn colours_change_nothing_but_colours() {
        let plain = render_instance(&test_fixtures::instance_status(), RenderOptions::default());
        let mut painted = render_instance(
            &test_fixtures::instance_status(),
            RenderOptions { columns: None, colours: true },
        );
        for code in ["32", "33", "31", "2", "0"] {
            painted = painted.replace(&format!("\x1b[{code}m"), "");
        }
        let trimmed = |page: &str| page.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
        assert_eq!(trimmed(&painted), trimmed(&plain));
    }
}
