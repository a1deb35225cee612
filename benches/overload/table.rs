//! Figures as text.

use std::fmt;
use std::time::Duration;

use crate::crowd::SwarmReport;

/// What is said first.
pub(crate) const INTRODUCTION: &str = "Written by `cargo bench --bench overload`. Clients, workers and Redis share the \
machine; memory is `Private_*` of `smaps_rollup` of all workers. Every answer was checked: its status, that it does not \
carry `Session-State`, and that its count is one more than the client's last.
";

/// How to get these figures again.
pub(crate) const REPEAT: &str = "\n## Repeat the overload\n\nNeeds `redis-server`.\n\n```sh\ncargo build --release --examples\n\
cargo bench --bench overload -- --date \"$(date +%F)\"\n```\n\nWithout `--date` it is printed and not written. All options are in \
`benches/overload/options.rs`.\n";

/// One measurement.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) title: &'static str,
    pub(crate) text: &'static str,
    pub(crate) head: Vec<&'static str>,
    pub(crate) rows: Vec<Vec<String>>,
}

/// What the last cell of a row says where a promise was not kept.
const MISSED: &str = "MISSED";

impl Section {
    /// Whether no row misses a promise.
    pub(crate) fn is_kept(&self) -> bool {
        !self.rows.iter().any(|row| row.last().is_some_and(|last| last.starts_with(MISSED)))
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n## {}\n\n{}\n", self.title, self.text)?;
        writeln!(f, "| {} |\n|{}", self.head.join(" | "), "---|".repeat(self.head.len()))?;
        self.rows.iter().try_for_each(|row| writeln!(f, "| {} |", row.join(" | ")))
    }
}

/// The last cell of a row.
pub(crate) fn verdict(kept: bool, promise: &str) -> String {
    if kept { "kept".to_owned() } else { format!("{MISSED}: {promise}") }
}

/// Milliseconds.
pub(crate) fn ms(time: Duration) -> String {
    format!("{:.1}", time.as_secs_f64() * 1e3)
}

/// Failures by kind.
pub(crate) fn failures(report: &SwarmReport) -> String {
    if report.failures.is_empty() {
        return "0".to_owned();
    }
    report.failures.iter().map(|(how, count)| format!("{count} {how}")).collect::<Vec<_>>().join(", ")
}

/// Views counted for each answer that told one.
pub(crate) fn counted(report: &SwarmReport) -> f64 {
    report.counted as f64 / report.answered().max(1) as f64
}
