//! The rate-limit headers of a response, by draft-ietf-httpapi-ratelimit-headers-11 or in the older form.
//!
//! `q` is the burst and `w` the time in which it comes back, so that `r` never exceeds `q` and `q/w` is the sustained
//! rate; `t` is the time to the next request that is allowed beyond `r`, which satisfies both -10 and -11. A policy
//! whose state is not known (another one denied first) is only named.

use crate::config::limits::RateLimitHeaderStyle;
use crate::limiter::commands::RateLimitDecision;
use crate::limiter::gcra::Quota;
use crate::limiter::policy::{AppliedLimits, PolicyMeasure};

/// The values of the headers, and the policies that denied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RateLimitHeaders {
    /// Value of `RateLimit-Policy`; empty: none is sent.
    pub policy: String,
    /// Value of `RateLimit`; empty: none is sent.
    pub limit: String,
    /// Values of `X-RateLimit-Limit`, `-Remaining` and `-Reset`, the last in seconds from now.
    pub legacy: Option<[u64; 3]>,
    /// Value of `Retry-After`, s; `None` if every policy allows, or if no wait would help.
    pub retry_after: Option<u64>,
    /// Names of the policies that denied.
    pub violated: Vec<String>,
}

/// One policy and its decision.
#[derive(Debug, Clone, Copy)]
struct PolicyDecision<'a> {
    name: &'a str,
    measure: PolicyMeasure,
    reply: Option<RateLimitDecision>,
}

impl RateLimitHeaders {
    /// Renders the decisions on a request's limits, given in their order; `None`: a limit's state is not known.
    pub fn for_decisions(
        limits: &AppliedLimits,
        decisions: &[Option<RateLimitDecision>],
        style: RateLimitHeaderStyle,
    ) -> Self {
        let policies = limits.enforced().map(|(index, policy)| PolicyDecision {
            name: policy.name(),
            measure: policy.measure(),
            reply: decisions.get(index).copied().flatten(),
        });
        render(policies, style)
    }
}

/// Policy names are letters, digits, `-` and `_`, so they need no escapes.
fn render<'a>(
    policies: impl Iterator<Item = PolicyDecision<'a>> + Clone,
    style: RateLimitHeaderStyle,
) -> RateLimitHeaders {
    let mut headers = RateLimitHeaders::default();
    let draft = matches!(style, RateLimitHeaderStyle::Draft | RateLimitHeaderStyle::Both);
    let legacy = matches!(style, RateLimitHeaderStyle::Legacy | RateLimitHeaderStyle::Both);
    if draft {
        // Exact: spare capacity costs one more allocation when the text becomes a header's value.
        headers.policy.reserve_exact(joined(policies.clone().map(|one| one.policy_len())));
        headers.limit.reserve_exact(joined(policies.clone().map(|one| one.limit_len())));
    }
    for one in policies {
        if draft {
            write_draft(&mut headers, &one);
        }
        let Some(reply) = one.reply else { continue };
        let (max, remaining) = match one.measure {
            PolicyMeasure::Rate { quota, .. } => (quota.burst(), reply.remaining),
            PolicyMeasure::Concurrency { max, .. } => (max, reply.remaining),
        };
        let tighter = |old: [u64; 3]| remaining < old[1];
        if legacy && headers.legacy.is_none_or(tighter) {
            headers.legacy = Some([max, remaining, seconds(reply.reset_us)]);
        }
        if !reply.allowed {
            headers.violated.push(one.name.to_owned());
            let wait = reply.retry_after_us.map(|us| seconds(us).max(1));
            headers.retry_after = headers.retry_after.max(wait);
        }
    }
    headers
}

impl PolicyDecision<'_> {
    /// Length of the policy's text, without the separator.
    fn policy_len(&self) -> usize {
        let text = match self.measure {
            PolicyMeasure::Rate { quota, .. } => {
                digits(quota.burst()) + ";w=".len() + digits(quota.window_secs())
            }
            PolicyMeasure::Concurrency { max, .. } => digits(max) + CONCURRENT.len(),
        };
        "\"\";q=".len() + self.name.len() + text
    }

    /// Length of the text of its decision, without the separator.
    fn limit_len(&self) -> usize {
        let Some(reply) = &self.reply else { return 0 };
        let next = self.next_secs().map_or(0, |next| ";t=".len() + digits(next));
        "\"\";r=".len() + self.name.len() + digits(reply.remaining) + next
    }

    /// Time until one request more than now is allowed, s; `None` if the whole burst is, or if the state is not
    /// known.
    fn next_secs(&self) -> Option<u64> {
        let PolicyMeasure::Rate { quota, .. } = self.measure else { return None };
        next_us(&quota, self.reply.as_ref()?).map(seconds)
    }
}

