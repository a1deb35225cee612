//! When a worker looks around: all that does so now and then does so at the same moments, so that a worker at rest is
//! woken once for all of it and not once for each.

use std::time::Duration;

use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};

use crate::sys::clock;

/// Ticks at multiples of `period`, a multiple of [`clock::TICK`], beginning with the next one; those that were missed are
/// not made up for.
pub(super) fn aligned_interval(period: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + clock::until_tick(period), period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}
