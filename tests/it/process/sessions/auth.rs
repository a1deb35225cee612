//! Logging in and out: new ids, users' sessions, lifetimes of their own, and what is left when things go wrong.

use serde_json::Value;

use crate::support::client::{Connection, CookieClient, Request};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::redis::TestRedis;
use crate::support::shop::{get, post, sessions, shopper};
use crate::support::wait;

fn user(visitor: &mut CookieClient, fleet: &TestFleet) -> Value {
    get(visitor, fleet, "/me").json()["user"].clone()
}

fn logged_in(fleet: &TestFleet, name: &str) -> CookieClient {
    let mut visitor = CookieClient::default();
    assert_eq!(post(&mut visitor, fleet, &format!("/login/{name}")).status, 200);
    visitor
}

#[test]
fn a_handler_that_fails_after_a_new_id_leaves_a_session_that_works() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).example("cart").start();
    for what in ["/account/regenerate?fail=true", "/session/cycle?fail=true"] {
        let mut visitor = shopper(&fleet);
        let old = visitor.cookies["sid"].clone();
        let failed = post(&mut visitor, &fleet, what);
        assert_eq!(failed.status, 500, "{what}");
        assert_ne!(visitor.cookies["sid"], old, "{what}");
        assert_eq!(get(&mut visitor, &fleet, "/get/first").json(), "1", "{what}");
    }
    for what in ["/account/logout?fail=true", "/session/flush?fail=true"] {
        let mut visitor = shopper(&fleet);
        let mut copy = visitor.clone();
        assert_eq!(post(&mut visitor, &fleet, what).status, 500, "{what}");
        assert!(visitor.cookies.is_empty(), "{what}");
        assert_eq!(get(&mut copy, &fleet, "/get/first").json(), Value::Null, "{what}");
    }
}

#[test]
fn a_new_id_is_told_though_what_came_after_it_is_refused() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).example("cart").start();
    let mut visitor = shopper(&fleet);
    let old = visitor.cookies["sid"].clone();
    assert_eq!(post(&mut visitor, &fleet, "/account/regenerate-and-fill").status, 507);
    assert_ne!(visitor.cookies["sid"], old);
    assert_eq!(get(&mut visitor, &fleet, "/get/first").json(), "1");
}

#[test]
fn a_replaced_id_keeps_the_user_and_a_flushed_session_does_not() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).example("cart").start();
    for what in ["/account/regenerate", "/session/cycle"] {
        let mut visitor = logged_in(&fleet, "ann");
        assert_eq!(post(&mut visitor, &fleet, what).status, 204);
        assert_eq!(user(&mut visitor, &fleet), "ann", "{what}");
    }
    let mut visitor = logged_in(&fleet, "ann");
    assert_eq!(post(&mut visitor, &fleet, "/session/flush-and-begin").status, 204);
    assert_eq!(user(&mut visitor, &fleet), Value::Null);
    assert_eq!(get(&mut visitor, &fleet, "/get/fresh").json(), true);
    assert!(visitor.cookies["sid"].starts_with("v1."), "nobody is logged in with it");
}

#[test]
fn session_fields_and_login_go_together_in_one_request() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).example("cart").start();
    for mut visitor in [shopper(&fleet), CookieClient::default()] {
        let sums = post(&mut visitor, &fleet, "/both/ann");
        assert_eq!((sums.status, sums.json()), (200, serde_json::json!([1, 2])));
        assert_eq!(get(&mut visitor, &fleet, "/get/session").json(), "ann");
        assert_eq!(get(&mut visitor, &fleet, "/get/fields").json(), 2);
        assert_eq!(user(&mut visitor, &fleet), "ann");
        assert_eq!(sums.all("Set-Cookie").len(), 1);
    }
    assert_eq!(sessions(&redis).len(), 2);
}

