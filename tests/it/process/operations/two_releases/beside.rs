//! Fleets of both releases serve the same visitors at once.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::process::operations::two_releases::{Both, MODES};
use crate::support::client::{CookieClient, Request};
use crate::support::fleet::TestFleet;
use crate::support::shop::{get, post, shopper};
use crate::support::{client, parallel_clients, soak, wait};

fn log_in(visitor: &mut CookieClient, fleet: &TestFleet, name: &str) {
    let body = format!("{{\"name\":\"{name}\"}}");
    let response =
        visitor.request(fleet.listen, Request::post("/login").body("application/json", body.as_bytes()));
    assert_eq!(response.status, 200, "{response:?}");
}

/// The user's name, if there is one.
fn user(visitor: &mut CookieClient, fleet: &TestFleet) -> Option<String> {
    let response = visitor.request(fleet.listen, Request::get("/me"));
    match response.status {
        200 => response.json()["user"].as_str().map(str::to_owned),
        401 => None,
        _ => panic!("{response:?}"),
    }
}

#[test]
fn each_visit_is_one_more_whichever_release_counts_it() {
    for (mode, back) in MODES.into_iter().flat_map(|mode| [(mode, false), (mode, true)]) {
        let both = Both::start("regatta", back, |plan| plan.set("REGATTA_REDIS__MODE", mode));
        let (clients, each) = (8, soak::length(60, 2000));
        let mut crowd = CookieClient::default();
        assert_eq!(crowd.view(both.fleets[0].listen).1, 1);
        let crowded: Vec<Vec<u64>> = parallel_clients::parallel(clients, 1, |number| {
            let (mut visitor, mut of_crowd) = (CookieClient::default(), Vec::new());
            if number % 3 == 1 {
                log_in(&mut visitor, both.either(), &format!("user {number}"));
            }
            for views in 1..=each {
                assert_eq!(visitor.view(both.either().listen).1, views, "{mode}, back: {back}");
                of_crowd.push(crowd.clone().view(both.either().listen).1);
                let added = client::once(both.either().listen, Request::post("/counters/hits")).unwrap();
                assert_eq!(added.status, 200, "{added:?}");
            }
            of_crowd
        });
        let all = clients as u64 * each;
        let crowded: BTreeSet<u64> = crowded.into_iter().flatten().collect();
        assert_eq!(crowded, (2..=all + 1).collect(), "{mode}, back: {back}");
        assert_eq!((both.number("c:@views"), both.number("c:hits")), (2 * all + 1, all), "{mode}");
    }
}

#[test]
fn a_limit_is_never_over_and_is_used_up_whichever_release_decides() {
    for (mode, back) in MODES.into_iter().zip([false, true]) {
        let burst = 300;
        let both = Both::start("regatta", back, |plan| {
            let plan = plan.set("REGATTA_REDIS__MODE", mode).set("REGATTA_LIMITS__DEFAULT__RATE", "1/h");
            plan.set("REGATTA_LIMITS__DEFAULT__BURST", &burst.to_string())
        });
        let allowed = AtomicU64::new(0);
        let ask = || {
            let response = both.either().get("/");
            assert!(matches!(response.status, 200 | 429), "{response:?}");
            allowed.fetch_add(u64::from(response.status == 200), Ordering::Relaxed);
        };
        parallel_clients::parallel(8, 60, |_| ask());
        // What is held in advance comes back when it is not used.
        wait::until("all of it is used", wait::LONG, || {
            ask();
            allowed.load(Ordering::Relaxed) >= burst
        });
        parallel_clients::parallel(4, 20, |_| ask());
        assert_eq!((allowed.into_inner(), both.number("c:@views")), (burst, burst), "{mode}, back: {back}");
    }
}

