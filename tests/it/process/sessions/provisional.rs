//! Strangers store nothing: a first visit is a signed ticket, and its session is made when the ticket comes back.

use std::collections::BTreeSet;

use crate::support::client::{CookieClient, Request};
use crate::support::clock::Clock;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::shop::{get, post, sessions};
use crate::support::{client, parallel_clients};

const TERM_MS: i64 = 600_000;
const MODES: [&str; 3] = ["fcall", "evalsha", "plain"];

/// Keys of sessions, marks of ended ones and limits on new ones included; the total and the workers' ledgers are not.
fn about_sessions(redis: &TestRedis) -> Vec<String> {
    let kept = |key: &String| {
        ![":once:", ":c:", ":l:", "secret", ":mig", "{fleet}", "{seen}"].iter().any(|it| key.contains(it))
    };
    redis.keys().into_iter().filter(kept).collect()
}

fn visited(fleet: &TestFleet) -> CookieClient {
    let mut visitor = CookieClient::default();
    assert_eq!(visitor.view(fleet.listen).1, 1);
    visitor
}

fn form(visitor: &CookieClient) -> &str {
    &visitor.cookies["sid"][..3]
}

/// How long the only session lives, ms.
fn left(redis: &TestRedis) -> i64 {
    let keys = sessions(redis);
    assert_eq!(keys.len(), 1, "{keys:?}");
    redis.cli(&["PTTL", &keys[0]]).parse().unwrap()
}

#[test]
fn strangers_store_nothing_and_are_counted() {
    for mode in MODES {
        let redis = TestRedis::start();
        let plan = TestFleetBuilder::on(&redis).workers(2).set("REGATTA_REDIS__MODE", mode);
        let fleet = plan.start();
        fleet.get("/");
        let before = about_sessions(&redis);
        let pids = parallel_clients::parallel(4, 50, |_| CookieClient::default().view(fleet.listen).0);
        assert!(pids.iter().collect::<BTreeSet<_>>().len() > 1);
        for request in [
            Request::new("HEAD", "/"),
            Request::new("OPTIONS", "/"),
            Request::get("/nothing/here"),
            Request::post("/nothing/here"),
            Request::new("HEAD", "/login"),
        ] {
            let response = client::once(fleet.listen, request).unwrap();
            assert!(response.all("Set-Cookie").is_empty(), "{mode}: {response:?}");
        }
        assert_eq!(about_sessions(&redis), before, "{mode}");
        // HEAD runs the page, too.
        assert_eq!(redis.cli(&["GET", &format!("{}:c:@views", plan.prefix())]), "202", "{mode}");
        let limited = TestFleetBuilder::on(&redis).set("REGATTA_LIMITS__DEFAULT__RATE", "1/h");
        let limited = limited.set("REGATTA_LIMITS__DEFAULT__BURST", "1").start();
        fleet_is_used_up(&limited);
        let denied = limited.get("/");
        assert_eq!((denied.status, denied.all("Set-Cookie").len()), (429, 0), "{mode}");
    }
}

fn fleet_is_used_up(fleet: &TestFleet) {
    while fleet.get("/").status == 200 {}
}

#[test]
fn a_ticket_that_comes_back_makes_a_session_with_the_views_it_then_has() {
    for mode in MODES {
        let redis = TestRedis::start();
        let fleet = TestFleetBuilder::on(&redis).workers(2).set("REGATTA_REDIS__MODE", mode).start();
        let mut visitor = visited(&fleet);
        assert_eq!(form(&visitor), "v3.", "{mode}");
        assert_eq!(visitor.view(fleet.listen).1, 2, "{mode}");
        assert_eq!(form(&visitor), "v1.", "{mode}");
        let before = visitor.cookies.clone();
        assert_eq!(visitor.view(fleet.listen).1, 3, "{mode}");
        assert_eq!(visitor.cookies, before, "{mode}: a cookie that has not changed is not sent again");
    }
}

#[test]
fn two_hundred_parallel_returns_are_two_hundred_and_one_views() {
    for mode in MODES {
        let redis = TestRedis::start();
        let plan = TestFleetBuilder::on(&redis).workers(4).set("REGATTA_REDIS__MODE", mode);
        let fleet = plan.set("REGATTA_SESSION__CREATE_BURST", "1").start();
        let mut visitor = visited(&fleet);
        let seen = parallel_clients::parallel(20, 10, |_| visitor.clone().view(fleet.listen).1);
        let seen: BTreeSet<_> = seen.into_iter().collect();
        assert_eq!(seen, (2..=201).collect(), "{mode}");
        assert_eq!(visitor.view(fleet.listen).1, 202, "{mode}");
    }
}

