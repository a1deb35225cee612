//! Cookies: only ours count, and no one else's costs anything.

use std::collections::BTreeMap;

use rand::Rng;

use crate::support::client::{Connection, CookieClient, Request};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::parallel_clients;
use crate::support::redis::TestRedis;

/// Commands only a session needs.
fn session_commands(redis: &TestRedis) -> u64 {
    let of_hashes = |(name, _): &(&String, &u64)| {
        // Whatever touches a session touches its hash; lifetimes alone may be a worker's ledger's.
        name.starts_with('h') && !name.starts_with("hello") || *name == "expire"
    };
    redis.commands().iter().filter(of_hashes).map(|(_, calls)| calls).sum()
}

fn letters(length: usize) -> String {
    const ALPHABET: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut random = rand::rng();
    (0..length).map(|_| char::from(ALPHABET[random.random_range(0..ALPHABET.len())])).collect()
}

/// A cookie of the right shape that no one signed.
fn forged(real: &str) -> String {
    let mut parts: Vec<_> = real.split('.').map(str::to_owned).collect();
    for part in parts.iter_mut().skip(2) {
        *part = letters(part.len());
    }
    parts.join(".")
}

/// A visitor of this fleet with a session, and the session's cookie.
fn known(fleet: &TestFleet) -> (CookieClient, String) {
    let mut visitor = CookieClient::default();
    visitor.view(fleet.listen);
    // The session is made when its ticket comes back.
    visitor.view(fleet.listen);
    let cookie = visitor.cookies["sid"].clone();
    (visitor, cookie)
}

#[test]
fn ten_thousand_random_cookies_cost_no_session_command_and_no_key() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let (mut visitor, real) = known(&fleet);
    // Counted from here, with the counter's key in place.
    fleet.get("/counters/x");
    // Each worker notes what it executed, for any client: those keys are left out.
    // What the address may still make anew is forgotten after a second, and what its own limit was charged sooner.
    let own_limit = |key: &str| key.contains(":l:") && key.ends_with(":127.0.0.1");
    let lasting = |key: &String| !key.contains(":once:") && !key.contains(":n:") && !own_limit(key);
    let keys = || redis.keys().into_iter().filter(lasting).collect::<Vec<_>>();
    let (keys_before, commands_before) = (keys(), session_commands(&redis));
    parallel_clients::parallel(4, 25, |_| {
        let mut connection = Connection::open(fleet.listen).unwrap();
        for _ in 0..100 {
            let cookie = format!("sid={}", forged(&real));
            let response =
                connection.request(&Request::get("/counters/x").header("Cookie", &cookie)).unwrap();
            assert_eq!(response.status, 200);
            assert!(response.all("Set-Cookie").is_empty(), "{response:?}");
        }
    });
    assert_eq!(session_commands(&redis), commands_before);
    assert_eq!(keys(), keys_before);
    assert_eq!(visitor.view(fleet.listen).1, 3);
}

#[test]
fn a_forged_cookie_is_no_cookie() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).start();
    let (mut visitor, real) = known(&fleet);
    let forged = forged(&real);
    let mut forger = CookieClient { cookies: BTreeMap::from([("sid".into(), forged.clone())]) };
    assert_eq!(forger.view(fleet.listen).1, 1, "he is a new visitor");
    assert_ne!(forger.cookies["sid"], forged, "under an id of our choice");
    assert_eq!(forger.view(fleet.listen).1, 2);
    assert_eq!(visitor.view(fleet.listen).1, 3);
}

#[test]
fn a_signature_holds_for_its_own_cookie_only() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).start();
    let (_, one) = known(&fleet);
    let (_, other) = known(&fleet);
    let parts = |cookie: &str| cookie.split('.').map(str::to_owned).collect::<Vec<_>>();
    let (one, other) = (parts(&one), parts(&other));
    assert_eq!(one.len(), 4, "v1.kid.id.mac");
    let id_with_foreign_mac = format!("{}.{}.{}.{}", one[0], one[1], one[2], other[3]);
    let other_version = format!("v2.{}.{}.{}", one[1], one[2], one[3]);
    let other_key = format!("{}.zz.{}.{}", one[0], one[2], one[3]);
    let cut = one.join(".")[..one.join(".").len() - 1].to_owned();
    for cookie in [id_with_foreign_mac, other_version, other_key, cut] {
        let mut visitor = CookieClient { cookies: BTreeMap::from([("sid".into(), cookie.clone())]) };
        assert_eq!(visitor.view(fleet.listen).1, 1, "{cookie}");
    }
}

#[test]
fn malformed_and_oversized_cookies_are_harmless() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).start();
    let (_, real) = known(&fleet);
    let values = [
        "".to_owned(),
        "=".to_owned(),
        ";;;;".to_owned(),
        "sid".to_owned(),
        "sid=".to_owned(),
        "sid=%00".to_owned(),
        "sid=....".to_owned(),
        "sid=v1...".to_owned(),
        format!("sid=\"{}\"x", letters(20)),
        format!("sid=v1.{}", letters(8000)),
        format!("sid={}", "v1.".repeat(2000)),
        format!("{}=x", letters(5000)),
        (0..500).map(|n| format!("sid=v1.a{n}.b.c")).collect::<Vec<_>>().join("; "),
    ];
    for value in values {
        let mut connection = Connection::open(fleet.listen).unwrap();
        let response = connection.request(&Request::get("/").header("Cookie", &value)).unwrap();
        assert_eq!(response.view().1, 1, "{value:.80}");
    }
    let mut raw = b"GET / HTTP/1.1\r\nHost: fleet.test\r\nCookie: sid=\xff\xfe\x80v1\r\n\r\n".to_vec();
    let mut connection = Connection::open(fleet.listen).unwrap();
    connection.send(&raw).unwrap();
    assert_eq!(connection.receive(false).unwrap().view().1, 1, "bytes that are no text");
    raw.clear();
    let twice = format!("sid={}; other=1; sid={real}; sid=v1.x.y.z", forged(&real));
    let response = connection.request(&Request::get("/").header("Cookie", &twice)).unwrap();
    assert_eq!(response.view().1, 3, "the one that is ours counts, wherever it stands");
}