#[test]
fn log_out_everywhere_ends_fifty_sessions_in_one_step() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).workers(4).example("cart").start();
    let mut anns: Vec<CookieClient> = (0..50).map(|_| logged_in(&fleet, "ann")).collect();
    let mut bob = logged_in(&fleet, "bob");
    let mut last = anns.pop().unwrap();
    redis.cli(&["CONFIG", "RESETSTAT"]);
    assert_eq!(post(&mut last, &fleet, "/account/everywhere").status, 204);
    let calls = redis.commands();
    assert!(calls["fcall"] <= 3, "begin, generation and the end of this one: {calls:?}");
    assert!(last.cookies.is_empty());
    for ann in &mut anns {
        assert_eq!(user(ann, &fleet), Value::Null);
        let read = get(ann, &fleet, "/get/first");
        assert_eq!((read.status, read.json()), (200, Value::Null));
    }
    assert_eq!(user(&mut bob, &fleet), "bob");
    let mut again = logged_in(&fleet, "ann");
    assert_eq!(user(&mut again, &fleet), "ann", "a login after that is good");
    let mut other = logged_in(&fleet, "ann");
    assert_eq!(post(&mut other, &fleet, "/account/others").status, 204);
    assert_eq!((user(&mut again, &fleet), user(&mut other, &fleet)), (Value::Null, "ann".into()));
}

#[test]
fn a_cookie_that_its_worker_remembers_is_worth_no_more_than_its_session() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).workers(1).example("cart").start();
    let (mut ann, mut other) = (logged_in(&fleet, "ann"), logged_in(&fleet, "ann"));
    let genuine = ann.cookies["sid"].clone();
    for _ in 0..3 {
        assert_eq!(user(&mut ann, &fleet), "ann");
        // One character of the id is another one; the signature, by which it is found, is the genuine one's.
        let mut forged = genuine.clone().into_bytes();
        forged[20] = if forged[20] == b'A' { b'B' } else { b'A' };
        let mut stranger = CookieClient::default();
        stranger.cookies.insert("sid".to_owned(), String::from_utf8(forged).unwrap());
        assert_eq!(user(&mut stranger, &fleet), Value::Null);
    }
    assert_eq!(post(&mut other, &fleet, "/account/others").status, 204);
    ann.cookies.insert("sid".to_owned(), genuine);
    assert_eq!(user(&mut ann, &fleet), Value::Null, "revoked");
    assert_eq!(user(&mut other, &fleet), "ann");
}

#[test]
fn the_oldest_session_ends_when_a_user_has_too_many() {
    let redis = TestRedis::start();
    // Functions and scripts are the same text; this goes through most of it.
    for mode in ["fcall", "evalsha"] {
        let plan = TestFleetBuilder::on(&redis).set("REGATTA_SESSION__MAX_PER_USER", "3");
        let fleet = plan.set("REGATTA_REDIS__MODE", mode).example("cart").start();
        let mut anns: Vec<CookieClient> = (0..4).map(|_| logged_in(&fleet, "ann")).collect();
        assert_eq!(user(&mut anns[0], &fleet), Value::Null, "the oldest");
        for ann in &mut anns[1..] {
            assert_eq!(user(ann, &fleet), "ann");
        }
        assert_eq!(sessions(&redis).len(), 3);
        // One that ended by itself is no reason to end another.
        assert_eq!(post(&mut anns[1], &fleet, "/account/logout").status, 204);
        let mut fifth = logged_in(&fleet, "ann");
        assert_eq!(user(&mut anns[2], &fleet), "ann");
        assert_eq!(user(&mut fifth, &fleet), "ann");
        assert_eq!(post(&mut fifth, &fleet, "/account/everywhere").status, 204);
        assert_eq!(user(&mut anns[2], &fleet), Value::Null);
        drop(fleet);
        redis.cli(&["FLUSHALL"]);
    }
}

#[test]
fn a_session_that_a_handler_flushed_ends_even_if_its_client_leaves() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).example("cart").start();
    let visitor = shopper(&fleet);
    assert_eq!(sessions(&redis).len(), 1);
    let mut connection = Connection::open(fleet.listen).unwrap();
    let request = Request::post("/session/flush?slow_ms=5000").header("Cookie", &visitor.cookie_search());
    connection.send(&request.bytes()).unwrap();
    // A second in its handler, which has flushed the session and now thinks.
    wait::let_pass(std::time::Duration::from_secs(1));
    assert_eq!(sessions(&redis).len(), 1, "it ends with the request");
    drop(connection);
    wait::until("the session is gone", wait::LONG, || sessions(&redis).is_empty());
}