/// Asks for these steps, see the example; the visitor's views.
fn steps(visitor: &mut CookieClient, fleet: &TestFleet, steps: &str) -> Option<u64> {
    let answer = get(visitor, fleet, &format!("/visit/{steps}"));
    assert_eq!(answer.status, 200, "{steps}: {answer:?}");
    answer.json().as_u64()
}

#[test]
fn a_ticket_that_a_form_gave_has_no_view() {
    for mode in MODES {
        let redis = TestRedis::start();
        let plan = TestFleetBuilder::on(&redis).workers(2).set("REGATTA_REDIS__MODE", mode);
        let fleet = plan.start();
        let login = || Request::get("/login").header("Accept", "text/html");
        for forms in [1, 2] {
            let mut visitor = CookieClient::default();
            for _ in 0..forms {
                assert_eq!(visitor.request(fleet.listen, login()).status, 200, "{mode}");
            }
            let views = [visitor.view(fleet.listen).1, visitor.view(fleet.listen).1];
            assert_eq!((views, form(&visitor)), ([1, 2], "v1."), "{mode}: after {forms} forms");
        }
        assert_eq!(redis.cli(&["GET", &format!("{}:c:@views", plan.prefix())]), "4", "{mode}");
    }
}

#[test]
fn a_first_view_is_in_its_ticket_whatever_else_the_request_does_and_when() {
    for (mode, create) in MODES.into_iter().flat_map(|mode| [(mode, "return"), (mode, "write")]) {
        let redis = TestRedis::start();
        let plan = TestFleetBuilder::on(&redis).workers(2).example("cart").set("REGATTA_REDIS__MODE", mode);
        let fleet = plan.set("REGATTA_SESSION__CREATE", create).start();
        // First request, and what its cookie is.
        let all = [
            ("form", "v3."),
            ("view-form", "v3."),
            ("form-view", "v3."),
            ("form-view-form-view", "v3."),
            ("data", "v1."),
            ("view-data", "v1."),
            ("data-view", "v1."),
            ("form-data", "v1."),
            ("form-view-data", "v1."),
            ("view-form-data", "v1."),
            ("sum", "v1."),
            ("view-sum", "v1."),
            ("sum-view", "v1."),
            ("form-sum-view", "v1."),
            ("form-view-sum", "v1."),
        ];
        // What adds to a field needs server-side code.
        for (first, cookie) in all.into_iter().filter(|(first, _)| mode != "plain" || !first.contains("sum"))
        {
            let mut visitor = CookieClient::default();
            let viewed = first.contains("view");
            let what = format!("{mode}, {create}: {first}");
            assert_eq!(steps(&mut visitor, &fleet, first), viewed.then_some(1), "{what}");
            assert_eq!(form(&visitor), cookie, "{what}");
            let next = [(); 2].map(|()| steps(&mut visitor, &fleet, "view").unwrap());
            assert_eq!(next, if viewed { [2, 3] } else { [1, 2] }, "{what}");
            // What makes the session may be another form, or data.
            for second in ["form", "data", "view-data", "data-view"] {
                let mut visitor = CookieClient::default();
                steps(&mut visitor, &fleet, first);
                let counted = u64::from(steps(&mut visitor, &fleet, second).is_some()) + u64::from(viewed);
                assert_eq!(steps(&mut visitor, &fleet, "view"), Some(counted + 1), "{what}, {second}");
            }
        }
    }
}

#[test]
fn two_hundred_parallel_returns_of_a_ticket_without_a_view_are_two_hundred_views() {
    for mode in MODES {
        let redis = TestRedis::start();
        let plan = TestFleetBuilder::on(&redis).workers(4).set("REGATTA_REDIS__MODE", mode);
        let fleet = plan.set("REGATTA_SESSION__CREATE_BURST", "1").start();
        let mut visitor = CookieClient::default();
        let login = Request::get("/login").header("Accept", "text/html");
        assert_eq!(visitor.request(fleet.listen, login).status, 200);
        assert_eq!(form(&visitor), "v3.", "{mode}");
        let seen = parallel_clients::parallel(20, 10, |_| visitor.clone().view(fleet.listen).1);
        let seen: BTreeSet<_> = seen.into_iter().collect();
        assert_eq!(seen, (1..=200).collect(), "{mode}");
        assert_eq!(visitor.view(fleet.listen).1, 201, "{mode}");
    }
}

