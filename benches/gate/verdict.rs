//! Whether a figure moved: pure, and tested in `tests/it/architecture/gate.rs`.

use std::collections::BTreeMap;

/// Figures by name.
pub(crate) type Values = BTreeMap<String, f64>;

/// How far a figure may move before that means anything.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Tolerance {
    /// Of what it was.
    pub(crate) percent: f64,
    /// And by how much at least: what happens beside the requests is in the figures of cheap ones too.
    pub(crate) least: f64,
}

/// What is said of a figure.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    Same,
    /// The gate fails.
    Dearer,
    /// The baseline is to be written anew, or the next change may be that much dearer without a word.
    Cheaper,
    /// The baseline does not have it, which fails too: it would never be compared.
    New,
}

/// A figure beside what it was.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) scenario: String,
    pub(crate) figure: String,
    pub(crate) before: Option<f64>,
    pub(crate) now: f64,
    pub(crate) verdict: Verdict,
}

impl Row {
    /// By how much it moved, per cent; of next to nothing that says nothing.
    pub(crate) fn percent(&self) -> Option<f64> {
        self.before.filter(|before| *before >= 0.05).map(|before| (self.now / before - 1.0) * 100.0)
    }
}

/// What a request costs by a difference of two counts, to two digits behind the point: where it costs nothing, what
/// happens beside the requests makes the difference negative.
pub(crate) fn cost(difference: f64) -> f64 {
    ((difference * 100.0).round() / 100.0).max(0.0)
}

/// What holds for a figure unless the baseline says otherwise.
pub(crate) fn tolerance(figure: &str) -> Tolerance {
    let (percent, least) = match figure {
        name if name.ends_with("-instructions") => (3.0, 500.0),
        // Numbers of processes are in every answer, and have more digits or fewer.
        name if name.contains("-bytes-") => (3.0, 8.0),
        "worker-allocations" => (2.0, 0.4),
        // How often a worker waits depends on when others answer; what it sends is exact.
        "worker-system-calls" => (10.0, 0.4),
        // Exact but for what happens beside the requests: one more for each of them is ten times as much.
        _ => (0.0, 0.1),
    };
    Tolerance { percent, least }
}

/// Judges one figure.
pub(crate) fn judge(before: Option<f64>, now: f64, tolerance: Tolerance) -> Verdict {
    let Some(before) = before else { return Verdict::New };
    let room = (before * tolerance.percent / 100.0).max(tolerance.least);
    match now - before {
        by if by > room => Verdict::Dearer,
        by if by < -room => Verdict::Cheaper,
        _ => Verdict::Same,
    }
}

/// All figures of a scenario beside those of the baseline; `wider` are the percentages that it grants instead.
pub(crate) fn compare(scenario: &str, before: &Values, now: &Values, wider: &Values) -> Vec<Row> {
    let row = |(figure, now): (&String, &f64)| {
        let mut tolerance = tolerance(figure);
        if let Some(percent) = wider.get(figure) {
            tolerance.percent = *percent;
        }
        let before = before.get(figure).copied();
        let verdict = judge(before, *now, tolerance);
        Row { scenario: scenario.to_owned(), figure: figure.clone(), before, now: *now, verdict }
    };
    now.iter().map(row).collect()
}

/// Functions that grew most: name, instructions before and now. One that the baseline does not name had at most as many
/// as the least it names.
pub(crate) fn grown(before: &Values, now: &Values, most: usize) -> Vec<(String, f64, f64)> {
    let least = before.values().copied().min_by(f64::total_cmp).unwrap_or_default();
    let before_of = |name: &str| before.get(name).copied().unwrap_or(least);
    let mut all: Vec<_> = now.iter().map(|(name, now)| (name.clone(), before_of(name), *now)).collect();
    all.retain(|(_, before, now)| now > before);
    all.sort_by(|one, other| (other.2 - other.1).total_cmp(&(one.2 - one.1)));
    all.truncate(most);
    all
}
