//! Sessions under concurrency: nothing that was answered is lost, and nothing that ended comes back.

use std::collections::BTreeSet;

use crate::support::client::{CookieClient, Request};
use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::TestRedis;
use crate::support::shop::{get, post, sessions, shopper};
use crate::support::{parallel_clients, soak, wait};

#[test]
fn parallel_requests_that_each_set_their_own_field_lose_none() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(4).example("cart").start();
    let mut lost = 0;
    let runs = soak::length(2, 20);
    for _ in 0..runs {
        let mut visitor = shopper(&fleet);
        let answers = parallel_clients::parallel(20, 3, |client| {
            // Each thread's next free field: what it set before is there already.
            let mut visitor = visitor.clone();
            (0..3)
                .map(|step| post(&mut visitor, &fleet, &format!("/set/k{}/x", client * 3 + step)).status)
                .max()
        });
        assert!(answers.iter().all(|status| *status == Some(200)), "{answers:?}");
        let found = get(&mut visitor, &fleet, "/count/k/60").json().as_u64().unwrap();
        lost += 60 - found;
    }
    soak::log("fields set in parallel", &format!("{lost} lost of {}", runs * 60));
    assert_eq!(lost, 0);
}

#[test]
fn two_hundred_parallel_increments_give_two_hundred() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(4).example("cart").start();
    let runs = soak::length(1, 20);
    for _ in 0..runs {
        let mut visitor = shopper(&fleet);
        let sums = parallel_clients::parallel(20, 10, |_| {
            let answer = post(&mut visitor.clone(), &fleet, "/incr/cart");
            assert_eq!(answer.status, 200, "{answer:?}");
            answer.json().as_u64().unwrap()
        });
        assert_eq!(sums.into_iter().collect::<BTreeSet<_>>(), (1..=200).collect());
        assert_eq!(get(&mut visitor, &fleet, "/get/cart").json(), 200);
    }
    soak::log("increments in parallel", &format!("0 lost of {}", runs * 200));
}

#[test]
fn an_update_that_was_answered_is_in_the_list_and_one_that_was_refused_is_not() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(4).example("cart").start();
    let mut visitor = shopper(&fleet);
    let answers = parallel_clients::parallel(8, 10, |client| {
        let answer = post(&mut visitor.clone(), &fleet, &format!("/push/list/{client}"));
        assert!(matches!(answer.status, 200 | 409), "{answer:?}");
        answer.status
    });
    let done = answers.iter().filter(|status| **status == 200).count();
    let list = get(&mut visitor, &fleet, "/get/list").json();
    assert_eq!(list.as_array().unwrap().len(), done, "{list}");
    assert!(done > 0);
}

#[test]
fn of_two_changes_of_a_strict_field_the_second_is_refused_and_of_others_none_is() {
    let redis = TestRedis::start();
    let plan = TestFleetBuilder::on(&redis).workers(2).set("REGATTA_SESSION__STRICT_FIELDS", "total");
    let fleet = plan.example("cart").start();
    let visitor = shopper(&fleet);
    let race = |name: &str| -> Vec<u16> {
        let mut statuses = parallel_clients::parallel(2, 1, |client| {
            post(&mut visitor.clone(), &fleet, &format!("/set/{name}/{client}?slow_ms=300")).status
        });
        statuses.sort_unstable();
        statuses
    };
    assert_eq!(race("total"), [200, 409]);
    assert_eq!(race("loose"), [200, 200]);
    let mut visitor = visitor.clone();
    let refused = parallel_clients::parallel(2, 1, |client| {
        post(&mut visitor.clone(), &fleet, &format!("/set/total/{}?slow_ms=300", client + 2))
    });
    let refused = refused.iter().find(|answer| answer.status == 409).unwrap();
    assert_eq!(refused.assert_problem(409)["type"], "urn:regatta:problem:session-conflict");
    assert_eq!(post(&mut visitor, &fleet, "/set/total/9").status, 200, "alone it is free to change it");
}

