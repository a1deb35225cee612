//! Rate limits hold over all workers, charge nothing that is denied, and say how they stand.

use std::collections::BTreeSet;
use std::time::Duration;

use sfv::{BareItem, List, ListEntry, Parser};

use crate::support::client::{CookieClient, Request, Response};
use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::TestRedis;
use crate::support::{client, parallel_clients, wait};

fn limited(redis: &TestRedis, rate: &str, burst: u64) -> TestFleetBuilder {
    let plan = TestFleetBuilder::on(redis).set("REGATTA_LIMITS__DEFAULT__RATE", rate);
    plan.set("REGATTA_LIMITS__DEFAULT__BURST", &burst.to_string())
}

/// The policies of a `RateLimit` or `RateLimit-Policy` header as (name, parameter) → integer (RFC 9651, draft 11).
#[track_caller]
fn parameters(response: &Response, header: &str, wanted: &[&str]) -> Vec<(String, Vec<i64>)> {
    let text = response.all(header).join(", ");
    let list: List = Parser::new(&text).parse().unwrap_or_else(|error| panic!("{header}: {text:?}: {error}"));
    assert!(!list.is_empty(), "{header} is missing in {response:?}");
    let policy = |entry: &ListEntry| {
        let ListEntry::Item(item) = entry else { panic!("{header}: {text:?}: a list within the list") };
        let BareItem::String(name) = &item.bare_item else {
            panic!("{header}: {text:?}: a name that is no string")
        };
        let value = |key: &&str| match item.params.get(*key) {
            Some(BareItem::Integer(value)) => i64::from(*value),
            other => panic!("{header}: {text:?}: {key} is {other:?}"),
        };
        (name.as_str().to_owned(), wanted.iter().map(value).collect())
    };
    list.iter().map(policy).collect()
}

#[test]
fn limits_hold_over_all_workers() {
    let redis = TestRedis::start();
    let fleet = limited(&redis, "1/h", 25).workers(4).start();
    let answers = parallel_clients::parallel(8, 15, |_| {
        let response = client::get(fleet.listen, "/counters/x");
        (response.status, response.worker())
    });
    let granted = answers.iter().filter(|(status, _)| *status == 200).count();
    let denied: BTreeSet<_> =
        answers.iter().filter(|(status, _)| *status == 429).map(|(_, pid)| *pid).collect();
    assert_eq!(granted, 25);
    assert_eq!(answers.len() - granted, 95);
    assert_eq!(denied, fleet.workers().into_iter().collect(), "every worker denies");
}

#[test]
fn the_headers_tell_policy_and_state() {
    let redis = TestRedis::start();
    let fleet = limited(&redis, "2/min", 3).start();
    for left in [2, 1, 0] {
        let response = fleet.get("/counters/x");
        assert_eq!(response.status, 200);
        let policy = parameters(&response, "RateLimit-Policy", &["q", "w"]);
        assert_eq!(policy.len(), 1);
        assert_eq!(policy[0].0, "default");
        assert!(policy[0].1.iter().all(|value| *value > 0), "{policy:?}");
        let state = parameters(&response, "RateLimit", &["r", "t"]);
        assert_eq!((state[0].0.as_str(), state[0].1[0]), ("default", left));
        assert!(response.all("Retry-After").is_empty(), "{response:?}");
    }
    let denied = fleet.get("/counters/x");
    let problem = denied.assert_problem(429);
    assert_eq!(problem["violated-policies"], serde_json::json!(["default"]), "{problem}");
    let state = parameters(&denied, "RateLimit", &["r", "t"]);
    let retry_after: i64 = denied.header("Retry-After").parse().unwrap();
    assert_eq!(state[0].1[0], 0);
    assert!((1..=30).contains(&retry_after), "{denied:?}");
    assert!(retry_after >= state[0].1[1], "Retry-After is at least t: {denied:?}");
}

#[test]
fn a_denied_request_changes_nothing_and_the_quota_comes_back() {
    let redis = TestRedis::start();
    let fleet = limited(&redis, "1/s", 3).start();
    let mut visitor = CookieClient::default();
    let granted = (0..).map(|_| visitor.request(fleet.listen, Request::get("/"))).take(100);
    let (mut views, mut denied) = (0, 0);
    for response in granted {
        match response.status {
            200 => views = response.view().1,
            429 => denied += 1,
            _ => panic!("{response:?}"),
        }
        if denied > 10 {
            break;
        }
    }
    assert!(denied > 10 && views >= 3, "{views} views, {denied} denied");
    let next = wait::until_some("the quota comes back", Duration::from_secs(10), || {
        let response = visitor.request(fleet.listen, Request::get("/"));
        (response.status == 200).then(|| response.view().1)
    });
    assert_eq!(next, views + 1, "what was denied was not counted");
}

#[test]
fn a_denied_newcomer_gets_no_session() {
    let redis = TestRedis::start();
    let fleet = limited(&redis, "1/h", 1).start();
    CookieClient::default().view(fleet.listen);
    for _ in 0..20 {
        let denied = fleet.get("/");
        denied.assert_problem(429);
        assert!(denied.all("Set-Cookie").is_empty(), "{denied:?}");
    }
    assert_eq!(redis.cli(&["KEYS", "*:s:*"]).lines().filter(|key| !key.is_empty()).count(), 0);
}

#[test]
fn a_policy_with_routes_holds_there_and_only_there() {
    let redis = TestRedis::shared();
    let plan = TestFleetBuilder::on(&redis).set("REGATTA_LIMITS__GREETING__RATE", "1/h");
    let plan =
        plan.set("REGATTA_LIMITS__GREETING__BURST", "4").set("REGATTA_LIMITS__GREETING__ROUTES", "/hello");
    let fleet = plan.workers(4).start();
    let statuses = parallel_clients::parallel(4, 5, |_| client::get(fleet.listen, "/hello").status);
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 4, "{statuses:?}");
    let denied = fleet.get("/hello").assert_problem(429);
    assert_eq!(denied["violated-policies"], serde_json::json!(["greeting"]));
    for target in ["/", "/health", "/counters/x"] {
        assert_eq!(fleet.get(target).status, 200, "{target}");
    }
}

#[test]
fn if_one_policy_denies_no_other_is_charged() {
    let redis = TestRedis::start();
    let plan = limited(&redis, "1/h", 10).set("REGATTA_LIMITS__TIGHT__RATE", "1/h");
    let plan =
        plan.set("REGATTA_LIMITS__TIGHT__BURST", "2").set("REGATTA_LIMITS__TIGHT__ROUTES", "/counters/seats");
    let fleet = plan.start();
    let statuses: Vec<_> = (0..12).map(|_| fleet.get("/counters/seats").status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 2, "{statuses:?}");
    let statuses: Vec<_> = (0..12).map(|_| fleet.get("/counters/bell").status).collect();
    assert_eq!(statuses.iter().filter(|status| **status == 200).count(), 8, "{statuses:?}");
}

#[test]
fn a_policy_per_session_follows_the_cookie() {
    let redis = TestRedis::start();
    let fleet = limited(&redis, "1/h", 4).set("REGATTA_LIMITS__DEFAULT__PER", "session").start();
    let mut visitors = [CookieClient::default(), CookieClient::default()];
    let spent = |visitor: &mut CookieClient| {
        let statuses = (0..8).map(|_| visitor.request(fleet.listen, Request::get("/")).status);
        statuses.filter(|status| *status == 200).count()
    };
    // The first two requests of each have no session yet, the second one only its ticket, and count for the address.
    assert_eq!(visitors.each_mut().map(spent), [6, 6]);
}
