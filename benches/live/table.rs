//! Figures as text.

use std::fmt;

use crate::options::Options;

/// What is said first.
pub(crate) const INTRODUCTION: &str = "Written by `cargo bench --bench live`. Clients, publishers, workers and Redis \
share the machine; CPU is user and system time of the processes named, memory is `Private_*` of `smaps_rollup`. Every \
message was checked: once, in order, to every client.
";

/// One measurement.
#[derive(Debug)]
pub(crate) struct Section {
    pub(crate) title: &'static str,
    pub(crate) text: String,
    pub(crate) head: Vec<&'static str>,
    pub(crate) rows: Vec<Vec<String>>,
}

impl Section {
    /// A table of names and values.
    pub(crate) fn pairs(title: &'static str, text: String, rows: Vec<(String, String)>) -> Self {
        let rows = rows.into_iter().map(|(name, value)| vec![name, value]).collect();
        Self { title, text, head: vec!["", "measured"], rows }
    }
}

impl fmt::Display for Section {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "\n## {}\n\n{}\n", self.title, self.text)?;
        writeln!(f, "| {} |\n|{}", self.head.join(" | "), "---|".repeat(self.head.len()))?;
        self.rows.iter().try_for_each(|row| writeln!(f, "| {} |", row.join(" | ")))
    }
}

/// How to get these figures again.
pub(crate) fn repeat(options: &Options) -> String {
    let Options { clients, seconds, workers, .. } = options;
    format!(
        "\n## Repeat the live part\n\n{clients} clients, {workers} workers a host, {seconds} s each. Needs `redis-server`.\n\n\
         ```sh\ncargo bench --bench live -- --date \"$(date +%F)\"\n```\n\n\
         Without `--date` it is printed and not written. All options are in `benches/live/options.rs`.\n"
    )
}

/// The value below which this share of a sorted list lies.
pub(crate) fn share(sorted: &[f64], share: f64) -> f64 {
    let at = ((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1));
    sorted.get(at).copied().unwrap_or_default()
}