#[test]
fn logging_out_works_while_redis_is_full_and_logging_in_says_that_it_does_not() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).example("cart").start();
    let mut visitor = logged_in(&fleet, "ann");
    redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
    let refused = post(&mut CookieClient::default(), &fleet, "/login/bob");
    refused.assert_problem(503);
    assert!(refused.all("Set-Cookie").is_empty(), "{refused:?}");
    assert_eq!(post(&mut visitor, &fleet, "/account/logout").status, 204);
    assert!(visitor.cookies.is_empty());
    assert_eq!(sessions(&redis), [""; 0]);
    redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
    wait::until("logins work again", wait::LONG, || {
        post(&mut CookieClient::default(), &fleet, "/login/bob").status == 200
    });
}

#[test]
fn logging_out_everywhere_works_while_redis_is_full() {
    for mode in ["fcall", "evalsha"] {
        let redis = TestRedis::start();
        let fleet = TestFleetBuilder::on(&redis).example("cart").set("REGATTA_REDIS__MODE", mode).start();
        let [mut one, mut other, mut third] = [(); 3].map(|()| logged_in(&fleet, "ann"));
        let user = |visitor: &mut CookieClient| user(visitor, &fleet);
        redis.cli(&["CONFIG", "SET", "maxmemory", "1"]);
        // Until every worker's breaker of writes has opened.
        for _ in 0..20 {
            assert_eq!(post(&mut CookieClient::default(), &fleet, "/login/bob").status, 503, "{mode}");
        }
        assert_eq!(post(&mut one, &fleet, "/account/others").status, 204, "{mode}");
        assert_eq!((user(&mut one), user(&mut other)), ("ann".into(), Value::Null), "{mode}");
        assert_eq!(post(&mut one, &fleet, "/account/everywhere").status, 204, "{mode}");
        assert!(one.cookies.is_empty(), "{mode}");
        redis.cli(&["CONFIG", "SET", "maxmemory", "0"]);
        let works = || post(&mut CookieClient::default(), &fleet, "/login/bob").status == 200;
        wait::until("logins work again", wait::LONG, || (0..10).all(|_| works()));
        assert_eq!((user(&mut other), user(&mut third)), (Value::Null, Value::Null), "{mode}");
    }
}

#[test]
fn an_answer_goes_out_although_its_changes_were_not_stored_unless_they_are_strict() {
    let mut redis = TestRedis::start();
    let fleet =
        TestFleetBuilder::on(&redis).set("REGATTA_SESSION__STRICT_FIELDS", "total").example("cart").start();
    let visitor = shopper(&fleet);
    let late = |name: &str| post(&mut visitor.clone(), &fleet, &format!("/set/{name}/2?slow_ms=1500"));
    let (loose, strict) = std::thread::scope(|scope| {
        let (loose, strict) = (scope.spawn(|| late("first")), scope.spawn(|| late("total")));
        // Both have read their session and think.
        wait::let_pass(std::time::Duration::from_millis(700));
        redis.kill();
        (loose.join().unwrap(), strict.join().unwrap())
    });
    assert_eq!((loose.status, loose.header("Session-Commit")), (200, "failed"), "{loose:?}");
    strict.assert_problem(503);
    for answer in [loose, strict] {
        assert!(answer.all("Set-Cookie").is_empty(), "{answer:?}");
    }
    let metrics = fleet.operator("/metrics").text();
    let counted = metrics.lines().filter(|line| line.starts_with("regatta_session_commit_failures_total{"));
    let counted: u64 = counted.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum();
    assert_eq!(counted, 1);
}

#[test]
fn remember_me_outlives_changes_and_new_ids_and_has_a_cookie_that_lasts() {
    const MONTH: u64 = 30 * 86_400;
    let redis = TestRedis::start();
    let plan = TestFleetBuilder::on(&redis)
        .set("REGATTA_SESSION__IDLE", "1h")
        .set("REGATTA_SESSION__ABSOLUTE", "2h");
    let fleet = plan.example("cart").start();
    let mut visitor = logged_in(&fleet, "ann");
    let told = post(&mut visitor, &fleet, &format!("/remember/{MONTH}"));
    assert!(told.header("Set-Cookie").contains(&format!("Max-Age={MONTH};")), "{told:?}");
    for index in 0..20 {
        assert_eq!(post(&mut visitor, &fleet, &format!("/set/note/{index}")).status, 200);
    }
    assert_eq!(post(&mut visitor, &fleet, "/account/regenerate").status, 204);
    let left: u64 = redis.cli(&["TTL", &sessions(&redis)[0]]).parse().unwrap();
    assert!(left > MONTH - 3600, "{left}");
    assert_eq!(user(&mut visitor, &fleet), "ann");
    assert_eq!(post(&mut visitor, &fleet, "/login/bob").status, 200);
    let left: u64 = redis.cli(&["TTL", &sessions(&redis)[0]]).parse().unwrap();
    assert!(left <= 3600, "another user did not ask to be remembered: {left}");
}