/// Between two policies.
const SEPARATOR: &str = ", ";

/// Length of such texts with their separators; an empty one is not written.
fn joined(lengths: impl Iterator<Item = usize>) -> usize {
    let written = lengths.filter(|length| *length > 0).map(|length| length + SEPARATOR.len());
    written.sum::<usize>().saturating_sub(SEPARATOR.len())
}

const CONCURRENT: &str = ";qu=\"concurrent-requests\"";

fn write_draft(headers: &mut RateLimitHeaders, one: &PolicyDecision<'_>) {
    let RateLimitHeaders { policy, limit, .. } = headers;
    name(policy, one.name, ";q=");
    match one.measure {
        PolicyMeasure::Rate { quota, .. } => {
            number(policy, quota.burst());
            policy.push_str(";w=");
            number(policy, quota.window_secs());
        }
        PolicyMeasure::Concurrency { max, .. } => {
            number(policy, max);
            policy.push_str(CONCURRENT);
        }
    }
    let Some(reply) = one.reply else { return };
    name(limit, one.name, ";r=");
    number(limit, reply.remaining);
    if let Some(next) = one.next_secs() {
        limit.push_str(";t=");
        number(limit, next);
    }
}

/// Writes a policy's name, and `then`.
fn name(text: &mut String, name: &str, then: &str) {
    if !text.is_empty() {
        text.push_str(SEPARATOR);
    }
    text.push('"');
    text.push_str(name);
    text.push('"');
    text.push_str(then);
}

/// Writes a number as `format!` does, which costs a request some 1,000 instructions more.
fn number(text: &mut String, mut number: u64) {
    let mut written = [0; 20];
    let mut at = written.len();
    for place in written.iter_mut().rev() {
        *place = b'0' + u8::try_from(number % 10).unwrap_or(0);
        number /= 10;
        at -= 1;
        if number == 0 {
            break;
        }
    }
    text.push_str(std::str::from_utf8(&written[at..]).unwrap_or_default());
}

fn digits(number: u64) -> usize {
    number.checked_ilog10().map_or(1, |log| log as usize + 1)
}

fn seconds(us: u64) -> u64 {
    us.div_ceil(1_000_000)
}

