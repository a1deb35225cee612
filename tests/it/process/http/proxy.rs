//! Who a client is: the peer, unless a trusted proxy says otherwise, and then from the right.

use crate::support::client::{Connection, Request};
use crate::support::fleet::{TestFleet, TestFleetBuilder};
use crate::support::parallel_clients;
use crate::support::redis::TestRedis;

/// Requests a client gets within these tests: the refill of an hour does not come.
const BURST: usize = 5;

fn limited(redis: &TestRedis, trusted: &str) -> TestFleet {
    let plan = TestFleetBuilder::on(redis).set("REGATTA_LIMITS__DEFAULT__RATE", "1/h");
    plan.set("REGATTA_LIMITS__DEFAULT__BURST", &BURST.to_string())
        .set("REGATTA_PROXY__TRUSTED", trusted)
        .start()
}

/// How many of these requests, with one header each, are granted; the others have to be denied.
fn granted(fleet: &TestFleet, name: &str, values: impl IntoIterator<Item = String>) -> usize {
    let mut granted = 0;
    for value in values {
        let mut connection = Connection::open(fleet.listen).unwrap();
        let response = connection.request(&Request::get("/counters/x").header(name, &value)).unwrap();
        assert!(matches!(response.status, 200 | 429), "{name}: {value}: {response:?}");
        granted += usize::from(response.status == 200);
    }
    granted
}

#[test]
fn what_an_untrusted_peer_forwards_changes_nothing() {
    let redis = TestRedis::start();
    let fleet = limited(&redis, "192.0.2.0/24");
    let spoofed = |n: usize| format!("203.0.113.{n}");
    assert_eq!(granted(&fleet, "X-Forwarded-For", (0..20).map(spoofed)), BURST);
    for name in ["Forwarded", "X-Real-IP", "X-Client-IP", "CF-Connecting-IP"] {
        let value = if name == "Forwarded" { "for=198.51.100.9" } else { "198.51.100.9" };
        assert_eq!(granted(&fleet, name, [value.to_owned()]), 0, "{name}");
    }
    let keys = redis.cli(&["KEYS", "*:l:*"]);
    assert_eq!(keys.lines().filter(|key| !key.is_empty()).count(), 1, "one bucket: {keys}");
}

#[test]
fn behind_a_trusted_proxy_the_rightmost_stranger_is_the_client() {
    let redis = TestRedis::start();
    let fleet = limited(&redis, "127.0.0.0/8, 10.0.0.0/8");
    let spoofed_left = |n: usize| format!("198.51.100.{n}, 203.0.113.1");
    assert_eq!(
        granted(&fleet, "X-Forwarded-For", (0..20).map(spoofed_left)),
        BURST,
        "left values are anybody's"
    );
    let past_hops = |n: usize| format!("203.0.113.1, 10.0.0.{n}, 10.1.1.1");
    assert_eq!(granted(&fleet, "X-Forwarded-For", (0..3).map(past_hops)), 0, "trusted hops are walked past");
    let others = |n: usize| format!("203.0.113.{n}");
    assert_eq!(granted(&fleet, "X-Forwarded-For", (2..12).map(others)), 10, "other clients have their own");
}

#[test]
fn one_ipv6_network_is_one_client() {
    let redis = TestRedis::start();
    let fleet = limited(&redis, "127.0.0.0/8");
    let same = |n: usize| format!("2001:db8:1:2{n:02x}:{n:x}::{n:x}");
    assert_eq!(granted(&fleet, "X-Forwarded-For", (1..20).map(same)), BURST, "a /56");
    assert_eq!(granted(&fleet, "X-Forwarded-For", ["2001:db8:1:300::1".to_owned()]), 1, "the next one");
    let mapped = ["203.0.113.8", "::ffff:203.0.113.8", "[::ffff:203.0.113.8]:4711", "203.0.113.8:99"];
    let mapped = mapped.iter().cycle().take(12).map(|text| (*text).to_owned());
    assert_eq!(granted(&fleet, "X-Forwarded-For", mapped), BURST, "one address, however it is written");
}

#[test]
fn nonsense_from_a_proxy_is_the_proxys_own() {
    let redis = TestRedis::start();
    let fleet = limited(&redis, "127.0.0.0/8");
    let nonsense = ["unknown", "_hidden", "", ",,,", "256.1.1.1", "not an address", "203.0.113.1, nonsense"];
    let nonsense = nonsense.iter().cycle().take(14).map(|text| (*text).to_owned());
    assert_eq!(granted(&fleet, "X-Forwarded-For", nonsense), BURST, "all of it counts for the peer");
}

#[test]
fn only_the_configured_header_is_believed() {
    let redis = TestRedis::shared();
    let plan = TestFleetBuilder::on(&redis).set("REGATTA_PROXY__HEADER", "forwarded");
    let fleet =
        plan.set("REGATTA_LIMITS__DEFAULT__RATE", "1/h").set("REGATTA_LIMITS__DEFAULT__BURST", "5").start();
    let spoofed = |n: usize| format!("203.0.113.{n}");
    assert_eq!(granted(&fleet, "X-Forwarded-For", (0..12).map(spoofed)), BURST);
    let forwarded = |n: usize| format!("for=198.51.100.{n}, for=\"203.0.113.1:4711\";proto=https");
    assert_eq!(granted(&fleet, "Forwarded", (0..12).map(forwarded)), BURST);
}

#[test]
fn spoofing_in_parallel_over_all_workers_changes_nothing_either() {
    let redis = TestRedis::start();
    let fleet = limited(&redis, "192.0.2.0/24");
    let spoof = |client: usize| granted(&fleet, "X-Forwarded-For", [format!("203.0.113.{client}")]);
    let granted: usize = parallel_clients::parallel(8, 10, spoof).into_iter().sum();
    assert_eq!(granted, BURST);
}

#[test]
fn how_long_the_network_of_one_ipv6_client_is_may_be_said() {
    let redis = TestRedis::shared();
    for (length, clients) in [("64", 8), ("48", 1)] {
        let plan = TestFleetBuilder::on(&redis).set("REGATTA_LIMITS__DEFAULT__RATE", "1/h");
        let plan =
            plan.set("REGATTA_LIMITS__DEFAULT__BURST", "1").set("REGATTA_PROXY__TRUSTED", "127.0.0.0/8");
        let fleet = plan.set("REGATTA_LIMITS__IPV6_PREFIX", length).start();
        let of_one_48 = |n: usize| format!("2001:db8:{length}:{n}00::1");
        let granted = granted(&fleet, "X-Forwarded-For", (0..8).map(of_one_48));
        assert_eq!(granted, clients, "{length}");
    }
}
