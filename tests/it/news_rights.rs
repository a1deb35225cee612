//! A Redis user that may not listen, or not tell: what is missing is said, everything comes all the same, and soon.

use std::path::Path;

use regatta::__internals::broadcast::Hub;
use regatta::__internals::config::schema::Mode;
use regatta::__internals::config::schema::RedisUrl;
use regatta::__internals::redis::Finding;
use regatta::__internals::redis::Health;
use regatta::__internals::redis::Redis;

use crate::support::broadcasts::numbers;
use crate::support::broadcasts::settings;
use crate::support::broadcasts::topic;
use crate::support::fleet::Plan;
use crate::support::redis::RedisServer;
use crate::support::redis::eventually;
use crate::support::wait;

/// The rules that OPERATIONS names, and what is taken away of them.
fn limited(server: &RedisServer, without: &[&str]) -> RedisUrl {
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
    RedisUrl::unix(Path::new(&format!("web:word@{}", server.socket().display())))
}

async fn worker(server: &RedisServer, url: &RedisUrl) -> Redis {
    let redis = Redis::new(&server.settings("p", Mode::Auto), url, "test").unwrap();
    redis.start();
    assert_eq!(redis.first_attempt().await, Health::Up);
    redis
}

async fn missing(server: &RedisServer, url: &RedisUrl) -> Vec<String> {
    let redis = Redis::new(&server.settings("p", Mode::Auto), url, "check").unwrap();
    redis.missing_rights().await.unwrap()
}

#[tokio::test]
async fn who_may_not_listen_or_tell_is_told_so_and_misses_nothing() {
    let cases: [(&[&str], Finding, &[&str]); 4] = [
        (&["resetchannels"], Finding::Deaf, &["&p:*"]),
        (&["-subscribe"], Finding::Deaf, &["+subscribe"]),
        (&["-publish"], Finding::Mute, &["+publish"]),
        (&["-@pubsub"], Finding::Deaf, &["+@pubsub"]),
    ];
    for (without, finding, expected) in cases {
        let server = RedisServer::start();
        let url = limited(&server, without);
        let (one, other) = (worker(&server, &url).await, worker(&server, &url).await);
        let hub = |redis: &Redis| {
            let hub = Hub::new(redis.clone(), &settings());
            hub.start();
            hub
        };
        let (tells, hears, chat) = (hub(&one), hub(&other), topic("chat"));
        let mut here = hears.subscribe(&chat, None).await.unwrap();
        eventually("it is told", async || other.news_findings().contains(finding)).await;
        assert_eq!(other.news_since(), None, "{without:?}: it is not relied on");
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
            other.news_findings().iter().count() == 0 && other.news_since().is_some()
        })
        .await;
        assert!(missing(&server, &url).await.is_empty(), "{without:?}");
    }
}

#[tokio::test]
async fn every_other_right_that_is_missing_is_named_as_rules_are() {
    let server = RedisServer::start();
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
    let server = RedisServer::start();
    let url = limited(&server, &["resetchannels"]);
    let plan = |args: &[&str]| {
        let plan = Plan::new().set("REGATTA_REDIS__URL", url.expose()).set("REGATTA_REDIS__PREFIX", "p");
        // With tasks, which every fleet listens for.
        let plan = plan.set("REGATTA_TASKS__RUNNING", "1");
        if args.is_empty() { plan } else { plan.args(args) }
    };
    let (code, said) = plan(&["check"]).run();
    assert!(code == 0 && said.contains("ACL SETUSER web &p:*"), "{code}: {said}");
    let fleet = plan(&[]).workers(1).start();
    let told = |fleet: &crate::support::fleet::Fleet| fleet.operator("/readyz").text();
    wait::until("it says what is missing", wait::LONG, || told(&fleet).contains("&PREFIX:*"));
}