/// Time until one request more than now is allowed, µs; `None` if the whole burst is.
fn next_us(quota: &Quota, reply: &RateLimitDecision) -> Option<u64> {
    let missing = quota.burst().saturating_sub(reply.remaining);
    let regained_by = missing.checked_sub(1)?.saturating_mul(quota.interval_us());
    Some(reply.reset_us.saturating_sub(regained_by))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::config::limits::{PrefetchMode, Rate};
    use crate::limiter::gcra;

    fn at(quota: Quota, requests: u64) -> RateLimitDecision {
        let mut tat = None;
        let mut reply = gcra::decide(None, 0, &quota, 0).reply;
        for _ in 0..requests {
            let decision = gcra::decide(tat, 0, &quota, 1);
            tat = decision.tat_us.or(tat);
            reply = decision.reply;
        }
        reply
    }

    fn policy_decision(name: &str, quota: Quota, requests: u64) -> PolicyDecision<'_> {
        let measure = PolicyMeasure::Rate { quota, lease: PrefetchMode::Auto };
        PolicyDecision { name, measure, reply: Some(at(quota, requests)) }
    }

    fn draft<const N: usize>(policies: [PolicyDecision<'_>; N]) -> RateLimitHeaders {
        render(policies.into_iter(), RateLimitHeaderStyle::Draft)
    }

    #[test]
    fn headers_show_the_remaining_requests_and_when_there_are_more() {
        let minute = Quota::new(Rate { count: 100, period: Duration::from_secs(60) }, 100);
        let second = Quota::new(Rate { count: 1, period: Duration::from_secs(1) }, 2);
        let headers = draft([policy_decision("a", minute, 58), policy_decision("b", second, 1)]);
        assert_eq!(headers.policy, r#""a";q=100;w=60, "b";q=2;w=2"#);
        assert_eq!(headers.limit, r#""a";r=42;t=1, "b";r=1;t=1"#);
        assert_eq!((headers.retry_after, headers.violated.len(), headers.legacy), (None, 0, None));
    }

    #[test]
    fn a_denial_names_its_policy_and_when_to_retry() {
        let slow = Quota::new(Rate { count: 1, period: Duration::from_secs(10) }, 1);
        let unknown = PolicyDecision { reply: None, ..policy_decision("unknown", slow, 0) };
        let headers = draft([unknown, policy_decision("slow", slow, 2)]);
        assert_eq!(headers.policy, r#""unknown";q=1;w=10, "slow";q=1;w=10"#);
        assert_eq!(headers.limit, r#""slow";r=0;t=10"#);
        assert_eq!((headers.retry_after, headers.violated), (Some(10), vec!["slow".to_owned()]));
    }

    #[test]
    fn the_older_headers_show_the_tightest_policy() {
        let wide = Quota::new(Rate { count: 100, period: Duration::from_secs(60) }, 100);
        let tight = Quota::new(Rate { count: 1, period: Duration::from_secs(1) }, 5);
        let both = || [policy_decision("wide", wide, 3), policy_decision("tight", tight, 2)].into_iter();
        let headers = render(both(), RateLimitHeaderStyle::Legacy);
        assert_eq!((headers.policy.as_str(), headers.legacy), ("", Some([5, 3, 2])));
        let headers = render(both(), RateLimitHeaderStyle::Both);
        assert!(!headers.policy.is_empty() && headers.legacy.is_some());
        let headers = render([policy_decision("tight", tight, 6)].into_iter(), RateLimitHeaderStyle::Off);
        assert_eq!((headers.limit.as_str(), headers.legacy, headers.retry_after), ("", None, Some(1)));
        assert_eq!(headers.violated, ["tight"]);
    }

    #[test]
    fn numbers_are_written_as_by_format_and_exactly_as_long_as_reserved() {
        for given in [0, 1, 9, 10, 99, 100, 65_535, 1_000_000, u64::MAX - 1, u64::MAX] {
            let mut text = String::new();
            number(&mut text, given);
            assert_eq!((text.as_str(), digits(given)), (given.to_string().as_str(), text.len()));
        }
        let quota = Quota::new(Rate { count: 1000, period: Duration::from_secs(1) }, 12_345);
        for requests in [0, 1, 7] {
            let one = || policy_decision("default", quota, requests);
            let unknown = PolicyDecision { reply: None, ..policy_decision("u", quota, 0) };
            for headers in [
                draft([one()]),
                draft([one(), policy_decision("b", quota, 1)]),
                draft([unknown, policy_decision("b", quota, 1)]),
            ] {
                assert_eq!(headers.policy.capacity(), headers.policy.len());
                assert_eq!(headers.limit.capacity(), headers.limit.len());
            }
        }
    }

    #[test]
    fn permits_are_shown_by_their_number() {
        let measure = PolicyMeasure::Concurrency { max: 3, lease: Duration::from_secs(10) };
        let reply = RateLimitDecision {
            allowed: false,
            remaining: 0,
            retry_after_us: Some(1_000_000),
            reset_us: 10_000_000,
        };
        let headers = draft([PolicyDecision { name: "export", measure, reply: Some(reply) }]);
        assert_eq!(headers.policy, r#""export";q=3;qu="concurrent-requests""#);
        assert_eq!((headers.limit.as_str(), headers.retry_after), (r#""export";r=0"#, Some(1)));
        assert!(sfv::Parser::new(&headers.policy).parse::<sfv::List>().is_ok());
    }

    #[test]
    fn every_value_parses_as_structured_field() {
        let quota = Quota::new(Rate { count: 7, period: Duration::from_secs(3) }, 9);
        for requests in 0..12 {
            let headers = draft([policy_decision("x-1_y", quota, requests)]);
            for text in [&headers.policy, &headers.limit] {
                let list: sfv::List = sfv::Parser::new(text).parse().unwrap();
                assert_eq!(list.len(), 1, "{text}");
            }
        }
    }
}
