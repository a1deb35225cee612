//! A Redis user that may not listen, or not tell: what is missing is said, everything comes all the same, and soon.

use std::path::Path;

use regatta::__internals::broadcasts::BroadcastHub;
use regatta::__internals::config::settings::{RedisUrl, ScriptingMode};
use regatta::__internals::redis::{RedisClient, RedisStatus, ServerWarning};

use crate::support::broadcasts::{numbers, settings, topic};
use crate::support::fleet::TestFleetBuilder;
use crate::support::redis::{TestRedis, eventually};
use crate::support::wait;

/// The rules that `docs/operations/redis.md` names, and what is taken away of them.
fn limited(server: &TestRedis, without: &[&str]) -> RedisUrl {
    let documented = [
        "ACL",
        "SETUSER",
        "web",
        "reset",
        "on",
        ">word",
        "~p:*",
        "&p:*",
        "-@all",
        "+@hash",
        "+@string",
        "+@bitmap",
        "+@sortedset",
        "+@stream",
        "+@list",
        "+@hyperloglog",
        "+@keyspace",
        "+@scripting",
        "+@connection",
        "+@pubsub",
        "-@dangerous",
        "+info",
        "+time",
        "+role",
        "+config|get",
        "+cluster|slots",
    ];
    assert_eq!(server.cli(&[&documented[..], without].concat()), "OK");
    RedisUrl::from_socket_path(Path::new(&format!("web:word@{}", server.socket().display())))
}

async fn worker(server: &TestRedis, url: &RedisUrl) -> RedisClient {
    let redis = RedisClient::new(&server.settings("p", ScriptingMode::Auto), url, "test").unwrap();
    redis.start();
    assert_eq!(redis.wait_for_first_attempt().await, RedisStatus::Up);
    redis
}

async fn missing(server: &TestRedis, url: &RedisUrl) -> Vec<String> {
    let redis = RedisClient::new(&server.settings("p", ScriptingMode::Auto), url, "check").unwrap();
    redis.missing_rights().await.unwrap()
}

#[tokio::test]
async fn who_may_not_listen_or_tell_is_told_so_and_misses_nothing() {
    let cases: [(&[&str], ServerWarning, &[&str]); 4] = [
        (&["resetchannels"], ServerWarning::SubscribeDenied, &["&p:*"]),
        (&["-subscribe"], ServerWarning::SubscribeDenied, &["+subscribe"]),
        (&["-publish"], ServerWarning::PublishDenied, &["+publish"]),
        (&["-@pubsub"], ServerWarning::SubscribeDenied, &["+@pubsub"]),
    ];
    for (without, finding, expected) in cases {
        let server = TestRedis::start();
        let url = limited(&server, without);
        let (one, other) = (worker(&server, &url).await, worker(&server, &url).await);
        let hub = |redis: &RedisClient| {
            let hub = BroadcastHub::new(redis.clone(), &settings());
            hub.start();
            hub
        };
        let (tells, hears, chat) = (hub(&one), hub(&other), topic("chat"));
        let mut here = hears.subscribe(&chat, None).await.unwrap();
        eventually("it is told", async || other.notification_warnings().contains(finding)).await;
        assert_eq!(other.notifications_complete_since(), None, "{without:?}: it is not relied on");
        for number in 0..5 {
            tells.publish(&chat, &number.to_string()).await.unwrap();
        }
        assert_eq!(numbers(&mut here, 5).await, [0, 1, 2, 3, 4], "{without:?}");
        assert!(other.inspect().await.unwrap().contains(finding), "{without:?}");
        let rights = missing(&server, &url).await;
        assert!(expected.iter().all(|rule| rights.iter().any(|it| it == rule)), "{without:?}: {rights:?}");
        // Once the rules are put right, the workers find that out by themselves.
        limited(&server, &[]);
        eventually("it is mended", async || {
            other.notification_warnings().iter().count() == 0
                && other.notifications_complete_since().is_some()
        })
        .await;
        assert!(missing(&server, &url).await.is_empty(), "{without:?}");
    }
}

#[tokio::test]
async fn every_other_right_that_is_missing_is_named_as_rules_are() {
    let server = TestRedis::start();
    let cases: [(&[&str], &[&str]); 6] = [
        (&["resetkeys", "~other:*"], &["~p:*"]),
        (&["-@stream"], &["+@stream"]),
        (&["-@scripting"], &["+@scripting"]),
        (&["-function"], &["+function|list", "+function|load"]),
        (&["-zpopmax", "-unlink"], &["+zpopmax", "+unlink"]),
        (&["-@bitmap"], &["+@bitmap"]),
    ];
    for (without, expected) in cases {
        let url = limited(&server, without);
        assert_eq!(missing(&server, &url).await, expected, "{without:?}");
    }
    assert!(server.keys().is_empty(), "{:?}", server.keys());
}

#[test]
fn check_and_readyz_say_what_is_missing() {
    let server = TestRedis::start();
    let url = limited(&server, &["resetchannels"]);
    let plan = |args: &[&str]| {
        let plan =
            TestFleetBuilder::new().set("REGATTA_REDIS__URL", url.expose()).set("REGATTA_REDIS__PREFIX", "p");
        // With tasks, which every fleet listens for.
        let plan = plan.set("REGATTA_TASKS__CONCURRENCY", "1");
        if args.is_empty() { plan } else { plan.args(args) }
    };
    let (code, said) = plan(&["check"]).run();
    assert!(code == 0 && said.contains("ACL SETUSER web &p:*"), "{code}: {said}");
    let fleet = plan(&[]).workers(1).start();
    let told = |fleet: &crate::support::fleet::TestFleet| fleet.operator("/readyz").text();
    wait::until("it says what is missing", wait::LONG, || told(&fleet).contains("&PREFIX:*"));
}