#[test]
fn the_cookie_is_for_this_site_only_and_secure_behind_tls() {
    let redis = TestRedis::shared();
    let fleet = TestFleetBuilder::on(&redis).start();
    let mut connection = Connection::open(fleet.listen).unwrap();
    let plain = connection.request(&Request::get("/")).unwrap();
    let cookie = plain.header("Set-Cookie").to_owned();
    assert!(cookie.starts_with("sid=v3."), "{cookie}");
    for attribute in ["; HttpOnly", "; SameSite=Lax", "; Path=/"] {
        assert!(cookie.contains(attribute), "{attribute} is missing in {cookie}");
    }
    assert!(!cookie.contains("Secure") && !cookie.contains("Domain"), "{cookie}");
    // The loopback address is a trusted proxy by default: it may say that the client came over TLS.
    let over_tls =
        Request::get("/").header("X-Forwarded-For", "203.0.113.7").header("X-Forwarded-Proto", "https");
    let secure = connection.request(&over_tls).unwrap().header("Set-Cookie").to_owned();
    assert!(secure.starts_with("__Host-sid=v3.") && secure.contains("; Secure"), "{secure}");
    let pair = secure.split(';').next().unwrap();
    let again = connection.request(&over_tls.clone().header("Cookie", pair)).unwrap();
    assert_eq!(again.view().1, 2);
    let pair = again.header("Set-Cookie").split(';').next().unwrap().to_owned();
    assert!(pair.starts_with("__Host-sid=v1."), "{pair}");
    let again = connection.request(&over_tls.header("Cookie", &pair)).unwrap();
    assert_eq!(again.view().1, 3);
    assert!(again.all("Set-Cookie").is_empty(), "a cookie that has not changed is not sent again");
}

#[test]
fn the_store_never_holds_what_a_cookie_says() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let (_, real) = known(&fleet);
    let id = real.split('.').nth(2).unwrap();
    for key in redis.keys() {
        assert!(!key.contains(id), "{key}");
    }
    assert!(redis.keys().iter().any(|key| key.contains(":s:")), "{:?}", redis.keys());
}

#[test]
fn a_session_that_is_gone_stays_gone() {
    let redis = TestRedis::start();
    let fleet = TestFleetBuilder::on(&redis).start();
    let (mut visitor, _) = known(&fleet);
    let before = redis.keys();
    let gone = before.iter().find(|key| key.contains(":s:")).unwrap();
    redis.cli(&["DEL", gone]);
    let first = visitor.request(fleet.listen, Request::get("/"));
    assert!(matches!(first.status, 200 | 401), "{first:?}");
    if first.status == 200 {
        assert_eq!(first.view().1, 1);
    }
    let views = visitor.view(fleet.listen).1;
    assert!(views <= 2, "{views}");
    assert!(!redis.keys().contains(gone), "it came back under its old key");
}

#[test]
fn keys_can_be_rotated() {
    let redis = TestRedis::shared();
    let (old, new) = (
        "the old key of this test is longer than 32 bytes",
        "the new key of this test is longer than 32 bytes",
    );
    let plan = TestFleetBuilder::on(&redis).workers(1);
    let fleet = plan.clone().set("REGATTA_SESSION__SECRETS", old).start();
    let (mut visitor, signed_by_old) = known(&fleet);
    drop(fleet);
    let both = plan.clone().set("REGATTA_SESSION__SECRETS", &format!("{new},{old}")).start();
    assert_eq!(visitor.view(both.listen).1, 3, "an old signature is accepted while its key is");
    let (mut newcomer, _) = known(&both);
    drop(both);
    let after = plan.set("REGATTA_SESSION__SECRETS", new).start();
    assert_eq!(newcomer.view(after.listen).1, 3, "the first key signs");
    let reissued = visitor.cookies["sid"] != signed_by_old;
    assert_eq!(visitor.view(after.listen).1, if reissued { 4 } else { 1 }, "a removed key signs nothing");
}

#[test]
fn the_log_never_holds_a_cookie() {
    let redis = TestRedis::shared();
    let secret = "a signing key that nobody may read";
    let plan = TestFleetBuilder::on(&redis).set("RUST_LOG", "trace").set("REGATTA_SESSION__SECRETS", secret);
    let fleet = plan.start();
    let (mut visitor, real) = known(&fleet);
    visitor.view(fleet.listen);
    let log = fleet.log();
    assert!(log.contains("worker ready"), "it was kept");
    for part in real.split('.').skip(2) {
        assert!(!log.contains(part), "{part} stands in the log");
    }
    assert!(!log.contains(secret));
}
