//! `status`: the fleet as a table for people, or as JSON for programs.

use std::fmt::Write;
use std::time::Duration;

use crate::cli::ask;
use crate::cli::columns;
use crate::cli::columns::COLUMNS;
use crate::cli::columns::GAP;
use crate::cli::columns::Line;
use crate::cli::columns::Mood;
use crate::cli::exit;
use crate::cli::exit::Failure;
use crate::cli::exit::say;
use crate::cli::top;
use crate::cli::units;
use crate::config;
use crate::config::Inputs;
use crate::control::status::Finished;
use crate::control::status::FleetState;
use crate::control::status::RolloutOutcome;
use crate::control::status::Slot;
use crate::control::status::Status;

/// Prints how the running fleet is.
pub(super) fn status(inputs: &Inputs, json: bool, patience: Duration) -> Result<u8, Failure> {
    let run_dir = config::run_dir(inputs).map_err(|error| Failure::new(exit::USAGE, &error))?;
    let document = ask::status(&run_dir, patience)?;
    if json {
        say(document);
        return Ok(exit::OK);
    }
    let columns = top::terminal_columns();
    let look = Look { columns: columns.map(usize::from), colours: columns.is_some() && inputs.colours() };
    let page = render(&ask::understand(document)?, look);
    say(page.trim_end());
    Ok(exit::OK)
}

/// What it is printed on.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Look {
    /// Columns of the terminal; none: as many as wanted.
    pub(super) columns: Option<usize>,
    /// Whether colours are welcome.
    pub(super) colours: bool,
}