#[test]
fn a_session_that_ended_is_not_made_anew_by_its_ticket() {
    for mode in MODES {
        let redis = TestRedis::start();
        let fleet = TestFleetBuilder::on(&redis).example("cart").set("REGATTA_REDIS__MODE", mode).start();
        for end in ["/account/logout", "/session/flush"] {
            let mut visitor = CookieClient::default();
            get(&mut visitor, &fleet, "/visit/form");
            assert_eq!(form(&visitor), "v3.", "{mode} {end}");
            let mut copy = visitor.clone();
            assert_eq!(post(&mut visitor, &fleet, "/set/a/1").status, 200);
            let made = visitor.clone();
            let ended = post(&mut visitor, &fleet, end);
            assert!(ended.status < 300, "{mode} {end}: {ended:?}");
            for mut old in [made, copy.clone()] {
                assert_eq!(get(&mut old, &fleet, "/get/a").json(), serde_json::Value::Null, "{mode} {end}");
            }
            assert!(get(&mut copy, &fleet, "/get/a").status == 200);
        }
    }
}

#[test]
fn a_logged_out_visitor_s_ticket_is_a_stranger_s() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let mut visitor = visited(&fleet);
    let ticket = visitor.clone();
    visitor.view(fleet.listen);
    let out = visitor.request(fleet.listen, Request::post("/logout"));
    assert!(out.status < 400, "{out:?}");
    assert!(visitor.cookies.is_empty());
    let mut again = ticket.clone();
    assert_eq!(again.view(fleet.listen).1, 1);
    assert_ne!(again.cookies, ticket.cookies, "under another id");
    assert_eq!(again.view(fleet.listen).1, 2);
    assert_eq!(sessions(&redis).len(), 1);
}

#[test]
fn a_ticket_is_good_for_its_term_by_the_clock_of_redis() {
    // Back by more than a term it came from another clock, too.
    for (step, views) in [(590, 2), (601, 1), (-590, 2), (-700, 1)] {
        let clock = Clock::new();
        let redis = TestRedis::with_clock(&clock);
        let plan = TestFleetBuilder::on(&redis).workers(1).set("REGATTA_LIMITS__DEFAULT__ENABLED", "false");
        let fleet = plan.start();
        let mut visitor = visited(&fleet);
        clock.step(step);
        assert_eq!(visitor.view(fleet.listen).1, views, "{step}");
        assert_eq!(visitor.view(fleet.listen).1, views + 1, "{step}");
    }
}

#[test]
fn no_ticket_outlives_the_session_that_it_made() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).set("REGATTA_SESSION__IDLE", "1s").start();
    let mut visitor = visited(&fleet);
    let mut ticket = visitor.clone();
    assert_eq!(visitor.view(fleet.listen).1, 2);
    crate::support::wait::until("it is gone", crate::support::wait::LONG, || sessions(&redis).is_empty());
    assert_eq!(ticket.view(fleet.listen).1, 1, "a stranger");
}

#[test]
fn data_of_a_first_visit_live_ten_minutes_until_the_cookie_comes_back() {
    for mode in MODES {
        let redis = TestRedis::start();
        let fleet = TestFleetBuilder::on(&redis).example("cart").set("REGATTA_REDIS__MODE", mode).start();
        let mut visitor = CookieClient::default();
        assert_eq!(post(&mut visitor, &fleet, "/set/a/1").status, 200);
        assert_eq!(form(&visitor), "v1.", "{mode}");
        let left = || {
            let key = redis.keys().into_iter().find(|key| match mode {
                "plain" => !key.contains(':'),
                _ => key.contains(":s:"),
            });
            redis.cli(&["PTTL", &key.unwrap()]).parse::<i64>().unwrap()
        };
        // The store of plain mode knows whole seconds.
        assert!(left() <= TERM_MS + 1000, "{mode}: {}", left());
        assert_eq!(get(&mut visitor, &fleet, "/get/a").json(), "1", "{mode}");
        assert!(left() > 23 * 3_600_000, "{mode}: {}", left());
    }
}

#[test]
fn what_exceeds_a_client_s_new_sessions_is_counted_short_lived_and_holds_no_data() {
    let redis = TestRedis::start();
    let plan = TestFleetBuilder::on(&redis).example("cart").set("REGATTA_SESSION__CREATE_RATE", "1/d");
    let fleet = plan.set("REGATTA_SESSION__CREATE_BURST", "1").start();
    assert_eq!(post(&mut CookieClient::default(), &fleet, "/set/a/1").status, 200);
    redis.cli(&["DEL", &sessions(&redis)[0]]);
    // The one is made. More data of strangers are refused, by name, and nothing is made.
    for what in ["/set/a/1", "/incr/a", "/push/a/1", "/login/ann"] {
        let mut stranger = CookieClient::default();
        let refused = post(&mut stranger, &fleet, what);
        assert_eq!(refused.status, 429, "{what}: {refused:?}");
        assert!(refused.header("Retry-After").parse::<u64>().unwrap() > 0, "{what}");
        assert!(stranger.cookies.is_empty(), "{what}");
    }
    assert!(sessions(&redis).is_empty());
}

