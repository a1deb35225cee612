//! What a request costs in Redis: exact commands and round trips by kind of request, counted on the line.

use std::time::{Duration, Instant};

use crate::support::client::{Connection, CookieClient, Request, Response};
use crate::support::fault_proxy::{CommandCounts, FaultProxy};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::{redis, soak, wait};

/// A fleet behind a counting proxy.
struct Scale {
    server: TestRedis,
    proxy: FaultProxy,
    fleet: TestFleet,
}

impl Scale {
    fn new(settings: impl FnOnce(TestFleetBuilder) -> TestFleetBuilder) -> Self {
        let server = TestRedis::start();
        let proxy = FaultProxy::before(&server);
        let plan =
            TestFleetBuilder::through(&proxy).set("REGATTA_SESSION__SECRETS", &"a secret of mine".repeat(2));
        // A limit that is drawn in advance costs a draw now and then, and a question less: not the same each time.
        let plan = plan.set("REGATTA_LIMITS__DEFAULT__PREFETCH", "off");
        let fleet = settings(plan.workers(2)).start();
        Self { server, proxy, fleet }
    }

    /// Does it once, so that nothing is done for the first time, and then weighs it: it must cost the same each time.
    #[track_caller]
    fn weigh(&self, kind: &str, rounds: u64, commands: u64, mut act: impl FnMut() -> Response) -> Response {
        act();
        let times = soak::length(5, 500);
        self.server.cli(&["CONFIG", "RESETSTAT"]);
        let (counts, answers) = self.proxy.during(|| (0..times).map(|_| act()).collect::<Vec<_>>());
        let us = self.server.busy_us();
        assert_eq!((counts.rounds, counts.total()), (rounds * times, commands * times), "{kind}: {counts}");
        note(kind, &counts, times, us);
        answers.into_iter().next_back().unwrap()
    }
}

#[allow(clippy::cast_precision_loss, reason = "a figure for people")]
fn note(kind: &str, counts: &CommandCounts, times: u64, us: u64) {
    let each = |number: u64| number as f64 / times as f64;
    let (rounds, commands) = (each(counts.rounds), each(counts.total()));
    let (sent, received) = (each(counts.sent), each(counts.received));
    let text = format!(
        "{rounds} round trips, {commands} commands, {sent:.0} B out, {received:.0} B in, {:.1} µs of Redis",
        each(us)
    );
    soak::log(kind, &text);
}

fn json(target: &str, body: &str) -> Request {
    Request::post(target).body("application/json", body.as_bytes())
}

#[test]
fn every_kind_of_request_costs_what_it_must_and_no_more() {
    let scale = Scale::new(|plan| plan);
    let address = scale.fleet.listen;
    scale.weigh("no state", 0, 0, || scale.fleet.get("/hello"));
    scale.weigh("a first visit", 1, 1, || scale.fleet.get("/"));
    scale.weigh("a counter", 1, 1, || scale.fleet.get("/counters/x"));
    let mut known = CookieClient::default();
    known.view(address);
    let read = scale.weigh("a known visitor", 1, 1, || known.request(address, Request::get("/")));
    assert!(read.all("Set-Cookie").is_empty(), "{read:?}");

    let mut user = CookieClient::default();
    let login = |visitor: &mut CookieClient| visitor.request(address, json("/login", "{\"name\":\"ann\"}"));
    scale.weigh("a login of a stranger", 2, 2, || login(&mut CookieClient::default()));
    scale.weigh("a login of a known visitor", 2, 2, || login(&mut user));
    let read = scale.weigh("a user's read", 1, 1, || user.request(address, Request::get("/me")));
    assert_eq!(read.json()["user"], "ann");
    assert!(read.all("Set-Cookie").is_empty(), "{read:?}");
    let strangers = scale.weigh("a stranger is asked to log in", 0, 0, || scale.fleet.get("/me"));
    assert_eq!(strangers.status, 401);
}

