//! Whether workers of an earlier release live, which hear and tell everything on the fleet's one channel.
//!
//! Each machine names the libraries it calls at every heartbeat, and those releases call one that later ones do not.
//! While it was named lately, later workers tell that channel too what they tell elsewhere, and for longer still they
//! listen there: whoever has stopped listening may be sure that everybody has stopped telling.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::Duration;

use fred::types::Value;
use tokio::time::Instant;

use crate::redis::Redis;
use crate::redis::keys;
use crate::redis::lanes::Kind;
use crate::redis::link::Live;

/// The library that says so.
const THEIRS: &str = "regatta_live_v1";
/// How long after they were last named they are told of news. A machine's word comes from the worker of its lowest slot,
/// and the others of a rollout may be earlier ones for some minutes.
const TELL: Duration = Duration::from_secs(10 * 60);
/// How long they are listened to: until everybody has stopped telling them, and looked again.
const HEAR: Duration = Duration::from_secs(20 * 60);
/// How long what was found out is good for.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// What is known of them.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    looked: Mutex<Option<Known>>,
    turn: tokio::sync::Mutex<()>,
}

/// When it was looked, and how long ago they were named then; never, as far as is known.
#[derive(Debug, Clone, Copy)]
pub(super) struct Known {
    at: Option<Instant>,
    age: Option<Duration>,
}

impl Known {
    const NOTHING: Self = Self { at: None, age: None };

    fn within(&self, span: Duration) -> bool {
        self.at.zip(self.age).is_some_and(|(at, age)| age + at.elapsed() < span)
    }

    /// Whether they are told of news; nobody who does not know leaves them out.
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
        self.looked.lock().unwrap_or_else(PoisonError::into_inner).unwrap_or(Known::NOTHING)
    }

    fn fresh(&self) -> Option<Known> {
        let known = self.known();
        known.at.is_some_and(|at| at.elapsed() < LOOK_EVERY).then_some(known)
    }
}

impl Redis {
    /// What is known of workers of earlier releases; asks if that was long ago. Where nobody answers it is what it was.
    pub(super) async fn earlier(&self) -> Known {
        let earlier = &self.inner.earlier;
        if let Some(known) = earlier.fresh() {
            return known;
        }
        let _turn = earlier.turn.lock().await;
        if let Some(known) = earlier.fresh() {
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
            && let [Ok(time), Ok(score)] = answers.as_slice()
        {
            let known = Known { at: Some(Instant::now()), age: age(time, score) };
            *earlier.looked.lock().unwrap_or_else(PoisonError::into_inner) = Some(known);
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
        assert!(Known::NOTHING.tells() && !Known::NOTHING.hears());
        assert!(!known(None).tells() && !known(None).hears());
        for age in [0, 599] {
            assert!(known(Some(age)).tells() && known(Some(age)).hears());
        }
        for age in [600, 1199] {
            assert!(!known(Some(age)).tells() && known(Some(age)).hears());
        }
        assert!(!known(Some(1200)).hears());
    }

    #[test]
    fn ages_are_by_the_server_s_clock_and_never_negative() {
        let time = Value::Array(vec![Value::from("1000"), Value::from("5")]);
        assert_eq!(age(&time, &Value::from("990000")), Some(Duration::from_secs(10)));
        assert_eq!(age(&time, &Value::from("2000000")), Some(Duration::ZERO), "the clock stepped back");
        assert_eq!(age(&time, &Value::Null), None);
    }
}