#[test]
fn a_login_and_its_end_hold_for_both() {
    for (mode, back) in MODES.into_iter().zip([true, false]) {
        let both = Both::start("regatta", back, |plan| plan.set("REGATTA_REDIS__MODE", mode));
        let rounds: u64 = soak::length(6, 100);
        parallel_clients::parallel(4, 1, |number| {
            for round in 0..rounds {
                let name = format!("user {number} {round}");
                let mut visitors: Vec<CookieClient> = (0..4).map(|_| CookieClient::default()).collect();
                for visitor in &mut visitors {
                    log_in(visitor, both.either(), &name);
                    assert_eq!(
                        both.fleets.each_ref().map(|fleet| user(visitor, fleet)),
                        [(); 2].map(|()| Some(name.clone()))
                    );
                }
                // One session, and then all that are left; copies of the cookies are worth nothing.
                let copies = visitors.clone();
                assert_eq!(visitors[0].request(both.either().listen, Request::post("/logout")).status, 204);
                let of =
                    |copy: &CookieClient| both.fleets.each_ref().map(|fleet| user(&mut copy.clone(), fleet));
                assert_eq!(of(&copies[0]), [None, None], "{mode}");
                assert!(copies[1..].iter().all(|copy| of(copy).iter().all(Option::is_some)), "{mode}");
                let everywhere = Request::new("DELETE", "/me/sessions");
                assert_eq!(visitors[1].request(both.either().listen, everywhere).status, 204);
                assert!(copies.iter().all(|copy| of(copy) == [None, None]), "{mode}");
                log_in(&mut visitors[2], both.either(), &name);
                assert!(of(&visitors[2]).iter().all(Option::is_some), "{mode}: a login after that is good");
            }
        });
    }
}

#[test]
fn what_is_kept_in_a_session_is_changed_by_both_and_lost_by_none() {
    for (mode, back) in MODES.into_iter().zip([false, true]) {
        let both =
            Both::start("examples/cart", back, |plan| plan.set("REGATTA_REDIS__MODE", mode).shipped_limits());
        let visitor = shopper(both.either());
        let (clients, each) = (6, soak::length(40, 500));
        parallel_clients::parallel(clients, 1, |number| {
            let mut visitor = visitor.clone();
            for round in 0..each {
                let fleet = both.either();
                assert_eq!(post(&mut visitor, fleet, "/incr/sum").status, 200);
                let own = format!("own{number}");
                assert_eq!(post(&mut visitor, fleet, &format!("/set/{own}/{round}")).status, 200);
                let read = get(&mut visitor, both.either(), &format!("/get/{own}"));
                assert_eq!(read.json(), round.to_string(), "{mode}, back: {back}");
                assert_eq!(post(&mut visitor, both.either(), "/incr/sum").status, 200);
            }
        });
        for fleet in &both.fleets {
            let sum = get(&mut visitor.clone(), fleet, "/get/sum").json();
            assert_eq!(sum, 2 * clients * each, "{mode}, back: {back}");
        }
    }
}

#[test]
fn a_ticket_of_either_makes_one_session_at_both() {
    for (mode, back) in MODES.into_iter().zip([false, true]) {
        let both = Both::start("regatta", back, |plan| plan.set("REGATTA_REDIS__MODE", mode));
        for round in 0..soak::length(8, 100) {
            let mut visitor = CookieClient::default();
            assert_eq!(visitor.view(both.fleets[round % 2].listen).1, 1);
            assert!(visitor.cookies["sid"].starts_with("v3."), "a ticket, for which nothing is stored");
            let seen = parallel_clients::parallel(4, 5, |_| visitor.clone().view(both.either().listen).1);
            assert_eq!(seen.into_iter().collect::<BTreeSet<_>>(), (2..=21).collect(), "{mode}, back: {back}");
            // What it made ends at one of them, and the ticket makes nothing at either.
            log_in(&mut visitor, both.either(), "ann");
            let copy = visitor.clone();
            assert_eq!(visitor.request(both.either().listen, Request::post("/logout")).status, 204);
            for fleet in &both.fleets {
                assert_eq!(user(&mut copy.clone(), fleet), None, "{mode}");
                assert_eq!(copy.clone().view(fleet.listen).1, 1, "{mode}: a new visitor");
            }
        }
    }
}