#[test]
fn lifetimes_end_by_the_clock_of_redis_and_a_touch_is_rare() {
    let redis = TestRedis::start();
    let plan = TestFleetBuilder::on(&redis)
        .set("REGATTA_SESSION__IDLE", "2s")
        .set("REGATTA_SESSION__ABSOLUTE", "6s");
    let fleet = plan.example("cart").start();
    let mut visitor = shopper(&fleet);
    let key = sessions(&redis).remove(0);
    let born: u64 = redis.cli(&["HGET", &key, "_c"]).parse().unwrap();
    redis.cli(&["CONFIG", "RESETSTAT"]);
    let clock = || -> u64 {
        let time = redis.cli(&["TIME"]);
        let mut parts = time.lines().map(|part| part.parse::<u64>().unwrap());
        parts.next().unwrap() * 1000 + parts.next().unwrap() / 1000
    };
    let mut lived = 0;
    wait::until("constant use does not save it from its end", wait::LONG, || {
        let before = clock() - born;
        let alive = get(&mut visitor, &fleet, "/get/first").json() == "1";
        lived = if alive { before } else { lived };
        !alive
    });
    assert!(lived >= 4500, "used all the time it lived {lived} ms of 6000");
    let touches = redis.commands().get("hset").copied().unwrap_or(0);
    assert!(
        (3..=32).contains(&touches),
        "one touch in a tenth of the idle lifetime, not one a request: {touches}"
    );
    let mut unused = shopper(&fleet);
    wait::until("without use it is gone", wait::LONG, || sessions(&redis).is_empty());
    assert_eq!(get(&mut unused, &fleet, "/get/first").json(), Value::Null);
}

#[test]
fn too_much_is_refused_and_leaves_what_was_there() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).example("cart").start();
    let mut visitor = shopper(&fleet);
    let refused = post(&mut visitor, &fleet, "/fill/big/16384");
    assert_eq!(refused.assert_problem(507)["type"], "urn:regatta:problem:session-too-large");
    assert_eq!(get(&mut visitor, &fleet, "/get/first").json(), "1");
    assert_eq!(get(&mut visitor, &fleet, "/get/big").json(), Value::Null);
    assert_eq!(post(&mut visitor, &fleet, "/fill/big/16000").status, 200);
    for index in 0..62 {
        assert_eq!(post(&mut visitor, &fleet, &format!("/set/k{index}/x")).status, 200, "{index}");
    }
    assert_eq!(post(&mut visitor, &fleet, "/incr/another").status, 507);
    assert_eq!(post(&mut visitor, &fleet, "/set/another/x").status, 507);
}

#[test]
fn a_damaged_session_is_put_aside_once_and_the_visitor_gets_a_new_one() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    for (round, damage) in
        [&["SET", "KEY", "garbage"][..], &["HSET", "KEY", "_c", "nonsense"]].iter().enumerate()
    {
        let mut visitor = CookieClient::default();
        visitor.view(fleet.listen);
        visitor.view(fleet.listen);
        let key = sessions(&redis).remove(0);
        redis.cli(&["DEL", &key]);
        let damage: Vec<&str> = damage.iter().map(|word| if *word == "KEY" { &key } else { *word }).collect();
        redis.cli(&damage);
        let mut copy = visitor.clone();
        assert_eq!(visitor.view(fleet.listen).1, 1, "a new one");
        assert_eq!(visitor.view(fleet.listen).1, 2, "that works");
        assert_eq!(copy.view(fleet.listen).1, 1);
        let aside = key.replace(":s:", ":q:");
        let left: i64 = redis.cli(&["TTL", &aside]).parse().unwrap();
        assert!((3500..=3600).contains(&left), "{left}");
        let metrics = fleet.operator("/metrics").text();
        let counted: u64 = metrics
            .lines()
            .filter(|line| line.starts_with("regatta_session_corruptions_total{"))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum();
        assert_eq!(counted, round as u64 + 1);
        for key in sessions(&redis) {
            redis.cli(&["DEL", &key]);
        }
    }
}