impl Look {
    fn paint(self, text: &str, mood: Mood) -> String {
        let code = match mood {
            _ if !self.colours => return text.to_owned(),
            Mood::Good => "32",
            Mood::Passing => "33",
            Mood::Bad => "31",
            Mood::Quiet => "2",
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }
}

/// The fleet as a person reads it.
pub(super) fn render(status: &Status, look: Look) -> String {
    let mut page = String::new();
    let mood = fleet_mood(status);
    let (name, rest) = headline(status);
    let _ = writeln!(page, "{} {rest}", look.paint(&format!("● {name}"), mood));
    for line in sentences(status) {
        let _ = writeln!(page, "  {line}");
    }
    if let Some((mood, sentence)) = verdict(status) {
        let _ = writeln!(page, "  {}", look.paint(&sentence, mood));
    }
    page.push('\n');
    let slots: Vec<&Slot> = status.slots.iter().filter(|slot| !status.is_retired(slot)).collect();
    let lines: Vec<Line> = slots.into_iter().flat_map(columns::lines).collect();
    table(&mut page, &lines, look);
    page
}

fn table(page: &mut String, lines: &[Line], look: Look) {
    let widths = columns::widths(lines, look.columns);
    let joined = |texts: Vec<String>| texts.join(&" ".repeat(GAP)).trim_end().to_owned();
    let title = widths.iter().map(|(index, width)| columns::padded(COLUMNS[*index].title, *index, *width));
    let _ = writeln!(page, "{}", look.paint(&joined(title.collect()), Mood::Quiet));
    for line in lines {
        let cell = |(index, width): (&usize, &usize)| {
            let text = columns::padded(&line.cells[*index], *index, *width);
            if COLUMNS[*index].title == "STATE" { look.paint(&text, line.mood) } else { text }
        };
        let _ = writeln!(page, "{}", joined(widths.iter().map(cell).collect()));
    }
}

/// How the fleet is as a whole.
pub(super) fn fleet_mood(status: &Status) -> Mood {
    match status.state {
        FleetState::Serving if status.workers.ready < status.workers.target => Mood::Bad,
        FleetState::Serving => Mood::Good,
        FleetState::Starting | FleetState::RollingOut | FleetState::Stopping => Mood::Passing,
    }
}

/// Its state, and what else stands in the first line.
pub(super) fn headline(status: &Status) -> (String, String) {
    let workers = &status.workers;
    let rest = format!(
        "{} of {} workers · build {} · generation {} · pid {} · up {}",
        workers.ready,
        workers.target,
        units::plain(&status.build),
        status.generation,
        status.supervisor_pid,
        units::age(status.uptime_s)
    );
    (status.state.name().to_owned(), rest)
}

/// The fleet's figures, a sentence each.
pub(super) fn sentences(status: &Status) -> Vec<String> {
    let (totals, rates) = (&status.totals, &status.rates);
    let answers = totals.responses;
    let mut lines = vec![
        format!(
            "{} req/s · p50 {} · p99 {} · busy {} · {} connections · {} in flight · {}",
            rates.requests_per_s.map_or(units::NONE.into(), units::rate),
            rates.latency_p50_us.map_or(units::NONE.into(), units::micros),
            rates.latency_p99_us.map_or(units::NONE.into(), units::micros),
            rates.busy_percent.map_or(units::NONE.into(), units::percent),
            units::short(totals.connections),
            units::short(totals.in_flight),
            units::bytes(totals.memory_bytes),
        ),
        format!(
            "{} requests ({} 2xx, {} 3xx, {} 4xx, {} 5xx) · {} views · {} limited · {} unavailable · {} refused · {} cut",
            units::count(totals.requests),
            units::short(answers.success),
            units::short(answers.redirection),
            units::short(answers.client_error),
            units::short(answers.server_error),
            units::count(totals.views),
            units::short(totals.limited),
            units::short(totals.unavailable),
            units::short(totals.refused),
            units::short(totals.cut),
        ),
        redis(status),
    ];
    lines.extend(scaling(status));
    lines.extend(log(status));
    lines
}

/// Log lines that were dropped, so that the operator can never read them.
fn log(status: &Status) -> Option<String> {
    let dropped = status.totals.log_lines_dropped;
    (dropped > 0).then(|| format!("{} log lines dropped: nothing took them", units::count(dropped)))
}

fn redis(status: &Status) -> String {
    let whose =
        status.redis.private_pid.map_or("redis".to_owned(), |pid| format!("private redis, pid {pid}"));
    let workers = status.slots.iter().filter(|slot| slot.worker.is_some()).count();
    let reached = if status.redis.reached { "" } else { ", never reached yet" };
    let held = match status.redis.held_back {
        0 => String::new(),
        count => format!(", {count} hold calls back"),
    };
    format!("{whose}: {} of {workers} workers have it{held}{reached}", status.redis.up)
}

fn scaling(status: &Status) -> Option<String> {
    let workers = &status.workers;
    let range =
        (workers.min != workers.max).then(|| format!("autoscaling {} to {}", workers.min, workers.max));
    let decision =
        workers.autoscale.as_ref().map(|last| format!("{}: {}", last.target, units::plain(&last.reason)));
    match (range, decision) {
        (Some(range), Some(decision)) => Some(format!("{range} · {decision}")),
        (Some(range), None) => Some(range),
        (None, _) if workers.configured != workers.target && workers.configured > 0 => {
            Some(format!("scaled to {} by hand; {} are configured", workers.target, workers.configured))
        }
        (None, _) => None,
    }
}

/// The change under way, or how the last one ended.
pub(super) fn verdict(status: &Status) -> Option<(Mood, String)> {
    if let Some(rollout) = &status.rollout {
        let (kind, generation) = (rollout.kind.name(), rollout.generation);
        let sentence =
            format!("{kind} to generation {generation}: {} of {} slots", rollout.done, rollout.total);
        return Some((Mood::Passing, sentence));
    }
    let last = status.last_rollout.as_ref()?;
    let now_ms = status.started_ms + status.uptime_s * 1000;
    Some(ended(last, now_ms.saturating_sub(last.ended_ms) / 1000))
}

fn ended(last: &Finished, age_s: u64) -> (Mood, String) {
    let (mood, how) = match last.outcome {
        RolloutOutcome::Done => (Mood::Quiet, "done"),
        RolloutOutcome::RolledBack => (Mood::Bad, "rolled back"),
        RolloutOutcome::Cancelled => (Mood::Passing, "cancelled"),
    };
    let why = last.reason.as_deref().map(|reason| format!(": {}", units::plain(reason))).unwrap_or_default();
    let (kind, generation) = (last.kind.name(), last.generation);
    (mood, format!("last {kind}, to generation {generation}: {how} {} ago{why}", units::age(age_s)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::samples;

    #[test]
    fn a_person_finds_everything_on_one_page() {
        let page = render(&samples::fleet(), Look::default());
        let lines: Vec<&str> = page.lines().collect();
        assert_eq!(lines[0], "● serving 2 of 3 workers · build 1.2.0 · generation 4 · pid 4000 · up 2h0m");
        assert_eq!(
            lines[1],
            "  150 req/s · p50 320µs · p99 1.8ms · busy 42% · 76 connections · 3 in flight · 36.0M"
        );
        assert!(lines[2].contains("1,234,567 requests") && lines[2].contains("12.3k 4xx"), "{page}");
        assert_eq!(lines[3], "  private redis, pid 4001: 2 of 2 workers have it");
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
            let page = render(&samples::fleet(), Look { columns: Some(columns), colours: false });
            let table: Vec<&str> = page.lines().skip(6).collect();
            assert!(table.iter().all(|line| units::width(line) <= columns), "{columns}\n{page}");
            assert!(table[0].contains("PID") && table[0].contains("STATE"), "{columns}\n{page}");
        }
    }

    #[test]
    fn colours_change_nothing_but_colours() {
        let plain = render(&samples::fleet(), Look::default());
        let mut painted = render(&samples::fleet(), Look { columns: None, colours: true });
        for code in ["32", "33", "31", "2", "0"] {
            painted = painted.replace(&format!("\x1b[{code}m"), "");
        }
        let trimmed = |page: &str| page.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>();
        assert_eq!(trimmed(&painted), trimmed(&plain));
    }
}