#[test]
fn visitors_of_a_busy_address_are_counted_and_become_visitors_like_others() {
    let redis = TestRedis::start();
    let plan = TestFleetBuilder::on(&redis).workers(2).set("REGATTA_SESSION__CREATE_RATE", "1/d");
    let fleet = plan.set("REGATTA_SESSION__CREATE_BURST", "1").start();
    let mut first = visited(&fleet);
    assert_eq!(first.view(fleet.listen).1, 2);
    assert!(left(&redis) > TERM_MS);
    redis.cli(&["DEL", &sessions(&redis)[0]]);
    let mut visitor = visited(&fleet);
    for views in 2..=5 {
        assert_eq!(visitor.view(fleet.listen).1, views);
        assert_eq!(form(&visitor), "v3.", "it stays a ticket");
        assert!(left(&redis) <= TERM_MS);
    }
    let login = || Request::post("/login").body("application/json", b"{\"name\":\"ann\"}");
    assert_eq!(visitor.clone().request(fleet.listen, login()).status, 429);
    let limit = redis.keys().into_iter().find(|key| key.contains(":n:")).unwrap();
    redis.cli(&["DEL", &limit]);
    assert_eq!(visitor.view(fleet.listen).1, 6);
    assert_eq!(form(&visitor), "v1.");
    assert!(left(&redis) > TERM_MS);
    assert_eq!(visitor.request(fleet.listen, login()).status, 200);
}

#[test]
fn a_flood_that_sends_each_ticket_back_leaves_nothing_that_lasts() {
    let redis = TestRedis::start();
    let plan = TestFleetBuilder::on(&redis).workers(2).set("REGATTA_SESSION__CREATE_RATE", "1/d");
    let fleet = plan.set("REGATTA_SESSION__CREATE_BURST", "10").start();
    parallel_clients::parallel(4, 25, |_| {
        let mut visitor = visited(&fleet);
        assert_eq!(visitor.view(fleet.listen).1, 2);
    });
    let long = |key: &String| redis.cli(&["PTTL", key]).parse::<i64>().unwrap() > TERM_MS;
    assert_eq!(sessions(&redis).len(), 100);
    assert_eq!(sessions(&redis).iter().filter(|key| long(key)).count(), 10);
}

#[test]
fn a_fleet_that_makes_sessions_by_data_sends_no_cookie_before_them() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).set("REGATTA_SESSION__CREATE", "write").start();
    let mut visitor = visited(&fleet);
    assert!(visitor.cookies.is_empty());
    assert_eq!(visitor.view(fleet.listen).1, 1);
    let login = Request::post("/login").body("application/json", b"{\"name\":\"ann\"}");
    assert_eq!(visitor.request(fleet.listen, login).status, 200);
    assert_eq!(form(&visitor), "v2.");
    assert_eq!(visitor.view(fleet.listen).1, 1);
    assert_eq!(visitor.view(fleet.listen).1, 2);
}

#[test]
fn a_first_visit_is_one_call_and_writes_less_than_a_session() {
    let redis = TestRedis::start();
    let secret = "a signing key of this test's own choice";
    let fleet = TestFleetBuilder::on(&redis).workers(1).set("REGATTA_SESSION__SECRETS", secret).start();
    visited(&fleet);
    redis.cli(&["CONFIG", "RESETSTAT"]);
    for _ in 0..20 {
        visited(&fleet);
    }
    let commands = redis.commands();
    assert_eq!(commands["fcall"], 20, "{commands:?}");
    assert!(!commands.keys().any(|name| name.starts_with('h') && name != "hello"), "{commands:?}");
}

#[test]
fn per_session_nobody_gets_a_new_bucket_by_being_a_stranger() {
    let redis = TestRedis::start();
    let plan = TestFleetBuilder::on(&redis).workers(2).set("REGATTA_LIMITS__DEFAULT__RATE", "5/h");
    let plan = plan.set("REGATTA_LIMITS__DEFAULT__BURST", "5").set("REGATTA_LIMITS__DEFAULT__PER", "session");
    let fleet = plan.start();
    let mut known = visited(&fleet);
    assert_eq!(known.view(fleet.listen).1, 2);
    // Strangers, with and without their tickets, are one client.
    let mut inventor = visited(&fleet);
    assert_eq!(inventor.clone().request(fleet.listen, Request::get("/")).status, 200);
    let statuses: Vec<u16> =
        (0..5).map(|_| CookieClient::default().request(fleet.listen, Request::get("/")).status).collect();
    assert_eq!(statuses, [200, 429, 429, 429, 429]);
    assert_eq!(inventor.request(fleet.listen, Request::get("/")).status, 429, "a ticket is a stranger's");
    let mine: Vec<u16> = (0..6).map(|_| known.request(fleet.listen, Request::get("/")).status).collect();
    assert_eq!(mine, [200, 200, 200, 200, 200, 429], "a visitor has a bucket");
}