#[test]
fn a_changed_field_travels_alone() {
    let scale = Scale::new(|plan| plan.example("faulty"));
    let mut visitor = CookieClient::default();
    let address = scale.fleet.listen;
    let mut keep =
        |name: &str, value: &str| visitor.request(address, Request::post(&format!("/fields/{name}/{value}")));
    // Four kilobytes in twenty fields.
    (0..20).for_each(|field| _ = keep(&format!("field{field}"), &"x".repeat(200)));
    let mut at = 0;
    let (counts, _) = scale.proxy.during(|| keep("field7", "short"));
    assert_eq!((counts.rounds, counts.total()), (2, 2), "{counts}");
    let (all, begun) = (counts.sent, counts.received);
    assert!(all < 300 + 400 && begun > 4000, "{counts}");
    scale.weigh("a write of one field of twenty", 2, 2, || {
        at += 1;
        keep("field7", &at.to_string())
    });
    scale.weigh("a read of twenty fields", 1, 1, || visitor.request(address, Request::get("/fields/field3")));
}

#[test]
fn strangers_leave_no_key_and_forged_cookies_cost_nothing_more() {
    let scale = Scale::new(|plan| plan);
    let mut visitor = CookieClient::default();
    visitor.view(scale.fleet.listen);
    let genuine = visitor.cookies["sid"].clone();
    scale.fleet.get("/counters/x");
    // Each worker notes what it executed, for any client: those keys are left out.
    let keys = || scale.server.keys().into_iter().filter(|key| !key.contains(":once:")).collect::<Vec<_>>();
    let before = keys();
    let mut connection = Connection::open(scale.fleet.listen).unwrap();
    for target in ["/hello", "/counters/x"] {
        let plain = scale.proxy.during(|| connection.request(&Request::get(target)).unwrap()).0;
        for forged in [
            genuine.replace("v1.", "v2."),
            genuine.replace(|c: char| c.is_lowercase(), "a"),
            "x".repeat(4000),
        ] {
            let request = Request::get(target).header("Cookie", &format!("sid={forged}"));
            let (counts, answer) = scale.proxy.during(|| connection.request(&request).unwrap());
            assert_eq!(
                (answer.status, counts.rounds, counts.total()),
                (200, plain.rounds, plain.total()),
                "{counts}"
            );
            assert!(answer.all("Set-Cookie").is_empty());
        }
    }
    assert_eq!(keys(), before);
}

#[test]
fn who_is_denied_costs_nothing_until_he_may_come_back() {
    let limit = |plan: TestFleetBuilder| {
        plan.set("REGATTA_LIMITS__DEFAULT__RATE", "6/h").set("REGATTA_LIMITS__DEFAULT__BURST", "3")
    };
    let scale = Scale::new(|plan| limit(plan).workers(1));
    (0..3).for_each(|_| assert_eq!(scale.fleet.get("/").status, 200));
    scale.fleet.get("/").assert_problem(429);
    // While no news of refunds is heard, a denial is believed for a moment only.
    let heard = || !scale.server.cli(&["PUBSUB", "CHANNELS"]).is_empty();
    wait::until("the worker hears of refunds", wait::LONG, heard);
    // Redis knows that before the worker does.
    wait::until("a denial is believed", wait::LONG, || {
        // For longer than the moment that an unheard denial is believed.
        let (asked, begun) = (redis::calls(&scale.server, "fcall"), Instant::now());
        while begun.elapsed() < Duration::from_secs(1) {
            scale.fleet.get("/").assert_problem(429);
        }
        redis::calls(&scale.server, "fcall") == asked
    });
    // From then on: the last answer said already that nothing is left.
    let denied = scale.weigh("who is denied", 0, 0, || scale.fleet.get("/"));
    denied.assert_problem(429);
    assert!(!denied.header("Retry-After").is_empty(), "{denied:?}");
}
