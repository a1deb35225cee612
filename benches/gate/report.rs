//! What is printed.

use std::collections::BTreeMap;

use crate::baseline::Functions;
use crate::figures::Figures;
use crate::verdict;
use crate::verdict::{Row, Values, Verdict};

/// Functions that are shown of what grew.
const MOST: usize = 12;

/// All figures, what they were and by how much they moved.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut text =
        format!("{:18} {:24} {:>12} {:>12} {:>9}\n", "scenario", "a request", "before", "now", "moved");
    let mut last = "";
    for row in rows {
        let scenario = if row.scenario == last { "" } else { &row.scenario };
        last = &row.scenario;
        let before = row.before.map_or_else(|| "-".to_owned(), |before| format!("{before:.2}"));
        let moved = row.percent().map_or_else(String::new, |percent| format!("{percent:+.2} %"));
        let said = match row.verdict {
            Verdict::Same => "",
            Verdict::Dearer => "  DEARER",
            Verdict::Cheaper => "  cheaper",
            Verdict::New => "  not in the baseline",
        };
        let line = format!("{scenario:18} {:24} {before:>12} {:>12.2} {moved:>9}{said}", row.figure, row.now);
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// For what takes more instructions: where.
pub(crate) fn culprits(rows: &[Row], counted: &BTreeMap<String, Figures>, before: &Functions) -> String {
    let mut text = String::new();
    let dearer = rows.iter().filter(|row| row.verdict == Verdict::Dearer);
    for row in dearer {
        let Some(process) = row.figure.strip_suffix("-instructions") else { continue };
        let Some(figures) = counted.get(&row.scenario) else { continue };
        let now = if process == "redis" { &figures.redis } else { &figures.worker };
        let empty = Values::new();
        let before = before.get(&(row.scenario.clone(), process.to_owned())).unwrap_or(&empty);
        text.push_str(&format!("\n{}, {process}: instructions a request that grew most\n", row.scenario));
        for (name, before, now) in verdict::grown(before, now, MOST) {
            text.push_str(&format!("  {:>+10.0}  ({before:.0} to {now:.0})  {name}\n", now - before));
        }
    }
    text
}
