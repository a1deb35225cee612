//! What a client is told about its limits, as draft-ietf-httpapi-ratelimit-headers-11 writes it.
//!
//! `q` is the burst and `w` the time in which it comes back, so that `r` never exceeds `q` and `q/w` is the sustained
//! rate; `t` is the time to the next request that is allowed beyond `r`, which satisfies both -10 and -11.

use std::fmt::Write;

use crate::limiter::quota::Quota;
use crate::redis::begin::LimitReply;

/// Texts for a response's header, and what was violated.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Headers {
    /// Value of `RateLimit-Policy`.
    pub policy: String,
    /// Value of `RateLimit`.
    pub limit: String,
    /// Value of `Retry-After`, s; `None` if every policy allows, or none ever will.
    pub retry_after: Option<u64>,
    /// Names of the policies that refused.
    pub violated: Vec<String>,
}

/// Writes the three texts; policy names are letters, digits, `-` and `_`, so they need no escapes.
pub(super) fn compose<'a>(decided: impl Iterator<Item = ((&'a str, Quota), LimitReply)>) -> Headers {
    let mut headers =
        Headers { policy: String::with_capacity(48), limit: String::with_capacity(48), ..Headers::default() };
    for ((name, quota), reply) in decided {
        let Headers { policy, limit, .. } = &mut headers;
        if !policy.is_empty() {
            policy.push_str(", ");
            limit.push_str(", ");
        }
        // Writing to a String cannot fail.
        let _ = write!(policy, "\"{name}\";q={};w={}", quota.burst(), quota.window_secs());
        let _ = write!(limit, "\"{name}\";r={}", reply.remaining);
        if let Some(wait) = next_us(&quota, &reply) {
            let _ = write!(limit, ";t={}", wait.div_ceil(1_000_000));
        }
        if !reply.allowed {
            headers.violated.push(name.to_owned());
            let seconds = reply.retry_after_us.map(|us| us.div_ceil(1_000_000).max(1));
            headers.retry_after = headers.retry_after.max(seconds);
        }
    }
    headers
}

/// Time until one request more than now is allowed, µs; `None` if the whole burst is.
fn next_us(quota: &Quota, reply: &LimitReply) -> Option<u64> {
    let missing = quota.burst().saturating_sub(reply.remaining);
    let regained_by = missing.checked_sub(1)?.saturating_mul(quota.interval_us());
    Some(reply.reset_us.saturating_sub(regained_by))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::limit::Rate;
    use crate::limiter::gcra;

    fn at(quota: Quota, requests: u64) -> LimitReply {
        let mut tat = None;
        let mut reply = gcra::decide(None, 0, &quota, 0).reply;
        for _ in 0..requests {
            let decision = gcra::decide(tat, 0, &quota, 1);
            tat = decision.tat_us.or(tat);
            reply = decision.reply;
        }
        reply
    }

    #[test]
    fn headers_say_what_is_left_and_when_there_is_more() {
        let minute = Quota::new(Rate { count: 100, period: Duration::from_secs(60) }, 100);
        let second = Quota::new(Rate { count: 1, period: Duration::from_secs(1) }, 2);
        let headers = compose([(("a", minute), at(minute, 58)), (("b", second), at(second, 1))].into_iter());
        assert_eq!(headers.policy, r#""a";q=100;w=60, "b";q=2;w=2"#);
        assert_eq!(headers.limit, r#""a";r=42;t=1, "b";r=1;t=1"#);
        assert_eq!((headers.retry_after, headers.violated.len()), (None, 0));
    }

    #[test]
    fn a_refusal_names_its_policy_and_when_to_come_back() {
        let slow = Quota::new(Rate { count: 1, period: Duration::from_secs(10) }, 1);
        let headers = compose([(("slow", slow), at(slow, 2))].into_iter());
        assert_eq!(headers.limit, r#""slow";r=0;t=10"#);
        assert_eq!((headers.retry_after, headers.violated), (Some(10), vec!["slow".to_owned()]));
    }

    #[test]
    fn every_value_parses_as_structured_field() {
        let quota = Quota::new(Rate { count: 7, period: Duration::from_secs(3) }, 9);
        for requests in 0..12 {
            let headers = compose([(("x-1_y", quota), at(quota, requests))].into_iter());
            for text in [&headers.policy, &headers.limit] {
                let list: sfv::List = sfv::Parser::new(text).parse().unwrap();
                assert_eq!(list.len(), 1, "{text}");
            }
        }
    }
}