#[test]
fn a_logout_ends_the_session_whatever_is_under_way_in_it() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(4).example("cart").start();
    let mut resurrected = 0;
    let runs = soak::length(2, 20);
    for _ in 0..runs {
        let mut visitor = shopper(&fleet);
        let before = sessions(&redis);
        assert_eq!(before.len(), 1, "{before:?}");
        let late = std::thread::scope(|scope| {
            let late = scope.spawn(|| {
                parallel_clients::parallel(50, 1, |client| {
                    post(&mut visitor.clone(), &fleet, &format!("/set/k{client}/x?slow_ms=400"))
                })
            });
            // Those fifty are under way, as far as a client can tell.
            wait::let_pass(std::time::Duration::from_millis(150));
            assert_eq!(post(&mut visitor.clone(), &fleet, "/account/logout").status, 204);
            late.join().unwrap()
        });
        for answer in &late {
            assert!(matches!(answer.status, 200 | 401), "{answer:?}");
        }
        assert!(late.iter().any(|answer| answer.status == 401), "some were too late");
        resurrected += usize::from(redis.cli(&["HEXISTS", &before[0], "_c"]) == "1");
        // A client that came after the end was a new visitor and got a session of its own.
        for key in sessions(&redis) {
            redis.cli(&["DEL", &key]);
        }
        assert_eq!(get(&mut visitor, &fleet, "/get/first").json(), serde_json::Value::Null);
    }
    soak::log("logout during 50 changes", &format!("{resurrected} resurrected of {runs}"));
    assert_eq!(resurrected, 0);
}

#[test]
fn reads_with_an_old_id_never_see_the_user_and_never_touch_the_new_cookie() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(4).example("cart").start();
    let runs = soak::length(5, 100);
    for _ in 0..runs {
        let mut visitor = shopper(&fleet);
        let old = visitor.clone();
        std::thread::scope(|scope| {
            let reads = scope.spawn(|| {
                parallel_clients::parallel(10, 5, |_| {
                    let answer = get(&mut old.clone(), &fleet, "/me");
                    assert_eq!(
                        (answer.status, answer.json()["user"].clone()),
                        (200, serde_json::Value::Null)
                    );
                    assert!(answer.all("Set-Cookie").is_empty(), "{answer:?}");
                })
            });
            let login = post(&mut visitor, &fleet, "/login/ann");
            assert_eq!(login.status, 200, "{login:?}");
            assert!(login.header("Set-Cookie").starts_with("sid=v2."), "{login:?}");
            reads.join().unwrap();
        });
        assert_eq!(get(&mut visitor, &fleet, "/me").json()["user"], "ann");
        assert_eq!(get(&mut visitor, &fleet, "/get/first").json(), "1", "the session kept its fields");
        // The old id: no data, no cookie, and nothing can be written in its name.
        let read = get(&mut old.clone(), &fleet, "/get/first");
        assert_eq!((read.json(), read.all("Set-Cookie").len()), (serde_json::Value::Null, 0));
        let write = post(&mut old.clone(), &fleet, "/set/first/2");
        assert_eq!((write.status, write.all("Set-Cookie").len()), (401, 0), "{write:?}");
        let again = post(&mut old.clone(), &fleet, "/login/eve");
        assert_eq!((again.status, again.all("Set-Cookie").len()), (401, 0), "{again:?}");
    }
    soak::log("logins during 50 reads", &format!("0 failures of {runs}"));
}

#[test]
fn a_view_with_an_old_id_makes_no_session() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let mut visitor = CookieClient::default();
    visitor.view(fleet.listen);
    let mut old = visitor.clone();
    let login = Request::post("/login").body("application/json", b"{\"name\":\"ann\"}");
    assert_eq!(visitor.request(fleet.listen, login).status, 200);
    // What was executed is noted by worker, no matter who asked.
    let keys = || redis.keys().into_iter().filter(|key| !key.contains(":once:")).collect::<Vec<_>>();
    let before = keys();
    let view = old.request(fleet.listen, Request::get("/"));
    assert_eq!((view.view().1, view.all("Set-Cookie").len()), (1, 0));
    assert_eq!(keys(), before);
    assert_eq!(visitor.view(fleet.listen).1, 2);
}
