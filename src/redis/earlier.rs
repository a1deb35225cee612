//! Whether workers of an earlier release live, which hear and tell everything on the fleet's one channel.
//!
//! Each machine names the libraries it calls at every heartbeat, and those releases call one that later ones do not.
//! While it was named lately, later workers tell that channel too what they tell elsewhere, and they listen there for
//! longer still: a worker that stopped listening before all others have stopped telling would miss news.

use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;

use fred::types::Value;
use tokio::time::Instant;

use crate::redis::Error;
use crate::redis::Redis;
use crate::redis::keys;
use crate::redis::lanes::Kind;
use crate::redis::link::Live;

/// The library that says so.
const THEIRS: &str = "regatta_live_v1";
/// How long after they were last named they are told of news. A machine's word comes from the worker of its lowest slot,
/// and the others of a rollout may be earlier ones for some minutes.
const TELL: Duration = Duration::from_secs(10 * 60);
/// How long the common channel is listened to: until every later worker has looked again and stopped telling there.
const HEAR: Duration = Duration::from_secs(20 * 60);
/// How long what was found out is good for.
const LOOK_EVERY: Duration = Duration::from_secs(10);
/// Pause before Redis is asked again what it did not say, such as what this user may not ask: whatever is told waits for
/// the answer, one after the other.
const ASK_AGAIN: Duration = Duration::from_secs(1);

/// What is known of them.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    looked: Mutex<Looked>,
    turn: tokio::sync::Mutex<()>,
}

/// What was found out last, and when Redis last answered without saying it.
#[derive(Debug, Clone, Copy, Default)]
struct Looked {
    known: Known,
    refused: Option<Instant>,
}

/// When it was looked, none: not yet; and how long before that they were named, none: never.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Known {
    at: Option<Instant>,
    age: Option<Duration>,
}

impl Known {
    fn within(&self, span: Duration) -> bool {
        self.at.zip(self.age).is_some_and(|(at, age)| age + at.elapsed() < span)
    }

    /// Whether they are told of news, as they are by a worker that does not know yet whether they live.
    pub(super) fn tells(self) -> bool {
        self.at.is_none() || self.within(TELL)
    }

    /// Whether they are listened to.
    pub(super) fn hears(self) -> bool {
        self.within(HEAR)
    }
}

impl Earlier {
    /// What was found out last.
    pub(super) fn known(&self) -> Known {
        self.looked().known
    }

    fn looked(&self) -> MutexGuard<'_, Looked> {
        self.looked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is known, if it is too soon to ask.
    fn fresh(&self, now: Instant) -> Option<Known> {
        let Looked { known, refused } = *self.looked();
        let within =
            |at: Option<Instant>, span| at.is_some_and(|at| now.saturating_duration_since(at) < span);
        (within(known.at, LOOK_EVERY) || within(refused, ASK_AGAIN)).then_some(known)
    }

    fn answered(&self, time: Result<&Value, &Error>, score: Result<&Value, &Error>, now: Instant) {
        let mut looked = self.looked();
        match (time, score) {
            (Ok(time), Ok(score)) => {
                *looked = Looked { known: Known { at: Some(now), age: age(time, score) }, refused: None };
            }
            _ => looked.refused = Some(now),
        }
    }
}

impl Redis {
    /// What is known of workers of earlier releases; asks if that was long ago. Without an answer it stays what it was.
    pub(super) async fn earlier(&self) -> Known {
        let earlier = &self.inner.earlier;
        if let Some(known) = earlier.fresh(Instant::now()) {
            return known;
        }
        let _turn = earlier.turn.lock().await;
        if let Some(known) = earlier.fresh(Instant::now()) {
            return known;
        }
        let seen = keys::libraries_seen(&self.inner.prefix);
        let asked = |live: Live| {
            let commands = vec![
                ("TIME", Vec::new()),
                ("ZSCORE", vec![seen.as_str().into(), Value::from_static_str(THEIRS)]),
            ];
            async move { live.caller.together(commands).await }
        };
        if let Ok(answers) = Box::pin(self.guard_as(Kind::Read, asked)).await
            && let [time, score] = answers.as_slice()
        {
            earlier.answered(time.as_ref(), score.as_ref(), Instant::now());
        }
        earlier.known()
    }
}

/// How long ago a score was, a time in ms; one that is still to come is now.
fn age(time: &Value, score: &Value) -> Option<Duration> {
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
    async fn whoever_stopped_listening_knows_that_all_have_stopped_telling() {
        let known = |age: Option<u64>| Known { at: Some(Instant::now()), age: age.map(Duration::from_secs) };
        assert!(Known::default().tells() && !Known::default().hears());
        assert!(!known(None).tells() && !known(None).hears());
        for age in [0, 599] {
            assert!(known(Some(age)).tells() && known(Some(age)).hears());
        }
        for age in [600, 1199] {
            assert!(!known(Some(age)).tells() && known(Some(age)).hears());
        }
        assert!(!known(Some(1200)).hears());
    }

    #[tokio::test]
    async fn what_redis_does_not_say_is_not_asked_at_once_again() {
        let (earlier, time) = (Earlier::default(), Value::Array(vec![Value::from("1000"), Value::from("5")]));
        let now = Instant::now();
        assert!(earlier.fresh(now).is_none());
        earlier.answered(Ok(&time), Err(&Error::Timeout), now);
        assert!(earlier.fresh(now).is_some_and(Known::tells), "nothing is known, so they are told");
        assert!(earlier.fresh(now + ASK_AGAIN).is_none());
        earlier.answered(Ok(&time), Ok(&Value::Null), now);
        assert!(earlier.fresh(now + ASK_AGAIN).is_some_and(|known| !known.tells()));
        let later = now + LOOK_EVERY;
        assert!(earlier.fresh(later).is_none());
        earlier.answered(Err(&Error::Timeout), Ok(&Value::Null), later);
        assert!(earlier.fresh(later).is_some_and(|known| !known.tells()), "what was found out stays known");
    }

    #[test]
    fn ages_are_by_the_server_s_clock_and_never_negative() {
        let time = Value::Array(vec![Value::from("1000"), Value::from("5")]);
        assert_eq!(age(&time, &Value::from("990000")), Some(Duration::from_secs(10)));
        assert_eq!(age(&time, &Value::from("2000000")), Some(Duration::ZERO), "the clock stepped back");
        assert_eq!(age(&time, &Value::Null), None);
    }
}
