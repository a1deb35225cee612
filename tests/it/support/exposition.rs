//! What `/metrics` says, summed up.

/// Requests answered to the public, all workers and statuses together.
pub(crate) const REQUESTS: &str = "regatta_requests_total";

/// The sum of a metric over all series that have these labels.
#[track_caller]
pub(crate) fn sum(text: &str, name: &str, labels: &[&str]) -> f64 {
    let of_name = |line: &&str| {
        let rest = line.strip_prefix(name).unwrap_or("x");
        (rest.starts_with('{') || rest.starts_with(' ')) && labels.iter().all(|label| rest.contains(label))
    };
    let values: Vec<f64> =
        text.lines().filter(of_name).map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert!(!values.is_empty(), "no {name} {labels:?} in:\n{text}");
    values.iter().sum()
}
