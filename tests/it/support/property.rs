//! Properties that need a server, which is started once for all cases of a test.

use std::cell::Cell;

use proptest::strategy::Strategy;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

/// Checks a property for so many random values. Each check is given a number of its own, from 1, shrinking included, so
/// that no two of them share a key.
#[track_caller]
pub(crate) fn holds<S: Strategy>(
    cases: u32,
    values: &S,
    check: impl Fn(u64, S::Value) -> Result<(), TestCaseError>,
) {
    // What a server and random keys took part in is not repeated by a seed alone.
    let config = Config { cases, failure_persistence: None, ..Config::default() };
    let runs = Cell::new(0);
    let outcome = TestRunner::new(config).run(values, |value| {
        runs.set(runs.get() + 1);
        check(runs.get(), value)
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}
