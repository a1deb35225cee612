//! When a worker looks around: all that does so now and then does so at the same moments, so that a worker at rest is
//! woken once for all of it and not once for each.

use std::time::Duration;

use tokio::time::Instant;
use tokio::time::Interval;
use tokio::time::MissedTickBehavior;
use tokio::time::interval_at;

use crate::sys::time;

/// Ticks at multiples of `period`, a multiple of [`time::TICK`], beginning with the next one; those that were missed are
/// not made up for.
pub(super) fn aligned_interval(period: Duration) -> Interval {
    let mut ticks = interval_at(Instant::now() + time::until_tick(period), period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}
