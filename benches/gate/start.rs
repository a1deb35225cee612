//! How a benchmark begins that is its own fleet.

use std::process::ExitCode;

/// Why a benchmark that is its own fleet has nothing to measure: it was started as that fleet, or by
/// `cargo test --all-targets`, which starts benchmarks too, without `--bench`.
pub(crate) fn not_to_measure(serves: &str, serve: fn() -> ExitCode) -> Option<ExitCode> {
    if std::env::var_os(serves).is_some() {
        return Some(serve());
    }
    (!std::env::args().any(|argument| argument == "--bench")).then_some(ExitCode::SUCCESS)
}
