//! Pages that are one table in code each: settings, signals and exit codes, events, problem types, headers.

use crate::bootstrap::exit_code::EXIT_CODES;
use crate::cli::reference::pages::{compare_page, head, row};
use crate::config::lookup;
use crate::config::setting::Reloadability;
use crate::control::event_kind::EventKind;
use crate::http::header_names::{HEADERS, HeaderDirection};
use crate::http::problem::PROBLEM_TYPES;
use crate::supervisor::SIGNALS;

#[test]
fn the_reference_of_settings_is_the_table_of_settings() {
    let rows = lookup::by_section().into_iter().map(|setting| {
        let default = match (setting.default, setting.unset) {
            ("", "") => "none".to_owned(),
            ("", unset) => unset.to_owned(),
            (default, _) => format!("`{default}`"),
        };
        let takes = match setting.reloadability {
            Reloadability::Reload => "reload",
            Reloadability::Upgrade => "upgrade",
            Reloadability::Restart => "stop and start",
        };
        row(&[&format!("`{}`", setting.path), &default, setting.allowed, takes, &setting.reference()])
    });
    let table = head(&["setting", "default", "allowed", "a change takes", ""]) + &rows.collect::<String>();
    compare_page("CONFIGURATION.md", &[("settings", table)]);
}

#[test]
fn the_list_of_former_settings_is_that_of_the_table() {
    let rows = lookup::by_section().into_iter().flat_map(|setting| {
        setting
            .formerly
            .iter()
            .map(move |former| row(&[&format!("`{former}`"), &format!("`{}`", setting.path)]))
    });
    let table = head(&["former setting", "now"]) + &rows.collect::<String>();
    compare_page("reference/renamed.md", &[("settings", table)]);
}

#[test]
fn the_reference_of_signals_and_exit_codes_is_theirs() {
    let signals = SIGNALS.iter().map(|(signal, verb, what)| {
        row(&[signal.as_str().trim_start_matches("SIG"), &format!("`{verb}`"), what])
    });
    let signals =
        head(&["signal", "command", "what it asks of the supervisor"]) + &signals.collect::<String>();
    let codes = EXIT_CODES.iter().map(|(code, serve, others)| row(&[&code.to_string(), serve, others]));
    let codes = head(&["code", "of `serve`", "of the other commands"]) + &codes.collect::<String>();
    compare_page("reference/signals-and-exit-codes.md", &[("signals", signals), ("exit codes", codes)]);
}

#[test]
fn the_reference_of_events_is_the_list_of_kinds() {
    let rows = EventKind::ALL.iter().map(|kind| row(&[&format!("`{}`", kind.name()), kind.meaning()]));
    let table = head(&["kind", "when"]) + &rows.collect::<String>();
    compare_page("reference/events.md", &[("events", table)]);
}

#[test]
fn the_reference_of_problems_is_the_table_of_types() {
    let rows = PROBLEM_TYPES.iter().map(|kind| {
        let (uri, status) = (format!("`{}`", kind.uri), kind.status.as_u16().to_string());
        row(&[&uri, &status, kind.cause, kind.remedy])
    });
    let table =
        head(&["`type`", "status", "what happened", "what a client can do"]) + &rows.collect::<String>();
    compare_page("reference/problems.md", &[("problems", table)]);
}

#[test]
fn the_reference_of_headers_is_the_table_of_names() {
    let table = |direction: HeaderDirection| {
        let rows = HEADERS.iter().filter(|header| header.direction == direction);
        let rows = rows.map(|header| row(&[&format!("`{}`", header.name), header.meaning]));
        head(&["header", ""]) + &rows.collect::<String>()
    };
    compare_page(
        "reference/http-headers.md",
        &[
            ("request headers", table(HeaderDirection::Request)),
            ("response headers", table(HeaderDirection::Response)),
        ],
    );
}
