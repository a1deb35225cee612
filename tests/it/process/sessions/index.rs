//! The index of a user's sessions: bounded, scored by ends, and no session ends on account of what is gone.

use crate::support::client::CookieClient;
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::shop::{get, post};

fn log_in(fleet: &TestFleet) -> CookieClient {
    let mut visitor = CookieClient::default();
    assert_eq!(post(&mut visitor, fleet, "/login/ann").status, 200);
    visitor
}

fn is_in(visitor: &mut CookieClient, fleet: &TestFleet) -> bool {
    get(visitor, fleet, "/me").json()["user"] == "ann"
}

fn index(redis: &TestRedis) -> String {
    redis.keys().into_iter().find(|key| key.contains(":u:")).unwrap()
}

fn now_ms(redis: &TestRedis) -> u64 {
    redis.cli(&["TIME"]).lines().next().unwrap().parse::<u64>().unwrap() * 1000
}

/// Enters sessions that are gone.
fn add_dead(redis: &TestRedis, count: usize, score: impl Fn(usize) -> u64) {
    let index = index(redis);
    let entries: Vec<String> =
        (0..count).flat_map(|at| [score(at).to_string(), format!("dead{at}")]).collect();
    for entries in entries.chunks(1000) {
        let args: Vec<&str> =
            ["ZADD", &index].into_iter().chain(entries.iter().map(String::as_str)).collect();
        redis.cli(&args);
    }
}

const ENDS: u64 = 1_000_000_000_000_000;

#[test]
fn no_session_ends_on_account_of_those_that_are_gone() {
    for mode in ["fcall", "evalsha"] {
        let redis = TestRedis::start();
        let plan = TestFleetBuilder::on(&redis).workers(1).example("cart").set("REGATTA_REDIS__MODE", mode);
        let fleet = plan.set("REGATTA_SESSION__MAX_PER_USER", "3").start();
        let mut live = vec![log_in(&fleet), log_in(&fleet)];
        let now = now_ms(&redis);
        // As an earlier release wrote them, before and after those that live.
        add_dead(&redis, 3000, |at| now + at as u64 - 1500);
        live.push(log_in(&fleet));
        assert!(live.iter_mut().all(|visitor| is_in(visitor, &fleet)), "{mode}");
        assert_eq!(redis.cli(&["ZCARD", &index(&redis)]), "3", "{mode}");
        // And those whose end is still to come, because they ended without use.
        add_dead(&redis, 700, |at| ENDS + now + 1_000_000 + at as u64);
        live.push(log_in(&fleet));
        let states: Vec<bool> = live.iter_mut().map(|visitor| is_in(visitor, &fleet)).collect();
        assert_eq!(states, [false, true, true, true], "{mode}");
        assert_eq!(redis.cli(&["ZCARD", &index(&redis)]), "3", "{mode}");
    }
}

#[test]
fn those_whose_end_has_come_leave_at_each_login_and_there_is_a_bound() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(1).example("cart").start();
    let mut first = log_in(&fleet);
    let now = now_ms(&redis);
    add_dead(&redis, 900, |at| ENDS + now - 1 - at as u64);
    redis.cli(&["CONFIG", "RESETSTAT"]);
    let mut second = log_in(&fleet);
    assert_eq!(redis.cli(&["ZCARD", &index(&redis)]), "2");
    assert_eq!(redis.commands()["fcall"], 2, "the request's begin, and the login itself");
    add_dead(&redis, 2000, |at| ENDS + now + 1_000_000 + at as u64);
    let mut third = log_in(&fleet);
    assert_eq!(redis.cli(&["ZCARD", &index(&redis)]), "3");
    assert!([&mut first, &mut second, &mut third].into_iter().all(|visitor| is_in(visitor, &fleet)));
}

#[test]
fn an_index_of_an_earlier_release_is_taken_over() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis)
        .workers(1)
        .set("REGATTA_SESSION__MAX_PER_USER", "2")
        .example("cart")
        .start();
    let mut visitors = vec![log_in(&fleet), log_in(&fleet)];
    assert!(visitors.iter_mut().all(|visitor| is_in(visitor, &fleet)));
    // Scored by the time of login.
    let index = index(&redis);
    let now = now_ms(&redis);
    for (at, digest) in redis.cli(&["ZRANGE", &index, "0", "-1"]).lines().enumerate() {
        redis.cli(&["ZADD", &index, &(now + at as u64).to_string(), digest]);
    }
    visitors.push(log_in(&fleet));
    let states: Vec<bool> = visitors.iter_mut().map(|visitor| is_in(visitor, &fleet)).collect();
    assert_eq!(states, [false, true, true]);
    for line in redis.cli(&["ZRANGE", &index, "0", "-1", "WITHSCORES"]).lines().skip(1).step_by(2) {
        assert!(line.parse::<f64>().unwrap() > ENDS as f64, "{line}");
    }
}
