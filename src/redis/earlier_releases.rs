//! Whether workers of an earlier release live, which hear and tell everything on the fleet's one channel.
//!
//! Each machine names the libraries it calls at every heartbeat, and those releases call one that later ones do not.
//! While it was named lately, later workers tell that channel too what they tell elsewhere, and they listen there for
//! longer still: a worker that stopped listening before all others have stopped telling would miss news.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fred::types::Value;
use tokio::time::Instant;

use crate::redis::breakers::CallKind;
use crate::redis::connection::ActiveConnection;
use crate::redis::{RedisClient, RedisError, keys};

/// The library that says so.
const EARLIER_LIBRARY: &str = "regatta_live_v1";
/// How long after they were last named they are told of news. A machine's word comes from the worker of its lowest slot,
/// and the others of a rollout may be earlier ones for some minutes.
const PUBLISH_FOR: Duration = Duration::from_secs(10 * 60);
/// How long the common channel is listened to: until every later worker has looked again and stopped telling there.
const SUBSCRIBE_FOR: Duration = Duration::from_secs(20 * 60);
/// How long what was found out is good for.
const REFRESH_INTERVAL: Duration = Duration::from_secs(10);
/// Pause before Redis is asked again what it did not say, such as what this user may not ask: whatever is told waits for
/// the answer, one after the other.
const RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// What is known of them.
#[derive(Debug, Default)]
pub(super) struct EarlierReleaseTracker {
    cached: Mutex<CachedSighting>,
    query_lock: tokio::sync::Mutex<()>,
}

/// What was found out last, and when Redis last answered without saying it.
#[derive(Debug, Clone, Copy, Default)]
struct CachedSighting {
    sighting: EarlierReleaseSighting,
    rejected_at: Option<Instant>,
}

/// When it was looked, none: not yet; and how long before that they were named, none: never.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct EarlierReleaseSighting {
    checked_at: Option<Instant>,
    age: Option<Duration>,
}

impl EarlierReleaseSighting {
    fn within(&self, span: Duration) -> bool {
        self.checked_at.zip(self.age).is_some_and(|(at, age)| age + at.elapsed() < span)
    }

    /// Whether they are told of news, as they are by a worker that does not know yet whether they live.
    pub(super) fn needs_publish(self) -> bool {
        self.checked_at.is_none() || self.within(PUBLISH_FOR)
    }

    /// Whether they are listened to.
    pub(super) fn needs_subscription(self) -> bool {
        self.within(SUBSCRIBE_FOR)
    }
}

impl EarlierReleaseTracker {
    /// What was found out last.
    pub(super) fn sighting(&self) -> EarlierReleaseSighting {
        self.lock_cached().sighting
    }

    fn lock_cached(&self) -> MutexGuard<'_, CachedSighting> {
        self.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known, if it is too soon to ask.
    fn fresh_sighting(&self, now: Instant) -> Option<EarlierReleaseSighting> {
        let CachedSighting { sighting: known, rejected_at: refused } = *self.lock_cached();
        let within =
            |at: Option<Instant>, span| at.is_some_and(|at| now.saturating_duration_since(at) < span);
        (within(known.checked_at, REFRESH_INTERVAL) || within(refused, RETRY_INTERVAL)).then_some(known)
    }

    fn record_reply(
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

impl RedisClient {
    /// What is known of workers of earlier releases; asks if that was long ago. Without an answer it stays what it was.
    pub(super) async fn earlier_release_sighting(&self) -> EarlierReleaseSighting {
        let earlier = &self.inner.earlier_releases;
        if let Some(known) = earlier.fresh_sighting(Instant::now()) {
            return known;
        }
        let _turn = earlier.query_lock.lock().await;
        if let Some(known) = earlier.fresh_sighting(Instant::now()) {
            return known;
        }
        let seen = keys::libraries_in_use(&self.inner.prefix);
        let query = |live: ActiveConnection| {
            let commands = vec![
                ("TIME", Vec::new()),
                ("ZSCORE", vec![seen.as_str().into(), Value::from_static_str(EARLIER_LIBRARY)]),
            ];
            async move { live.transport.pipeline(commands).await }
        };
        if let Ok(answers) = Box::pin(self.send(CallKind::Read, query)).await
            && let [time, score] = answers.as_slice()
        {
            earlier.record_reply(time.as_ref(), score.as_ref(), Instant::now());
        }
        earlier.sighting()
    }
}

/// How long ago a score was, a time in ms; one that is still to come is now.
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
