//! CPU work: of background tasks, with progress and cancellation, and of `GET /heavy`, off the event loop.
//!
//! The algorithms are slow on purpose, and their results are exact.

use std::ops::{ControlFlow, Range};
use std::time::Instant;

use axum::Json;
use axum::extract::{Query, State as Shared};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use num_bigint::BigUint;
use regatta::FleetHandle;
use serde::{Deserialize, Serialize};

/// Gets the progress in percent now and then; returns whether to go on.
pub(super) trait ProgressCallback: FnMut(u8) -> ControlFlow<()> {}

impl<W: FnMut(u8) -> ControlFlow<()>> ProgressCallback for W {}

/// Additions between two calls of the callback: one costs as much as some short additions.
const ADDITIONS: u32 = 64;

/// Numbers tested between two calls of the callback.
const CHUNK: u32 = 4_096;

/// The `n`th Fibonacci number, beginning at F(0) = 0; `None` if the callback stopped it.
///
/// By addition: doubling would be too fast for a progress bar. An addition costs as much as its sum is long, so half of
/// the additions are a quarter of the work.
pub(super) fn fibonacci(n: u32, mut on_progress: impl ProgressCallback) -> Option<BigUint> {
    let (mut this, mut next) = (BigUint::ZERO, BigUint::from(1_u8));
    for at in 0..n {
        if at.is_multiple_of(ADDITIONS) {
            let (done, all) = (u64::from(at), u64::from(n));
            if on_progress(percent(done * done, all * all)).is_break() {
                return None;
            }
        }
        this += &next;
        std::mem::swap(&mut this, &mut next);
    }
    Some(this)
}

/// How many primes there are below `n`; `None` if the callback stopped it.
///
/// A number costs as many divisions as its root is large.
pub(super) fn primes(n: u32, mut on_progress: impl ProgressCallback) -> Option<u32> {
    let work = |below: u32| u64::from(below) * u64::from(below.isqrt());
    let mut found = 0;
    for from in (0..n).step_by(CHUNK as usize) {
        if on_progress(percent(work(from), work(n))).is_break() {
            return None;
        }
        found += primes_in(from..from.saturating_add(CHUNK).min(n));
    }
    Some(found)
}

/// How many of these numbers are prime, by trial division: it costs time and no memory.
pub(super) fn primes_in(range: Range<u32>) -> u32 {
    let divides = |candidate: u32| {
        (3..).step_by(2).take_while(move |d| d * d <= candidate).any(move |d| candidate.is_multiple_of(d))
    };
    let first = range.start.max(3) | 1;
    let odd = (first..range.end).step_by(2).filter(|candidate| !divides(*candidate)).count();
    u32::try_from(odd).unwrap_or(u32::MAX) + u32::from(range.contains(&2))
}

/// At most 99: the work is not done yet.
fn percent(done: u64, all: u64) -> u8 {
    u8::try_from(done.saturating_mul(100) / all.max(1)).unwrap_or(99).min(99)
}

/// The default of `/heavy`: some hundredths of a second of work.
const HEAVY_DEFAULT: u32 = 200_000;

/// The maximum of `/heavy`: half a second of work.
const HEAVY_MAX: u32 = 2_000_000;

#[derive(Deserialize)]
pub(super) struct HeavyParams {
    n: Option<u32>,
}

#[derive(Serialize)]
struct HeavyResult {
    worker: u32,
    n: u32,
    result: u32,
    elapsed_seconds: f64,
}

pub(super) async fn heavy(
    Shared(state): Shared<FleetHandle>,
    Query(HeavyParams { n }): Query<HeavyParams>,
) -> Response {
    let n = n.unwrap_or(HEAVY_DEFAULT);
    if n > HEAVY_MAX {
        return (StatusCode::BAD_REQUEST, format!("n is {n}; allowed: 0 to {HEAVY_MAX}")).into_response();
    }
    let started = Instant::now();
    match state.spawn_blocking(move || primes_in(0..n)).await {
        Ok(result) => {
            let elapsed_seconds = started.elapsed().as_secs_f64();
            Json(HeavyResult { worker: state.worker().pid(), n, result, elapsed_seconds }).into_response()
        }
        Err(error) => error.into_response(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GO_ON: fn(u8) -> ControlFlow<()> = |_| ControlFlow::Continue(());

    /// By doubling, another algorithm than the one above: F(2k) and F(2k+1) out of F(k) and F(k+1).
    fn doubled(n: u32) -> (BigUint, BigUint) {
        if n == 0 {
            return (BigUint::ZERO, BigUint::from(1_u8));
        }
        let (a, b) = doubled(n / 2);
        let even = &a * ((&b << 1_u8) - &a);
        let odd = &a * &a + &b * &b;
        if n.is_multiple_of(2) { (even, odd) } else { (odd.clone(), even + odd) }
    }

    #[test]
    fn fibonacci_numbers_are_exact() {
        let known = [(0, "0"), (1, "1"), (2, "1"), (10, "55"), (93, "12200160415121876738")];
        for (n, value) in known.into_iter().chain([(200, "280571172992510140037611932413038677189525")]) {
            assert_eq!(fibonacci(n, GO_ON).unwrap().to_string(), value, "{n}");
        }
        let long = fibonacci(10_000, GO_ON).unwrap().to_string();
        assert_eq!(long.len(), 2090);
        assert!(long.starts_with("33644764876431783266") && long.ends_with("66073310059947366875"), "{long}");
        for n in [63, 64, 65, 1_000, 9_999, 12_345] {
            assert_eq!(fibonacci(n, GO_ON).unwrap(), doubled(n).0, "{n}");
        }
    }

    #[test]
    fn primes_are_counted() {
        let known = [(0, 0), (1, 0), (2, 0), (3, 1), (4, 2), (10, 4), (100, 25), (10_000, 1229)];
        for (n, expected) in known {
            assert_eq!((primes(n, GO_ON), primes_in(0..n)), (Some(expected), expected), "{n}");
        }
        assert_eq!(primes(2 * CHUNK + 1, GO_ON), Some(primes_in(0..2 * CHUNK + 1)));
    }

    #[test]
    fn progress_rises_and_what_is_to_stop_stops() {
        let mut reported = Vec::new();
        let mut record = |percent| {
            reported.push(percent);
            ControlFlow::Continue(())
        };
        fibonacci(6_400, &mut record).unwrap();
        primes(100 * CHUNK, &mut record).unwrap();
        let (fibonacci_reported, primes_reported) = reported.split_at(100);
        for reported in [fibonacci_reported, primes_reported] {
            assert!(
                reported.is_sorted() && reported[0] == 0 && reported[99] > 95 && reported[99] < 100,
                "{reported:?}"
            );
        }
        assert_eq!(fibonacci_reported[50], 25, "half of the additions are a quarter of the work");
        let stop = |percent| if percent < 10 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) };
        assert_eq!((fibonacci(100_000, stop), primes(1_000_000, stop)), (None, None));
    }
}