#[test]
fn fields_and_logins_are_unreadable_in_redis_and_keys_rotate() {
    const OLD: &str = "the old encryption key of this test has more than 32 bytes";
    const NEW: &str = "the new encryption key of this test has more than 32 bytes";
    let redis = TestRedis::start();
    let plan = TestFleetBuilder::on(&redis).workers(1).example("cart");
    let plain = plan.start();
    let mut visitor = shopper(&plain);
    drop(plain);
    let stored = || {
        let all = |key: &String| redis.cli(&["HGETALL", key]);
        sessions(&redis).iter().map(all).collect::<Vec<_>>().join("\n")
    };
    let with = |keys: &str| plan.clone().set("REGATTA_SESSION__ENCRYPTION_KEYS", keys).start();
    let old = with(OLD);
    assert_eq!(get(&mut visitor, &old, "/get/first").json(), "1", "what was stored before is read");
    assert_eq!(post(&mut visitor, &old, "/set/first/SECRET").status, 200);
    assert_eq!(post(&mut visitor, &old, "/incr/counted").json(), 1);
    assert_eq!(post(&mut visitor, &old, "/login/ANNABEL").status, 200);
    assert_eq!(get(&mut visitor, &old, "/get/first").json(), "SECRET", "it moved with the id");
    assert_eq!(user(&mut visitor, &old), "ANNABEL");
    assert!(!stored().contains("SECRET") && !stored().contains("ANNABEL"), "{}", stored());
    drop(old);
    let both = with(&format!("{NEW},{OLD}"));
    assert_eq!(get(&mut visitor, &both, "/get/first").json(), "SECRET");
    assert_eq!(post(&mut visitor, &both, "/set/first/HIDDEN").status, 200);
    assert_eq!(post(&mut visitor, &both, "/account/regenerate").status, 204, "this encrypts everything anew");
    drop(both);
    let new = with(NEW);
    assert_eq!(get(&mut visitor, &new, "/get/first").json(), "HIDDEN");
    assert_eq!(user(&mut visitor, &new), "ANNABEL");
    drop(new);
    let lost = plan.start();
    assert_eq!(get(&mut visitor, &lost, "/get/first").json(), Value::Null, "without its key nobody reads it");
    assert_eq!(post(&mut visitor, &lost, "/set/other/1").status, 200);
    drop(lost);
    let found = with(NEW);
    assert_eq!(get(&mut visitor, &found, "/get/first").json(), "HIDDEN", "and nobody removed it");
}

#[test]
fn users_cookies_rotate_too() {
    let (old, new) = (
        "the old key of this test is longer than 32 bytes",
        "the new key of this test is longer than 32 bytes",
    );
    let redis = TestRedis::start();
    let plan = TestFleetBuilder::on(&redis).workers(1).example("cart");
    let with = |keys: &str| plan.clone().set("REGATTA_SESSION__SECRETS", keys).start();
    let fleet = with(old);
    let mut visitor = logged_in(&fleet, "ann");
    let unused = visitor.clone();
    drop(fleet);
    let fleet = with(&format!("{new},{old}"));
    let signed_by_old = visitor.cookies["sid"].clone();
    assert_eq!(user(&mut visitor, &fleet), "ann");
    assert_ne!(visitor.cookies["sid"], signed_by_old, "signed anew");
    assert_eq!(logged_in(&fleet, "ann").cookies.len(), 1);
    drop(fleet);
    let fleet = with(new);
    assert_eq!(user(&mut visitor, &fleet), "ann");
    redis.cli(&["CONFIG", "RESETSTAT"]);
    let answer = unused.clone().request(fleet.listen, Request::get("/me"));
    assert_eq!(answer.json()["user"], Value::Null, "the old key signs nothing any more");
    assert_eq!(redis.commands().get("fcall"), None, "and costs nothing");
    // The tag does not depend on signing keys: everywhere is everywhere.
    assert_eq!(post(&mut visitor, &fleet, "/account/everywhere").status, 204);
    assert_eq!(sessions(&redis).len(), 1, "one that was not asked about since");
}
