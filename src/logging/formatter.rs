//! One event → one line, pretty or JSON, with the process it comes from.

use std::fmt;
use std::fmt::Write;

use serde_json::{Map, Value};
use time::OffsetDateTime;
use time::format_description::BorrowedFormatItem;
use time::macros::format_description;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

use crate::logging::role::worker_slot;
use crate::logging::terminal_escape;
use crate::sys::clock::wall_clock;

/// RFC 3339 with milliseconds, always of one length.
const TIMESTAMP_FORMAT: &[BorrowedFormatItem<'_>] =
    format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");

/// The field that goes on over several lines, for people.
const BACKTRACE_FIELD: &str = "backtrace";

/// What a line looks like.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LineFormat {
    /// One JSON object.
    Json,
    /// Time, level, process, sentence, fields.
    Pretty {
        /// With terminal colours.
        colours: bool,
    },
}

/// Formats events.
#[derive(Debug)]
pub(super) struct LineFormatter {
    format: LineFormat,
}

impl LineFormatter {
    pub(super) fn new(form: LineFormat) -> Self {
        Self { format: form }
    }
}

impl<S, N> FormatEvent<S, N> for LineFormatter
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = EventFields::default();
        event.record(&mut fields);
        let metadata = event.metadata();
        writer.write_str(&format_line(self.format, *metadata.level(), metadata.target(), fields))
    }
}

/// The line in the place of those that were dropped.
pub(super) fn dropped_lines_notice(form: LineFormat, dropped: u64, cause: &str) -> String {
    let message = match dropped {
        1 => format!("1 log line was dropped: {cause}"),
        _ => format!("{dropped} log lines were dropped: {cause}"),
    };
    let others = [("dropped", Value::from(dropped)), ("cause", cause.into())];
    let others = others.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
    format_line(form, Level::WARN, module_path!(), EventFields { message, others })
}

/// One line, with its end.
fn format_line(form: LineFormat, level: Level, target: &str, fields: EventFields) -> String {
    let now = OffsetDateTime::from_unix_timestamp_nanos(
        i128::try_from(wall_clock().as_millis()).unwrap_or(0) * 1_000_000,
    );
    let at = now.ok().and_then(|now| now.format(TIMESTAMP_FORMAT).ok()).unwrap_or_default();
    let mut line = match form {
        LineFormat::Json => format_json(&at, level, target, fields),
        LineFormat::Pretty { colours } => format_pretty(&at, level, &fields, colours),
    };
    line.push('\n');
    line
}

fn format_json(at: &str, level: Level, target: &str, fields: EventFields) -> String {
    let mut object = Map::new();
    object.insert("timestamp".into(), at.into());
    object.insert("level".into(), level.as_str().to_ascii_lowercase().into());
    object.insert("message".into(), fields.message.into());
    if let Some(slot) = worker_slot() {
        object.insert("slot".into(), slot.into());
        object.insert("pid".into(), std::process::id().into());
    }
    object.extend(fields.others);
    object.insert("target".into(), target.into());
    terminal_escape::escape_json(Value::Object(object).to_string())
}

fn format_pretty(at: &str, level: Level, fields: &EventFields, colours: bool) -> String {
    let (start, dim, end) = match (colours, level) {
        (false, _) => ("", "", ""),
        (true, Level::ERROR) => ("\x1b[31m", "\x1b[2m", "\x1b[0m"),
        (true, Level::WARN) => ("\x1b[33m", "\x1b[2m", "\x1b[0m"),
        (true, Level::INFO) => ("\x1b[32m", "\x1b[2m", "\x1b[0m"),
        (true, _) => ("\x1b[34m", "\x1b[2m", "\x1b[0m"),
    };
    let process = worker_slot().map_or("supervisor".to_owned(), |slot| format!("worker {slot}"));
    let clock = at.get(11..23).unwrap_or(at);
    let message = terminal_escape::escape_for_terminal(&fields.message);
    let mut line = format!("{dim}{clock}{end} {start}{level:5}{end} {process:10} {message}");
    for (name, value) in &fields.others {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        // A cause is in the sentence already, for people.
        if !fields.message.contains(&text) {
            let text = if name == BACKTRACE_FIELD {
                terminal_escape::escape_block(&text)
            } else {
                terminal_escape::escape_for_terminal(&text)
            };
            let _ = write!(line, " {dim}{name}={end}{text}");
        }
    }
    line
}

/// An event's message and its other fields, in order.
#[derive(Debug, Default)]
struct EventFields {
    message: String,
    others: Map<String, Value>,
}

impl EventFields {
    fn insert(&mut self, field: &Field, value: Value) {
        if field.name() == "message" {
            self.message = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        } else {
            self.others.insert(field.name().to_owned(), value);
        }
    }
}

impl Visit for EventFields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.insert(field, format!("{value:?}").into());
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.insert(field, value.into());
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.insert(field, value.into());
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.insert(field, value.into());
    }

    fn record_f64(&mut self, field: &Field, value: f64) {
        self.insert(field, value.into());
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.insert(field, value.into());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_wrote_cannot_forge_a_line_or_move_the_cursor() {
        let bad = "no such boat\n12:00:00.000 INFO  supervisor all is well\x1b[2J\u{9b}31m";
        let fields = || EventFields {
            message: bad.to_owned(),
            others: Map::from_iter([("path".to_owned(), bad.replace("boat", "path").into())]),
        };
        for form in [LineFormat::Json, LineFormat::Pretty { colours: false }] {
            let text = format_line(form, Level::ERROR, "t", fields());
            assert_eq!(text.lines().count(), 1, "{text}");
            assert!(!text.trim_end().chars().any(char::is_control), "{text:?}");
        }
        let coloured = format_line(LineFormat::Pretty { colours: true }, Level::ERROR, "t", fields());
        assert_eq!(coloured.matches('\x1b').count(), 6, "only ours: {coloured:?}");
        let others = Map::from_iter([(BACKTRACE_FIELD.to_owned(), "\n 0: one\n 1: two".into())]);
        let text = format_line(
            LineFormat::Pretty { colours: false },
            Level::ERROR,
            "t",
            EventFields { message: "m".into(), others },
        );
        assert!(text.ends_with("backtrace=\n     0: one\n     1: two\n"), "{text:?}");
    }
}
