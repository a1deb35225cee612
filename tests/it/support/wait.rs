//! Waiting with a deadline: a test asks again until the answer is there, and never merely sleeps.

use std::thread;
use std::time::{Duration, Instant};

/// Generous for a busy machine: a promise that needs less says so itself.
pub(crate) const LONG: Duration = Duration::from_secs(20);

/// The pause before it is asked again: short at first, then a twentieth of what has passed, so that a long wait takes
/// little of the processors that the fleets need.
fn pause(begin: Instant) -> Duration {
    (begin.elapsed() / 20).clamp(Duration::from_millis(5), Duration::from_millis(25))
}

/// Asks until there is an answer; panics naming `what` when `within` is over.
#[track_caller]
pub(crate) fn until_some<T>(what: &str, within: Duration, mut poll: impl FnMut() -> Option<T>) -> T {
    let begin = Instant::now();
    loop {
        if let Some(answer) = poll() {
            return answer;
        }
        assert!(begin.elapsed() < within, "not within {within:?}: {what}");
        thread::sleep(pause(begin));
    }
}

/// Asks until it is true; panics naming `what` when `within` is over.
#[track_caller]
pub(crate) fn until(what: &str, within: Duration, mut check: impl FnMut() -> bool) {
    until_some(what, within, || check().then_some(()));
}

/// Asks until it is true, or `within` is over, which the caller describes.
pub(crate) fn until_or(within: Duration, mut check: impl FnMut() -> bool) -> Result<(), ()> {
    let begin = Instant::now();
    while !check() {
        if begin.elapsed() >= within {
            return Err(());
        }
        thread::sleep(pause(begin));
    }
    Ok(())
}

/// The pause between two requests of a load, two blows of a storm or two looks of a loop that has its own deadline.
pub(crate) fn pace(pause: Duration) {
    thread::sleep(pause);
}

/// [`pace`] for asynchronous tests.
pub(crate) async fn paced(pause: Duration) {
    tokio::time::sleep(pause).await;
}

/// [`let_pass`] for asynchronous tests: the passing time is what is tested, and no state would tell that it is over.
pub(crate) async fn pass(time: Duration) {
    tokio::time::sleep(time).await;
}

/// Lets time pass that itself is the subject of the test, such as load that has to last for a while.
pub(crate) fn let_pass(time: Duration) {
    let end = Instant::now() + time;
    while let Some(left) = end.checked_duration_since(Instant::now()) {
        thread::sleep(left.min(Duration::from_millis(20)));
    }
}
