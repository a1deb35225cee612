//! `docs/reference/metrics.md`, from the text that `/metrics` is made of.

use std::collections::BTreeMap;

use crate::cli::reference::pages::{compare_page, head, row};

/// One series: its type, what it means, and the values of its labels.
#[derive(Debug, Default)]
struct Series {
    name: String,
    kind: String,
    help: String,
    labels: BTreeMap<String, Vec<String>>,
}

/// Labels whose values are numbers of slots, builds and bounds of buckets: they are not listed.
const OPEN_LABELS: [&str; 3] = ["slot", "version", "le"];

fn read(text: &str) -> Vec<Series> {
    let mut all: Vec<Series> = Vec::new();
    for line in text.lines() {
        let words = |rest: &str| {
            let (name, text) = rest.split_once(' ').unwrap();
            (name.to_owned(), text.to_owned())
        };
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = words(rest);
            all.push(Series { name, help: help.trim_end_matches('.').to_owned(), ..Series::default() });
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            all.last_mut().unwrap().kind = words(rest).1;
        } else if let Some((_, labels)) = line.split_once('{').filter(|_| !line.starts_with('#')) {
            let series = all.last_mut().unwrap();
            let (labels, _) = labels.rsplit_once('}').unwrap();
            for pair in labels.split("\",").filter(|pair| !pair.is_empty()) {
                let (label, value) = pair.split_once("=\"").unwrap();
                let values = series.labels.entry(label.to_owned()).or_default();
                let value = value.trim_end_matches('"').to_owned();
                if !values.contains(&value) {
                    values.push(value);
                }
            }
        }
    }
    all
}

impl Series {
    /// As Prometheus stores it.
    fn sample(&self) -> String {
        let suffix = match self.kind.as_str() {
            "counter" => "_total",
            "info" => "_info",
            _ => "",
        };
        let labels: Vec<_> = self.labels.keys().filter(|label| *label != "le").map(String::as_str).collect();
        match labels.is_empty() {
            true => format!("`{}{suffix}`", self.name),
            false => format!("`{}{suffix}{{{}}}`", self.name, labels.join(",")),
        }
    }

    fn meaning(&self) -> String {
        let listed = self.labels.iter().filter(|(label, _)| !OPEN_LABELS.contains(&label.as_str()));
        let listed = listed.map(|(label, values)| format!("; {label}: `{}`", values.join("`, `")));
        format!("{}{}", self.help, listed.collect::<String>())
    }
}

#[test]
fn the_reference_of_metrics_is_what_is_served() {
    let rows = read(&crate::http::all_series());
    let rows: String =
        rows.iter().map(|series| row(&[&series.sample(), &series.kind, &series.meaning()])).collect();
    compare_page("reference/metrics.md", &[("metrics", head(&["series", "type", ""]) + &rows)]);
}
