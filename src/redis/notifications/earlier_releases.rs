//! Whether workers of an earlier release are running, which publish and listen only on the common channel.
//!
//! Each instance reports at every heartbeat the libraries that it calls, and those releases call one that later ones do
//! not. While it was reported recently, later workers also publish on the common channel, and listen there for longer
//! still: a worker that stopped listening before all others have stopped publishing would miss notifications.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fred::types::Value;
use tokio::time::Instant;

use crate::redis::error::RedisError;

/// The library that only those releases call.
pub(super) const EARLIER_LIBRARY: &str = "regatta_live_v1";
/// How long after the last report notifications are published for them. An instance's report comes from the worker of
/// its lowest slot, and other slots may run the earlier release for some minutes during a rollout.
const PUBLISH_FOR: Duration = Duration::from_secs(10 * 60);
/// How long the common channel is listened to: until every later worker has checked again and stopped publishing there.
const SUBSCRIBE_FOR: Duration = Duration::from_secs(20 * 60);
/// How long a result is used.
const REFRESH_INTERVAL: Duration = Duration::from_secs(10);
/// Pause before the query is repeated after a failure, such as a missing right: publishing waits for the reply each
/// time.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What is known of earlier releases.
#[derive(Debug, Default)]
pub(in crate::redis) struct EarlierReleaseTracker {
    cached: Mutex<CachedSighting>,
    pub(super) query_lock: tokio::sync::Mutex<()>,
}

/// The last result, and when a query last failed.
#[derive(Debug, Clone, Copy, Default)]
struct CachedSighting {
    sighting: EarlierReleaseSighting,
    rejected_at: Option<Instant>,
}

/// When it was checked (`None`: not yet), and how long before that the library was reported (`None`: never).
#[derive(Debug, Clone, Copy, Default)]
pub(in crate::redis) struct EarlierReleaseSighting {
    checked_at: Option<Instant>,
    age: Option<Duration>,
}

impl EarlierReleaseSighting {
    fn within(&self, span: Duration) -> bool {
        self.checked_at.zip(self.age).is_some_and(|(at, age)| age + at.elapsed() < span)
    }

    /// Whether notifications are published for them; also true until the first check.
    pub(super) fn needs_publish(self) -> bool {
        self.checked_at.is_none() || self.within(PUBLISH_FOR)
    }

    /// Whether the common channel is listened to for their sake.
    pub(super) fn needs_subscription(self) -> bool {
        self.within(SUBSCRIBE_FOR)
    }
}

impl EarlierReleaseTracker {
    /// The last result.
    pub(super) fn sighting(&self) -> EarlierReleaseSighting {
        self.lock_cached().sighting
    }

    fn lock_cached(&self) -> MutexGuard<'_, CachedSighting> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last result, if it is too early to query again.
    pub(super) fn fresh_sighting(&self, now: Instant) -> Option<EarlierReleaseSighting> {
        let CachedSighting { sighting: known, rejected_at: refused } = *self.lock_cached();
        let within =
            |at: Option<Instant>, span| at.is_some_and(|at| now.saturating_duration_since(at) < span);
        (within(known.checked_at, REFRESH_INTERVAL) || within(refused, RETRY_INTERVAL)).then_some(known)
    }

    pub(super) fn record_reply(
        &self,
        time: Result<&Value, &RedisError>,
        score: Result<&Value, &RedisError>,
        now: Instant,
    ) {
        let mut cached = self.lock_cached();
        match (time, score) {
            (Ok(time), Ok(score)) => {
                *cached = CachedSighting {
                    sighting: EarlierReleaseSighting {
                        checked_at: Some(now),
                        age: sighting_age(time, score),
                    },
                    rejected_at: None,
                };
            }
            _ => cached.rejected_at = Some(now),
        }
    }
}

/// How long ago a score was, a time in ms; a future one counts as now.
fn sighting_age(time: &Value, score: &Value) -> Option<Duration> {
    let Value::Array(parts) = time else { return None };
    let now_s = parts.first()?.as_u64()?;
    let named_ms = score.as_f64()?.max(0.0);
    let ago = Duration::from_secs(now_s).as_secs_f64() - named_ms / 1000.0;
    Some(Duration::try_from_secs_f64(ago.max(0.0)).unwrap_or(Duration::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_unsubscribes_only_after_all_have_stopped_publishing() {
        let known = |age: Option<u64>| EarlierReleaseSighting {
            checked_at: Some(Instant::now()),
            age: age.map(Duration::from_secs),
        };
        assert!(
            EarlierReleaseSighting::default().needs_publish()
                && !EarlierReleaseSighting::default().needs_subscription()
        );
        assert!(!known(None).needs_publish() && !known(None).needs_subscription());
        for age in [0, 599] {
            assert!(known(Some(age)).needs_publish() && known(Some(age)).needs_subscription());
        }
        for age in [600, 1199] {
            assert!(!known(Some(age)).needs_publish() && known(Some(age)).needs_subscription());
        }
        assert!(!known(Some(1200)).needs_subscription());
    }

    #[tokio::test]
    async fn a_rejected_query_is_not_repeated_at_once() {
        let (earlier, time) =
            (EarlierReleaseTracker::default(), Value::Array(vec![Value::from("1000"), Value::from("5")]));
        let now = Instant::now();
        assert!(earlier.fresh_sighting(now).is_none());
        earlier.record_reply(Ok(&time), Err(&RedisError::Timeout), now);
        assert!(
            earlier.fresh_sighting(now).is_some_and(EarlierReleaseSighting::needs_publish),
            "nothing is known, so they are told"
        );
        assert!(earlier.fresh_sighting(now + RETRY_INTERVAL).is_none());
        earlier.record_reply(Ok(&time), Ok(&Value::Null), now);
        assert!(earlier.fresh_sighting(now + RETRY_INTERVAL).is_some_and(|known| !known.needs_publish()));
        let later = now + REFRESH_INTERVAL;
        assert!(earlier.fresh_sighting(later).is_none());
        earlier.record_reply(Err(&RedisError::Timeout), Ok(&Value::Null), later);
        assert!(
            earlier.fresh_sighting(later).is_some_and(|known| !known.needs_publish()),
            "what was found out stays known"
        );
    }

    #[test]
    fn ages_are_by_the_server_s_clock_and_never_negative() {
        let time = Value::Array(vec![Value::from("1000"), Value::from("5")]);
        assert_eq!(sighting_age(&time, &Value::from("990000")), Some(Duration::from_secs(10)));
        assert_eq!(
            sighting_age(&time, &Value::from("2000000")),
            Some(Duration::ZERO),
            "the clock stepped back"
        );
        assert_eq!(sighting_age(&time, &Value::Null), None);
    }
}
