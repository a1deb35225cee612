//! Two lengths of every endurance test: short in every run, long when `REGATTA_SOAK` is set, as `make soak` does.

use crate::support::load_generator::LoadReport;

/// Whether the long form is wanted.
pub(crate) fn soaks() -> bool {
    std::env::var_os("REGATTA_SOAK").is_some_and(|value| value != "0" && !value.is_empty())
}

/// One of two lengths.
pub(crate) fn length<T>(short: T, long: T) -> T {
    if soaks() { long } else { short }
}

/// One line for a scenario in the long form.
pub(crate) fn report(scenario: &str, tally: &LoadReport) {
    log(scenario, &tally.summary());
}

/// A figure for a scenario in the long form.
pub(crate) fn log(scenario: &str, text: &str) {
    if soaks() {
        eprintln!("soak: {scenario}: {text}");
    }
}
